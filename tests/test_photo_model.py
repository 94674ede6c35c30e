"""The registered model takes photos in any form, decodes them as training does, and needs no ssclass where it runs."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from ssclass.data.images import decode
from ssclass.model.backbones import import_keras
from ssclass.tracking import packaged
from tests.support.models import pictures

CLASSES = ("dark", "light")
SIZE = 32


def network() -> Any:
    """A network that tells dark photos from light ones, and turned ones apart: its weights differ by place."""
    keras = import_keras()
    images = keras.Input((None, None, 3), dtype="uint8", name="images")
    photo = keras.layers.Resizing(SIZE, SIZE, antialias=True)(images)
    flat = keras.layers.Flatten()(keras.layers.Rescaling(1 / 255, offset=-0.4)(photo))
    weights = np.random.default_rng(0).normal(0.01, 0.02, (SIZE * SIZE * 3, 1))
    answers = keras.layers.Dense(2, activation="softmax")
    model = keras.Model(images, answers(flat))
    answers.set_weights([np.hstack([-weights, weights]).astype(np.float32), np.zeros(2, np.float32)])
    model.trainable = False
    return model


@pytest.fixture(scope="module")
def logged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model as the pipeline logs it."""
    from mlflow.models import Model

    folder = tmp_path_factory.mktemp("logged") / "model"
    made = SimpleNamespace(classes=CLASSES, size=SIZE, export=lambda path: network().save(path))
    packaged.write_model(folder, made, {"decision_key": "k" * 16}, Model())  # type: ignore[arg-type]
    return folder


@pytest.fixture(scope="module")
def opened(logged: Path) -> Any:
    import mlflow

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return mlflow.pyfunc.load_model(str(logged))


def turned() -> bytes:
    """A JPEG that is upright only by its EXIF orientation."""
    import io

    from PIL import Image

    picture = Image.open(io.BytesIO(pictures()["rocket.jpg"]))
    exif = Image.Exif()
    exif[0x0112] = 6
    written = io.BytesIO()
    picture.save(written, "JPEG", exif=exif)
    return written.getvalue()


def expected(data: bytes) -> np.ndarray:
    return np.asarray(network()(decode(data, SIZE)[None]))[0]


def test_it_takes_photos_in_every_form(opened: Any, tmp_path: Path) -> None:
    import pandas as pd

    photos = [pictures()["chelsea.png"], turned()]
    paths = [tmp_path / "cat.png", tmp_path / "rocket"]
    for path, data in zip(paths, photos, strict=True):
        path.write_bytes(data)
    encoded = [base64.b64encode(data).decode() for data in photos]
    pixels = np.stack([decode(data, SIZE) for data in photos])
    forms: list[Any] = [
        photos,
        [str(path) for path in paths],
        paths,
        encoded,
        [f"data:image/png;base64,{each}" for each in encoded],
        pixels,
        pixels.tolist(),
        list(pixels),
        np.array(photos, dtype=object),
        pd.Series(photos),
        pd.DataFrame({"photo": photos, "other": [1, 2]}),
        pd.DataFrame({"anything": encoded}),
        {"photo": photos},
        [{"photo": encoded[0]}, {"b64": encoded[1]}],
        {"columns": ["photo"], "data": [[each] for each in encoded]},
        [photos[0], paths[1]],
    ]
    for form in forms:
        found = opened.predict(form)
        assert list(found.columns) == ["label", "probability", "probabilities"]
        for row, data in zip(found.to_dict("records"), photos, strict=True):
            odds = expected(data)
            assert list(row["probabilities"]) == list(CLASSES)
            np.testing.assert_allclose(list(row["probabilities"].values()), odds, atol=1e-4)
            assert row["label"] == CLASSES[odds.argmax()]
            assert row["probability"] == max(row["probabilities"].values())
    for one in (photos[0], paths[0], str(paths[0]), encoded[0], pixels[0]):
        assert len(opened.predict(one)) == 1
    assert list(opened.predict(pd.DataFrame({"photo": photos}, index=[7, 3])).index) == [7, 3]
    assert len(opened.predict([])) == 0


def test_pixels_of_another_size_are_resized_as_the_decode_does(opened: Any) -> None:
    import io

    from PIL import Image

    data = pictures()["chelsea.png"]
    whole = np.asarray(Image.open(io.BytesIO(data)))
    (row,) = opened.predict(whole).to_dict("records")
    np.testing.assert_allclose(list(row["probabilities"].values()), expected(data), atol=1e-4)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (b"", "photo 1: empty"),
        ([pictures()["chelsea.png"], b"no photo"], "photo 2: not an image"),
        ("no-such-file", "photo 1: .*neither the path of a file nor base64"),
        (3.5, "photo 1: a float"),
        (None, "photo 1: a NoneType"),
        (np.zeros((4, 4, 4), np.uint8), "shape"),
        (np.full((1, 4, 4, 3), 0.5), "whole numbers"),
        (np.full((1, 4, 4, 3), 256), "whole numbers"),
        ([[1, 2], [3]], "photo 1"),
        ({"x": 1}, "neither 'photo' nor 'b64'"),
    ],
)
def test_what_is_no_photo_is_named(opened: Any, given: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        opened.predict(given)


OUTSIDE = """
import sys
sys.path[:] = [each for each in sys.path if "site-packages" in each or "lib/python" in each]
try:
    import ssclass
except ImportError:
    pass
else:  # an editable install
    sys.meta_path[:] = [each for each in sys.meta_path if "ditable" not in repr(each)]
    sys.path[:] = [each for each in sys.path if not __import__("pathlib").Path(each, "ssclass").exists()]
    for name in [name for name in sys.modules if name.split(".")[0] == "ssclass"]:
        del sys.modules[name]
import json, mlflow, pandas as pd
model = mlflow.pyfunc.load_model(sys.argv[1])
found = model.predict(pd.DataFrame({"photo": [sys.argv[2]]})).to_dict("records")
assert "ssclass" not in sys.modules, "the packed code imports the installed one"
print("FOUND " + json.dumps(found))
"""


def test_it_answers_where_ssclass_is_not_installed(logged: Path, tmp_path: Path) -> None:
    photo = tmp_path / "photo.jpg"
    photo.write_bytes(turned())
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", OUTSIDE, str(logged), str(photo)],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    (row,) = json.loads(done.stdout.rpartition("FOUND ")[2])
    np.testing.assert_allclose(list(row["probabilities"].values()), expected(turned()), atol=1e-4)


def test_in_mlflows_server_a_client_cannot_name_files_of_the_machine(opened: Any, tmp_path: Path, monkeypatch) -> None:
    path = tmp_path / "photo.png"
    path.write_bytes(pictures()["chelsea.png"])
    monkeypatch.setenv("_MLFLOW_IS_IN_SERVING_ENVIRONMENT", "true")
    with pytest.raises(ValueError, match="no base64"):
        opened.predict([str(path)])


def test_what_mlflow_serves_takes_its_own_example_and_base64(logged: Path) -> None:
    """`mlflow models serve` hands a request to its scoring server's application: that one, without a process."""
    import mlflow
    from fastapi.testclient import TestClient
    from mlflow.pyfunc.scoring_server import init

    data = pictures()["chelsea.png"]
    client = TestClient(init(mlflow.pyfunc.load_model(str(logged))))
    example = client.post("/invocations", json=json.loads((logged / "serving_input_example.json").read_text()))
    assert example.status_code == 200, example.text
    for body in (
        {"inputs": [base64.b64encode(data).decode()]},
        {"inputs": decode(data, SIZE)[None].tolist()},
        {"instances": [{"b64": base64.b64encode(data).decode()}]},
        {"dataframe_split": {"columns": ["photo"], "data": [[base64.b64encode(data).decode()]]}},
        {"dataframe_records": [{"photo": base64.b64encode(data).decode()}]},
    ):
        answer = client.post("/invocations", json=body)
        assert answer.status_code == 200, answer.text
        (row,) = answer.json()["predictions"]
        np.testing.assert_allclose(list(row["probabilities"].values()), expected(data), atol=1e-4)
    bad = client.post("/invocations", json={"inputs": ["AAAA"]})
    assert bad.status_code == 400


def test_mlflow_models_predict_takes_it(logged: Path, tmp_path: Path) -> None:
    """MLflow's own way to try a model before it is served, from data at hand and from a file of JSON."""
    import mlflow
    import pandas as pd

    encoded = base64.b64encode(pictures()["chelsea.png"]).decode()
    (request := tmp_path / "request.json").write_text(json.dumps({"inputs": [encoded]}))
    given: list[dict[str, Any]] = [
        {"input_data": pd.DataFrame({"photo": [encoded]})},
        {"input_path": str(request), "content_type": "json"},
    ]
    for number, each in enumerate(given):
        out = tmp_path / f"answers-{number}.json"
        mlflow.models.predict(str(logged), **each, env_manager="local", output_path=str(out))
        (row,) = json.loads(out.read_text())["predictions"]
        np.testing.assert_allclose(list(row["probabilities"].values()), expected(pictures()["chelsea.png"]), atol=1e-4)


def test_mlflows_keras_flavour_gives_the_network(logged: Path) -> None:
    import mlflow.keras

    image = decode(turned(), SIZE)[None]
    found = np.asarray(mlflow.keras.load_model(str(logged))(image))
    np.testing.assert_allclose(found[0], expected(turned()), atol=1e-6)


def test_it_says_what_it_takes_gives_and_needs(logged: Path) -> None:
    from mlflow.models import Model

    model = Model.load(str(logged))
    assert model.saved_input_example_info is not None
    assert model.signature.outputs.input_names() == ["label", "probability", "probabilities"]
    needs = {line.partition("==")[0] for line in (logged / "requirements.txt").read_text().splitlines()}
    assert set(packaged.REQUIREMENTS) <= needs
    assert model.metadata["classes"] == list(CLASSES)
    assert model.metadata["size"] == SIZE
    assert model.metadata["decision_key"] == "k" * 16


def test_opening_it_warns_of_no_type_hints(logged: Path) -> None:
    """What comes in is checked by the model itself; MLflow's own filter of warnings shows them whatever ours says."""
    import mlflow

    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        mlflow.pyfunc.load_model(str(logged))
    assert [str(each.message) for each in told if "type hint" in str(each.message).lower()] == []


def test_a_changed_file_is_not_what_was_logged(logged: Path, tmp_path: Path) -> None:
    import shutil

    copy = tmp_path / "model"
    shutil.copytree(logged, copy)
    tags = {packaged.SUM_TAG: packaged.files_sum(logged)}
    assert packaged.broken(copy, "k" * 16, tags) is None
    assert "model of" in (packaged.broken(copy, "another", tags) or "")
    with (copy / "photo_model.py").open("a") as file:
        file.write("# changed\n")
    assert packaged.broken(copy, "k" * 16, {}) is None, "of models of older versions no sum is known"
    assert "others than those" in (packaged.broken(copy, "k" * 16, tags) or "")
    (copy / "artifacts" / "model.keras").write_bytes(b"PK")
    assert "damaged" in (packaged.broken(copy, "k" * 16, tags) or "")


def test_two_models_with_other_code_are_side_by_side(tmp_path: Path, monkeypatch) -> None:
    first = packaged.pack(tmp_path / "a")
    assert packaged.pack(tmp_path / "b") == first
    renamed = packaged._renamed
    monkeypatch.setattr(packaged, "needed_modules", lambda: packaged_without_engine)
    packaged_without_engine = [path for path in _modules() if path.name != "engine.py"]
    assert packaged.pack(tmp_path / "c") != first
    assert renamed("    from ssclass.data.images import x\n", "p") == "    from p.data.images import x\n"


def _modules() -> list[Path]:
    from ssclass.settings import PACKAGE

    return sorted((PACKAGE / "data").glob("*.py"))


def test_no_module_that_is_packed_imports_ssclass(tmp_path: Path) -> None:
    package = packaged.pack(tmp_path)
    for path in (tmp_path / package).rglob("*.py"):
        for line in path.read_text().splitlines():
            assert not line.strip().startswith(("import ssclass", "from ssclass ", "from ssclass.")), (path.name, line)
