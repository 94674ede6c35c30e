"""The classifier: classes, how features are made, and the trained head.

Kept in two forms. A folder with ``head.keras`` and ``classifier.json`` is small and answers for features. The export is
one Keras model, uint8 images in and probabilities out, for whoever serves it: plain ``keras.models.load_model`` reads
it where ssclass is not installed, since it holds standard Keras layers only.
"""

from __future__ import annotations

import json
import zipfile
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from ssclass.backbones import import_keras
from ssclass.errors import NotFoundError
from ssclass.extraction import Extractor, make_extractor, moments_model
from ssclass.features import Features, FeatureSpec

FORMAT = 1
HEAD_FILE = "head.keras"
ABOUT_FILE = "classifier.json"


@dataclass(frozen=True, eq=False)
class Classifier:
    """`head` is a Keras model from feature arrays to probabilities in the order of `classes`."""

    classes: tuple[str, ...]
    spec: FeatureSpec
    head_name: str
    head: Any

    def predict(self, features: Features) -> np.ndarray:
        """Probabilities float64 [n, classes]."""
        if not len(features):
            return np.empty((0, len(self.classes)))
        arrays = {name: features.arrays[name] for name in self.head.input}
        return np.asarray(self.head(arrays, training=False), dtype=np.float64)

    def extractor(self, spec: FeatureSpec) -> Extractor:
        """The network that makes the features."""
        return make_extractor(spec)

    def about(self) -> dict[str, Any]:
        """What ``classifier.json`` says."""
        return {
            "format": FORMAT,
            "classes": list(self.classes),
            "head": self.head_name,
            "spec": asdict(self.spec),
            "fingerprint": self.spec.fingerprint,
        }

    def save(self, folder: Path) -> None:
        """Write the head and what it is about into a folder, made if need be."""
        folder.mkdir(parents=True, exist_ok=True)
        save_model(self.head, folder / HEAD_FILE)
        (folder / ABOUT_FILE).write_text(json.dumps(self.about(), indent=2) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> Classifier:
        """The classifier of a folder that :meth:`save` wrote; NotFoundError when it is none."""
        classes, spec, name = _read_about(folder / ABOUT_FILE)
        return cls(classes, spec, name, load_model(folder / HEAD_FILE))

    def whole(self) -> Any:
        """One Keras model: uint8 [n, h, w, 3], RGB, any size, to probabilities float32 [n, classes]."""
        keras = import_keras()
        features = moments_model(self.spec)
        arrays = {name: features.output[name] for name in self.head.input}
        model = keras.Model(features.input, self.head(arrays), name="ssclass")
        # Keras's Resizing takes training=True as its default, and a plain call of the model hands that on to the
        # layers after it: frozen, the batch norms of the head use what they learnt, however the model is called.
        model.trainable = False
        return model

    def export(self, path: Path) -> None:
        """Write the whole model."""
        self.whole().save(path)

    @classmethod
    def from_export(cls, path: Path, about: Path) -> Classifier:
        """The classifier inside an export, given the ``classifier.json`` that belongs to it."""
        classes, spec, name = _read_about(about)
        return cls(classes, spec, name, load_model(path).get_layer("head"))


def _read_about(path: Path) -> tuple[tuple[str, ...], FeatureSpec, str]:
    try:
        return read_about(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise NotFoundError(f"{path}: not a classifier ({error}); train one with `ssclass retrain`") from error


def read_about(about: dict[str, Any]) -> tuple[tuple[str, ...], FeatureSpec, str]:
    """Classes, spec and head's name out of what :meth:`Classifier.about` gave; NotFoundError for another format."""
    if about["format"] != FORMAT:
        raise NotFoundError(
            f"classifier of format {about['format']}: this ssclass reads format {FORMAT}; install the one it came from"
        )
    spec = dict(about["spec"])
    spec["sizes"] = tuple(spec["sizes"])
    return tuple(about["classes"]), FeatureSpec(**spec), str(about["head"])


def save_model(model: Any, path: Path) -> None:
    """Save so that the same model gives the same bytes: DVC knows the file by them, and Keras writes the time in."""
    with TemporaryDirectory(dir=path.parent) as scratch:
        saved = Path(scratch) / path.name
        model.save(saved)
        with zipfile.ZipFile(saved) as source, zipfile.ZipFile(path, "w") as target:
            for name in sorted(source.namelist()):
                content = source.read(name)
                if name == "metadata.json":
                    content = json.dumps(json.loads(content) | {"date_saved": ""}, sort_keys=True).encode()
                target.writestr(zipfile.ZipInfo(name), content)  # ZipInfo's own date: 1980


def load_model(path: Path) -> Any:
    """A Keras model from a .keras file, nothing of it run but Keras; NotFoundError when it is none."""
    try:
        return import_keras().models.load_model(path, compile=False)
    except (OSError, ValueError) as error:
        raise NotFoundError(f"{path}: not a Keras model ({error}); train one with `ssclass retrain`") from error
