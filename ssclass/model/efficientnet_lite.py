"""EfficientNet-Lite: EfficientNet without squeeze-and-excite and with ReLU6, as Google made it for phones.

The blocks are EfficientNet's (Tan and Le, ICML 2019, table 1), scaled in width and depth. Unlike there, the stem, the
first block, the last block's repeats and the last convolution are not scaled
(https://github.com/tensorflow/tpu/tree/master/models/official/efficientnet/lite).
"""

from __future__ import annotations

from collections.abc import Mapping
from math import ceil
from typing import Any

import numpy as np

SCALES = {"EfficientNetLite0": (1.0, 1.0), "EfficientNetLite1": (1.0, 1.1), "EfficientNetLite2": (1.1, 1.2)}
"""Width and depth of each network."""

# Repeats, kernel side, stride of the first repeat, expansion, channels out.
_BLOCKS = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
_STEM, _TOP, _CLASSES = 32, 1280, 1000
_EPSILON = 1e-3
_KINDS = {"gamma": "weight", "beta": "bias", "moving_mean": "running_mean", "moving_variance": "running_var"}


def build(keras: Any, name: str, *, top: bool, size: int | None) -> Any:
    """The Keras model with untrained weights, for images float32 [n, size, size, 3]; `top`: with its classifier.

    `size` None: images of any height and width.
    """
    layers = keras.layers

    def normalised(x: Any, layer: str, *, active: bool = True) -> Any:
        x = layers.BatchNormalization(epsilon=_EPSILON, name=f"{layer}_bn")(x)
        return layers.ReLU(6.0, name=f"{layer}_relu")(x) if active else x

    def convolved(x: Any, channels: int, layer: str, *, side: int = 1, stride: int = 1, active: bool = True) -> Any:
        x = layers.Conv2D(channels, side, stride, padding="same", use_bias=False, name=f"{layer}_conv")(x)
        return normalised(x, layer, active=active)

    images = keras.Input((size, size, 3), name="images")
    x = convolved(images, _STEM, "stem", side=3, stride=2)
    for number, (side, stride, expansion, channels) in enumerate(blocks(name), 1):
        before, block = x, f"block{number}"
        if expansion > 1:
            x = convolved(x, before.shape[-1] * expansion, f"{block}_expand")
        depthwise = layers.DepthwiseConv2D(side, stride, "same", use_bias=False, name=f"{block}_depthwise_conv")
        x = normalised(depthwise(x), f"{block}_depthwise")
        x = convolved(x, channels, f"{block}_project", active=False)
        if stride == 1 and before.shape[-1] == channels:
            x = layers.Add(name=f"{block}_add")([x, before])
    x = convolved(x, _TOP, "top")
    if top:
        x = layers.GlobalAveragePooling2D(name="pool")(x)
        x = layers.Dense(_CLASSES, activation="softmax", name="classes")(x)
    return keras.Model(images, x, name=name)


def blocks(name: str) -> list[tuple[int, int, int, int]]:
    """Kernel side, stride, expansion and channels out of each block of a network, in order."""
    width, depth = SCALES[name]
    found = []
    for place, (repeats, side, stride, expansion, channels) in enumerate(_BLOCKS):
        ends = place in (0, len(_BLOCKS) - 1)
        for repeat in range(repeats if ends else ceil(repeats * depth)):
            found.append((side, stride if repeat == 0 else 1, expansion, _scaled(channels, width)))
    return found


def block_ends(name: str) -> tuple[str, ...]:
    """The last layer of each block of a network, the last block first."""
    found, before = [], _STEM
    for number, (_, stride, _, channels) in enumerate(blocks(name), 1):
        found.append(f"block{number}_add" if stride == 1 and before == channels else f"block{number}_project_bn")
        before = channels
    return tuple(reversed(found))


def from_torch(model: Any, state: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    """Tensors for the weights of a Keras model of :func:`build`, in order, from those of its twin in torch.

    KeyError when one is missing there, ValueError when one has another shape.
    """
    tensors = []
    for variable in model.weights:
        layer, _, kind = variable.path.rpartition("/")
        name = _torch_name(layer, kind)
        value = state[name]
        if value.ndim == 4:  # out, in, height, width; Keras: height, width, in, out (of depthwise ones: in, 1)
            value = value.transpose(2, 3, 0, 1) if "depthwise" in layer else value.transpose(2, 3, 1, 0)
        elif value.ndim == 2:
            value = value.T
        if value.shape != tuple(variable.shape):
            raise ValueError(f"{name} has shape {value.shape}, not {tuple(variable.shape)}")
        tensors.append(np.ascontiguousarray(value, dtype=np.float32))
    return tensors


def _torch_name(layer: str, kind: str) -> str:
    """The twin's name of a variable: ``block3_expand_bn/gamma`` is ``_blocks.2._bn0.weight``."""
    if layer == "classes":
        return "_fc." + {"kernel": "weight", "bias": "bias"}[kind]
    place, _, role = layer.rpartition("_")
    if place in ("stem", "top"):
        module = {"stem_conv": "_conv_stem", "stem_bn": "_bn0", "top_conv": "_conv_head", "top_bn": "_bn1"}[layer]
    else:
        block, part = place.removeprefix("block").split("_")
        norm = {"expand": "_bn0", "depthwise": "_bn1", "project": "_bn2"}[part]
        module = f"_blocks.{int(block) - 1}." + (norm if role == "bn" else f"_{part}_conv")
    return f"{module}.{_KINDS.get(kind, 'weight')}"


def _scaled(channels: int, width: float) -> int:
    """Channels times a width, to the nearest multiple of 8 that is not a tenth too small."""
    wanted = channels * width
    rounded = max(8, int(wanted + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * wanted else rounded
