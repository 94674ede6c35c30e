"""The trained parts: what turns features into class probabilities.

A head learns from cached features and ends as a small Keras model of standard layers. Its inputs are the feature
arrays that it names, each float32 [n, views, channels]; its output is float32 [n, classes], averaged over the views.
Two classes are the case N = 2 of softmax: a sigmoid of z is the softmax of (0, z).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from ssclass.model.backbones import import_keras
from ssclass.model.features import Features
from ssclass.model.folds import Fold, set_aside
from ssclass.model.heads.bilinear import Axes, find_axes, pool, pool_layers
from ssclass.model.heads.dense import HIDDEN, DenseTrainer
from ssclass.model.heads.kernel import STRENGTHS as RIDGES
from ssclass.model.heads.kernel import WIDTH, KernelFit, best, fit_strengths, unit_roots
from ssclass.model.heads.linear import STRENGTHS, LinearFit, fit_path
from ssclass.model.schedules import watches
from ssclass.params import TrainParams

Curves = dict[str, list[float]]
Tick = Callable[[], None]  # called once after each fit


@dataclass(frozen=True, eq=False)
class CrossValidation:
    """What a head does on photos that it did not learn from.

    `probabilities` float64 [n, classes], out of fold, of the rows that a fold judges; `accuracy` one value a fold;
    `strength` the chosen one, for heads that have one; `curves` per epoch, or per strength, the mean over folds.
    """

    accuracy: tuple[float, ...]
    probabilities: np.ndarray
    strength: float | None = None
    curves: Curves = field(default_factory=dict)

    @property
    def mean(self) -> float:
        """Mean accuracy over the folds."""
        return float(np.mean(self.accuracy))

    @property
    def sd(self) -> float:
        """Standard deviation of the accuracy over the folds (n - 1)."""
        return float(np.std(self.accuracy, ddof=1))


@dataclass(frozen=True, eq=False)
class Fitted:
    """A trained head: the Keras model, and its curves while training."""

    model: Any
    curves: Curves = field(default_factory=dict)


class Head(Protocol):
    """One way of learning; `arrays` are the names of the feature arrays that the trained model takes.

    `maps`: it learns from feature maps, which are computed for heads of that kind only.
    """

    name: str
    maps: bool
    arrays: tuple[str, ...]

    def cross_validate(
        self, features: Features, labels: np.ndarray, folds: Sequence[Fold], tick: Tick
    ) -> CrossValidation:
        """Learn and judge on each fold."""
        ...

    def fit(self, features: Features, labels: np.ndarray, found: CrossValidation) -> Fitted:
        """Learn from all rows, with what cross-validation found."""
        ...


class LinearHead:
    """L2-regularised multinomial logistic regression on the mean over views of the pooled features."""

    name = "linear"
    maps = False

    def __init__(self, size: int, classes: int, params: TrainParams) -> None:
        self.arrays = (f"{size}.out.mean",)
        self.classes = classes

    def cross_validate(
        self, features: Features, labels: np.ndarray, folds: Sequence[Fold], tick: Tick
    ) -> CrossValidation:
        """Every strength on every fold; the strength with the lowest out-of-fold log loss is chosen."""
        x = examples(features, self.arrays[0])
        found = np.empty((len(STRENGTHS), len(labels), self.classes))
        for learn, judge in folds:
            for number, fit in enumerate(self._path(x[learn], labels[learn], STRENGTHS)):
                found[number, judge] = fit.probabilities(x[judge, 0])
            tick()
        rows = judged_rows(folds)
        losses = [log_loss(each[rows], labels[rows]) for each in found]
        best = int(np.argmin(losses))
        curves = {
            "strength": list(STRENGTHS),
            "cv_loss": losses,
            "cv_accuracy": [_accuracy(each[rows], labels[rows]) for each in found],
        }
        return judged(found[best], labels, folds, STRENGTHS[best], curves)

    def fit(self, features: Features, labels: np.ndarray, found: CrossValidation) -> Fitted:
        """Fit at the strength that cross-validation chose."""
        path = [strength for strength in STRENGTHS if strength >= (found.strength or 0)]
        *_, fit = self._path(examples(features, self.arrays[0]), labels, path)
        return Fitted(self._model(fit))

    def _path(self, x: np.ndarray, labels: np.ndarray, strengths: Sequence[float]) -> Iterator[LinearFit]:
        """Photos and copies are rows alike; as each photo has as many copies, each counts as much as before."""
        rows = x.reshape(-1, x.shape[-1])
        return fit_path(rows, np.repeat(labels, x.shape[1]), self.classes, strengths)

    def _model(self, fit: LinearFit) -> Any:
        """GAP over views, Dense softmax."""
        keras = import_keras()
        views = keras.Input((None, len(fit.kernel)), name=self.arrays[0])
        dense = keras.layers.Dense(self.classes, activation="softmax", name="probabilities")
        output = dense(keras.layers.GlobalAveragePooling1D(name="views")(views))
        dense.set_weights([fit.kernel, fit.bias])
        return keras.Model({self.arrays[0]: views}, output, name="head")


class DenseHead:
    """The study's heads, trained on moments or, T2.0, on maps (`ssclass.model.heads.dense`)."""

    name: str
    hidden = 0
    maps = False

    def __init__(self, size: int, classes: int, params: TrainParams) -> None:
        self.arrays = (f"{size}.out.map" if self.maps else f"{size}.out.mean",)
        self._learns_from = self.arrays if self.maps else (*self.arrays, f"{size}.out.square")
        self.classes = classes
        self.params = params
        self._trainer: DenseTrainer | None = None

    def cross_validate(
        self, features: Features, labels: np.ndarray, folds: Sequence[Fold], tick: Tick
    ) -> CrossValidation:
        """One training a fold, each from the same seeded start."""
        arrays, copies, trainer = self._ready(features)
        found = np.empty((len(labels), self.classes))
        curves = []
        for learn, judge in folds:
            rows = *self._watched(features, labels, learn), judge
            curves.append(trainer.fit(arrays, labels, *rows, copies))
            found[judge] = trainer.probabilities(arrays[0][judge])
            tick()
        return judged(found, labels, folds, None, _mean_curves(curves))

    def fit(self, features: Features, labels: np.ndarray, found: CrossValidation) -> Fitted:
        """Train on all rows."""
        arrays, copies, trainer = self._ready(features)
        everything = np.arange(len(labels))
        rows = *self._watched(features, labels, everything), everything[:0]
        curves = trainer.fit(arrays, labels, *rows, copies)
        return Fitted(trainer.export(self.arrays[0]), curves)

    def _watched(self, features: Features, labels: np.ndarray, learn: np.ndarray) -> Fold:
        """Rows to learn from, and rows to watch the training by where the params ask for that."""
        if not watches(self.params):
            return learn, learn[:0]
        return set_aside(labels, features.groups or features.sha256s, learn, self.params.seed)

    def _ready(self, features: Features) -> tuple[tuple[np.ndarray, ...], tuple[np.ndarray, ...], DenseTrainer]:
        """What is learnt from: arrays of photos, and of copies if there are; and the trainer for them."""
        arrays = tuple(features.arrays[name] for name in self._learns_from)
        copies = tuple(features.copies[name] for name in self._learns_from if name in features.copies)
        if self._trainer is None:
            self._trainer = DenseTrainer(arrays[0].shape[2:], self.hidden, self.classes, self.params)
        return arrays, copies, self._trainer


class T1Head(DenseHead):
    """Batch norm, GAP, dropout, dense 256, batch norm, dropout, dense."""

    name = "T1"
    hidden = HIDDEN


class T20Head(DenseHead):
    """Batch norm, dropout, flatten, dense: a weight for each channel at each place of the map."""

    name = "T2.0"
    maps = True


class T21Head(DenseHead):
    """Batch norm, GAP, dropout, dense."""

    name = "T2.1"


class KernelHead:
    """Kernel ridge regression (`ssclass.model.heads.kernel`) on unit vectors that stand for the photos."""

    name: str
    maps = False
    width: float

    def __init__(self, size: int, classes: int, params: TrainParams) -> None:
        self.arrays = (f"{size}.out.map" if self.maps else f"{size}.out.mean",)
        self.classes = classes
        self.seed = params.seed

    def cross_validate(
        self, features: Features, labels: np.ndarray, folds: Sequence[Fold], tick: Tick
    ) -> CrossValidation:
        """Strength and temperature of each fold come from its own training photos; `strength` is their median."""
        found = np.empty((len(labels), self.classes))
        each_strength = np.empty((len(RIDGES), len(labels), self.classes))
        chosen = []
        for learn, judge in folds:
            axes = self._axes(features, learn)
            fits = self._fits(self._vectors(features, learn, axes), labels[learn])
            z = self._vectors(features, judge, axes)[:, 0]
            for number, fit in enumerate(fits):
                each_strength[number, judge] = fit.probabilities(z)
            chosen.append(best(fits).strength)
            found[judge] = each_strength[RIDGES.index(chosen[-1]), judge]
            tick()
        rows = judged_rows(folds)
        curves = {
            "strength": list(RIDGES),
            "cv_loss": [log_loss(each[rows], labels[rows]) for each in each_strength],
            "cv_accuracy": [_accuracy(each[rows], labels[rows]) for each in each_strength],
        }
        return judged(found, labels, folds, float(np.median(chosen)), curves)

    def fit(self, features: Features, labels: np.ndarray, found: CrossValidation) -> Fitted:
        """Fit on all rows; leave-one-out chooses the strength again."""
        everything = np.arange(len(labels))
        axes = self._axes(features, everything)
        fit = best(self._fits(self._vectors(features, everything, axes), labels))
        return Fitted(self._model(features.arrays[self.arrays[0]], axes, fit))

    def _axes(self, features: Features, learn: np.ndarray) -> Axes | None:
        """What of the vectors has to be learnt, from the photos `learn`; None: nothing."""
        return None

    def _vectors(self, features: Features, rows: np.ndarray, axes: Axes | None) -> np.ndarray:
        """Unit vectors of the photos `rows` and of their copies, float64 [n, 1 + copies, d]."""
        raise NotImplementedError

    def _layers(self, views: Any, axes: Axes | None) -> Any:
        """The same of a Keras tensor [n, views, …]: [n, d]."""
        raise NotImplementedError

    def _fits(self, z: np.ndarray, labels: np.ndarray) -> list[KernelFit]:
        return list(fit_strengths(z[:, 0], labels, self.classes, self.seed, copies=z[:, 1:], width=self.width))

    def _model(self, array: np.ndarray, axes: Axes | None, fit: KernelFit) -> Any:
        """The layers to unit vectors, Dense exponential (the kernel), Dense softmax."""
        keras = import_keras()
        shape = array.shape[1:] if self.maps else (None, array.shape[-1])
        views = keras.Input(shape, name=self.arrays[0], dtype=str(array.dtype))
        alike = keras.layers.Dense(len(fit.landmarks), activation="exponential", name="kernel")
        dense = keras.layers.Dense(self.classes, activation="softmax", name="probabilities")
        output = dense(alike(self._layers(views, axes)))
        # exp(-g ||x - z||^2) = exp(2 g x'z - 2 g), x and z being of length one
        alike.set_weights([2 * fit.width * fit.landmarks.T, np.full(len(fit.landmarks), -2 * fit.width)])
        dense.set_weights([fit.weights / fit.temperature, fit.bias / fit.temperature])
        return keras.Model({self.arrays[0]: views}, output, name="head")


class RbfHead(KernelHead):
    """On the square roots of the pooled features, averaged over views."""

    name = "rbf"
    width = WIDTH

    def _vectors(self, features: Features, rows: np.ndarray, axes: Axes | None) -> np.ndarray:
        return unit_roots(examples(features, self.arrays[0])[rows])

    def _layers(self, views: Any, axes: Axes | None) -> Any:
        """GAP over views, root, unit length."""
        # What `keras.ops.sqrt` makes, under a fixed name: the saved bytes must not depend on what was built before.
        from keras.src.ops.numpy import Sqrt

        layers = import_keras().layers
        mean = layers.ReLU(name="not_negative")(layers.GlobalAveragePooling1D(name="views")(views))
        return layers.UnitNormalization(name="unit")(Sqrt(name="roots")(mean))


class BilinearHead(KernelHead):
    """On the square root of the channels' second moments, over the places of all views (`heads.bilinear`)."""

    name = "bilinear"
    maps = True
    width = 1.0  # 0.7 to 1.4 are alike on the study's photos (docs/models.md)

    def _axes(self, features: Features, learn: np.ndarray) -> Axes | None:
        return find_axes(features.arrays[self.arrays[0]], learn, self.seed)

    def _vectors(self, features: Features, rows: np.ndarray, axes: Axes | None) -> np.ndarray:
        assert axes
        name = self.arrays[0]
        copies = np.moveaxis(features.copies[name], 1, 0) if name in features.copies else ()
        return np.stack([pool(maps, rows, axes) for maps in (features.arrays[name], *copies)], axis=1)

    def _layers(self, views: Any, axes: Axes | None) -> Any:
        assert axes
        return pool_layers(views, axes)


HEADS: dict[str, type[LinearHead] | type[DenseHead] | type[KernelHead]] = {
    head.name: head for head in (LinearHead, T1Head, T20Head, T21Head, RbfHead, BilinearHead)
}
AUTO = ("linear", "T1", "rbf", "bilinear")
"""What `auto` chooses among, simple to complex. T2.1 is `linear` fitted less exactly; T2.0 has a weight for each number
of the maps, which is more than hundreds of photos can teach."""


def needs_maps(name: str) -> bool:
    """Whether the head of params.yaml learns from feature maps."""
    return any(HEADS[each].maps for each in (AUTO if name == "auto" else (name,)))


def judged_rows(folds: Sequence[Fold]) -> np.ndarray:
    """The rows that some fold judges, in order; where a network was tuned for each fold, not all of them."""
    return np.sort(np.concatenate([judge for _, judge in folds]))


def examples(features: Features, name: str) -> np.ndarray:
    """An array of the photos and of their copies, the mean over views: float64 [n, 1 + copies, channels].

    The photo comes first.
    """
    photos = features.arrays[name].mean(axis=1, dtype=np.float64)[:, None]
    if name not in features.copies:
        return np.asarray(photos)
    return np.concatenate([photos, features.copies[name].mean(axis=2, dtype=np.float64)], axis=1)


def log_loss(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Mean negative log-likelihood, nats; probabilities below 1e-12 count as that."""
    own = probabilities[np.arange(len(labels)), labels]
    return float(-np.log(np.maximum(own, 1e-12)).mean())


def _accuracy(probabilities: np.ndarray, labels: np.ndarray) -> float:
    return float((probabilities.argmax(axis=1) == labels).mean())


def _mean_curves(folds: Sequence[Curves]) -> Curves:
    """Each curve's mean over the folds; where some stopped early, over those that went on."""
    names, epochs = folds[0], max(len(each["loss"]) for each in folds)
    return {
        name: [
            float(np.mean([each[name][epoch] for each in folds if epoch < len(each[name])])) for epoch in range(epochs)
        ]
        for name in names
    }


def judged(
    probabilities: np.ndarray, labels: np.ndarray, folds: Sequence[Fold], strength: float | None, curves: Curves
) -> CrossValidation:
    """Out-of-fold probabilities, with their accuracy on each fold."""
    accuracy = tuple(_accuracy(probabilities[judge], labels[judge]) for _, judge in folds)
    return CrossValidation(accuracy, probabilities, strength, curves)
