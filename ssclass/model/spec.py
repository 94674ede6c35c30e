"""Specs: everything but the photos that decides what features are, each with a fingerprint.

A :class:`FeatureSpec` is of a backbone of ours, a :class:`ModelSpec` of a classifier that people had before (its
answers stand in for features), and `ssclass.model.augmentation.AugmentedSpec` of altered copies of photos.
"""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, Protocol, Self

import numpy as np

from ssclass.data.images import DECODE_VERSION, decode
from ssclass.data.shapes import OwnShape, Size
from ssclass.errors import ParamsError
from ssclass.model.backbones import find_backbone
from ssclass.model.tuned_blocks import TunedBlocks
from ssclass.model.weights import load_weights
from ssclass.params import FeatureParams

if TYPE_CHECKING:
    from ssclass.data.shards import Row

LAYOUT_VERSION = 2  # of the arrays and of the graph between decode and arrays

CROP = 0.75  # a crop's share of the photo's width and height


class Spec(Protocol):
    """What the memo of features needs of a spec."""

    @property
    def fingerprint(self) -> str:
        """64 hex digits: two specs with the same one give the same features."""
        ...

    @property
    def name(self) -> str:
        """The words that follow "features of BATCH" when progress is shown; empty for photos as they are."""
        ...

    @property
    def network(self) -> FeatureSpec | ModelSpec:
        """The spec of the network that the pixels go through."""
        ...

    @property
    def frozen_part(self) -> Spec:
        """The spec of the activations that the tuned blocks of the network take; itself, where there are none."""
        ...

    def pixels(self, sha256: str, data: bytes) -> np.ndarray:
        """A photo as the network wants it: uint8 [h, w, 3]; raises Refused."""
        ...

    def photos(self, rows: Iterable[Row]) -> tuple[str, ...]:
        """sha256s of the photos of a shard that have such features."""
        ...


class DerivedSpec(ABC):
    """A spec of features that are made of those of another spec, `source`, and of something found from photos.

    `seen`: photos digests of the shards that these photos are in.
    """

    source: Spec
    seen: tuple[str, ...]

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """As :attr:`Spec.fingerprint`, after a word that says what is derived, and a dash."""

    @property
    @abstractmethod
    def taken(self) -> tuple[str, ...] | None:
        """The names of the arrays of `source` that the features are made of; None: all."""

    @abstractmethod
    def derived(self, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The arrays of photos, given those of `source`."""

    @property
    def name(self) -> str:
        """The words that follow "features of BATCH" when progress is shown."""
        return self.source.name

    @property
    def network(self) -> FeatureSpec | ModelSpec:
        """The spec of the network that the pixels go through."""
        return self.source.network

    @property
    def frozen_part(self) -> Spec:
        """The spec of the activations that the tuned blocks of the network take."""
        return self.source.frozen_part

    def pixels(self, sha256: str, data: bytes) -> np.ndarray:
        """A photo as the network wants it: uint8 [h, w, 3]; raises Refused."""
        return self.source.pixels(sha256, data)

    def photos(self, rows: Iterable[Row]) -> tuple[str, ...]:
        """sha256s of the photos of a shard that have such features."""
        return self.source.photos(rows)


class PhotoSpec:
    """A spec of photos as they are, not of altered copies."""

    name = ""

    @property
    def network(self) -> Self:
        """A spec of photos is the spec of its network."""
        return self

    def photos(self, rows: Iterable[Row]) -> tuple[str, ...]:
        """sha256s of the photos of a shard that have such features: all of them."""
        return tuple(row.sha256 for row in rows)


@dataclass(frozen=True)
class FeatureSpec(PhotoSpec):
    """Everything but the photos that decides what the features of a backbone are.

    `maps`: with the feature maps themselves. `photo`: side of the decoded photo, pixels, where it is larger than the
    views want, as another member of an ensemble wants it. `tuned_blocks`: the last blocks, where they are not the
    published ones. `before_blocks`: instead of features, the activations before so many last blocks, ``224.cut``,
    float16 [photos, views, h, w, channels]. `own_shape`: photos keep their shape (`ssclass.data.shapes`), in one size.
    """

    backbone: str
    weights_sha256: str
    sizes: tuple[int, ...]
    flip: bool
    crops: str = "none"
    maps: bool = False
    photo: int | None = None
    decode_version: int = DECODE_VERSION
    before_blocks: int = 0
    tuned_blocks: TunedBlocks | None = None
    own_shape: bool = False

    def about(self) -> dict[str, Any]:
        """The spec as JSON-able values, for classifier.json and the fingerprint.

        Its keys are part of both formats: ``cut`` is `before_blocks`, ``tail`` the digest of `tuned_blocks`, and
        neither is there where nothing is tuned, nor ``shape`` where photos are squares.
        """
        apart = ("before_blocks", "tuned_blocks", "own_shape")
        names = (entry.name for entry in fields(self) if entry.name not in apart)
        about = {name: getattr(self, name) for name in names}
        if self.own_shape:
            about["shape"] = "own"
        if self.before_blocks:
            about |= {"cut": self.before_blocks, "maps": False}  # they are the same whatever is made of them after it
        if self.tuned_blocks:
            about["tail"] = {"blocks": self.tuned_blocks.blocks, "sha256": self.tuned_blocks.sha256}
        return about

    @classmethod
    def from_about(cls, about: Mapping[str, Any], tuned_blocks: TunedBlocks | None = None) -> FeatureSpec:
        """The spec that :meth:`about` described; TypeError or KeyError when it is none.

        `tuned_blocks` are given apart, as `about` has only their digest.
        """
        own = {name: value for name, value in about.items() if name not in ("cut", "tail", "shape")}
        own["sizes"] = tuple(own["sizes"])
        shape = about.get("shape", "square")
        if shape not in ("square", "own"):
            raise KeyError(shape)
        return cls(**own, before_blocks=about.get("cut", 0), tuned_blocks=tuned_blocks, own_shape=shape == "own")

    @property
    def fingerprint(self) -> str:
        """sha256 (hex, 64) of this spec."""
        text = json.dumps(self.about() | {"layout": LAYOUT_VERSION}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    @property
    def blocks(self) -> int:
        """How many last blocks are left out, or have weights of their own."""
        return self.tuned_blocks.blocks if self.tuned_blocks else self.before_blocks

    @property
    def frozen_part(self) -> FeatureSpec:
        """The spec of the activations that the tuned blocks take."""
        return replace(self, before_blocks=self.blocks, tuned_blocks=None)

    @property
    def size(self) -> int:
        """Side of the decoded photo, pixels; smaller ones and crops are made from it inside the network."""
        return self.photo or self.canvas(max(self.sizes))

    @property
    def photo_size(self) -> Size:
        """What photos are decoded to."""
        return OwnShape(self.size) if self.own_shape else self.size

    def canvas(self, size: int) -> int:
        """Side of the photo, pixels, whose views have `size`."""
        return round(size / CROP) if self.crops == "five" else size

    def corners(self, size: int) -> tuple[tuple[int, int], ...]:
        """(top, left) of each view of `size` in its canvas, pixels."""
        free = self.canvas(size) - size
        if not free:
            return ((0, 0),)
        return (0, 0), (0, free), (free, 0), (free, free), (free // 2, free // 2)

    @property
    def views(self) -> int:
        """How many views of each photo the network sees."""
        return len(self.corners(max(self.sizes))) * (2 if self.flip else 1)

    def pixels(self, sha256: str, data: bytes) -> np.ndarray:
        """A photo as the network wants it: uint8 [h, w, 3]; raises Refused."""
        return decode(data, self.photo_size)


@dataclass(frozen=True)
class ModelSpec(PhotoSpec):
    """Everything but the photos that decides the answers of an adopted model, which stand in for features.

    `model`: uint8 images [n, h, w, 3], RGB, any size, to probabilities float32 [n, classes]. `size` in pixels.
    """

    model_sha256: str
    size: int
    model: Any = field(compare=False)
    decode_version: int = DECODE_VERSION
    name = " (answers of the adopted model)"

    @property
    def photo_size(self) -> int:
        """What photos are decoded to: squares."""
        return self.size

    @property
    def fingerprint(self) -> str:
        """sha256 (hex, 64) of this spec."""
        return hashlib.sha256(f"adopted {self.model_sha256} {self.size} {self.decode_version}".encode()).hexdigest()

    @property
    def frozen_part(self) -> ModelSpec:
        """The spec itself: an adopted model is never split."""
        return self

    def pixels(self, sha256: str, data: bytes) -> np.ndarray:
        """A photo as the network wants it: uint8 [size, size, 3]; raises Refused."""
        return decode(data, self.size)


def feature_spec(params: FeatureParams, *, maps: bool = False, before_blocks: int = 0) -> FeatureSpec:
    """The spec that params.yaml asks for; fetches the backbone's weights when they are not cached yet.

    ParamsError for views that are smaller than the backbone can take.
    """
    backbone, own = find_backbone(params.backbone), params.shape == "own"
    sizes = params.sizes or (backbone.size,)
    least = min(min(shape) for shape in OwnShape(min(sizes)).shapes) if own else min(sizes)
    if least < backbone.min_size:
        raise ParamsError(
            f"features.sizes: {least} pixels; {backbone.name} needs {backbone.min_size} at least, and wants "
            f"{backbone.size}"
        )
    weights = load_weights(backbone.name)
    return FeatureSpec(
        backbone.name,
        weights.sha256,
        sizes,
        params.flip,
        params.crops,
        maps,
        before_blocks=before_blocks,
        own_shape=own,
    )
