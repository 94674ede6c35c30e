"""Augmented photos: seeded copies of training photos, rotated, moved, sheared, zoomed, cropped, mirrored, recoloured.

A copy is made between decode and network, so the network sees it like the photo itself (crops and all), and its
features are remembered like the photo's. It depends on the photo's sha256, the copy's number and the params, and on
nothing else: not on order, batch or machine.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from ssclass.data.images import decode
from ssclass.params import AugmentParams

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from ssclass.data.shards import Row
    from ssclass.model.spec import FeatureSpec

AUGMENT_VERSION = 1  # part of the copies' fingerprint: change what `augment` yields, and it must go up
_FILL: dict[str, Any] = {"wrap": "grid-wrap"}  # SciPy's names, where they are others than Keras's


@dataclass(frozen=True)
class AugmentedSpec:
    """Everything but the photos that decides what the features of their copies with a `number` (from 0) are."""

    network: FeatureSpec
    params: AugmentParams
    number: int

    @property
    def name(self) -> str:
        """The words that follow "features of BATCH" when progress is shown."""
        return f", augmented copy {self.number + 1}"

    @property
    def fingerprint(self) -> str:
        """sha256 (hex, 64) of this spec; how many copies there are is not in it."""
        about = [self.network.fingerprint, _amounts(self.params), self.number, AUGMENT_VERSION]
        return hashlib.sha256(json.dumps(about).encode()).hexdigest()

    @property
    def frozen_part(self) -> AugmentedSpec:
        """The spec of the activations that the tuned blocks of the network take."""
        return replace(self, network=self.network.frozen_part)

    def pixels(self, sha256: str, data: bytes) -> np.ndarray:
        """The copy of a photo: uint8 [h, w, 3], as the network wants it; raises Refused."""
        return augmented_copy(sha256, self.number, decode(data, self.network.photo_size), self.params)

    def photos(self, rows: Iterable[Row]) -> tuple[str, ...]:
        """sha256s of the photos that have copies: training photos, never held-out ones."""
        return tuple(row.sha256 for row in rows if row.split == "train")


def augmented_copy(sha256: str, number: int, image: np.ndarray, params: AugmentParams) -> np.ndarray:
    """The copy with a number (from 0) of a photo, given decoded: uint8 [h, w, 3] both."""
    seed = hashlib.sha256(f"{sha256} {number} {_amounts(params)}".encode()).digest()
    return augment(image, params, np.random.default_rng(list(seed)))


def _amounts(params: AugmentParams) -> str:
    """The params that a copy depends on, as JSON; how many copies there are is not among them."""
    return json.dumps(params.model_dump(mode="json", exclude={"copies"}), sort_keys=True)


def augment(image: np.ndarray, params: AugmentParams, draw: np.random.Generator) -> np.ndarray:
    """An altered image, uint8 [h, w, 3], by amounts that are drawn evenly within the params.

    One affine map, hence one interpolation (bilinear), then the colours.
    """
    from scipy.ndimage import affine_transform

    sides = np.array(image.shape[:2])
    rotation, shear = np.deg2rad([draw.uniform(-most, most) for most in (params.rotation, params.shear)])
    part = draw.uniform(1 - params.crop, 1)  # of the photo's side; the crop may lie anywhere
    scale = part * draw.uniform(1 - params.zoom, 1 + params.zoom)
    move = draw.uniform(-1, 1, 2) * params.shift * sides + draw.uniform(-0.5, 0.5, 2) * (1 - part) * (sides - 1)
    mirror = np.where(draw.random(2) < 0.5, -1, 1)
    mirror[0] = mirror[0] if params.flip in ("vertical", "both") else 1
    mirror[1] = mirror[1] if params.flip in ("horizontal", "both") else 1
    # Where a pixel (row, column) of the copy is in the photo, both from the middle.
    rotated = np.array([[np.cos(rotation), -np.sin(rotation)], [np.sin(rotation), np.cos(rotation)]])
    there = rotated @ np.array([[1, np.tan(shear)], [0, 1]]) @ np.diag(scale * mirror)
    middle = (sides - 1) / 2
    offset = middle + move - there @ middle
    mode = _FILL.get(params.fill, params.fill)
    channels = [affine_transform(image[..., i], there, offset, order=1, mode=mode) for i in range(3)]
    return _recolour(np.stack(channels, axis=-1), params, draw)


def _recolour(image: np.ndarray, params: AugmentParams, draw: np.random.Generator) -> np.ndarray:
    from PIL import Image, ImageEnhance

    changed = Image.fromarray(image)
    for enhance, most in (
        (ImageEnhance.Brightness, params.brightness),
        (ImageEnhance.Contrast, params.contrast),
        (ImageEnhance.Color, params.colour),
    ):
        factor = draw.uniform(1 - most, 1 + most)
        if most:
            changed = enhance(changed).enhance(factor)
    return np.asarray(changed)


def contact_sheet(photos: Sequence[tuple[str, bytes]], params: AugmentParams, side: int = 160) -> Figure:
    """A picture with a row for each photo, given as (sha256, bytes): the photo, then its copies.

    The copies have the seeds of those in training, at another size. `side`: pixels of each picture in a row.
    """
    from matplotlib.figure import Figure

    rows = []
    for sha256, data in photos:
        photo = decode(data, side)
        rows.append([photo, *(augmented_copy(sha256, number, photo, params) for number in range(params.copies))])
    sheet = Figure(figsize=(len(rows[0]) * side / 100, len(rows) * side / 100), dpi=100)
    axes = sheet.add_axes((0, 0, 1, 1))
    axes.imshow(np.concatenate([np.concatenate(row, axis=1) for row in rows]))
    axes.set_axis_off()
    return sheet
