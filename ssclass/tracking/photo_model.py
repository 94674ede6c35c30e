"""Photos in whatever form, answers by class name: what the registered model does, wherever MLflow loads it.

This file, and the modules of ssclass that it imports, are packed into each registered model
(:mod:`ssclass.tracking.packaged`): the decode is that of training, also where ssclass is not installed.
"""

from __future__ import annotations

import binascii
import os
from base64 import b64decode
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ssclass.data.images import Refused, decode
from ssclass.data.pixels import pillow, shrunk
from ssclass.data.shapes import Size, fitted
from ssclass.model.engine import Engine

COLUMN = "photo"
_IN_SERVER = "_MLFLOW_IS_IN_SERVING_ENVIRONMENT"  # MLflow sets it in the process of `mlflow models serve`
TOGETHER = 64  # photos whose pixels are in memory at once


class PhotoModel:
    """A classifier of photos: `classes` in the order of the engine's outputs."""

    def __init__(self, engine: Engine, classes: Sequence[str]) -> None:
        self.engine = engine
        self.classes = tuple(classes)

    def answer(self, given: Any) -> Any:
        """A DataFrame with `label`, `probability` and `probabilities` (by class name) of each photo, in order.

        `given`: a photo, or a list, array, Series or DataFrame of photos (its column ``photo``, or its only one). A
        photo is the bytes of a file, its path, its base64 (also as a ``data:`` URL), or pixels uint8 [h, w, 3], RGB.
        ValueError names the first photo that is none of these, or does not open.
        """
        import pandas as pd

        photos, index = listed(given)
        rows: list[dict[str, Any]] = []
        with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
            for at in range(0, len(photos), TOGETHER):
                part = range(at, min(at + TOGETHER, len(photos)))
                images = pool.map(lambda number: self._image(photos[number], number + 1), part)
                rows += self.rows(self.engine.predict(list(images)))
        columns = {name: [row[name] for row in rows] for name in ("label", "probability", "probabilities")}
        return pd.DataFrame(columns, index=index)

    def rows(self, probabilities: NDArray[np.float64]) -> list[dict[str, Any]]:
        """What is said of each photo, given its probabilities [n, classes]."""
        found = []
        for each in probabilities:
            best = int(each.argmax())
            named = {name: float(value) for name, value in zip(self.classes, each, strict=True)}
            found.append({"label": self.classes[best], "probability": float(each[best]), "probabilities": named})
        return found

    def _image(self, photo: Any, number: int) -> NDArray[np.uint8]:
        try:
            return pixels_of(photo, self.engine.size)
        except Refused as error:
            raise ValueError(f"photo {number}: {error.reason}: {error.detail}; give a photo that opens") from error
        except (ValueError, OSError) as error:
            raise ValueError(f"photo {number}: {error}") from error


def listed(given: Any) -> tuple[list[Any], Any]:
    """The photos that were given, as a list, and the index of the answers: that of a DataFrame or Series, else None."""
    if hasattr(given, "columns"):  # a DataFrame
        if COLUMN in given.columns:
            return list(given[COLUMN]), given.index
        if len(given.columns) != 1:
            raise ValueError(f"a table of {len(given.columns)} columns; name the one with the photos {COLUMN!r}")
        return list(given.iloc[:, 0]), given.index
    if hasattr(given, "iloc"):  # a Series
        return list(given), given.index
    if isinstance(given, Mapping):
        return _of_mapping(given), None
    if isinstance(given, np.ndarray):
        if given.dtype.kind in "OSU":
            return list(given.ravel()), None
        return (list(given) if given.ndim == 4 else [given]), None
    if isinstance(given, (list, tuple)):
        if _depth(given) == 3:  # pixels of one photo
            return [given], None
        return [each for one in given for each in (_of_mapping(one) if isinstance(one, Mapping) else [one])], None
    return [given], None


def _of_mapping(given: Mapping[str, Any]) -> list[Any]:
    """Photos of ``{"photo": …}``, one or a list, of ``{"b64": …}``, or of a table as JSON tells it."""
    if {"columns", "data"} <= set(given):
        names = list(given["columns"])
        if COLUMN not in names and len(names) != 1:
            raise ValueError(f"a table of {len(names)} columns; name the one with the photos {COLUMN!r}")
        at = names.index(COLUMN) if COLUMN in names else 0
        return [row[at] for row in given["data"]]
    if "b64" in given:
        return listed(given["b64"])[0]
    if COLUMN not in given:
        raise ValueError(f"neither {COLUMN!r} nor 'b64' among its keys ({', '.join(map(str, given))[:80]})")
    return listed(given[COLUMN])[0]


def _depth(given: Any) -> int:
    """How deep lists are nested, by their first entries."""
    depth = 0
    while isinstance(given, (list, tuple)) and given:
        given, depth = given[0], depth + 1
    return depth


def pixels_of(photo: Any, size: Size) -> NDArray[np.uint8]:
    """A photo in whatever form as uint8 [h, w, 3], RGB, upright; ValueError, OSError or Refused."""
    if isinstance(photo, (bytes, bytearray, memoryview)):
        if not photo:
            raise Refused("empty", "the file has no bytes")
        return decode(bytes(photo), size)
    if isinstance(photo, os.PathLike):
        return decode(Path(photo).read_bytes(), size)
    if isinstance(photo, str):
        return decode(_from_text(photo), size)
    if isinstance(photo, (np.ndarray, list, tuple)):
        return squeezed(_as_pixels(photo), size)
    raise ValueError(f"a {type(photo).__name__}; give bytes, a path, base64, or pixels uint8 [h, w, 3]")


def _from_text(text: str) -> bytes:
    """The bytes that a path or base64 stands for. A server's clients may not name files of its machine."""
    in_server = os.environ.get(_IN_SERVER, "").lower() == "true"
    if not in_server and not text.startswith("data:") and len(text) < 4096 and "\0" not in text:
        path = Path(text)
        if path.is_file():
            return path.read_bytes()
    encoded = text.partition(",")[2] if text.startswith("data:") else text
    try:
        return b64decode("".join(encoded.split()), validate=True)
    except (binascii.Error, ValueError):
        what = "no base64" if in_server else "neither the path of a file nor base64"
        raise ValueError(f"{text[:60]!r}: {what}") from None


def _as_pixels(given: Any) -> NDArray[np.uint8]:
    try:
        pixels = np.asarray(given)
    except ValueError:
        raise ValueError("its rows have several lengths; give pixels uint8 [h, w, 3]") from None
    if pixels.ndim != 3 or pixels.shape[2] != 3 or not pixels.size:
        raise ValueError(f"an array of shape {list(pixels.shape)}; give pixels [h, w, 3], RGB")
    if pixels.dtype == np.uint8:
        return pixels
    whole = pixels.dtype.kind in "iuf" and bool(np.isfinite(pixels).all())
    if not whole or (pixels != np.floor(pixels)).any() or pixels.min() < 0 or pixels.max() > 255:
        raise ValueError("pixels are whole numbers from 0 to 255")
    return pixels.astype(np.uint8)


def squeezed(pixels: NDArray[np.uint8], size: Size) -> NDArray[np.uint8]:
    """Pixels uint8 [h, w, 3] in the shape that the decode gives a photo, and resized as it does."""
    height, width = pixels.shape[:2]
    wanted = fitted(size, width, height)
    if (width, height) == wanted:
        return pixels
    picture = shrunk(pillow().fromarray(np.ascontiguousarray(pixels)), max(wanted))
    return np.asarray(picture.resize(wanted, pillow().BILINEAR), dtype=np.uint8)
