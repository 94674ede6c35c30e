"""The head rbf against its definition, written out."""

from __future__ import annotations

import numpy as np
import pytest

from ssclass.model import folds
from ssclass.model.features import Features
from ssclass.model.folds import grouped_folds
from ssclass.model.heads import kernel
from ssclass.model.heads.base import log_loss
from ssclass.model.heads.kernel import RbfHead
from ssclass.params import TrainParams
from tests.support.models import clouds


def rows(per_class: int, classes: int, apart: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    features, labels = clouds(per_class, classes, apart, seed=seed)
    return kernel.unit_roots(features.arrays["224.out.mean"].mean(axis=1)), labels


def ridge(z: np.ndarray, targets: np.ndarray, at: np.ndarray, l2: float) -> np.ndarray:
    """Kernel ridge regression as in the books."""
    distance = ((z[:, None] - z[None]) ** 2).sum(axis=2)
    alike = np.exp(-kernel.GAMMA * distance)
    there = np.exp(-kernel.GAMMA * ((at[:, None] - z[None]) ** 2).sum(axis=2))
    return np.asarray(there @ np.linalg.solve(alike + l2 * np.eye(len(z)), targets))


@pytest.mark.parametrize("classes", [2, 3])
def test_it_is_kernel_ridge_regression_and_its_residuals_are_those_of_leaving_one_out(classes: int) -> None:
    z, labels = rows(15, classes, apart=2.0)
    fresh, _ = rows(5, classes, apart=2.0, seed=1)
    (fit,) = kernel.fit_path(z, labels, classes, 0, [0.1])
    targets = 2.0 * np.eye(classes)[labels] - 1
    targets -= targets.mean(axis=0)
    found = kernel.kernel(fresh, fit.landmarks) @ fit.weights
    np.testing.assert_allclose(found, ridge(z, targets, fresh, 0.1), atol=1e-6)

    left_out = []
    for row in range(len(z)):
        rest = np.arange(len(z)) != row
        left_out.append(targets[row] - ridge(z[rest], targets[rest], z[[row]], 0.1)[0])
    assert fit.loss == pytest.approx(np.mean(np.square(left_out)), rel=1e-6)


def test_few_landmarks_do_nearly_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    z, labels = rows(100, 2, apart=6.0)
    fresh, truth = rows(50, 2, apart=6.0, seed=1)
    monkeypatch.setattr(kernel, "LANDMARKS", 40)
    fit = kernel.best(list(kernel.fit_path(z, labels, 2, 0)))
    assert fit.landmarks.shape == (40, 16)
    assert (fit.probabilities(fresh).argmax(axis=1) == truth).mean() > 0.95


def test_copies_of_one_photo_do_no_harm() -> None:
    z, labels = rows(20, 2, apart=6.0)
    twice = np.concatenate([z, z])
    fit = kernel.best(list(kernel.fit_path(twice, np.concatenate([labels, labels]), 2, 0)))
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
    expected = kernel.best(list(kernel.fit_path(z, labels, 3, 0))).probabilities(z)
    np.testing.assert_allclose(model({"224.out.mean": features.arrays["224.out.mean"]}), expected, atol=1e-5)


def test_a_photo_without_any_activation_gets_an_answer() -> None:
    features, labels = clouds(20, 2, apart=6.0)
    head = RbfHead(224, 2, TrainParams())
    folds = grouped_folds(labels, features.sha256s, ["a", "b"], 2, 0)
    model = head.fit(features, labels, head.cross_validate(features, labels, folds, lambda: None)).model
    black = Features(("0" * 64,), {"224.out.mean": np.zeros((1, 2, 16), np.float32)})
    assert np.isfinite(model({"224.out.mean": black.arrays["224.out.mean"]})).all()


def test_folds_side_by_side_give_the_same_bits_on_any_number_of_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    features, labels = clouds(60, 2, 3.0)
    parts = grouped_folds(labels, features.sha256s, ("a", "b"), 5, 0)
    head, found = RbfHead(224, 2, TrainParams()), []
    for cores in (1, 2, 7):
        monkeypatch.setattr("os.cpu_count", lambda cores=cores: cores)
        ticks: list[int] = []
        found.append(head.cross_validate(features, labels, parts, lambda ticks=ticks: ticks.append(1)))
        assert len(ticks) == len(parts)
    assert len({each.probabilities.tobytes() for each in found}) == 1
    monkeypatch.setattr(folds, "TOGETHER", len(labels) - 1)
    one_by_one = head.cross_validate(features, labels, parts, lambda: None)
    np.testing.assert_allclose(one_by_one.probabilities, found[0].probabilities, atol=1e-9)
    assert one_by_one.l2 == found[0].l2
