"""A saved head, asked by NumPy: Keras, whose import takes seconds, is not needed to say what is on a photo.

A head is a small Keras model of a few kinds of layers (`ssclass.model.heads`). Its file names them, and how they are
connected: what NumPy makes of that is held against Keras's answers on made-up features before it is used. Those answers
are computed once for a file, where it is written or first opened, and kept in ssclass's folder under the file's digest.
A head with a layer or a setting that is not known here is Keras's.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import shutil
import zipfile
from collections.abc import Mapping, Sequence
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from ssclass.code import code_digest
from ssclass.errors import NotFoundError
from ssclass.files import check_unpacked, whole
from ssclass.model.head_file import write_head
from ssclass.model.keras_files import MODEL_LIMIT, UNREADABLE, load_model
from ssclass.model.layers import LAYERS, Array, Layer, UnknownLayerError
from ssclass.settings import home

LAYOUT = 1  # of the kept answers
ALIKE = 1e-4
"""Probabilities of NumPy and of Keras may differ by so much: additions come in another order. Measured: 4e-7, and more
where a low temperature makes much of it."""
ROWS, PLACES, FILLED = 3, 12, 4
"""Of the made-up features: photos, places of a map of any size, and those of them that only fill it up."""

log = logging.getLogger(__name__)


class SavedHead:
    """The head of a file, or of a training by NumPy: called with feature arrays by name, it gives probabilities.

    They are float32 [n, classes]. `config` is Keras's configuration of the layers, `tensors` are their weights by their
    names, `path` is the file; None: it was not saved yet. It has what a Keras model of a head has and others ask for:
    `input` by name, `output`, `name`, layers with their weights; `keras` is that model, loaded when it is asked for.
    """

    def __init__(self, config: Mapping[str, Any], tensors: Mapping[str, list[Array]], path: Path | None = None) -> None:
        body = config["config"]
        self.path = path
        self.config, self.tensors = config, tensors
        self.name = str(body["name"])
        self._layers: dict[str, Layer] = {}
        self._nodes: dict[str, list[list[tuple[str, int]]]] = {}
        self.input: dict[str, _Spec] = {}
        for layer in body["layers"]:
            name, kind, settings = str(layer["name"]), str(layer["class_name"]), layer["config"]
            if kind == "InputLayer":
                self.input[name] = _Spec(tuple(settings["batch_shape"]), str(settings["dtype"]))
                continue
            if kind not in LAYERS or not str(layer["module"]).startswith("keras."):
                raise UnknownLayerError(kind)
            self._layers[name] = LAYERS[kind](settings, tensors.get(name, []))
            self._nodes[name] = [_inputs(node) for node in layer["inbound_nodes"]]
        self._last = _tensor(body["output_layers"])
        if set(_names(body["input_layers"])) != set(self.input):
            raise UnknownLayerError("inputs")
        answers = self(self.probe())
        if answers.ndim != 2 or answers.dtype != np.float32:
            raise UnknownLayerError(f"answers {answers.dtype} {answers.shape}")
        self.output = _Spec((None, answers.shape[1]), "float32")

    def __call__(self, arrays: Mapping[str, Array], training: bool = False) -> Array:
        """Probabilities, float32 [n, classes], given the arrays by name, n rows each; `training` is never true."""
        known: dict[tuple[str, int], Array] = {
            (name, 0): np.asarray(arrays[name]).astype(spec.dtype, copy=False) for name, spec in self.input.items()
        }

        def value(at: tuple[str, int]) -> Array:
            if at not in known:
                name, node = at
                known[at] = self._layers[name](*map(value, self._nodes[name][node]))
            return known[at]

        return value(self._last)

    def get_layer(self, name: str) -> _Weights:
        """A layer by its name; ValueError where there is none."""
        if name not in self._layers:
            raise ValueError(f"no layer {name}")
        return _Weights(self.tensors.get(name, []))

    def get_weights(self) -> list[Array]:
        """The weights of all layers, in the order of the layers."""
        return [tensor for name in self._layers for tensor in self.tensors.get(name, [])]

    @cached_property
    def keras(self) -> Any:
        """The same head as a Keras model."""
        if self.path is not None:
            return load_model(self.path)
        with TemporaryDirectory() as scratch:
            path = Path(scratch) / "head.keras"
            write_head(path, self.config, self.tensors)
            return load_model(path)

    def save(self, path: Path) -> None:
        """Write the head to a .keras file, always the same bytes; `open_head` then takes it without Keras.

        Keras opens the first one of its kind on this machine, and is asked what it says: only for the widths of its
        layers and their weights do heads of one kind differ.
        """
        if self.path is not None:
            shutil.copyfile(self.path, path)
            return
        body = self.config["config"] | {"name": self.name}
        write_head(path, {**self.config, "config": body}, self.tensors)
        kept, alike, answers = _kept(path.read_bytes()), self._alike(), self(self.probe())
        if not alike.exists():
            expected = _asked(load_model(path), self.probe())
            if not _near(answers, expected):
                _write(kept, expected)  # Keras answers, then
                return
            _note(alike)
        _write(kept, answers)

    def _alike(self) -> Path:
        """The note that Keras answered as NumPy does for a head that differs in widths and weights alone."""
        said = f"{LAYOUT} {code_digest()} {json.dumps(_without_widths(self.config))}"
        return home() / "engines" / "heads" / f"{hashlib.sha256(said.encode()).hexdigest()[:32]}.alike"

    def probe(self) -> dict[str, Array]:
        """Made-up features on which NumPy and Keras are compared."""
        return probe({name: (spec.shape, spec.dtype) for name, spec in self.input.items()})


class _Weights:
    """A layer, as far as others ask: its weights, in Keras's order."""

    def __init__(self, tensors: list[Array]) -> None:
        self._tensors = tensors

    def get_weights(self) -> list[Array]:
        """The weights, each an array."""
        return list(self._tensors)


class _Spec:
    """Shape and dtype of what goes in or comes out."""

    def __init__(self, shape: tuple[int | None, ...], dtype: str) -> None:
        self.shape, self.dtype = shape, dtype


def probe(inputs: Mapping[str, tuple[tuple[int | None, ...], str]]) -> dict[str, Array]:
    """Made-up features for arrays of these shapes and dtypes: `ROWS` photos; a map of any size has `PLACES`."""
    draw = np.random.default_rng(0)
    made = {}
    for name, (shape, dtype) in sorted(inputs.items()):
        sides = [ROWS] + [side or (PLACES if at == 2 else 1) for at, side in enumerate(shape) if at]
        if name.endswith(".place"):
            values = draw.uniform(-1, 1, sides)
            values[..., -FILLED:, :] = 1e3
        else:
            values = np.maximum(draw.normal(-0.3, 1.5, sides), 0)  # as activations are: most of them are zero
        made[name] = values.astype(dtype)
    return made


def open_head(path: Path) -> SavedHead | None:
    """The head of a .keras file, where NumPy answers as Keras does; None where Keras has to.

    Keras is asked once for a file, if whoever wrote it did not.
    """
    try:
        check_unpacked(path, MODEL_LIMIT)
        data = path.read_bytes()
        head = _parsed(path, data)
    except UnknownLayerError as unknown:
        log.info("%s: Keras answers (%s)", path, unknown)
        return None
    except UNREADABLE:  # Keras says what is wrong
        return None
    kept = _kept(data)
    expected = _read(kept)
    if expected is None:
        try:
            expected = _asked(head.keras, head.probe())
        except NotFoundError:
            return None
        _write(kept, expected)
    if not _near(head(head.probe()), expected):
        log.warning("%s: NumPy does not answer as Keras does, so Keras answers, which is slower", path)
        return None
    return head


def keep_answers(path: Path, model: Any) -> None:
    """Note what Keras says on made-up features for a head that was just written to a file: `open_head` needs it."""
    try:
        inputs = {name: (tuple(tensor.shape), str(tensor.dtype)) for name, tensor in model.input.items()}
        _write(_kept(path.read_bytes()), _asked(model, probe(inputs)))
    except (AttributeError, TypeError, ValueError) as error:  # no head as `open_head` takes it
        log.info("%s: Keras's answers are not kept (%s)", path, error)


def _near(found: Array, expected: Array) -> bool:
    return found.shape == expected.shape and bool(np.abs(found - expected).max(initial=0) <= ALIKE)


def _without_widths(config: Any) -> Any:
    """A configuration without what says how many numbers there are, of which the answers' way is the same."""
    if isinstance(config, Mapping):
        widths = ("units", "shape", "build_config")
        return {name: _without_widths(value) for name, value in config.items() if name not in widths}
    return [_without_widths(value) for value in config] if isinstance(config, list | tuple) else config


def _asked(model: Any, given: Mapping[str, Array]) -> Array:
    return np.asarray(model(dict(given), training=False))


def _kept(data: bytes) -> Path:
    said = f"{LAYOUT} {version('keras')} {hashlib.sha256(data).hexdigest()}"
    return home() / "engines" / "heads" / f"{hashlib.sha256(said.encode()).hexdigest()[:32]}.npy"


def _read(kept: Path) -> Array | None:
    try:
        found = np.load(kept, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    return found if isinstance(found, np.ndarray) and found.ndim == 2 else None


def _write(kept: Path, answers: Array) -> None:
    try:
        with whole(kept) as new, new.open("wb") as file:
            np.save(file, answers)
    except OSError as error:  # a full disk, or a folder that is not ours: Keras is asked again next time
        log.info("%s: not kept (%s)", kept, error)


def _note(path: Path) -> None:
    try:
        with whole(path) as new:
            new.touch()
    except OSError as error:
        log.info("%s: not kept (%s)", path, error)


# -- what the file says ---------------------------------------------------------------------------------------


def _parsed(path: Path, data: bytes) -> SavedHead:
    import h5py

    with zipfile.ZipFile(io.BytesIO(data)) as file:
        config = json.loads(file.read("config.json"))
        weights = file.read("model.weights.h5")
    if config["class_name"] != "Functional":
        raise UnknownLayerError(config["class_name"])
    tensors: dict[str, list[Array]] = {}
    with h5py.File(io.BytesIO(weights), "r") as store:
        for group in store["layers"].values():
            variables = group["vars"]
            if len(variables):
                tensors[_text(variables.attrs["name"])] = [variables[str(at)][()] for at in range(len(variables))]
    return SavedHead(config, tensors, path)


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def _tensor(listed: Sequence[Any]) -> tuple[str, int]:
    """A layer's name and the number of its call; the only output of a layer is 0."""
    if isinstance(listed[0], list):
        (listed,) = listed
    name, node, output = listed
    if output != 0:
        raise UnknownLayerError(f"{name}: output {output}")
    return str(name), int(node)


def _inputs(node: Mapping[str, Any]) -> list[tuple[str, int]]:
    """What a call of a layer is given: tensors, each alone or in a list."""
    if any(value is not None and value is not False for value in node.get("kwargs", {}).values()):
        raise UnknownLayerError(f"called with {node['kwargs']}")
    found = []
    for argument in node["args"]:
        for each in argument if isinstance(argument, list) else [argument]:
            if not isinstance(each, dict) or each["class_name"] != "__keras_tensor__":
                raise UnknownLayerError("called with what is no tensor")
            found.append(_tensor(each["config"]["keras_history"]))
    return found


def _names(listed: Any) -> list[str]:
    """Names of the input layers, which Keras writes as a dict, a list, or one entry."""
    if isinstance(listed, dict):
        return [_tensor(each)[0] for each in listed.values()]
    if listed and isinstance(listed[0], list):
        return [_tensor(each)[0] for each in listed]
    return [_tensor(listed)[0]]
