"""A Keras model for images of one size, of plain products alone: what other runtimes than TensorFlow can take.

Neither LiteRT, ONNX Runtime nor OpenVINO has what TensorFlow does for a resize with antialiasing, and not all of them
have einsums. At one size both are products of matrices, and a resize to the same size is nothing at all.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ssclass.model.backbones import import_keras


def plain_products(model: Any, size: int) -> Any:
    """The Keras model for images of one size, with the same weights and without resizes and einsums."""
    keras = import_keras()
    layers, ops = keras.layers, keras.ops

    def call(layer: Any, *inputs: Any, **named: Any) -> Any:
        (given, *_) = inputs
        # Others stay one layer: networks for two sizes have layers of the same names.
        if isinstance(layer, keras.Model) and _has(layer, (layers.Resizing, layers.EinsumDense)):
            named.pop("training", None)
            return _rebuilt(keras, layer, inputs, call)
        if isinstance(layer, layers.Resizing):
            return _resized(ops, given, layer)
        if isinstance(layer, layers.EinsumDense):
            return _product(ops, given, layer, lambda: layer(*inputs, **named))
        return layer(*inputs, **named)

    images = keras.Input((size, size, 3), batch_size=1, dtype="uint8", name="images")
    return keras.Model(images, _rebuilt(keras, model, (images,), call), name="export")


def _has(model: Any, kinds: tuple[type, ...]) -> bool:
    """Whether a Keras model has a layer of these kinds, at whatever depth."""
    return any(isinstance(layer, kinds) for layer in model._flatten_layers(include_self=False))


def _rebuilt(keras: Any, model: Any, inputs: tuple[Any, ...], call: Callable[..., Any]) -> Any:
    """The outputs of a model on other inputs, each of its layers called by `call`."""
    if not hasattr(model, "_run_through_graph"):
        return model(*inputs)
    given = inputs[0] if len(inputs) == 1 else list(inputs)
    return model._run_through_graph(
        given, operation_fn=lambda operation: lambda *args, **named: call(operation, *args, **named)
    )


def _resized(ops: Any, given: Any, layer: Any) -> Any:
    """A resize as two products: along the height and along the width it is linear, each by its own matrix."""
    _, height, width, _ = given.shape
    if (height, width) == (layer.height, layer.width):
        return given
    rows, columns = _resize_matrix(layer, height, layer.height), _resize_matrix(layer, width, layer.width)
    turned = ops.transpose(ops.cast(given, "float32"), (0, 3, 1, 2))
    resized = ops.transpose(ops.matmul(ops.matmul(rows, turned), columns.T), (0, 2, 3, 1))
    if "int" in str(given.dtype):  # Keras rounds then
        return ops.cast(ops.clip(ops.round(resized), 0, 255), given.dtype)
    return resized


def _resize_matrix(layer: Any, before: int, after: int) -> NDArray[np.float32]:
    """What TensorFlow's resize does along one side, float32 [after, before]."""
    import tensorflow as tf

    one = np.eye(before, dtype=np.float32)[None, :, :, None]
    found = tf.image.resize(one, (after, before), method=layer.interpolation, antialias=layer.antialias)
    return np.asarray(found)[0, :, :, 0]


def _product(ops: Any, given: Any, layer: Any, as_it_is: Callable[[], Any]) -> Any:
    """An einsum of the heads as a multiplication or a product of matrices."""
    kernel = np.asarray(layer.kernel)
    if layer.equation == "npd,p->npd":
        found = ops.multiply(given, kernel[:, None])
    elif layer.equation == "nab,bc->nac":
        found = ops.matmul(given, kernel)
    else:
        return as_it_is()
    return found if layer.bias is None else ops.add(found, np.asarray(layer.bias))
