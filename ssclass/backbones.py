"""The frozen networks: what Keras calls them, where their weights live, how they want their pixels.

Preprocessing is part of the network here, so that every caller hands over uint8 RGB, 0–255, and nothing else.
"""

from __future__ import annotations

import os
import re
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from ssclass.compute import share_gpus
from ssclass.errors import ParamsError
from ssclass.settings import home


@dataclass(frozen=True)
class Backbone:
    """One network of `keras.applications`.

    `file` is the name that Keras itself gives the weights, `url` where Keras fetches them. `sha256` is the digest
    over the tensors (:func:`ssclass.weights.digest`) of the published weights, where it is known.
    """

    name: str
    builder: str
    url: str
    sha256: str | None = None

    @property
    def file(self) -> str:
        """Keras's own name of the weights file."""
        return self.url.rpartition("/")[2]

    def build(self, *, top: bool, size: int | None = None) -> Any:
        """The Keras model with untrained weights; `top`: with its ImageNet classifier, at 224 pixels."""
        keras = import_keras()
        shape = (224, 224, 3) if top else (size, size, 3)
        return getattr(keras.applications, self.builder)(include_top=top, weights=None, input_shape=shape)

    def trunk(self, tensors: Sequence[np.ndarray], size: int) -> Any:
        """The Keras model without classifier: preprocessed float32 [n, size, size, 3] in, feature map out."""
        model = self.build(top=False, size=size)
        model.set_weights(tensors[: len(model.weights)])  # the classifier's come last
        model.trainable = False
        return model

    def preprocess(self, images: Any) -> Any:
        """Keras tensor of pixels, 0–255, to what the network was trained on (-1 to 1)."""
        return import_keras().layers.Rescaling(1 / 127.5, offset=-1)(images)


_KERAS = "https://storage.googleapis.com/tensorflow/keras-applications"
_ALL = (
    Backbone(
        "mobilenet",
        "MobileNet",
        f"{_KERAS}/mobilenet/mobilenet_1_0_224_tf.h5",
        sha256="f795532087290985f6de97a0e7abab6ccf3576516b42287cc07049011d89f595",
    ),
)
_CHATTER = re.compile(rb"WARNING: All log messages before absl|[IWE]0000 ")
BACKBONES = {backbone.name: backbone for backbone in _ALL}


def find_backbone(name: str) -> Backbone:
    """The backbone of that name; ParamsError lists the known ones."""
    try:
        return BACKBONES[name]
    except KeyError:
        known = ", ".join(BACKBONES)
        raise ParamsError(f"features.backbone: no backbone {name!r}; choose one of {known}") from None


def import_keras() -> Any:
    """Keras on TensorFlow, with its folder inside ours: the user's own Keras settings neither matter nor change."""
    if "keras" not in sys.modules:
        os.environ["KERAS_HOME"] = str(home() / "keras")
        os.environ["KERAS_BACKEND"] = "tensorflow"
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # a machine without GPU is not an error
        with _without_chatter():
            import keras  # noqa: F401

            share_gpus()
    return sys.modules["keras"]


@contextmanager
def _without_chatter() -> Iterator[None]:
    """Drop what TensorFlow's C++ part writes to file descriptor 2 before its own log level holds."""
    sys.stderr.flush()
    kept = os.dup(2)
    with tempfile.TemporaryFile() as said:
        os.dup2(said.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)
            said.seek(0)
            for line in said:
                if not _CHATTER.match(line):
                    os.write(2, line)
