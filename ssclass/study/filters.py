"""Visualise what a channel of the network detects: the picture that activates it most, by gradient ascent.

The picture is a sum of waves whose amplitudes are found, each scaled by one over its frequency, as in photos; it is
shifted by a few pixels at each step (Olah, Mordvintsev & Schubert, "Feature Visualization", Distill 2017). Seeded: the
same network gives the same pictures on the same kind of device.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ssclass.study.maps import Trunk

SIDE = 128  # pixels
STEPS = 96
RATE = 0.05
SHIFT = 8  # pixels
COLOURS = np.array([[1, 1, 1], [0.35, 0, -0.35], [0.1, -0.2, 0.1]])
"""Brightness, blue to red, green to purple, each as strong as it is in photos."""


def shown_layers(network: Any, count: int = 4) -> list[Any]:
    """Choose activation layers of a network whose output is a map, evenly from shallow to the last."""
    found = [
        layer
        for layer in network.layers
        if type(layer).__name__ in ("ReLU", "Activation") and len(layer.output.shape) == 4 and layer.output.shape[1] > 1
    ]
    places = np.linspace(len(found) / (count + 1), len(found) - 1, count).round().astype(int)
    return [found[place] for place in dict.fromkeys(places)]


def visualise_channels(
    trunk: Trunk,
    layer: Any,
    channels: Sequence[int],
    seed: int = 0,
    tick: Callable[[int, int], None] = lambda done, total: None,
) -> NDArray[np.uint8]:
    """Make a picture for each channel of a layer, uint8 [channels, side, side, 3].

    `side` is SIDE, unless the network takes another size only.
    """
    import keras
    import tensorflow as tf

    # The layer's input, as behind the activation a channel may be silent at first.
    part = keras.Model(trunk.network.inputs, layer.input)
    side = trunk.side or SIDE
    if trunk.side is None:
        weights = part.get_weights()
        part = keras.models.clone_model(part, input_tensors=[keras.Input((side, side, 3))])
        part.set_weights(weights)
    wanted = tf.constant(list(channels))
    draw = np.random.default_rng(seed)
    rows = np.fft.fftfreq(side)[:, None]
    columns = np.fft.rfftfreq(side)[None, :]
    scale = tf.constant(side / 5 / np.maximum(np.hypot(rows, columns), 1 / side), tf.complex64)
    colours = tf.constant(COLOURS, tf.float32)
    start = draw.normal(scale=0.01, size=(2, len(channels), 3, side, side // 2 + 1))
    waves = tf.Variable(start, dtype=tf.float32)
    optimizer = keras.optimizers.Adam(RATE)
    optimizer.build([waves])

    def pixels(waves: Any) -> Any:
        signal = tf.signal.irfft2d(tf.complex(waves[0], waves[1]) * scale)
        return 255 * tf.sigmoid(tf.transpose(signal, (0, 2, 3, 1)) @ colours)

    def step(shift: Any) -> None:
        with tf.GradientTape() as tape:
            shown = tf.roll(pixels(waves), shift, axis=(1, 2))
            activations = part(trunk.before(shown), training=False)
            own = tf.gather(activations, wanted[:, None], axis=-1, batch_dims=1)
            loss = -tf.reduce_sum(tf.reduce_mean(own, axis=(1, 2, 3)))
        optimizer.apply([tape.gradient(loss, waves)], [waves])

    ascend = tf.function(step)
    for done in range(1, STEPS + 1):
        ascend(tf.constant(draw.integers(-SHIFT, SHIFT + 1, size=2), tf.int32))
        tick(done, STEPS)
    return np.asarray(pixels(waves).numpy().round(), dtype=np.uint8)
