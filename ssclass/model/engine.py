"""The engine: how the whole model answers, fast, from the same weights.

Keras called as it is takes several times as long for one photo as the network itself, since Python walks through its
layers. An engine is made from a Keras model once: TensorFlow's own graph at a fixed size, with the weights folded into
it as constants, or the Keras model itself where that graph does not answer as the model does.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ssclass.data.shapes import Images, OwnShape, Size, by_shape, fitted
from ssclass.errors import FailedError
from ssclass.model.compute import batch_size

TOLERANCE = 1e-4
"""Probabilities of an engine and of Keras may differ by so much: the order of additions differs, nothing else."""
FOLDED, PLAIN = "tensorflow, constants folded", "keras"

Answering = Callable[[NDArray[np.uint8]], NDArray[np.float32]]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Engine:
    """Something that answers: `name` says how, `size` is what photos are decoded to.

    `together`: photos that it is given at once; 0: as many as suit TensorFlow's device.
    """

    name: str
    size: Size
    classes: int
    answer: Answering
    together: int = 0

    def predict(self, images: Images) -> NDArray[np.float64]:
        """Probabilities, float64 [n, classes], of decoded images; as many at once as suit the device.

        Those of one shape are answered together. Safe to call from several threads.
        """
        together = self.together or batch_size()
        found = np.zeros((len(images), self.classes))
        for rows, alike in by_shape(images):
            for at in range(0, len(rows), together):
                found[rows[at : at + together]] = self.answer(alike[at : at + together])
        return found


def open_engine(model: Any, size: Size) -> Engine:
    """The engine of a Keras model, uint8 [n, h, w, 3] to probabilities [n, classes], that answers as it does.

    FailedError when the model's answers are no probabilities at all.
    """
    classes = int(model.output_shape[-1])
    plain = Engine(PLAIN, size, classes, lambda images: np.asarray(model(images, training=False)))
    probe = probe_images(size)
    expected = plain.predict(probe)
    if not np.isfinite(expected).all():
        raise FailedError("the model's answers are not finite; choose another version, or train anew")
    try:
        engine = Engine(FOLDED, size, classes, folded(model, size))
        difference = largest_difference(engine.predict(probe), expected)
    except Exception as error:  # TensorFlow raises what it likes on a graph that it cannot fold
        log.warning("the model's graph cannot be folded (%s); Keras answers, which is slower", type(error).__name__)
        return plain
    if difference > TOLERANCE:
        log.warning("the folded graph differs from the model by %.2g; Keras answers, which is slower", difference)
        return plain
    return engine


class Folded:
    """TensorFlow's function of a graph whose weights are constants, for any number of images.

    The graph holds no variable: the model's own can be given up, and Grappler folds what depends on constants only.
    """

    def __init__(self, graph: Any) -> None:
        self.graph = graph

    def __call__(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Probabilities [n, classes] of images uint8 [n, h, w, 3]."""
        import tensorflow as tf

        (found,) = self.graph(tf.constant(images))
        return np.asarray(found.numpy())


def folded(model: Any, size: Size) -> Answering:
    """A Keras model of images as such a function."""
    return Folded(constant_graph(model, size))


def constant_graph(model: Any, size: Size, photos: int | None = None) -> Any:
    """TensorFlow's function of a Keras model with its weights as constants; `photos` fixes how many it takes.

    Where photos keep their shape it takes any height and width.
    """
    import tensorflow as tf
    from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

    # Without jit_compile: XLA is several times slower on these networks on a CPU.
    side = None if isinstance(size, OwnShape) else size
    shape = tf.TensorSpec((photos, side, side, 3), tf.uint8, name="images")
    traced = tf.function(lambda images: model(images, training=False), input_signature=[shape])
    return convert_variables_to_constants_v2(traced.get_concrete_function())


def probe_images(size: Size) -> NDArray[np.uint8]:
    """Images by which two engines are compared, uint8 [2, h, w, 3]: noise, and a slope of colours.

    They are squares, or where photos keep their shape, as wide as most photos.
    """
    width, height = fitted(size, 4, 3)
    noise = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    across, down = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    slope = np.stack([across, down, np.full((height, width), 96)], axis=-1)
    return np.stack([noise, slope.astype(np.uint8)])


def largest_difference(one: NDArray[Any], other: NDArray[Any]) -> float:
    """The largest difference of two arrays of the same shape; infinite where one of them is not finite."""
    difference = np.abs(np.asarray(one, float) - np.asarray(other, float))
    return float(difference.max(initial=0)) if np.isfinite(difference).all() else float("inf")
