"""The engine answers as the Keras model does that it is made of, or gives way to it."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from ssclass.errors import FailedError
from ssclass.model import engine
from ssclass.model.backbones import import_keras

SIZE = 24
ALIKE = 5e-5  # the order of additions differs


@pytest.fixture(scope="module")
def model() -> Any:
    """A small network of the layers that an export has: two resizes, a batch norm, an einsum."""
    keras = import_keras()
    keras.utils.set_random_seed(0)
    images = keras.Input((None, None, 3), dtype="uint8")
    photo = keras.layers.Resizing(SIZE, SIZE, antialias=True)(images)
    small = keras.layers.Resizing(16, 16, antialias=True)(photo)
    seen = keras.layers.Conv2D(8, 3, activation="relu")(keras.layers.Rescaling(1 / 127.5, offset=-1)(small))
    places = keras.layers.Reshape((196, 8))(keras.layers.BatchNormalization()(seen))
    weighed = keras.layers.EinsumDense("npd,p->npd", (196, 8))(places)
    answers = keras.layers.Dense(3, activation="softmax")(keras.layers.GlobalAveragePooling1D()(weighed))
    made = keras.Model(images, answers)
    made.trainable = False
    return made


def images(count: int) -> np.ndarray:
    return np.random.default_rng(count).integers(0, 256, (count, SIZE, SIZE, 3), dtype=np.uint8)


@pytest.mark.parametrize("count", [0, 1, 4, 9])
def test_it_answers_as_the_model_does(model: Any, count: int) -> None:
    made = engine.open_engine(model, SIZE)
    assert made.name == engine.FOLDED
    answers = made.predict(images(count))
    assert answers.shape == (count, 3)
    assert answers.dtype == np.float64
    np.testing.assert_allclose(answers, np.asarray(model(images(count))) if count else answers, atol=ALIKE)


def test_its_graph_holds_no_variables(model: Any) -> None:
    graph = engine.constant_graph(model, SIZE)
    assert not {node.op for node in graph.graph.as_graph_def().node} & {"VarHandleOp", "ReadVariableOp"}


def test_threads_share_it(model: Any) -> None:
    made = engine.open_engine(model, SIZE)
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda n: made.predict(images(n)), range(1, 17)))
    for n, answer in enumerate(answers, 1):
        np.testing.assert_allclose(answer, np.asarray(model(images(n))), atol=ALIKE)


def test_where_the_graph_answers_otherwise_or_cannot_be_made_keras_answers(model: Any, monkeypatch) -> None:
    monkeypatch.setattr(engine, "folded", lambda model, size: lambda some: np.full((len(some), 3), 1 / 3))
    made = engine.open_engine(model, SIZE)
    assert made.name == engine.PLAIN
    np.testing.assert_allclose(made.predict(images(2)), np.asarray(model(images(2))), atol=ALIKE)

    def cannot(model: Any, size: int) -> Any:
        raise ValueError("no such op")

    monkeypatch.setattr(engine, "folded", cannot)
    assert engine.open_engine(model, SIZE).name == engine.PLAIN


def test_a_model_that_answers_no_numbers_is_refused() -> None:
    keras = import_keras()
    images = keras.Input((None, None, 3), dtype="uint8")
    mean = keras.layers.GlobalAveragePooling2D()(keras.layers.Rescaling(1.0)(images))
    with pytest.raises(FailedError, match="not finite"):
        engine.open_engine(keras.Model(images, keras.layers.Rescaling(np.inf)(mean)), SIZE)
