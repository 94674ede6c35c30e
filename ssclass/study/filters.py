"""What a channel of the network looks for: the picture that it answers to most, found by gradient ascent.

The picture is a sum of waves whose strengths are learnt, each scaled by one over its frequency, as in photos; it is
shifted by a few pixels at each step (Olah, Mordvintsev & Schubert, "Feature Visualization", Distill 2017). Seeded: the
same network gives the same pictures on the same kind of device.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

SIDE = 128  # pixels
STEPS = 96
RATE = 0.05
SHIFT = 8  # pixels
COLOURS = np.array([[1, 1, 1], [0.35, 0, -0.35], [0.1, -0.2, 0.1]])
"""Brightness, blue to red, green to purple, each as strong as it is in photos."""


def layers(trunk: Any, count: int = 4) -> list[Any]:
    """Activations of a network whose output is a map, evenly from shallow to the last."""
    found = [
        layer
        for layer in trunk.layers
        if type(layer).__name__ in ("ReLU", "Activation") and len(layer.output.shape) == 4 and layer.output.shape[1] > 1
    ]
    places = np.linspace(len(found) / (count + 1), len(found) - 1, count).round().astype(int)
    return [found[place] for place in dict.fromkeys(places)]


def favourites(
    trunk: Any,
    layer: Any,
    channels: Sequence[int],
    before: Callable[[Any], Any],
    seed: int = 0,
    tick: Callable[[int, int], None] = lambda done, total: None,
) -> NDArray[np.uint8]:
    """A picture for each channel, uint8 [channels, SIDE, SIDE, 3].

    `before` takes pixels, float32 0-255 [n, SIDE, SIDE, 3], to what the network wants.
    """
    import keras
    import tensorflow as tf

    part = keras.Model(trunk.inputs, layer.input)  # before the activation: behind it, a channel may be silent at first
    seeing = keras.models.clone_model(part, input_tensors=[keras.Input((SIDE, SIDE, 3))])
    seeing.set_weights(part.get_weights())
    wanted = tf.constant(list(channels))
    draw = np.random.default_rng(seed)
    rows = np.fft.fftfreq(SIDE)[:, None]
    columns = np.fft.rfftfreq(SIDE)[None, :]
    scale = tf.constant(SIDE / 5 / np.maximum(np.hypot(rows, columns), 1 / SIDE), tf.complex64)
    colours = tf.constant(COLOURS, tf.float32)
    start = draw.normal(scale=0.01, size=(2, len(channels), 3, SIDE, SIDE // 2 + 1))
    waves = tf.Variable(start, dtype=tf.float32)
    optimizer = keras.optimizers.Adam(RATE)
    optimizer.build([waves])

    def pixels(waves: Any) -> Any:
        signal = tf.signal.irfft2d(tf.complex(waves[0], waves[1]) * scale)
        return 255 * tf.sigmoid(tf.transpose(signal, (0, 2, 3, 1)) @ colours)

    def step(shift: Any) -> None:
        with tf.GradientTape() as tape:
            shown = tf.roll(pixels(waves), shift, axis=(1, 2))
            answer = seeing(before(shown), training=False)
            own = tf.gather(answer, wanted[:, None], axis=-1, batch_dims=1)
            loss = -tf.reduce_sum(tf.reduce_mean(own, axis=(1, 2, 3)))
        optimizer.apply([tape.gradient(loss, waves)], [waves])

    ascend = tf.function(step)
    for done in range(1, STEPS + 1):
        ascend(tf.constant(draw.integers(-SHIFT, SHIFT + 1, size=2), tf.int32))
        tick(done, STEPS)
    return np.asarray(pixels(waves).numpy().round(), dtype=np.uint8)
