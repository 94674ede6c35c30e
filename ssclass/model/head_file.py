"""A head's .keras file, written without Keras, whose import takes seconds: for heads that NumPy trains.

The file holds what Keras itself would write of the same layers: their configuration with all of Keras's defaults, the
weights by layers, and the version of Keras. Keras numbers layers of one kind by their depth, so layers are named here
in the order that Keras gives them. The same head gives the same bytes.
"""

from __future__ import annotations

import io
import json
import re
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Shape = tuple[int | None, ...]

OPERATIONS = ("Sqrt", "Square")
"""Functions of arrays, which have neither a dtype nor weights."""
LISTED = ("Dot", "Multiply")
"""Layers that are given a list of tensors."""
BUILT = ("Dense", "EinsumDense", "Dot", "Multiply", "Flatten")
"""Layers that Keras builds for the shape of what they are given, and says so."""

_INITIAL: dict[str, Any] = {
    "kernel_initializer": {
        "module": "keras.initializers",
        "class_name": "GlorotUniform",
        "config": {"seed": None, "input_axes": None, "output_axes": None},
        "registered_name": None,
    },
    "bias_initializer": {"module": "keras.initializers", "class_name": "Zeros", "config": {}, "registered_name": None},
}
_FREE = {"kernel_constraint": None, "bias_constraint": None, "quantization_config": None}
DEFAULTS: dict[str, dict[str, Any]] = {
    "Dense": _INITIAL | {"kernel_regularizer": None, "bias_regularizer": None} | _FREE,
    "EinsumDense": _INITIAL
    | {"kernel_regularizer": None, "bias_regularizer": None, "activity_regularizer": None}
    | _FREE,
    "ReLU": {"max_value": None, "negative_slope": 0.0, "threshold": 0.0},
    "UnitNormalization": {"axis": -1},
    "GlobalAveragePooling1D": {"data_format": "channels_last", "keepdims": False},
    "Flatten": {"data_format": "channels_last"},
    "Reshape": {},
    "Dot": {"normalize": False},
    "Multiply": {},
    "Sqrt": {},
    "Square": {},
}
"""The kinds of layers that can be written, with the settings that are always the same."""


class Tensor(NamedTuple):
    """What a call of a layer gives: the layer's name, the number of the call, shape (None: any) and dtype."""

    layer: str
    call: int
    shape: Shape
    dtype: str


@dataclass
class HeadGraph:
    """Layers that are called one after the other; `tensors` are the weights of each, float32, by its name."""

    layers: dict[str, dict[str, Any]] = field(default_factory=dict)
    tensors: dict[str, list[Array]] = field(default_factory=dict)

    def input(self, name: str, shape: Shape, dtype: str) -> Tensor:
        """An input: an array of this name; `shape` is that of one photo."""
        settings = {"batch_shape": [None, *shape], "dtype": dtype, "sparse": False, "ragged": False, "name": name}
        self._add("InputLayer", name, settings | {"optional": False})
        return Tensor(name, 0, (None, *shape), dtype)

    def layer(
        self,
        kind: str,
        name: str,
        *given: Tensor,
        shape: Shape | None = None,
        weights: Sequence[Array] = (),
        **settings: Any,
    ) -> Tensor:
        """Call a layer, which is made by its first call; `shape` of what it gives, if not that of the first given."""
        if name not in self.layers:
            common = {} if kind in OPERATIONS else {"trainable": True, "dtype": _float32()}
            self._add(kind, name, {"name": name, **common, **DEFAULTS[kind], **settings})
            if kind in BUILT:
                shapes = [list(each.shape) for each in given]
                self.layers[name]["build_config"] = {"input_shape": shapes if kind in LISTED else shapes[0]}
            self.tensors[name] = [np.ascontiguousarray(each, np.float32) for each in weights]
        calls = self.layers[name]["inbound_nodes"]
        listed = [_history(each) for each in given]
        named = {"mask": None} if kind == "GlobalAveragePooling1D" else {}
        calls.append({"args": [listed] if kind in LISTED else listed, "kwargs": named})
        return Tensor(name, len(calls) - 1, given[0].shape if shape is None else shape, "float32")

    def dense(self, name: str, given: Tensor, weights: Sequence[Array], activation: str = "linear") -> Tensor:
        """Call a Dense layer of these weights: a kernel [inputs, units], and a bias [units] if there is one."""
        units, biased = int(weights[0].shape[1]), len(weights) > 1
        shape = (*given.shape[:-1], units)
        settings = {"units": units, "activation": activation, "use_bias": biased}
        return self.layer("Dense", name, given, shape=shape, weights=weights, **settings)

    def config(self, name: str, output: Tensor) -> dict[str, Any]:
        """The configuration of the whole, as Keras writes it for a functional model of that name."""
        inputs = [each["name"] for each in self.layers.values() if each["class_name"] == "InputLayer"]
        policies = [each["config"]["dtype"] for each in self.layers.values() if "trainable" in each["config"]]
        for policy in policies[1:]:  # they share the first one's
            policy["shared_object_id"] = 1
        body = {
            "name": name,
            "trainable": True,
            "layers": list(self.layers.values()),
            "input_layers": {each: [each, 0, 0] for each in inputs},
            "output_layers": [output.layer, output.call, 0],
        }
        return {
            "module": "keras.src.models.functional",
            "class_name": "Functional",
            "config": body,
            "registered_name": "Functional",
            "build_config": {"input_shape": None},
            "compile_config": {},
        }

    def _add(self, kind: str, name: str, settings: dict[str, Any]) -> None:
        operation = kind in OPERATIONS
        self.layers[name] = {
            "module": "keras.src.ops.numpy" if operation else "keras.layers",
            "class_name": kind,
            "config": settings,
            "registered_name": kind if operation else None,
            "name": name,
            "inbound_nodes": [],
        }


def _float32() -> dict[str, Any]:
    return {"module": "keras", "class_name": "DTypePolicy", "config": {"name": "float32"}, "registered_name": None}


def _history(tensor: Tensor) -> dict[str, Any]:
    said = {"shape": list(tensor.shape), "dtype": tensor.dtype, "keras_history": [tensor.layer, tensor.call, 0]}
    return {"class_name": "__keras_tensor__", "config": said}


def write_head(path: Path, config: Mapping[str, Any], tensors: Mapping[str, Sequence[Array]]) -> None:
    """Write a configuration as `HeadGraph.config` gives it, and the weights of its layers, to a .keras file."""
    write_parts(
        path,
        {
            "config.json": json.dumps(config).encode(),
            "metadata.json": json.dumps({"date_saved": "", "keras_version": version("keras")}).encode(),
            "model.weights.h5": _weights(config["config"], tensors),
        },
    )


def write_parts(path: Path, parts: Mapping[str, bytes]) -> None:
    """Write the parts of a .keras file, a zip: in the order of their names, and without the time."""
    with zipfile.ZipFile(path, "w") as file:
        for name in sorted(parts):
            file.writestr(zipfile.ZipInfo(name), parts[name])  # ZipInfo's own date: 1980


def _weights(body: Mapping[str, Any], tensors: Mapping[str, Sequence[Array]]) -> bytes:
    """The weights as HDF5."""
    import h5py

    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as store:
        add_weights(store, body, tensors)
    return buffer.getvalue()


def add_weights(store: Any, body: Mapping[str, Any], tensors: Mapping[str, Sequence[Array]]) -> None:
    """Write weights into a group of HDF5; layers of one kind are ``dense``, ``dense_1``, … in the order of the layers.

    `body` is the configuration of the model itself, ``config`` of what `HeadGraph.config` gives.
    """
    seen = dict[str, int]()
    for layer in body["layers"]:
        if layer["class_name"] in OPERATIONS:
            continue
        kind = snake(layer["class_name"])
        number = seen[kind] = seen.get(kind, -1) + 1
        group = store.create_group(f"layers/{kind}_{number}" if number else f"layers/{kind}")
        variables = group.create_group("vars")
        variables.attrs["name"] = layer["name"]
        for at, value in enumerate(tensors.get(layer["name"], ())):
            variables.create_dataset(str(at), data=value, track_times=False)
    store.create_group("vars").attrs["name"] = body["name"]


def snake(name: str) -> str:
    """A class's name as Keras writes it in files: ``re_lu`` of ReLU, ``global_average_pooling1d``."""
    return re.sub("([a-z])([A-Z])", r"\1_\2", re.sub("(.)([A-Z][a-z]+)", r"\1_\2", name)).lower()
