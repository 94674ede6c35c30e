from __future__ import annotations

import numpy as np
import pytest

from ssclass.model.backbones import import_keras
from ssclass.model.features import Features
from ssclass.model.folds import grouped_folds
from ssclass.model.heads.base import CrossValidation, Head
from ssclass.model.heads.dense import HIDDEN
from ssclass.model.heads.gradient import EPSILON, DenseTrainer
from ssclass.model.heads.linear import L2S, fit_path
from ssclass.model.heads.registry import HEADS
from ssclass.params import TrainParams
from tests.support.models import clouds

QUICK = TrainParams(epochs=12, learning_rate=0.03)


def head_named(name: str, classes: int, params: TrainParams = QUICK) -> Head:
    return HEADS[name](224, classes, params)


def cross_validated(head: Head, features: Features, labels: np.ndarray) -> CrossValidation:
    classes = [str(each) for each in range(int(labels.max()) + 1)]
    folds = grouped_folds(labels, features.sha256s, classes, 3, 0)
    return head.cross_validate(features, labels, folds, lambda: None)


@pytest.mark.parametrize("classes", [2, 3])
def test_the_linear_head_is_scikit_learns_logistic_regression(classes: int) -> None:
    from scipy.special import softmax
    from sklearn.linear_model import LogisticRegression

    features, labels = clouds(40, classes, apart=1.0)
    x = features.arrays["224.out.mean"].mean(axis=1, dtype=np.float64)
    scale = np.sqrt(x.var(axis=0).mean())
    for l2, fit in zip(L2S, fit_path(x, labels, classes, L2S), strict=True):
        # scikit-learn sums the losses and, of two classes, penalises the difference of the two columns, ||w||^2 / 4.
        halved = 2 if classes == 2 else 1
        reference = LogisticRegression(C=halved / (l2 * len(x)), max_iter=5000, tol=1e-8).fit(x / scale, labels)
        expected = reference.predict_proba(x / scale)
        np.testing.assert_allclose(softmax(x @ fit.kernel + fit.bias, axis=1), expected, atol=2e-3)
        np.testing.assert_allclose(fit.probabilities(x), expected, atol=2e-3)


def test_moments_are_normalised_as_keras_does_the_maps() -> None:
    keras = import_keras()
    draw = np.random.default_rng(0)
    maps = draw.normal(2, 3, (32, 5, 5, 8)).astype(np.float32)
    reference = keras.layers.BatchNormalization(momentum=0.9, epsilon=EPSILON)
    normal = reference(maps, training=True).numpy()

    trainer = DenseTrainer((8,), HIDDEN, 2, QUICK)
    found = trainer.normalise(maps.mean(axis=(1, 2)), (maps**2).mean(axis=(1, 2)))
    np.testing.assert_allclose(found, normal.mean(axis=(1, 2)), atol=1e-4)
    whole = DenseTrainer((5, 5, 8), 0, 2, QUICK)
    np.testing.assert_allclose(whole.normalise(maps, maps**2), normal, atol=1e-4)
    for each in (trainer, whole):
        np.testing.assert_allclose(each.norm.moving_mean, reference.moving_mean, atol=1e-5)
        np.testing.assert_allclose(each.norm.moving_variance, reference.moving_variance, rtol=1e-4)


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize("classes", [2, 4])
def test_a_head_learns_what_can_be_learnt(name: str, classes: int) -> None:
    features, labels = clouds(40, classes, apart=6.0)
    head = head_named(name, classes)
    found = cross_validated(head, features, labels)
    assert found.mean > 0.9
    assert found.probabilities.shape == (len(labels), classes)
    np.testing.assert_allclose(found.probabilities.sum(axis=1), 1, atol=1e-5)

    fresh, truth = clouds(40, classes, apart=6.0, seed=1)
    model = head.fit(features, labels, found).model
    answers = np.asarray(model({name: fresh.arrays[name] for name in head.arrays}))
    assert (answers.argmax(axis=1) == truth).mean() > 0.9


@pytest.mark.parametrize("name", HEADS)
def test_a_head_finds_nothing_where_there_is_nothing(name: str) -> None:
    features, labels = clouds(100, 2, apart=0.0)
    assert cross_validated(head_named(name, 2), features, labels).mean < 0.65


@pytest.mark.parametrize("name", HEADS)
def test_the_same_photos_and_seed_give_the_same_bits(name: str) -> None:
    features, labels = clouds(30, 2, apart=2.0)

    def weights(seed: int) -> list[bytes]:
        head = head_named(name, 2, TrainParams(epochs=5, seed=seed))
        return [
            value.tobytes()
            for value in head.fit(features, labels, cross_validated(head, features, labels)).model.get_weights()
        ]

    assert weights(0) == weights(0)
    if name.startswith("T"):
        assert weights(0) != weights(1)


@pytest.mark.parametrize("name", ["T1", "T2.0"])
def test_what_was_trained_before_leaves_no_trace(name: str) -> None:
    features, labels = clouds(30, 2, apart=2.0)
    head = head_named(name, 2)
    nothing = CrossValidation((), np.empty((0, 2)))
    alone = head.fit(features, labels, nothing).model.get_weights()
    cross_validated(head, features, labels)
    after = head.fit(features, labels, nothing).model.get_weights()
    assert all(np.array_equal(one, other) for one, other in zip(alone, after, strict=True))


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize(
    ("arrays", "hidden"),
    [(("mean", "square"), HIDDEN), (("mean", "square"), 0), (("map",), 0)],
    ids=["T1", "T2.1", "T2.0"],
)
def test_what_was_trained_is_what_is_exported(arrays: tuple[str, ...], hidden: int, classes: int) -> None:
    features, labels = clouds(30, classes, apart=2.0)
    data = tuple(features.arrays[f"224.out.{name}"] for name in arrays)
    trainer = DenseTrainer(data[0].shape[2:], hidden, classes, QUICK)
    rows = np.arange(len(labels))
    trainer.fit(data, labels, rows, rows[:0], rows[:0])
    exported = trainer.export("in")({"in": data[0]}).numpy()
    np.testing.assert_allclose(exported, trainer.probabilities(data[0]), atol=1e-6)


def test_the_studys_heads_have_the_layers_and_the_weights_that_they_are_said_to_have() -> None:
    """On MobileNet's 7 x 7 x 1024: a weight a channel and place for T2.0, a channel for T2.1."""
    draw = np.random.default_rng(0)
    shape = {"map": (12, 1, 7, 7, 1024), "mean": (12, 1, 1024), "square": (12, 1, 1024)}
    features = Features(
        tuple(map(str, range(12))),
        {f"224.out.{name}": draw.random(size, dtype=np.float32) for name, size in shape.items()},
    )
    features.arrays["224.out.map"] = features.arrays["224.out.map"].astype(np.float16)
    norm = 4 * 1024
    for name, weights in {
        "T1": norm + 1025 * 256 + 4 * 256 + 257 * 2,
        "T2.0": norm + (7 * 7 * 1024 + 1) * 2,
        "T2.1": norm + 1025 * 2,
    }.items():
        head = head_named(name, 2, TrainParams(epochs=1))
        model = head.fit(features, np.arange(12) % 2, CrossValidation((), np.empty((0, 2)))).model
        assert model.count_params() == weights


@pytest.mark.parametrize("name", ["T1", "T2.0", "T2.1"])
def test_curves_are_per_epoch(name: str) -> None:
    features, labels = clouds(30, 2, apart=6.0)
    curves = cross_validated(head_named(name, 2), features, labels).curves
    assert {curve: len(values) for curve, values in curves.items()} == dict.fromkeys(
        ("learning_rate", "loss", "accuracy", "cv_loss", "cv_accuracy"), QUICK.epochs
    )
    assert curves["loss"][-1] < curves["loss"][0]


def test_curves_are_per_penalty_for_linear() -> None:
    features, labels = clouds(30, 2, apart=2.0)
    linear = cross_validated(head_named("linear", 2), features, labels)
    assert linear.curves["strength"] == list(L2S)
    assert linear.l2 == L2S[int(np.argmin(linear.curves["cv_loss"]))]


def test_heads_hold_standard_layers_only() -> None:
    features, labels = clouds(10, 2, apart=2.0)
    for name in HEADS:
        head = head_named(name, 2)
        model = head.fit(features, labels, CrossValidation((), np.empty((0, 2)), l2=0.1)).model
        model = model.keras if head.numpy else model
        assert all(type(layer).__module__.startswith("keras.src.layers") for layer in model.layers)
