"""Layers of a saved head in NumPy: what each makes of its settings and weights, a function of arrays.

Settings are those of Keras's configuration, weights in its order. A layer, or a setting of one, that is not known here
raises :class:`UnknownLayerError`: Keras then answers instead.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Layer = Callable[..., Array]


class UnknownLayerError(Exception):
    """A layer, or a setting of one, that NumPy does not do here."""


def _only(settings: Mapping[str, Any], **known: Any) -> None:
    """Stop where a setting is not the one that is done here; one that is not named has Keras's default, which is."""
    dtype = settings.get("dtype")
    policy = dtype["config"]["name"] if isinstance(dtype, dict) else dtype
    if policy not in (None, "float32"):
        raise UnknownLayerError(f"dtype {policy}")
    for name, value in known.items():
        if settings.get(name, value) != value:
            raise UnknownLayerError(f"{name}: {settings[name]}")


def as_float(x: Array) -> Array:
    """The array in float32, which is what layers compute in."""
    return np.asarray(x, np.float32)


def _softmax(x: Array) -> Array:
    powers = np.exp(x - x.max(axis=-1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=-1, keepdims=True))


ACTIVATIONS: dict[str | None, Callable[[Array], Array]] = {
    None: lambda x: x,
    "linear": lambda x: x,
    "relu": lambda x: np.maximum(x, 0),
    "exponential": np.exp,
    "softmax": _softmax,
}


def _activation(settings: Mapping[str, Any]) -> Callable[[Array], Array]:
    named = settings["activation"]
    if not isinstance(named, str | None) or named not in ACTIVATIONS:
        raise UnknownLayerError(f"activation {named}")
    return ACTIVATIONS[named]


def _dense(settings: Mapping[str, Any], tensors: list[Array]) -> Layer:
    _only(settings, quantization_config=None, lora_rank=None)
    act, (kernel, *bias) = _activation(settings), tensors

    def call(x: Array) -> Array:
        rows = as_float(x)
        found = (rows.reshape(-1, rows.shape[-1]) @ kernel).reshape(*rows.shape[:-1], -1)
        return act(found + bias[0] if bias else found)

    return call


def _einsum_dense(settings: Mapping[str, Any], tensors: list[Array]) -> Layer:
    _only(settings, quantization_config=None, lora_rank=None)
    act, (kernel, *bias), equation = _activation(settings), tensors, str(settings["equation"])
    ways: dict[str, Callable[[Array], Array]] = {
        "npd,p->npd": lambda x: x * kernel[:, None],
        "nab,bc->nac": lambda x: x @ kernel,
    }
    if equation not in ways:
        raise UnknownLayerError(equation)
    way = ways[equation]
    return lambda x: act(way(as_float(x)) + bias[0] if bias else way(as_float(x)))


def _batch_norm(settings: Mapping[str, Any], tensors: list[Array]) -> Layer:
    _only(settings, axis=-1, center=True, scale=True, renorm=False)
    gamma, beta, mean, variance = tensors
    factor = gamma / np.sqrt(variance + np.float32(settings["epsilon"]))
    offset = beta - mean * factor
    return lambda x: as_float(x) * factor + offset


def _average(settings: Mapping[str, Any], tensors: list[Array]) -> Layer:
    _only(settings, data_format="channels_last", keepdims=False)
    return lambda x: as_float(x).mean(axis=1)


def _relu(settings: Mapping[str, Any], tensors: list[Array]) -> Layer:
    _only(settings, max_value=None, negative_slope=0.0, threshold=0.0)
    return lambda x: np.maximum(as_float(x), 0)


def _unit(settings: Mapping[str, Any], tensors: list[Array]) -> Layer:
    _only(settings, axis=-1)

    def call(x: Array) -> Array:
        rows = as_float(x)
        length = np.sqrt(np.square(rows).sum(axis=-1, keepdims=True))
        return np.asarray(rows / np.maximum(length, np.float32(1e-12)))

    return call


def _reshape(settings: Mapping[str, Any], tensors: list[Array]) -> Layer:
    shape = tuple(settings["target_shape"])
    return lambda x: x.reshape(len(x), *shape)


def _flatten(settings: Mapping[str, Any], tensors: list[Array]) -> Layer:
    _only(settings, data_format="channels_last")
    return lambda x: x.reshape(len(x), -1)


def _dot(settings: Mapping[str, Any], tensors: list[Array]) -> Layer:
    _only(settings, normalize=False)
    axes = settings["axes"]
    one, other = (axes, axes) if isinstance(axes, int) else axes
    if (one, other) not in ((2, 1), (1, 1)):
        raise UnknownLayerError(f"axes {axes}")

    def call(x: Array, y: Array) -> Array:
        left = as_float(x) if one == 2 else as_float(x).transpose(0, 2, 1)
        return left @ as_float(y)

    return call


def _multiply(settings: Mapping[str, Any], tensors: list[Array]) -> Layer:
    _only(settings)
    return lambda x, y: as_float(x) * as_float(y)


def _operation(function: Callable[[Array], Array]) -> Callable[[Mapping[str, Any], list[Array]], Layer]:
    return lambda settings, tensors: lambda x: function(x)


LAYERS: dict[str, Callable[[Mapping[str, Any], list[Array]], Layer]] = {
    "Dense": _dense,
    "EinsumDense": _einsum_dense,
    "BatchNormalization": _batch_norm,
    "GlobalAveragePooling1D": _average,
    "ReLU": _relu,
    "UnitNormalization": _unit,
    "Reshape": _reshape,
    "Flatten": _flatten,
    "Dot": _dot,
    "Multiply": _multiply,
    "Sqrt": _operation(np.sqrt),
    "Square": _operation(np.square),
}
"""The layers that heads consist of, by Keras's names."""
