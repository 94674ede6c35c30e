"""A saved head answers by NumPy as Keras does, or Keras answers."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ssclass.model import saved_head
from ssclass.model.adopted import open_classifier
from ssclass.model.backbones import import_keras
from ssclass.model.classifier import Classifier, Member, load_model, save_model
from ssclass.model.features import Features
from ssclass.model.heads.registry import HEADS
from ssclass.model.saved_head import ALIKE, SavedHead, open_head
from ssclass.model.spec import FeatureSpec
from ssclass.model.training import train
from ssclass.params import DatasetParams, ModelParams, Params, TrainParams
from tests.support.models import clouds

CHECKOUT, GOLDEN = Path(__file__).parent.parent, Path(__file__).parent / "golden"
SPEC = FeatureSpec("mobilenet", "0" * 64, (224,), True)
HEADS_AND_CLASSES = [*((head, 2) for head in HEADS), ("T1", 3)]


@pytest.fixture(autouse=True)
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where Keras's answers are kept: a folder of the test's own."""
    monkeypatch.setattr(saved_head, "home", lambda: tmp_path / "home")
    return tmp_path / "home" / "engines" / "heads"


@pytest.fixture(scope="module", params=HEADS_AND_CLASSES, ids=[f"{head} of {n}" for head, n in HEADS_AND_CLASSES])
def classifier(request: pytest.FixtureRequest) -> Classifier:
    """One of each head, of two classes and of three."""
    head, count = request.param
    features, labels = clouds(12, count, apart=3.0)
    params = Params(
        dataset=DatasetParams(classes=("a", "b", "c")[:count]),
        model=ModelParams.model_validate({"head": head}),
        train=TrainParams(folds=3, epochs=4),
    )
    return train(features, labels, features.sha256s, SPEC, params).classifier


def never(path: Path) -> Any:
    raise AssertionError(f"{path.name} was loaded by Keras, though its answers are kept")


def test_every_head_answers_as_keras_does(classifier: Classifier, tmp_path: Path, monkeypatch: Any) -> None:
    classifier.save(tmp_path)
    monkeypatch.setattr("ssclass.model.classifier.load_model", never)
    opened = Classifier.load(tmp_path, quick=True)
    assert isinstance(opened.members[0].head, SavedHead)
    features, _ = clouds(40, len(classifier.classes), apart=2.0, seed=1)
    answers, expected = (each.predict(lambda spec: features) for each in (opened, classifier))
    assert answers.dtype == np.float64
    np.testing.assert_allclose(answers, expected, atol=ALIKE)
    assert opened.predict(lambda spec: Features((), {})).shape == (0, len(classifier.classes))
    alone = [opened.predict(lambda spec, row=row: features.rows([row])) for row in (0, 7)]
    np.testing.assert_allclose(np.concatenate(alone), expected[[0, 7]], atol=ALIKE)


def test_such_a_classifier_is_saved_again_as_the_same_bytes(classifier: Classifier, tmp_path: Path) -> None:
    classifier.save(tmp_path / "one")
    Classifier.load(tmp_path / "one", quick=True).save(tmp_path / "other")
    files = [path.name for path in sorted((tmp_path / "one").iterdir())]
    assert files == [path.name for path in sorted((tmp_path / "other").iterdir())]
    for name in files:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "other" / name).read_bytes()


@pytest.mark.parametrize("number", [1, 2])
def test_heads_of_older_formats_answer_as_they_did(number: int, kept: Path) -> None:
    folder = GOLDEN / f"classifier-{number}"
    opened = open_classifier(folder, quick=True)
    assert isinstance(opened, Classifier)
    head = opened.members[0].head
    assert isinstance(head, SavedHead)
    given = np.sin(np.arange(24, dtype=np.float32)).reshape(4, 1, 6)
    np.testing.assert_allclose(head({"224.out.mean": given}), np.load(folder / "answers.npy"), atol=ALIKE)
    assert len(list(kept.iterdir())) == 1


def test_opened_again_it_needs_neither_keras_nor_tensorflow(classifier: Classifier, tmp_path: Path, kept: Path) -> None:
    if classifier.head_name not in ("bilinear", "T1"):
        pytest.skip("two are enough")
    classifier.save(tmp_path)
    script = (
        "import sys\nfrom pathlib import Path\n"
        "from ssclass.model.saved_head import open_head\n"
        "head = open_head(Path(sys.argv[1]))\n"
        "assert head is not None and abs(head(head.probe()).sum(axis=1) - 1).max() < 1e-5\n"
        "assert not {'tensorflow', 'keras'} & set(sys.modules)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(CHECKOUT), "SSCLASS_HOME": str(kept.parent.parent)}
    command = [sys.executable, "-c", script, str(tmp_path / "head.keras")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


def model(*layers: Any, width: int = 6) -> Any:
    """A head of some layers before the last one."""
    keras = import_keras()
    given = keras.Input((1, width), name="224.out.mean")
    seen = given
    for layer in (*layers, keras.layers.Flatten(), keras.layers.Dense(2, activation="softmax", name="probabilities")):
        seen = layer(seen)
    return keras.Model({"224.out.mean": given}, seen, name="head")


def test_a_layer_or_a_setting_that_is_not_known_is_left_to_keras(tmp_path: Path) -> None:
    layers = import_keras().layers
    for number, unknown in enumerate(
        [
            layers.LayerNormalization(),
            layers.Dense(4, activation="gelu"),
            layers.ReLU(max_value=6),
            layers.Dense(4, dtype="mixed_float16"),
            layers.BatchNormalization(axis=1),
            layers.UnitNormalization(axis=1),
            layers.EinsumDense("abc,cd->abd", (1, 4)),
        ]
    ):
        path = tmp_path / f"{number}.keras"
        save_model(model(unknown), path)
        assert open_head(path) is None, unknown
        save_model(model(layers.Dense(4, activation="relu")), path)
        assert open_head(path) is not None
    made = Classifier(("a", "b"), (Member(SPEC, "linear", model(layers.LayerNormalization())),))
    made.save(tmp_path)
    features = Features(("x",), {"224.out.mean": np.ones((1, 1, 6), np.float32)})
    again = Classifier.load(tmp_path, quick=True)
    np.testing.assert_array_equal(again.predict(lambda spec: features), made.predict(lambda spec: features))


def test_one_that_answers_otherwise_is_left_to_keras(tmp_path: Path, monkeypatch: Any, caplog: Any) -> None:
    path = tmp_path / "head.keras"
    save_model(model(), path)
    monkeypatch.setitem(saved_head.LAYERS, "Flatten", lambda settings, tensors: lambda x: x.reshape(len(x), -1) * 1.01)
    with caplog.at_level(logging.WARNING):
        assert open_head(path) is None
    assert "does not answer as Keras does" in caplog.text


@pytest.mark.parametrize("damage", ["cut", "empty", "other", "gone"])
def test_damaged_kept_answers_are_asked_for_again(damage: str, tmp_path: Path, kept: Path) -> None:
    path = tmp_path / "head.keras"
    save_model(model(), path)
    assert open_head(path) is not None
    (file,) = kept.iterdir()
    data = file.read_bytes()
    if damage == "gone":
        file.unlink()
    elif damage == "other":
        np.save(file, np.zeros(7))
    else:
        file.write_bytes(data[:40] if damage == "cut" else b"")
    assert open_head(path) is not None
    assert file.read_bytes() == data


def test_where_nothing_can_be_kept_it_answers_all_the_same(tmp_path: Path, kept: Path) -> None:
    path = tmp_path / "head.keras"
    save_model(model(), path)
    kept.parent.mkdir(parents=True)
    kept.write_text("a file where the folder should be")
    assert open_head(path) is not None


def test_what_is_no_head_is_none(tmp_path: Path) -> None:
    path = tmp_path / "head.keras"
    assert open_head(path) is None
    for content in (b"", b"junk", b"PK\3\4junk"):
        path.write_bytes(content)
        assert open_head(path) is None
    save_model(model(), path)
    with zipfile.ZipFile(path) as file:
        parts = {name: file.read(name) for name in file.namelist()}
    config = json.loads(parts["config.json"])
    for change in ({"layers": []}, {"output_layers": ["nobody", 0, 0]}, {"layers": {"x": 1}}, {"input_layers": []}):
        broken = {**config, "config": {**config["config"], **change}}
        with zipfile.ZipFile(path, "w") as file:
            for name, body in {**parts, "config.json": json.dumps(broken).encode()}.items():
                file.writestr(name, body)
        assert open_head(path) is None


def test_it_becomes_a_keras_model_where_one_is_wanted(classifier: Classifier, tmp_path: Path) -> None:
    classifier.save(tmp_path)
    (member,) = Classifier.load(tmp_path, quick=True).members
    features, _ = clouds(4, len(classifier.classes), apart=2.0)
    given = {name: features.arrays[name] for name in member.head.input}
    model = load_model(tmp_path / "head.keras")
    np.testing.assert_array_equal(member.head.keras(given), model(given))
    for layer in model.layers[1:]:
        ours = member.head.get_layer(layer.name).get_weights()
        assert all(np.array_equal(one, other) for one, other in zip(ours, layer.get_weights(), strict=True)), layer.name
    with pytest.raises(ValueError, match="nobody"):
        member.head.get_layer("nobody")
