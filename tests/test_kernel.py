"""The head rbf against its definition, written out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from ssclass.model.features import Features, concat
from ssclass.model.folds import grouped_folds
from ssclass.model.heads import kernel, ridge
from ssclass.model.heads.base import CrossValidation, log_loss
from ssclass.model.heads.bilinear import BilinearHead
from ssclass.model.heads.kernel import RbfHead
from ssclass.params import TrainParams
from tests.support.models import clouds


def rows(per_class: int, classes: int, apart: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    features, labels = clouds(per_class, classes, apart, seed=seed)
    return kernel.unit_roots(features.arrays["224.out.mean"].mean(axis=1)), labels


def ridge_of(z: np.ndarray, targets: np.ndarray, at: np.ndarray, l2: float) -> np.ndarray:
    """Kernel ridge regression as in the books."""
    distance = ((z[:, None] - z[None]) ** 2).sum(axis=2)
    alike = np.exp(-ridge.GAMMA * distance)
    there = np.exp(-ridge.GAMMA * ((at[:, None] - z[None]) ** 2).sum(axis=2))
    return np.asarray(there @ np.linalg.solve(alike + l2 * np.eye(len(z)), targets))


def solved(z: np.ndarray, labels: np.ndarray, classes: int, groups: Sequence[str] | None = None) -> ridge.Solved:
    """The fit, and each fold's, of photos with these unit vectors."""
    names = [str(number) for number in range(classes)]
    parts = grouped_folds(labels, groups or [str(row) for row in range(len(z))], names, 4, 0)
    few, landmarks = z.astype(np.float32)[:, None], kernel.LANDMARKS
    return ridge.Solved.of(
        lambda rows: few[rows], None, labels, parts, classes, landmarks, 0, ridge.GAMMA, None, lambda: None
    )


@pytest.mark.parametrize("classes", [2, 3])
def test_it_is_kernel_ridge_regression_and_its_residuals_are_those_of_leaving_folds_out(classes: int) -> None:
    """All photos being landmarks, those that a fold tests too: it is the regression on its training photos alone."""
    z, labels = rows(15, classes, apart=2.0)
    fresh, _ = rows(5, classes, apart=2.0, seed=1)
    found = solved(z, labels, classes)
    raw = 2.0 * np.eye(classes)[labels] - 1
    targets = raw - raw.mean(axis=0)
    for fit in found.fits():
        scores = ridge.kernel(fresh, fit.landmarks) @ fit.weights
        np.testing.assert_allclose(scores, ridge_of(z, targets, fresh, fit.l2), atol=2e-3)

    left_out = np.empty_like(targets)
    parts = grouped_folds(labels, [str(row) for row in range(len(z))], [str(each) for each in range(classes)], 4, 0)
    for train, test in parts:
        mean = raw[train].mean(axis=0)
        left_out[test] = raw[test] - mean - ridge_of(z[train], raw[train] - mean, z[test], 0.1)
    (fit,) = (fit for fit in found.fits() if fit.l2 == 0.1)
    assert fit.loss == pytest.approx(np.mean(np.square(left_out)), rel=1e-3)


@pytest.mark.parametrize("photos", [7, 8, 40])
def test_sums_are_those_of_whitened_kernels_whether_rows_or_sums_are_whitened(photos: int) -> None:
    z, _ = rows(30, 2, apart=2.0)
    landmarks, few = z[:4].astype(np.float32), z.astype(np.float32)
    copies = np.stack([few, few[::-1]], axis=1)
    targets = np.random.default_rng(0).standard_normal((len(z), 2))
    whiten = ridge.whitening(ridge.kernel(landmarks, landmarks).astype(np.float64))
    at = np.arange(photos)
    sums = ridge.Sums.over(at, lambda some: copies[some], targets, landmarks, whiten, ridge.GAMMA)

    phi = np.concatenate([ridge.kernel(each[at], landmarks).astype(np.float64) @ whiten for each in (few, few[::-1])])
    np.testing.assert_allclose(sums.gram, phi.T @ phi / 2, atol=1e-9)
    np.testing.assert_allclose(sums.wanted, phi.T @ np.tile(targets[at], (2, 1)) / 2, atol=1e-9)
    np.testing.assert_allclose(sums.kernels, phi.sum(axis=0) / 2, atol=1e-9)
    assert sums.photos == photos


def test_few_landmarks_do_nearly_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    z, labels = rows(100, 2, apart=6.0)
    fresh, truth = rows(50, 2, apart=6.0, seed=1)
    monkeypatch.setattr(kernel, "LANDMARKS", 40)
    fit = solved(z, labels, 2).fit()
    assert fit.landmarks.shape == (40, 16)
    assert (fit.probabilities(fresh).argmax(axis=1) == truth).mean() > 0.95


def test_copies_of_one_photo_do_no_harm() -> None:
    z, labels = rows(20, 2, apart=6.0)
    groups = [str(row) for row in range(len(z))] * 2
    fit = solved(np.concatenate([z, z]), np.concatenate([labels, labels]), 2, groups).fit()
    assert (fit.probabilities(z).argmax(axis=1) == labels).all()


def test_probabilities_mean_what_they_say() -> None:
    """Where a tenth of the labels are wrong, nothing is said with certainty, and the log loss is near its floor."""
    features, labels = clouds(150, 2, apart=6.0)
    wrong = np.random.default_rng(1).random(len(labels)) < 0.1
    given = np.where(wrong, 1 - labels, labels)
    folds = grouped_folds(given, features.sha256s, ["a", "b"], 5, 0)
    found = RbfHead(224, 2, TrainParams()).cross_validate(features, given, folds, lambda: None)
    floor = -(0.1 * np.log(0.1) + 0.9 * np.log(0.9))
    assert floor * 0.9 < log_loss(found.probabilities, given) < floor * 1.3


def test_the_exported_head_answers_as_the_formula_does() -> None:
    features, labels = clouds(60, 3, apart=2.0)
    head = RbfHead(224, 3, TrainParams())
    folds = grouped_folds(labels, features.sha256s, ["a", "b", "c"], 3, 0)
    model = head.fit(features, labels, head.cross_validate(features, labels, folds, lambda: None)).model
    z = kernel.unit_roots(features.arrays["224.out.mean"].mean(axis=1, dtype=np.float64))
    solved_ = head._found
    assert solved_ is not None
    expected = solved_.fit().probabilities(z)
    np.testing.assert_allclose(model({"224.out.mean": features.arrays["224.out.mean"]}), expected, atol=1e-5)


def test_a_photo_without_any_activation_gets_an_answer() -> None:
    features, labels = clouds(20, 2, apart=6.0)
    head = RbfHead(224, 2, TrainParams())
    folds = grouped_folds(labels, features.sha256s, ["a", "b"], 2, 0)
    model = head.fit(features, labels, head.cross_validate(features, labels, folds, lambda: None)).model
    black = Features(("0" * 64,), {"224.out.mean": np.zeros((1, 2, 16), np.float32)})
    assert np.isfinite(model({"224.out.mean": black.arrays["224.out.mean"]})).all()


def test_the_bits_are_the_same_on_any_number_of_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    from threadpoolctl import threadpool_limits

    features, labels = clouds(60, 2, 3.0)
    parts = grouped_folds(labels, features.sha256s, ("a", "b"), 5, 0)
    for kind in (RbfHead, BilinearHead):
        found = []
        for cores in (1, 2, 7):
            head = kind(224, 2, TrainParams())
            monkeypatch.setattr("os.cpu_count", lambda cores=cores: cores)
            ticks: list[int] = []
            with threadpool_limits(cores):
                cv = head.cross_validate(features, labels, parts, lambda ticks=ticks: ticks.append(1))  # type: ignore[misc]
                weights = head.fit(features, labels, cv).model.get_weights()
            assert len(ticks) == len(parts)
            found.append((cv.probabilities.tobytes(), *(each.tobytes() for each in weights)))
        assert len(set(found)) == 1


def test_where_features_are_others_in_each_fold_a_fold_chooses_by_its_training_photos() -> None:
    """As with tuned blocks: each fold has rows of its own, and answers as a fit to its training rows alone does."""
    features, labels = clouds(30, 2, apart=3.0)
    parts = grouped_folds(labels, features.sha256s, ("a", "b"), 3, 0)
    n = len(labels)
    twice = concat([features, features, features])
    shifted = [(train + number * n, test + number * n) for number, (train, test) in enumerate(parts)]
    for kind in (RbfHead, BilinearHead):
        head = kind(224, 2, TrainParams())
        found = head.cross_validate(twice, np.tile(labels, 3), shifted, lambda: None)
        assert found.mean > 0.8
        assert found.l2 in ridge.L2S
        train, test = parts[1]
        alone = head.fit(features.rows(train), labels[train], replace(found, l2=None)).model
        given = {name: features.arrays[name][test] for name in alone.input}
        np.testing.assert_allclose(np.asarray(alone(given)), found.probabilities[test + n], atol=5e-3)


def test_a_class_of_which_one_photo_is_left_is_learnt_all_the_same() -> None:
    features, labels = clouds(10, 2, apart=6.0)
    few = features.rows(range(11))  # ten of one class, one of the other
    model = RbfHead(224, 2, TrainParams()).fit(few, labels[:11], CrossValidation((), np.empty((0, 2)))).model
    assert np.isfinite(model({"224.out.mean": few.arrays["224.out.mean"]})).all()
