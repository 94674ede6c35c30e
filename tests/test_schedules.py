"""Learning rates and early stopping, alone and in a training."""

from __future__ import annotations

import numpy as np
import pytest

from ssclass.model.folds import grouped_folds, split_validation
from ssclass.model.heads.base import CrossValidation, Fitted
from ssclass.model.heads.dense import T1Head
from ssclass.model.schedules import CYCLE, DROP, LOWEST, WAIT, learning_rates, plateaus
from ssclass.params import TrainParams
from tests.support.models import clouds

RATE = 0.01
SCHEDULES = ("constant", "cosine", "cyclical", "plateau")


def given(**values: object) -> TrainParams:
    return TrainParams.model_validate({"learning_rate": RATE, "epochs": 16} | values)


def rates(schedule: str, losses: tuple[float, ...] = ()) -> np.ndarray:
    params = given(schedule=schedule)
    return np.concatenate([learning_rates(params, epoch, 4, losses[:epoch]) for epoch in range(params.epochs)])


def test_rates_follow_their_schedule() -> None:
    np.testing.assert_allclose(rates("constant"), RATE)

    cosine = rates("cosine")
    assert cosine[0] == pytest.approx(RATE)
    assert cosine[32] == pytest.approx(RATE / 2)
    assert (np.diff(cosine) < 0).all()
    assert 0 < cosine[-1] < RATE / 100

    cyclical = rates("cyclical")
    assert cyclical.min() == pytest.approx(LOWEST * RATE)
    assert cyclical.max() == pytest.approx(RATE)
    np.testing.assert_allclose(cyclical[: 4 * CYCLE], cyclical[4 * CYCLE :])
    assert np.unique(np.abs(np.diff(cyclical)).round(6)).size == 1  # straight up, straight down

    better = tuple(np.linspace(1, 0.1, 16))
    np.testing.assert_allclose(rates("plateau", better), RATE)
    np.testing.assert_allclose(rates("plateau", (1.0,) * 16)[-1], RATE * DROP**2, rtol=1e-6)


def test_a_plateau_is_so_many_epochs_without_a_lower_loss() -> None:
    assert plateaus([1.0] * WAIT) == 0  # the first was lower than anything before it
    assert plateaus([1.0] * (WAIT + 1)) == 1
    assert plateaus([1.0, *[1.1] * (WAIT - 1), 0.9, *[1.0] * (WAIT - 1)]) == 0


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_training_has_the_rates_of_its_schedule_and_the_same_bits_again(schedule: str) -> None:
    features, labels = clouds(30, 2, apart=1.0)

    def trained() -> Fitted:
        head = T1Head(224, 2, given(schedule=schedule, early_stopping=0))
        return head.fit(features, labels, CrossValidation((), np.empty((0, 2))))

    one, other = trained(), trained()
    assert one.curves == other.curves
    for value, again in zip(one.model.get_weights(), other.model.get_weights(), strict=True):
        np.testing.assert_array_equal(value, again)
    seen = tuple(one.curves.get("val_loss", ()))
    assert (schedule == "plateau") == bool(seen)
    steps = 2
    expected = [learning_rates(given(schedule=schedule), at, steps, seen[:at])[-1] for at in range(16)]
    np.testing.assert_allclose(one.curves["learning_rate"], expected, rtol=1e-6)


def test_the_rate_is_what_the_weights_move_by() -> None:
    features, labels = clouds(30, 2, apart=1.0)

    def kernel(schedule: str) -> np.ndarray:
        head = T1Head(224, 2, given(schedule=schedule))
        fitted = head.fit(features, labels, CrossValidation((), np.empty((0, 2))))
        return np.asarray(fitted.model.get_layer("hidden").get_weights()[0])

    assert not np.allclose(kernel("constant"), kernel("cosine"), atol=1e-3)


def test_a_training_that_gets_no_better_stops_and_gives_its_best_weights() -> None:
    features, labels = clouds(40, 2, apart=0.4)
    params = given(epochs=200, early_stopping=4, dropout=0.0)
    head = T1Head(224, 2, params)
    fitted = head.fit(features, labels, CrossValidation((), np.empty((0, 2))))
    losses = fitted.curves["val_loss"]
    best = int(np.argmin(losses))
    assert len(losses) == best + 1 + 4 < 200

    _, validation = split_validation(labels, features.sha256s, np.arange(len(labels)), params.seed)
    found = fitted.model({"224.out.mean": features.arrays["224.out.mean"][validation]}).numpy()
    loss = -np.log(found[np.arange(len(validation)), labels[validation]]).mean()
    assert loss == pytest.approx(losses[best], abs=1e-5)


def test_curves_of_folds_that_stop_at_different_epochs_are_averaged_over_those_that_go_on() -> None:
    features, labels = clouds(40, 2, apart=0.4)
    head = T1Head(224, 2, given(epochs=60, early_stopping=3))
    folds = grouped_folds(labels, features.sha256s, ("a", "b"), 4, 0)
    curves = head.cross_validate(features, labels, folds, lambda: None).curves
    (epochs,) = {len(curve) for curve in curves.values()}
    assert 3 < epochs < 60
    assert np.isfinite(list(curves.values())).all()


def test_validation_photos_are_whole_groups_of_the_training_rows() -> None:
    labels = np.array([0, 1] * 40)
    groups = [f"g{row // 4}" for row in range(80)]
    train = np.arange(60)
    kept, validation = split_validation(labels, groups, train, 0)
    assert sorted([*kept, *validation]) == list(range(60))
    assert {groups[row] for row in kept}.isdisjoint(groups[row] for row in validation)
    assert 5 <= len(validation) <= 15
    assert set(labels[validation]) == {0, 1}
    assert len(split_validation(labels, ["one"] * 80, train, 0)[1]) == 0  # too few groups: all are trained on
