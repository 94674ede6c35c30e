"""The classifier: classes, how features are made, and the heads fitted to them; one network and head, or several.

It is kept in two forms. A folder with ``classifier.json`` and ``head.keras`` (``head_2.keras``, …) is small and
predicts from features. The export is one Keras model, uint8 images in and probabilities out, for whoever serves it:
plain ``keras.models.load_model`` reads it where ssclass is not installed, since it holds standard Keras layers only.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ssclass.data.shapes import Size
from ssclass.errors import NotFoundError
from ssclass.model.backbones import import_keras
from ssclass.model.ensemble import combine_tensors, combined
from ssclass.model.extraction import feature_arrays
from ssclass.model.features import Features
from ssclass.model.heads.bilinear import answers as root_answers
from ssclass.model.heads.registry import HEADS
from ssclass.model.keras_files import UNREADABLE, load_model, save_model
from ssclass.model.saved_head import SavedHead, keep_answers, open_head
from ssclass.model.spec import FeatureSpec
from ssclass.model.tuned_blocks import TunedBlocks
from ssclass.model.whole_model import save_whole, takes
from ssclass.text import message, shown

FORMAT = 2
ABOUT_FILE = "classifier.json"
BATCH = 32  # photos whose features go through a head together: of maps at 320 pixels 13 MB, once a layer

FeaturesOf = Callable[[Any], Features]
"""A function that gives the features of some photos, always the same ones, by whatever spec it is called with."""


@dataclass(frozen=True, eq=False)
class Member:
    """One network and its head: a Keras model from feature arrays to probabilities, or one that NumPy computes."""

    spec: FeatureSpec
    head_name: str
    head: Any

    @property
    def name(self) -> str:
        """The name of the pair, as in ``model.members``: ``mobilenet/T1``."""
        return f"{self.spec.backbone}/{self.head_name}"

    def predict(self, features: Features) -> np.ndarray:
        """Probabilities float64 [n, classes] of the photos with these features, or with roots in the place of maps."""
        roots = [array for name, array in features.arrays.items() if name.endswith(".root")]
        if roots and not features.arrays.keys() >= set(self.head.input):
            return root_answers(self.head, roots[0])
        parts = []
        for at in range(0, len(features), BATCH):
            arrays = {name: features.arrays[name][at : at + BATCH] for name in self.head.input}
            parts.append(np.asarray(self.head(arrays, training=False), dtype=np.float64))
        return np.concatenate(parts) if parts else np.empty((0, self.head.output.shape[-1]))


@dataclass(frozen=True, eq=False)
class Classifier:
    """Members that know the same classes, in this order; `combine` as in `ssclass.model.ensemble`."""

    classes: tuple[str, ...]
    members: tuple[Member, ...]
    combine: str = "mean"

    def __post_init__(self) -> None:
        for member, file in zip(self.members, head_files(len(self.members)), strict=True):
            member.head.name = file.removesuffix(".keras")  # they are side by side in an export

    @property
    def specs(self) -> tuple[FeatureSpec, ...]:
        """The specs of the features that it needs, each once."""
        return tuple(dict.fromkeys(member.spec for member in self.members))

    @property
    def head_name(self) -> str:
        """The name of its head, ``T1``, or of its members, ``mean of mobilenet/T1, resnet50/T1``."""
        if len(self.members) == 1:
            return self.members[0].head_name
        return f"{self.combine} of {', '.join(member.name for member in self.members)}"

    @property
    def size(self) -> Size:
        """What photos are decoded to; the same for all members."""
        return self.members[0].spec.photo_size

    @property
    def fingerprint(self) -> str:
        """The fingerprint of its features, or, where it needs several kinds, a digest of their fingerprints."""
        prints = [spec.fingerprint for spec in self.specs]
        return prints[0] if len(prints) == 1 else hashlib.sha256(" ".join(prints).encode()).hexdigest()

    def predict(self, features_of: FeaturesOf) -> np.ndarray:
        """Probabilities float64 [n, classes] of the photos whose features `features_of` gives."""
        features = {spec: features_of(spec) for spec in self.specs}
        return self.answers(lambda member: features[member.spec])

    def answers(self, features_of_member: Callable[[Member], Features]) -> np.ndarray:
        """Probabilities float64 [n, classes] of photos, given what each member takes of them."""
        return combined([member.predict(features_of_member(member)) for member in self.members], self.combine)

    def about(self) -> dict[str, Any]:
        """The content of ``classifier.json``."""
        return {
            "format": FORMAT,
            "classes": list(self.classes),
            "combine": self.combine,
            "members": [
                {"head": member.head_name, "spec": member.spec.about(), "fingerprint": member.spec.fingerprint}
                for member in self.members
            ],
        }

    def save(self, folder: Path) -> None:
        """Write the heads, the tuned blocks and ``classifier.json`` into a folder, made if need be."""
        folder.mkdir(parents=True, exist_ok=True)
        for member, file in zip(self.members, head_files(len(self.members)), strict=True):
            if isinstance(member.head, SavedHead):
                member.head.save(folder / file)
            else:
                save_model(member.head, folder / file)
                keep_answers(folder / file, member.head)
            if member.spec.tuned_blocks:
                member.spec.tuned_blocks.save(folder / _tuned_file(file))
        (folder / ABOUT_FILE).write_text(json.dumps(self.about(), indent=2) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path, *, quick: bool = False) -> Classifier:
        """The classifier of a folder that :meth:`save` wrote; NotFoundError when it is none.

        NumPy computes heads that it trained, and, if it is to be `quick`, all others too, where that gives what Keras
        gives (`ssclass.model.saved_head`).
        """
        classes, members, combine = _read_about(folder / ABOUT_FILE)

        def opened(head: str, path: Path) -> Any:
            by_numpy = quick or (head in HEADS and HEADS[head].numpy)
            return (by_numpy and open_head(path)) or load_model(path)

        found = tuple(
            Member(spec, head, opened(head, folder / file))
            for (spec, head), file in zip(members, head_files(len(members)), strict=True)
        )
        return cls(classes, found, combine)

    def whole(self) -> Any:
        """The classifier as one Keras model: uint8 RGB [n, h, w, 3], any size, to probabilities [n, classes].

        Where photos keep their shape it resizes nothing: height and width are those of the decode.
        """
        keras = import_keras()
        images = keras.Input((None, None, 3), dtype="uint8", name="images")
        arrays = {
            spec: feature_arrays(spec, images, suffix=f"_{number}" if number > 1 else "")
            for number, spec in enumerate(self.specs, 1)
        }
        answers = [
            _keras_head(member)({name: arrays[member.spec][name] for name in member.head.input})
            for member in self.members
        ]
        model = keras.Model(images, combine_tensors(answers, self.combine), name="ssclass")
        # Keras's Resizing takes training=True as its default, and a plain call of the model hands that on to the
        # layers after it: frozen, the batch norms of the heads use their moving statistics, whatever the call.
        model.trainable = False
        return model

    def export(self, path: Path) -> None:
        """Write :meth:`whole` to a ``.keras`` file, without Keras where that is not needed."""
        member, *others = self.members
        if not others and takes(member.spec, member.head):
            save_whole(path, member.spec, member.head, self.whole)
        else:
            self.whole().save(path)


def _keras_head(member: Member) -> Any:
    """The head of a member as a Keras model of the member's name."""
    if not isinstance(member.head, SavedHead):
        return member.head
    member.head.keras.name = member.head.name
    return member.head.keras


def head_files(members: int) -> list[str]:
    """The names of the files of so many members' heads: ``head.keras``, ``head_2.keras``, …"""
    return ["head.keras"] + [f"head_{number}.keras" for number in range(2, members + 1)]


def _tuned_file(head_file: str) -> str:
    """The name of the file of a member's tuned blocks: ``tail.npz`` beside ``head.keras``."""
    return head_file.replace("head", "tail").replace(".keras", ".npz")


def _read_about(path: Path) -> tuple[tuple[str, ...], list[tuple[FeatureSpec, str]], str]:
    """Read classes, (spec, head's name) of each member, and `combine`; format 1 had one member."""
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
        if about["format"] not in (1, FORMAT):
            raise NotFoundError(
                f"{path}: format {shown(about['format'])}; this ssclass reads format {FORMAT}; install the one it came "
                "from"
            )
        members = []
        listed = about.get("members", [about])
        for member, file in zip(listed, head_files(len(listed)), strict=True):
            spec, blocks = member["spec"], None
            if "tail" in spec:
                blocks = TunedBlocks.load(path.with_name(_tuned_file(file)), **spec["tail"])
            members.append((FeatureSpec.from_about(spec, blocks), str(member["head"])))
        classes, combine = names_of(about["classes"]), about.get("combine", "mean")
        if combine not in ("mean", "vote"):
            raise ValueError(f"answers are combined by {combine!r}")
        return classes, members, combine
    except UNREADABLE as error:
        raise NotFoundError(
            f"{path}: not a classifier ({message(error, 300)}); train one with `ssclass retrain`"
        ) from error


def names_of(value: Any) -> tuple[str, ...]:
    """Names of classes; ValueError unless these are two or more different ones."""
    if not isinstance(value, list) or not all(isinstance(each, str) for each in value) or len(set(value)) < 2:
        raise ValueError("its classes are no names")
    return tuple(value)
