"""The graph of a model is kept: it answers as Keras does, without a Keras model, or it is made again."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ssclass.errors import NotFoundError
from ssclass.model.backbones import import_keras
from ssclass.model.engine import FOLDED, TOLERANCE
from ssclass.model.keras_files import load_model
from ssclass.serving import kept
from ssclass.serving.kept import open_kept
from ssclass.serving.model import open_folder

CHECKOUT, SIZE = Path(__file__).parent.parent, 24


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where graphs are kept: a folder of the test's own."""
    monkeypatch.setattr(kept, "home", lambda: tmp_path / "home")
    return tmp_path / "home" / "engines"


@pytest.fixture(scope="module")
def write() -> Callable[[Path, float], Path]:
    """Writes a folder with a small network, whose answers depend on a number."""

    def network(where: Path, bias: float = 0.0) -> Path:
        keras = import_keras()
        images = keras.Input((None, None, 3), dtype="uint8", name="images")
        photo = keras.layers.Resizing(SIZE, SIZE, antialias=True)(images)
        seen = keras.layers.Conv2D(4, 3, activation="relu", kernel_initializer=keras.initializers.GlorotUniform(1))(
            keras.layers.Rescaling(1 / 255)(photo)
        )
        dense = keras.layers.Dense(2, activation="softmax")
        model = keras.Model(images, dense(keras.layers.GlobalAveragePooling2D()(seen)))
        dense.set_weights([np.eye(4, 2, dtype=np.float32) * 5, np.array([bias, 0], np.float32)])
        where.mkdir(exist_ok=True)
        model.save(where / "model.keras")
        (where / "model.json").write_text(json.dumps({"classes": ["a", "b"], "size": SIZE}))
        return where

    return network


def images(count: int) -> np.ndarray:
    return np.random.default_rng(count).integers(0, 256, (count, SIZE, SIZE, 3), dtype=np.uint8)


def never() -> Any:
    raise AssertionError("the model was loaded, though its graph is kept")


ASKED = """
import sys
from pathlib import Path
import numpy as np
from ssclass.model import keras_files
from ssclass.serving.model import open_folder

keras_files.import_keras = None  # TensorFlow imports Keras itself, but nothing may be built with it
model = open_folder("it", Path(sys.argv[1]))
images = np.random.default_rng(3).integers(0, 256, (3, model.size, model.size, 3), dtype=np.uint8)
np.save(sys.argv[2], model.predict(images))
np.testing.assert_array_equal(model.predict_few(images), model.predict(images))
"""


def test_opened_again_it_answers_the_same_and_builds_no_keras_model(write: Any, tmp_path: Path, folder: Path) -> None:
    where = write(tmp_path / "model")
    model = open_folder("it", where)
    assert model.engine.name == FOLDED
    expected = np.asarray(load_model(where / "model.keras")(images(3)))
    np.testing.assert_allclose(model.predict(images(3)), expected, atol=TOLERANCE)
    environment = {**os.environ, "PYTHONPATH": str(CHECKOUT), "SSCLASS_HOME": str(folder.parent)}
    command = [sys.executable, "-c", ASKED, str(where), str(tmp_path / "answers.npy")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    np.testing.assert_array_equal(np.load(tmp_path / "answers.npy"), model.predict(images(3)))


def test_another_model_in_the_same_place_is_another(write: Any, tmp_path: Path, folder: Path) -> None:
    first = open_folder("it", write(tmp_path / "model")).predict(images(2))
    again = open_folder("it", write(tmp_path / "model", 3.0))
    assert again.predict(images(2))[:, 0].min() > first[:, 0].max()
    assert len(list(folder.iterdir())) == 2


@pytest.mark.parametrize("damage", ["cut", "empty", "gone", "otherwise"])
def test_what_is_damaged_or_answers_otherwise_is_made_again(
    damage: str, write: Any, tmp_path: Path, folder: Path
) -> None:
    path = write(tmp_path / "model") / "model.keras"
    expected = open_kept(path, SIZE, lambda: load_model(path)).predict(images(3))
    (there,) = folder.iterdir()
    for file in sorted(there.iterdir()):
        data = file.read_bytes()
        if damage == "gone":
            file.unlink()
        elif damage == "otherwise":
            with np.load(there / kept.ANSWERS) as known:
                names = known["names"]
            np.savez(there / kept.ANSWERS, answers=np.full((2, 2), 0.5, np.float32), names=names)
        else:
            file.write_bytes(data[: len(data) // 2] if damage == "cut" else b"")
        loaded = []
        found = open_kept(path, SIZE, lambda loaded=loaded: loaded.append(1) or load_model(path))
        assert loaded, file.name
        np.testing.assert_allclose(found.predict(images(3)), expected, atol=TOLERANCE)
        open_kept(path, SIZE, never)


def test_a_few_are_kept_those_that_were_opened_last(
    write: Any, tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kept, "MOST", 2)
    paths = [write(tmp_path / str(number), float(number)) / "model.keras" for number in range(3)]
    for at, path in enumerate(paths[:2]):
        open_kept(path, SIZE, lambda path=path: load_model(path))
        for each in folder.iterdir():
            os.utime(each, (at, each.stat().st_mtime - 100))
    open_kept(paths[0], SIZE, never)
    open_kept(paths[2], SIZE, lambda: load_model(paths[2]))
    for path in (paths[0], paths[2]):
        open_kept(path, SIZE, never)
    with pytest.raises(AssertionError, match="loaded"):
        open_kept(paths[1], SIZE, never)


def test_what_is_no_model_is_said_to_be_none(write: Any, tmp_path: Path) -> None:
    where = write(tmp_path / "model")
    (where / "model.keras").write_bytes(b"PK\3\4junk")
    with pytest.raises(NotFoundError, match=r"model\.keras: not a Keras model"):
        open_folder("it", where).predict(images(1))
