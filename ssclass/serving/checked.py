"""An export is checked on the held-out photos of its decision before anyone gets it."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ssclass.data.images import decode
from ssclass.data.shapes import OwnShape, Size
from ssclass.errors import FailedError, InputError, StoreError
from ssclass.serving.exporting import FORMATS, RESIZE, convert, open_export
from ssclass.serving.model import Model
from ssclass.serving.tfjs import page
from ssclass.workspace.version import Version, photos_of
from ssclass.workspace.workspace import Workspace

POINT = 0.01
"""By so much the accuracy of an export may differ from the champion's."""
MOST = 1000
"""Held-out photos that an export is checked on."""
TOGETHER = 32
PAGE = "index.html"
"""The page that classifies photos and what the camera sees, beside an export for browsers."""

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Check:
    """What an export does on held-out photos, beside the model that it was made of."""

    photos: int
    right: int
    model_right: int
    largest_difference: float
    milliseconds: float
    bytes: int

    @property
    def wrong(self) -> str | None:
        """Why nobody should use it; None where the accuracies are within a point."""
        if abs(self.right - self.model_right) <= POINT * self.photos and np.isfinite(self.largest_difference):
            return None
        return (
            f"it has {self.right} of {self.photos} held-out photos right, the model {self.model_right}: more than a "
            "point apart"
        )


def export_model(
    workspace: Workspace, model: Model, kind: str, dtype: str, folder: Path, progress: Progress
) -> dict[str, Any]:
    """Write a model in a format into a new folder, with model.json, which says how to use it; its content.

    FailedError, and no folder, where it cannot be converted, or answers otherwise than the model.
    """
    if folder.exists():
        raise InputError(f"{folder}: is there already; name a new folder with --to")
    if model.key is None or model.key not in workspace.at().state.decisions:
        raise InputError(
            f"{model.name}: of no decision in this ledger, so no held-out photos are known; name a version"
        )
    if isinstance(model.size, OwnShape):
        raise InputError(
            f"{model.name}: it takes photos in their own shape, and an export has one fixed shape; serve it with "
            "`ssclass serve`, or train with features.shape: square"
        )
    side = model.size
    folder.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=folder.parent, prefix=".export-") as scratch:
        made = Path(scratch) / "made"
        made.mkdir()
        path = convert(model.keras, side, kind, dtype, made)
        checked = _check(workspace, model, path, kind, progress)
        if checked.wrong is not None:
            remedy = "choose --dtype float32" if dtype != "float32" else "choose another --format"
            raise FailedError(f"{model.name} as {kind} {dtype}: {checked.wrong}; {remedy}")
        about = {
            "model": model.name,
            "decision_key": model.key,
            "format": kind,
            "dtype": dtype,
            "file": FORMATS[kind],
            "classes": list(model.classes),
            "size": side,
            "input": {"name": "images", "dtype": "uint8", "shape": [1, side, side, 3], "colours": "RGB"},
            "output": {"dtype": "float32", "shape": [1, len(model.classes)], "what": "probabilities"},
            "resize": RESIZE,
            "check": asdict(checked),
        }
        (made / "model.json").write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
        if kind == "tfjs":
            (made / PAGE).write_text(page(model.name, side, model.classes), encoding="utf-8")
        shutil.move(made, folder)
    return about


def _check(workspace: Workspace, model: Model, path: Path, kind: str, progress: Progress) -> Check:
    """Ask both about the held-out photos of the model's decision, or where one was forgotten since, about today's."""
    try:
        return check(workspace.decided(model.key or ""), model, path, kind, progress)
    except StoreError:
        return check(workspace.at(), model, path, kind, progress)


def check(version: Version, model: Model, path: Path, kind: str, progress: Progress) -> Check:
    """Ask an export and its model about the held-out photos of a version."""
    run = open_export(path, kind)
    right = model_right = done = 0
    difference, seconds = 0.0, []
    total = min(MOST, len(version.dataset.holdout))
    for images, labels in _held_out(version, model.size):
        expected = model.predict(images)
        for image, label, odds in zip(images, labels, expected, strict=True):
            began = time.perf_counter()
            found = run(image)
            seconds.append(time.perf_counter() - began)
            right += model.classes[int(found.argmax())] == label
            model_right += model.classes[int(odds.argmax())] == label
            apart = np.abs(found - odds).max()
            difference = max(difference, float(apart)) if np.isfinite(apart) else float("inf")
        done += len(images)
        progress("held-out photos", done, total)
    size = sum(each.stat().st_size for each in ([path] if path.is_file() else path.rglob("*")) if each.is_file())
    return Check(done, right, model_right, difference, round(1000 * float(np.median(seconds)), 1), size)


def _held_out(version: Version, size: Size) -> Iterator[tuple[NDArray[np.uint8], list[str]]]:
    """Held-out photos in parts, as images uint8 [n, size, size, 3] and labels; StoreError where they are gone."""
    labels = {row.sha256: row.label for row in version.dataset.holdout[:MOST]}
    if not labels:
        raise StoreError(f"{version.data_version}: no held-out photos to check an export on; submit a batch with some")
    part: list[tuple[NDArray[np.uint8], str]] = []
    for sha256, data in photos_of(version, labels):
        part.append((decode(data, size), labels[sha256]))
        if len(part) == TOGETHER:
            yield np.stack([image for image, _ in part]), [label for _, label in part]
            part = []
    if part:
        yield np.stack([image for image, _ in part]), [label for _, label in part]
