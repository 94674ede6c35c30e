"""Fine-tuning the last blocks of a backbone on the photos that it is for.

The frozen part of the network before them runs once a view: its activations are features like others, remembered in
float16. A linear probe on the pooled features comes first, so that the gradient that reaches the blocks means
something; then probe and blocks are trained together, at a small rate, on one view of each photo (or of one of its
copies) an epoch. Batch norms stay as they are, in inference mode. The probe is thrown away: heads are fitted to the
features that the tuned blocks give, as to any other.

The network rounds to float16 before the blocks too, so that a photo has the same features however it came there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ssclass.model import compute
from ssclass.model.backbones import import_keras
from ssclass.model.extraction import SPLIT_DTYPE, split_backbone, tuned_extractor
from ssclass.model.features import Features, concat
from ssclass.model.folds import Fold
from ssclass.model.heads.base import CrossValidation, Curves, Tick
from ssclass.model.heads.linear import L2S, fit_path
from ssclass.model.spec import FeatureSpec
from ssclass.model.tuned_blocks import TunedBlocks
from ssclass.params import TrainParams

BATCH = 32  # views that go through together
PROBE = 0.32  # the probe's penalty: the one that the head `linear` chooses on the study's photos


class Tuner:
    """Tunes the last blocks of one backbone, from the published weights each time, with one graph for all folds."""

    def __init__(self, spec: FeatureSpec, classes: int, params: TrainParams) -> None:
        keras = import_keras()
        self.spec, self.params, self.classes = spec, params, classes
        self.size = max(spec.sizes)
        _, blocks = split_backbone(spec, self.size)
        self.published = TunedBlocks(spec.before_blocks, tuple(blocks.get_weights()))
        self._pooled: tuple[Features, np.ndarray] | None = None
        self.dtype = compute.precision(params.mixed_precision)
        self._model = keras.models.clone_model(blocks, clone_function=self._trainable)
        self._model.set_weights(blocks.get_weights())
        self._probe = [
            keras.Variable(np.zeros(shape, np.float32)) for shape in ((blocks.output.shape[-1], classes), (classes,))
        ]
        trained = [*self._probe, *self._model.trainable_variables]
        optimizer = keras.optimizers.Adam(params.tune_learning_rate)
        self._optimizer = keras.optimizers.LossScaleOptimizer(optimizer) if self.dtype == "mixed_float16" else optimizer
        self._optimizer.build(trained)
        self._trained = trained
        self._state = [*self._model.variables, *self._optimizer.variables]
        self._start = [variable.numpy() for variable in self._state]
        self._step = self._trace()

    def tuned(self, blocks: TunedBlocks) -> FeatureSpec:
        """The spec of the features that these blocks give."""
        return replace(self.spec, before_blocks=0, tuned_blocks=blocks)

    def tune(self, activations: Features, labels: np.ndarray, rows: np.ndarray) -> tuple[TunedBlocks, Curves]:
        """Tune on the photos of these rows; returns the blocks and curves per epoch, tune_loss and tune_accuracy.

        `activations`: those before the blocks, of photos and copies.
        """
        for variable, value in zip(self._state, self._start, strict=True):
            variable.assign(value)
        if self._pooled is None or self._pooled[0] is not activations:
            frozen = through_tuned_blocks(self.tuned(self.published), replace(activations, augmented={}))
            self._pooled = activations, frozen.arrays[f"{self.size}.out.mean"].mean(axis=1, dtype=np.float64)
        path = [l2 for l2 in L2S if l2 >= PROBE]
        *_, probe = fit_path(self._pooled[1][rows], labels[rows], self.classes, path)
        for variable, value in zip(self._probe, (probe.kernel, probe.bias), strict=True):
            variable.assign(value)
        draw = np.random.default_rng(self.params.seed)
        name = f"{self.size}.cut"
        views = [activations.arrays[name]]
        if name in activations.augmented:
            views += list(np.moveaxis(activations.augmented[name], 1, 0))
        count = views[0].shape[1]  # views a photo
        curves: Curves = {"tune_loss": [], "tune_accuracy": []}
        batch = min(BATCH, len(rows))
        for _ in range(self.params.tune_epochs):
            order = np.resize(draw.permutation(rows), (-(-len(rows) // batch), batch))
            chosen = draw.integers(count * len(views), size=order.shape)
            steps = []
            for photos, numbers in zip(order, chosen, strict=True):
                batch_views = np.stack(
                    [
                        views[number // count][photo, number % count]
                        for photo, number in zip(photos, numbers, strict=True)
                    ]
                )
                steps.append([float(value) for value in self._step(batch_views, labels[photos].astype(np.int32))])
            for name, value in zip(curves, np.mean(steps, axis=0), strict=True):
                curves[name].append(float(value))
        return TunedBlocks(self.spec.before_blocks, tuple(self._model.get_weights())), curves

    def _trainable(self, layer: Any) -> Any:
        """A copy of a layer, trainable unless it is a batch norm."""
        keras = import_keras()
        made = type(layer).from_config(layer.get_config() | {"dtype": self.dtype})
        made.trainable = not isinstance(layer, keras.layers.BatchNormalization)
        return made

    def _trace(self) -> Any:
        import tensorflow as tf

        kernel, bias = self._probe

        def step(activations: Any, labels: Any) -> Any:
            with tf.GradientTape() as tape:
                maps = tf.cast(self._model(tf.cast(activations, tf.float32), training=False), tf.float32)
                scores = tf.reduce_mean(maps, axis=(1, 2)) @ kernel + bias
                loss = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(labels, scores))
                scaled = self._optimizer.scale_loss(loss)
            self._optimizer.apply(tape.gradient(scaled, [variable.value for variable in self._trained]), self._trained)
            correct = tf.argmax(scores, axis=-1, output_type=tf.int32) == labels
            return loss, tf.reduce_mean(tf.cast(correct, tf.float32))

        activations = tf.TensorSpec(self._model.input.shape, SPLIT_DTYPE)
        return tf.function(step, input_signature=[activations, tf.TensorSpec((None,), tf.int32)])


def through_tuned_blocks(spec: FeatureSpec, activations: Features) -> Features:
    """Features of photos and copies by a spec with tuned blocks, given the activations before the blocks."""
    extractor = tuned_extractor(spec)
    copies = next((array.shape[1] for array in activations.augmented.values()), 0)
    augmented = [
        Features(
            activations.sha256s, extractor({name: array[:, number] for name, array in activations.augmented.items()})
        )
        for number in range(copies)
    ]
    return Features(activations.sha256s, extractor(activations.arrays), activations.groups).with_augmented(augmented)


@dataclass(frozen=True, eq=False)
class FoldFeatures:
    """Features for a cross-validation in which the network is tuned for each fold: one block of rows a fold.

    Each block has every photo, as the network gives it that was tuned on the fold's training rows only. The row
    numbers in `folds` count through all blocks.
    """

    features: Features
    labels: np.ndarray
    folds: list[Fold]

    def gather(self, found: CrossValidation) -> CrossValidation:
        """The cross-validation with one row a photo again: its probabilities by the fold that tests it."""
        n = len(self.labels) // len(self.folds)
        probabilities = np.empty((n, found.probabilities.shape[1]))
        for _, test in self.folds:
            probabilities[test % n] = found.probabilities[test]
        return replace(found, probabilities=probabilities)


def tune_folds(
    tuner: Tuner, activations: Features, labels: np.ndarray, folds: Sequence[Fold], tick: Tick
) -> FoldFeatures:
    """Tune once a fold, on its training rows: test photos have no part in the network that gives their features."""
    parts, shifted = [], []
    for number, (train, test) in enumerate(folds):
        blocks, _ = tuner.tune(activations, labels, train)
        parts.append(through_tuned_blocks(tuner.tuned(blocks), activations))
        shifted.append((train + number * len(labels), test + number * len(labels)))
        tick()
    return FoldFeatures(concat(parts), np.tile(labels, len(folds)), shifted)
