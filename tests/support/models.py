"""What the tests of weights, features, heads and classifier share: free pictures, and made-up features."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest

from ssclass.data.shards import Receipt, Row, Shard
from ssclass.errors import WeightsError
from ssclass.model.backbones import BACKBONES, import_keras
from ssclass.model.features import Features
from ssclass.model.weights import Weights, load_weights


def needed_weights(name: str = "mobilenet") -> Weights:
    """A backbone's weights; the test is skipped, with the reason, where no source can be reached."""
    try:
        return load_weights(name)
    except WeightsError as error:
        pytest.skip(f"no weights: {error}")


def random_file(name: str, folder: Path) -> Path:
    """A weights file for a backbone, under Keras's name, of seeded random weights whose batch norms suit them.

    (With the moving statistics of an untrained network, what comes out of it is 0, or too large for float32.)
    """
    keras = import_keras()
    backbone = BACKBONES[name]
    keras.utils.set_random_seed(0)
    model = backbone.build(top=backbone.top, size=max(64, backbone.min_size))
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.momentum = 0
    pixels = np.random.default_rng(0).integers(0, 256, (16, *model.input_shape[1:])).astype(np.float32)
    model(backbone.preprocess(pixels), training=True)
    path = folder / backbone.file
    model.save(path)
    return path


def pictures() -> dict[str, bytes]:
    """Pictures that scikit-image ships inside its package, by file name."""
    import skimage

    folder = Path(skimage.__file__).parent / "data"
    return {name: (folder / name).read_bytes() for name in ("chelsea.png", "coffee.png", "camera.png", "rocket.jpg")}


def shard_of(photos: dict[str, bytes]) -> tuple[Shard, list[tuple[str, bytes]]]:
    """A shard without a file, and its photos as (sha256, bytes)."""
    listed = [(hashlib.sha256(data).hexdigest(), data) for data in photos.values()]
    rows = tuple(Row(sha256, "cat", "train", sha256, "0" * 16, b"", sha256, 1, 1) for sha256, _ in listed)
    return Shard(rows, Receipt("batch", "manifest.json", "etag", 1, len(rows), 0)), listed


def clouds(
    per_class: int, classes: int, apart: float, channels: int = 16, seed: int = 0
) -> tuple[Features, np.ndarray]:
    """Features drawn from one normal cloud a class, `apart` standard deviations from the origin; and the labels."""
    draw = np.random.default_rng(seed)
    labels = np.repeat(np.arange(classes), per_class)
    centres = np.eye(channels)[:classes] * apart
    views = [centres[labels] + draw.normal(size=(len(labels), channels)) for _ in range(2)]
    mean = np.stack(views, axis=1).astype(np.float32)
    square = mean**2 + draw.uniform(0.5, 1.5, size=mean.shape).astype(np.float32)
    names = tuple(f"{index:064x}" for index in range(len(labels)))
    # A map of 2 x 2 places that has these moments.
    away = np.sqrt(square - mean**2)[:, :, None, None] * np.array([[1, -1], [-1, 1]])[..., None]
    maps = (mean[:, :, None, None] + away).astype(np.float16)
    return Features(names, {"224.out.mean": mean, "224.out.square": square, "224.out.map": maps}), labels
