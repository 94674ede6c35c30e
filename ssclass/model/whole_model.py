"""The whole model's .keras file, put together without Keras where its network part is remembered.

Building the network only to write it takes seconds, most of them importing Keras and TensorFlow. But all that differs
between two classifiers of one network is the head. So the file that Keras wrote first is kept on the machine without
its head, under the fingerprint of the features, the head's inputs and the version of Keras; a head that NumPy trained
is put in. Keras opens the first such file of a network: unless it answers as the model that was built, none is kept.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from zipfile import ZipFile

import numpy as np

from ssclass.files import check_unpacked, whole
from ssclass.model.engine import TOLERANCE, probe_images
from ssclass.model.head_file import DEFAULTS, add_weights, snake, write_parts
from ssclass.model.keras_files import MODEL_LIMIT, UNREADABLE, load_model, save_model
from ssclass.model.saved_head import SavedHead
from ssclass.model.spec import FeatureSpec
from ssclass.settings import home

LAYOUT = 1  # of the kept files
CONFIG, WEIGHTS = "config.json", "model.weights.h5"

Parts = dict[str, bytes]
"""The parts of a .keras file, by their names."""

log = logging.getLogger(__name__)


def takes(spec: FeatureSpec, head: Any) -> bool:
    """Whether a head is written without Keras; not on a network with tuned blocks, nor one that Keras trained."""
    if spec.blocks or not isinstance(head, SavedHead):
        return False
    return {layer["class_name"] for layer in head.config["config"]["layers"]} <= {"InputLayer", *DEFAULTS}


def save_whole(path: Path, spec: FeatureSpec, head: SavedHead, build: Callable[[], Any]) -> None:
    """Write the network of a spec and a head on it as one Keras model of images to a ``.keras`` file.

    `build` gives that model, where the network is not kept yet. The same network and head give the same bytes on a
    machine that keeps the network.
    """
    kept = _kept(spec, head)
    parts = _from_kept(kept, head)
    if parts is None:
        if (network := _made(build(), spec, head, path)) is None:
            return
        _keep(kept, network)
        parts = joined(network, head)
    write_parts(path, parts)


def joined(network: Mapping[str, bytes], head: SavedHead) -> Parts:
    """The parts of the whole model's file: a network that was kept, and a head in the place of the one it had."""
    import h5py

    config = json.loads(network[CONFIG])
    place = _place(config, head.name)
    place["config"] = _frozen(head.config["config"] | {"name": head.name})
    buffer = io.BytesIO(network[WEIGHTS])
    with h5py.File(buffer, "r+") as store:
        add_weights(store.create_group(_group(config, head.name)), place["config"], head.tensors)
    return {**network, CONFIG: json.dumps(config).encode(), WEIGHTS: buffer.getvalue()}


def without_head(parts: Mapping[str, bytes], head: str) -> Parts:
    """The parts of the whole model's file without the layers and weights of its head, which has this name."""
    import h5py

    config = json.loads(parts[CONFIG])
    group, buffer = _group(config, head), io.BytesIO()
    _place(config, head)["config"] = {}
    with h5py.File(io.BytesIO(parts[WEIGHTS]), "r") as source, h5py.File(buffer, "w") as store:
        for name, entry in source["layers"].items():
            if f"layers/{name}" != group:
                source.copy(entry, store.require_group("layers"), name)
        source.copy("vars", store)
    return {**parts, CONFIG: json.dumps(config).encode(), WEIGHTS: buffer.getvalue()}


def _made(model: Any, spec: FeatureSpec, head: SavedHead, path: Path) -> Parts | None:
    """The network part as Keras writes it; None, and the whole model at `path`, where no head can be put into it."""
    save_model(model, path)
    with ZipFile(path) as file:
        network = without_head({name: file.read(name) for name in file.namelist()}, head.name)
    with TemporaryDirectory(dir=path.parent) as scratch:
        tried = Path(scratch) / path.name
        write_parts(tried, joined(network, head))
        images = probe_images(spec.photo_size)
        found, expected = (np.asarray(each(images, training=False)) for each in (load_model(tried), model))
    if found.shape == expected.shape and np.abs(found - expected).max() <= TOLERANCE:
        return network
    log.warning("a network that is put together does not answer as Keras's, so Keras writes it, which is slower")
    return None


def _kept(spec: FeatureSpec, head: SavedHead) -> Path:
    """Where the network of a spec is kept on this machine, for heads with the inputs of this one."""
    inputs = {name: [list(each.shape), each.dtype] for name, each in head.input.items()}
    said = [LAYOUT, version("keras"), spec.fingerprint, inputs, head.name]
    return home() / "engines" / f"whole-{hashlib.sha256(json.dumps(said).encode()).hexdigest()[:32]}.keras"


def _from_kept(kept: Path, head: SavedHead) -> Parts | None:
    """The whole model's file, of a network that was kept; None: there is none, or it is damaged (zip has sums)."""
    try:
        check_unpacked(kept, MODEL_LIMIT)
        with ZipFile(kept) as file:
            return joined({name: file.read(name) for name in file.namelist()}, head)
    except UNREADABLE as error:
        if kept.exists():
            log.info("%s: cannot be read (%s); it is made again", kept, type(error).__name__)
        return None


def _keep(kept: Path, network: Parts) -> None:
    try:
        with whole(kept) as new:
            write_parts(new, network)
    except OSError as error:  # a full disk, or a folder that is not ours: Keras writes it again next time
        log.info("%s: not kept (%s)", kept, error)


def _place(config: dict[str, Any], head: str) -> dict[str, Any]:
    """The layer of the whole model that is its head; KeyError where there is none."""
    for layer in config["config"]["layers"]:
        if layer["name"] == head and layer["class_name"] == "Functional":
            found: dict[str, Any] = layer
            return found
    raise KeyError(head)


def _group(config: dict[str, Any], head: str) -> str:
    """The group of the weights file that holds the head's: models inside are numbered in the order of the layers."""
    inside = [layer["name"] for layer in config["config"]["layers"] if layer["class_name"] == "Functional"]
    number = inside.index(head)
    return f"layers/{snake('Functional')}" + (f"_{number}" if number else "")


def _frozen(config: Any) -> Any:
    """A head's configuration as Keras writes it inside a model that is not to be trained: nothing in it is shared."""
    if isinstance(config, Mapping):
        named = {name: _frozen(value) for name, value in config.items() if name != "shared_object_id"}
        return named | ({"trainable": False} if "trainable" in named else {})
    return [_frozen(value) for value in config] if isinstance(config, list | tuple) else config
