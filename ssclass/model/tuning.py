"""Fine-tuning the last blocks of a backbone on the photos that it is for.

What comes before them, the frozen trunk, runs once a view: its activations at the cut are features like others,
remembered in float16. A linear probe on the pooled features comes first, so that the gradient that reaches the blocks
says something; then probe and blocks learn together, at a small rate, one view of each photo (or of one of its copies)
an epoch. Batch norms stay as they are, in inference mode. The probe is thrown away: what was tuned is the tail, and
heads are trained on its features as on any other.

The cut is in float16 in the network too, so that a photo has the same features however it came there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ssclass.model import compute
from ssclass.model.backbones import import_keras
from ssclass.model.extraction import CUT, halves, tail_extractor
from ssclass.model.features import Features, FeatureSpec, concat
from ssclass.model.folds import Fold
from ssclass.model.heads.heads import CrossValidation, Curves, Tick
from ssclass.model.heads.linear import STRENGTHS, fit_path
from ssclass.model.weights import Tail
from ssclass.params import TrainParams

BATCH = 32  # views that go through together
PROBE = 0.32  # strength of the probe's penalty: what the head `linear` chooses on the study's photos


class Tuner:
    """Tunes the tail of one spec, from the published weights each time: one graph for all folds."""

    def __init__(self, spec: FeatureSpec, classes: int, params: TrainParams) -> None:
        keras = import_keras()
        self.spec, self.params, self.classes = spec, params, classes
        self.size = max(spec.sizes)
        _, back = halves(spec, self.size)
        self.published = Tail(spec.cut, tuple(back.get_weights()))
        self._pooled: tuple[Features, np.ndarray] | None = None
        self.dtype = compute.precision(params.mixed_precision)
        self._model = keras.models.clone_model(back, clone_function=self._trainable)
        self._model.set_weights(back.get_weights())
        self._probe = [
            keras.Variable(np.zeros(shape, np.float32)) for shape in ((back.output.shape[-1], classes), (classes,))
        ]
        learning = [*self._probe, *self._model.trainable_variables]
        optimizer = keras.optimizers.Adam(params.tune_learning_rate)
        self._optimizer = keras.optimizers.LossScaleOptimizer(optimizer) if self.dtype == "mixed_float16" else optimizer
        self._optimizer.build(learning)
        self._learning = learning
        self._state = [*self._model.variables, *self._optimizer.variables]
        self._start = [variable.numpy() for variable in self._state]
        self._step = self._trace()

    def tuned(self, tail: Tail) -> FeatureSpec:
        """The spec of features through this tail."""
        return replace(self.spec, cut=0, tail=tail)

    def tune(self, cuts: Features, labels: np.ndarray, rows: np.ndarray) -> tuple[Tail, Curves]:
        """The tail that the photos of these rows give, and its curves per epoch: tune_loss and tune_accuracy.

        `cuts`: activations at the cut, of photos and copies.
        """
        for variable, value in zip(self._state, self._start, strict=True):
            variable.assign(value)
        if self._pooled is None or self._pooled[0] is not cuts:
            frozen = through_tail(self.tuned(self.published), replace(cuts, copies={}))
            self._pooled = cuts, frozen.arrays[f"{self.size}.out.mean"].mean(axis=1, dtype=np.float64)
        path = [strength for strength in STRENGTHS if strength >= PROBE]
        *_, probe = fit_path(self._pooled[1][rows], labels[rows], self.classes, path)
        for variable, value in zip(self._probe, (probe.kernel, probe.bias), strict=True):
            variable.assign(value)
        draw = np.random.default_rng(self.params.seed)
        name = f"{self.size}.cut"
        views = [cuts.arrays[name]]
        if name in cuts.copies:
            views += list(np.moveaxis(cuts.copies[name], 1, 0))
        each = views[0].shape[1]
        curves: Curves = {"tune_loss": [], "tune_accuracy": []}
        batch = min(BATCH, len(rows))
        for _ in range(self.params.tune_epochs):
            order = np.resize(draw.permutation(rows), (-(-len(rows) // batch), batch))
            chosen = draw.integers(each * len(views), size=order.shape)
            said = []
            for photos, numbers in zip(order, chosen, strict=True):
                seen = np.stack(
                    [views[number // each][photo, number % each] for photo, number in zip(photos, numbers, strict=True)]
                )
                said.append([float(value) for value in self._step(seen, labels[photos].astype(np.int32))])
            for name, value in zip(curves, np.mean(said, axis=0), strict=True):
                curves[name].append(float(value))
        return Tail(self.spec.cut, tuple(self._model.get_weights())), curves

    def _trainable(self, layer: Any) -> Any:
        """A copy of a layer that learns, unless it is a batch norm."""
        keras = import_keras()
        made = type(layer).from_config(layer.get_config() | {"dtype": self.dtype})
        made.trainable = not isinstance(layer, keras.layers.BatchNormalization)
        return made

    def _trace(self) -> Any:
        import tensorflow as tf

        kernel, bias = self._probe

        def step(cut: Any, labels: Any) -> Any:
            with tf.GradientTape() as tape:
                maps = tf.cast(self._model(tf.cast(cut, tf.float32), training=False), tf.float32)
                scores = tf.reduce_mean(maps, axis=(1, 2)) @ kernel + bias
                loss = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(labels, scores))
                scaled = self._optimizer.scale_loss(loss)
            self._optimizer.apply(tape.gradient(scaled, [each.value for each in self._learning]), self._learning)
            hit = tf.argmax(scores, axis=-1, output_type=tf.int32) == labels
            return loss, tf.reduce_mean(tf.cast(hit, tf.float32))

        cut = tf.TensorSpec(self._model.input.shape, CUT)
        return tf.function(step, input_signature=[cut, tf.TensorSpec((None,), tf.int32)])


def through_tail(spec: FeatureSpec, cuts: Features) -> Features:
    """What a spec with a tail says of photos and copies, given their activations at the cut."""
    extractor = tail_extractor(spec)
    altered = [
        Features(cuts.sha256s, extractor({name: each[:, number] for name, each in cuts.copies.items()}))
        for number in range(next((each.shape[1] for each in cuts.copies.values()), 0))
    ]
    return Features(cuts.sha256s, extractor(cuts.arrays), cuts.groups).with_copies(altered)


@dataclass(frozen=True, eq=False)
class Lessons:
    """What heads are cross-validated on where the network was tuned for each fold: one block of rows a fold.

    In each block every photo is there, as the network sees it that learnt from the fold's rows `learn` only. The row
    numbers in `folds` count through all blocks.
    """

    features: Features
    labels: np.ndarray
    folds: list[Fold]

    def gather(self, found: CrossValidation) -> CrossValidation:
        """With one row a photo again: what its fold said of it."""
        n = len(self.labels) // len(self.folds)
        probabilities = np.empty((n, found.probabilities.shape[1]))
        for _, judge in self.folds:
            probabilities[judge % n] = found.probabilities[judge]
        return replace(found, probabilities=probabilities)


def tuned_lessons(tuner: Tuner, cuts: Features, labels: np.ndarray, folds: Sequence[Fold], tick: Tick) -> Lessons:
    """Tune for each fold, on what it learns from: what is judged on has no part in the network that judges it."""
    parts, shifted = [], []
    for number, (learn, judge) in enumerate(folds):
        tail, _ = tuner.tune(cuts, labels, learn)
        parts.append(through_tail(tuner.tuned(tail), cuts))
        shifted.append((learn + number * len(labels), judge + number * len(labels)))
        tick()
    return Lessons(concat(parts), np.tile(labels, len(folds)), shifted)
