"""Class-activation maps: how much each place of a photo contributes to a class.

The score is the log odds of a class, log p_c - log sum of the other p. With a the last feature map of a view, each
place contributes sum_k a_k dscore/da_k there (HiResCAM; Draelos & Carin 2020, arXiv:2011.08891). For pooling followed
by one dense layer this is the class-activation map itself (Zhou et al., CVPR 2016): the contributions of all places and
the bias add up to the score. For other heads it is Grad-CAM with the gradient kept where it is.

Of a head that compares directions (`rbf`, `bilinear`: features of unit length) such sums are zero, as its score does
not change with the length of what it sees (Euler). There a place contributes what the score loses when the place
becomes the mean place of all given photos, which should be of every class.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ssclass.data.shapes import Images, by_shape, side_of
from ssclass.errors import NotFoundError
from ssclass.serving.model import Model

BATCH = 8  # photos at a time: the maps of every view are held


@dataclass(frozen=True)
class View:
    """The part of the photo that a feature map shows: a square of `side` in a canvas of `canvas`, in pixels."""

    top: int
    left: int
    side: int
    canvas: int
    flipped: bool


@dataclass(frozen=True)
class Trunk:
    """A network, and `before`, which turns pixels (float32, 0-255) into its input.

    `side`: of the pictures, in pixels, where only one will do (another network comes before it: a tuned model's
    frozen part); else None.
    """

    network: Any
    before: Callable[[Any], Any]
    side: int | None


class MappedModel:
    """A model split at its last feature maps: `before` turns pixels into maps, `after` maps into probabilities."""

    def __init__(self, model: Model) -> None:
        import keras

        self.model = model
        self.maps = _last_maps(model.keras)
        if not self.maps:
            raise NotFoundError(f"{model.name}: no feature map is pooled in this model; there is no map to show")
        self.views = [_view(tensor, side_of(model.size)) for tensor in self.maps]
        heads = [layer for layer in model.keras.layers if layer.name.startswith("head")]
        kinds = [[type(layer).__name__ for layer in getattr(head, "layers", ())] for head in heads]
        self.linear = kinds == [["InputLayer", "GlobalAveragePooling1D", "Dense"]]
        self.directions = any("UnitNormalization" in layers for layers in kinds)
        maps = self.maps if len(self.maps) > 1 else self.maps[0]
        self.before = keras.Model(model.keras.inputs[0], maps)
        self.after = keras.Model(maps, model.keras.outputs[0])

    def trunk(self) -> Trunk:
        """The network that makes the first map."""
        import keras

        history = self.maps[0]._keras_history
        node = history.operation._inbound_nodes[history.node_index]
        while not isinstance(node.operation, keras.Model):
            node = node.parent_nodes[0]
        network, steps = node.operation, []
        node = node.parent_nodes[0]
        while node.input_tensors and type(node.operation).__name__ not in ("Cropping2D", "Flip", "Resizing"):
            steps.append(node)
            node = node.parent_nodes[0]

        def before(pixels: Any) -> Any:
            for step in reversed(steps):
                arguments, named = step.arguments.fill_in({id(step.input_tensors[0]): pixels})
                pixels = step.operation(*arguments, **named)
            return pixels

        whole = not any(isinstance(step.operation, keras.Model) for step in steps)
        return Trunk(network, before, None if whole else self.views[0].side)

    @cached_property
    def _run(self) -> Any:
        import tensorflow as tf

        def run(images: Any, classes: Any, usual: Any) -> Any:
            maps = _listed(self.before(images, training=False))

            def scored(maps: list[Any]) -> tuple[Any, Any]:
                probabilities = self.after(maps if len(maps) > 1 else maps[0], training=False)
                own = tf.gather(probabilities, classes, axis=1, batch_dims=1)
                hot = tf.one_hot(classes, tf.shape(probabilities)[1], dtype=probabilities.dtype)
                others = tf.reduce_sum(probabilities * (1 - hot), axis=1)
                return tf.math.log(tf.maximum(own, 1e-30)) - tf.math.log(tf.maximum(others, 1e-30)), probabilities

            def losses(number: int) -> Any:
                """How much the score loses without each place of a map, [n, h, w]."""
                a = maps[number]
                height, width = tf.shape(a)[1], tf.shape(a)[2]

                def without(place: Any) -> Any:
                    there = tf.reshape(tf.one_hot(place, height * width), (1, height, width, 1))
                    return scored([*maps[:number], a * (1 - there) + usual[number] * there, *maps[number + 1 :]])[0]

                left = tf.map_fn(without, tf.range(height * width), fn_output_signature=tf.float32)
                return tf.reshape(score - left, (height, width, -1))

            with tf.GradientTape() as tape:
                tape.watch(maps)
                score, probabilities = scored(maps)
            slopes = tape.gradient(score, maps, unconnected_gradients="zero")
            # Where nothing is active nothing contributes, though a root's slope there is infinite.
            products = [tf.where(a == 0, 0.0, a * slope) for a, slope in zip(maps, slopes, strict=True)]
            channels = [tf.reduce_sum(one, axis=(1, 2)) for one in products]
            if self.directions:
                places = [tf.transpose(losses(number), (2, 0, 1)) for number in range(len(maps))]
            else:
                places = [tf.reduce_sum(one, axis=-1) for one in products]
            return places, channels, probabilities

        return tf.function(run, reduce_retracing=True)

    def contributions(
        self, images: Images, classes: NDArray[np.integer]
    ) -> tuple[list[NDArray[np.float32]], list[NDArray[np.float32]], NDArray[np.float64]]:
        """How much each place and each channel of each map contributes to the given class of each photo.

        images: decoded; classes: int [n]. Returns, a map each, float32 [n, h, w] and [n, channels]; and the
        probabilities, [n, classes]. Of photos in their own shape, h and w are the most that one has.
        """
        parts = [
            (rows[at : at + BATCH], alike[at : at + BATCH])
            for rows, alike in by_shape(images)
            for at in range(0, len(rows), BATCH)
        ]
        usual = [np.zeros((1, 1, 1, one.shape[-1]), np.float32) for one in self.maps]
        if self.directions:
            for _, some in parts:
                for one, found in zip(usual, _listed(self.before(some, training=False)), strict=True):
                    one += found.numpy().mean(axis=(1, 2), keepdims=True).sum(axis=0, keepdims=True) / len(images)
        places: list[list[Any]] = [[] for _ in self.maps]
        channels: list[list[Any]] = [[] for _ in self.maps]
        probabilities = []
        for rows, some in parts:
            by_place, by_channel, found = self._run(some, classes[rows].astype(np.int32), usual)
            for number in range(len(self.maps)):
                places[number].append(by_place[number].numpy())
                channels[number].append(by_channel[number].numpy())
            probabilities.append(found.numpy())
        order = np.argsort(np.concatenate([rows for rows, _ in parts]))
        return (
            [np.concatenate(_alike(one))[order] for one in places],
            [np.concatenate(one)[order] for one in channels],
            np.concatenate(probabilities)[order],
        )

    def photo_maps(self, places: Sequence[NDArray[np.float32]], side: int) -> NDArray[np.float32]:
        """Lay the maps of all views on one canvas, float32 [n, side, side]: the mean over the views of each place."""
        n = len(places[0])
        total, covered = np.zeros((n, side, side), np.float32), np.zeros((side, side), np.float32)
        for view, contribution in zip(self.views, places, strict=True):
            scale = side / view.canvas
            top, left = round(view.top * scale), round(view.left * scale)
            bottom, right = round((view.top + view.side) * scale), round((view.left + view.side) * scale)
            shown = contribution[:, :, ::-1] if view.flipped else contribution
            total[:, top:bottom, left:right] += _stretched(shown, bottom - top, right - left)
            covered[top:bottom, left:right] += 1
        return np.asarray(total / np.maximum(covered, 1))


def overlay(photo: NDArray[np.uint8], contribution: NDArray[np.floating]) -> NDArray[np.uint8]:
    """Lay a map [h, w] on a photo uint8 [h, w, 3]: red speaks for the class, blue against it."""
    strongest = float(np.quantile(np.abs(contribution), 0.995)) or 1.0
    share = np.clip(contribution / strongest, -1, 1)[..., None]
    grey = photo.mean(axis=-1, keepdims=True).repeat(3, axis=-1) * 0.65 + photo * 0.35
    colour = np.where(share > 0, np.array([225, 30, 20]), np.array([25, 70, 225]))
    alpha = 0.75 * np.abs(share)
    return np.asarray(np.clip(grey * (1 - alpha) + colour * alpha, 0, 255), dtype=np.uint8)


def stretched(contribution: NDArray[np.floating], height: int, width: int) -> NDArray[np.float32]:
    """Resize one map [h, w]."""
    return np.asarray(_stretched(np.asarray(contribution, np.float32)[None], height, width)[0])


def _stretched(contribution: NDArray[np.float32], height: int, width: int) -> NDArray[np.float32]:
    """Resize maps [n, h, w] to [n, height, width], bilinear."""
    import tensorflow as tf

    return np.asarray(tf.image.resize(contribution[..., None], (height, width)).numpy()[..., 0])


def _alike(maps: list[NDArray[np.float32]]) -> list[NDArray[np.float32]]:
    """Maps [n, h, w], each stretched to the most height and the most width that one of them has."""
    height, width = (max(one.shape[axis] for one in maps) for axis in (1, 2))
    return [one if one.shape[1:] == (height, width) else _stretched(one, height, width) for one in maps]


def _last_maps(model: Any) -> list[Any]:
    """Find the Keras tensors [n, h, w, channels] that a pooling or a flatten takes: the last feature maps."""
    found = []
    # Of this model's own nodes: a layer that is shared may have others, which lead elsewhere.
    own = {id(node) for nodes in model._nodes_by_depth.values() for node in nodes}
    for operation in (one for one in model.operations if not one.name.startswith("head")):
        for node in (one for one in operation._inbound_nodes if id(one) in own):
            if all(len(tensor.shape) != 4 for tensor in node.output_tensors):
                found += [tensor for tensor in node.input_tensors if len(tensor.shape) == 4]
    return list({id(tensor): tensor for tensor in found}.values())


def _view(tensor: Any, size: int) -> View:
    """Follow a map back to the pixels that it was made from."""
    top, left, side, canvas, flipped = 0, 0, None, None, False
    history = tensor._keras_history
    node = history.operation._inbound_nodes[history.node_index]
    while node.input_tensors:
        operation = node.operation
        kind = type(operation).__name__
        if kind == "Cropping2D":
            (above, below), (before, after) = operation.cropping
            top, left, canvas = above, before, node.input_tensors[0].shape[1]
            side = canvas - above - below
            assert side == canvas - before - after, "views are square"
        elif kind == "Flip":
            flipped = not flipped
        elif kind == "Resizing" and canvas is None:
            canvas = operation.height
        node = node.parent_nodes[0]
    canvas = canvas or size
    return View(top, left, side or canvas, canvas, flipped)


def _listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [value]
