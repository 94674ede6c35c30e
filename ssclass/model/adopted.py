"""A Keras classifier that people had before: checked, and wrapped into the form of an export.

It has no features of ours, so its probabilities take their place: the memo keeps those of a photo under a fingerprint
that is the model's. The rest of the pipeline sees a classifier like any other.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ssclass.errors import InputError, NotFoundError
from ssclass.files import BAD_ZIP, check_unpacked, file_sha256
from ssclass.model.backbones import import_keras
from ssclass.model.classifier import ABOUT_FILE, Classifier, FeaturesOf, names_of
from ssclass.model.extraction import ANSWERS
from ssclass.model.keras_files import MODEL_LIMIT, UNREADABLE, load_model, save_model
from ssclass.model.spec import ModelSpec
from ssclass.text import message

FORMAT = 3
"""The format of classifier.json; 1 and 2 are heads on features of ours."""
MODEL_FILE = "model.keras"
HEAD_NAME = "adopted"

# How pixels, 0-255, become what the network was trained on: (whether channels are reversed to BGR, scale, offset). The
# three with names are Keras's own (keras.applications.imagenet_utils.preprocess_input).
_CAFFE_MEAN, _TORCH_MEAN, _TORCH_SD = (103.939, 116.779, 123.68), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
PREPROCESSING: dict[str, tuple[bool, Any, Any]] = {
    "none": (False, 1.0, 0.0),
    "0..1": (False, 1 / 255, 0.0),
    "-1..1": (False, 1 / 127.5, -1.0),
    "caffe": (True, 1.0, [-mean for mean in _CAFFE_MEAN]),
    "torch": (
        False,
        [1 / (255 * sd) for sd in _TORCH_SD],
        [-mean / sd for mean, sd in zip(_TORCH_MEAN, _TORCH_SD, strict=True)],
    ),
}
_OF_KERAS = {
    "none": ("mobilenet_v3", "efficientnet", "efficientnet_v2", "convnext"),
    "-1..1": ("mobilenet", "mobilenet_v2", "inception_v3", "inception_resnet_v2", "xception", "resnet_v2", "nasnet"),
    "caffe": ("resnet", "resnet50", "vgg16", "vgg19"),
    "torch": ("densenet",),
}
NAMES = {name: kind for kind, names in _OF_KERAS.items() for name in names} | {kind: kind for kind in PREPROCESSING}
"""What may be declared: a kind of preprocessing, or the module of `keras.applications` that it comes from."""

UNSAFE = ("Lambda", "TFSMLayer", "TorchModuleWrapper", "JaxLayer", "FlaxLayer")
"""Layers of Keras that run code, or load it from elsewhere."""


@dataclass(frozen=True, eq=False)
class Adopted:
    """An adopted classifier: its classes, in the order of the model's outputs, and the model inside its spec."""

    classes: tuple[str, ...]
    spec: ModelSpec

    @property
    def size(self) -> int:
        """Side of the decoded photos, pixels."""
        return self.spec.size

    @property
    def fingerprint(self) -> str:
        """The fingerprint of its answers, which stand in for features."""
        return self.spec.fingerprint

    def predict(self, features_of: FeaturesOf) -> np.ndarray:
        """Probabilities float64 [n, classes] of the photos whose answers `features_of` gives."""
        found = features_of(self.spec)
        return np.asarray(found.arrays[ANSWERS], np.float64) if len(found) else np.empty((0, len(self.classes)))

    def whole(self) -> Any:
        """The Keras model, of which there is no smaller form."""
        return self.spec.model

    def export(self, path: Path) -> None:
        """Write the Keras model to a ``.keras`` file."""
        self.spec.model.save(path)

    def save(self, folder: Path) -> None:
        """Write ``classifier.json`` into the folder that already holds the model."""
        about = {"format": FORMAT, "classes": list(self.classes), "head": HEAD_NAME, "size": self.spec.size}
        about |= {"model_sha256": self.spec.model_sha256, "fingerprint": self.spec.fingerprint}
        (folder / ABOUT_FILE).write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> Adopted:
        """Open a folder that :meth:`save` wrote to; NotFoundError when it is none."""
        try:
            about = json.loads((folder / ABOUT_FILE).read_text(encoding="utf-8"))
            sha256, size, classes = str(about["model_sha256"]), int(about["size"]), names_of(about["classes"])
        except UNREADABLE as error:
            raise NotFoundError(
                f"{folder}: not an adopted model ({message(error, 300)}); `ssclass adopt` makes one"
            ) from error
        return cls(classes, ModelSpec(sha256, size, load_model(folder / MODEL_FILE)))


def open_classifier(folder: Path, *, quick: bool = False) -> Classifier | Adopted:
    """Open the classifier that a folder holds, whichever of the two kinds it is; `quick` as in `Classifier.load`."""
    return Adopted.load(folder) if (folder / MODEL_FILE).exists() else Classifier.load(folder, quick=quick)


def wrap(
    path: Path, folder: Path, classes: Sequence[str], preprocess: str, *, logits: bool = False, size: int | None = None
) -> Adopted:
    """Put a person's classifier into `folder` in the form of an export, and open it.

    `classes` in the order of its outputs; a model with one sigmoid output gives the probability of the second of two.
    `logits`: its outputs lack the softmax (or the sigmoid). `size`: side of its images, pixels, where it takes any.
    InputError when it is unsafe to load or no such classifier.
    """
    check_safe(path)
    try:
        theirs = load_model(path)
        sides, outputs = _shapes(path, theirs, size)
    except (NotFoundError, TypeError, AttributeError) as error:
        why = " ".join(str(error).split())[:300]
        raise InputError(f"{path}: not a Keras classifier of images that loads here ({why}); save it anew") from error
    if outputs != len(classes) and (outputs, len(classes)) != (1, 2):
        raise InputError(
            f"{path}: {outputs} outputs, but {len(classes)} classes ({', '.join(classes)}); name one for each output, "
            "in their order, with --classes"
        )
    layers = import_keras().layers
    images = import_keras().Input((None, None, 3), dtype="uint8", name="images")
    reverse, scale, offset = PREPROCESSING[NAMES[preprocess]]
    pixels = layers.Resizing(*sides, antialias=True, name="resize")(images)
    if reverse:
        pixels = import_keras().ops.flip(pixels, axis=-1)
    if (scale, offset) != (1.0, 0.0):
        pixels = layers.Rescaling(scale, offset=offset, name="preprocess")(pixels)
    theirs.trainable = False
    answers = theirs(pixels)
    if logits:
        answers = layers.Activation("sigmoid" if outputs == 1 else "softmax")(answers)
    if outputs == 1:
        answers = layers.Concatenate()([layers.Rescaling(-1.0, offset=1.0)(answers), answers])
    model = import_keras().Model(images, answers, name="ssclass")
    model.trainable = False
    save_model(model, folder / MODEL_FILE)
    Adopted(tuple(classes), ModelSpec(file_sha256(folder / MODEL_FILE), max(sides), model)).save(folder)
    return Adopted.load(folder)  # so that what is scored is what was kept


def _shapes(path: Path, model: Any, size: int | None) -> tuple[tuple[int, int], int]:
    """Height and width of the images of a person's model, in pixels, and the number of its outputs."""
    taken, given = model.input_shape, model.output_shape
    if isinstance(taken, list | dict) or isinstance(given, list | dict) or len(taken) != 4 or taken[-1] != 3:
        raise InputError(f"{path}: takes {taken}; adopt a model of one RGB image, [n, height, width, 3]")
    if len(given) != 2 or given[1] is None:
        raise InputError(f"{path}: gives {given}; adopt a model that gives one number a class, [n, classes]")
    height, width = taken[1] or size, taken[2] or size
    if not height or not width:
        raise InputError(f"{path}: takes images of any size; say with --size at which it was trained")
    if size and size not in (height, width):
        raise InputError(f"{path}: takes images of {height} x {width}, not of {size}; leave --size out")
    return (int(height), int(width)), int(given[1])


def check_safe(path: Path) -> None:
    """InputError when loading a .keras file would run code of its own: checked before Keras sees it."""
    try:
        check_unpacked(path, MODEL_LIMIT)
        with zipfile.ZipFile(path) as file:
            config = json.loads(file.read("config.json"))
    except (OSError, KeyError, ValueError, RecursionError, *BAD_ZIP) as error:
        raise InputError(
            f"{path}: not a .keras file ({message(error, 300) or type(error).__name__}); save it with "
            "model.save('NAME.keras'), Keras 3"
        ) from error
    for module, name in _classes(config):
        if name in UNSAFE:
            raise InputError(f"{path}: has a {name} layer, which runs code of its own; build it of standard layers")
        if module not in ("builtins", "keras", "") and not module.startswith("keras."):
            raise InputError(f"{path}: has {name} of {module}, which is no part of Keras; build it of standard layers")


def _classes(config: Any) -> Iterator[tuple[str, str]]:
    """Yield module and class of everything that a Keras configuration would build."""
    if isinstance(config, dict):
        if "class_name" in config:
            yield str(config.get("module") or ""), str(config["class_name"])
            if config.get("registered_name") and ">" in str(config["registered_name"]):
                package, name = str(config["registered_name"]).split(">", 1)
                yield ("" if package == "keras" else package), name
        for value in config.values():
            yield from _classes(value)
    elif isinstance(config, list):
        for value in config:
            yield from _classes(value)


def check_probabilities(answers: np.ndarray, path: Path) -> None:
    """InputError unless float [n, classes] are probabilities: in 0 to 1, and 1 in all for each photo."""
    if not np.isfinite(answers).all():
        raise InputError(f"{path}: gives numbers that are not finite; was it saved whole?")
    sums = answers.sum(axis=1)
    if answers.min() < -1e-3 or np.abs(sums - 1).max() > 1e-2:
        raise InputError(
            f"{path}: its outputs are no probabilities (a photo's add up to {sums[np.abs(sums - 1).argmax()]:.2f}); "
            "say --logits when it has no softmax or sigmoid"
        )
