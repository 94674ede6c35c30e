"""Altered copies of training photos: what they depend on, who sees them, what they count."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ssclass.data.images import decode
from ssclass.model.augmentation import AugmentedSpec, augment, augmented_copy, contact_sheet
from ssclass.model.extraction import extract, make_extractor
from ssclass.model.features import FeatureMemo, Features, shard_features
from ssclass.model.folds import grouped_folds
from ssclass.model.heads.base import log_loss
from ssclass.model.heads.linear import fit_path
from ssclass.model.heads.registry import HEADS
from ssclass.model.spec import feature_spec
from ssclass.params import AugmentParams, FeatureParams, TrainParams
from tests.support.models import clouds, needed_weights, pictures, shard_of

PHOTOS = pictures()
SHARD, LISTED = shard_of(PHOTOS)
STILL = AugmentParams(rotation=0, shift=0, shear=0, zoom=0, flip="none", brightness=0, contrast=0, colour=0)


def photo(side: int = 96) -> np.ndarray:
    return decode(PHOTOS["chelsea.png"], side)


def altered(seed: int = 0, **amounts: object) -> np.ndarray:
    return augment(photo(), STILL.model_validate(STILL.model_dump() | amounts), np.random.default_rng(seed))


def test_with_all_amounts_at_nought_a_copy_is_the_photo() -> None:
    np.testing.assert_array_equal(altered(), photo())


def test_mirrors_are_mirrors() -> None:
    seen = {altered(seed, flip="both").tobytes() for seed in range(20)}
    assert seen == {each.tobytes() for each in (photo(), photo()[::-1], photo()[:, ::-1], photo()[::-1, ::-1])}
    assert {altered(seed, flip="horizontal").tobytes() for seed in range(20)} == {
        each.tobytes() for each in (photo(), photo()[:, ::-1])
    }


def test_a_crop_is_a_part_of_the_photo() -> None:
    """A bright corner is not in every crop, and nothing from beyond the edges is in any."""
    image = np.full((96, 96, 3), 100, np.uint8)
    image[:20, :20] = 200
    given = STILL.model_validate(STILL.model_dump() | {"crop": 0.5, "fill": "constant"})
    crops = [augment(image, given, np.random.default_rng(seed)) for seed in range(30)]
    assert min(crop.min() for crop in crops) == 100
    assert {200} <= {int(crop.max()) for crop in crops}
    assert any(crop.max() == 100 for crop in crops)


@pytest.mark.parametrize("amount", ["rotation", "shift", "shear", "zoom", "crop", "brightness", "contrast", "colour"])
def test_each_amount_changes_the_picture(amount: str) -> None:
    value = 15 if amount in ("rotation", "shear") else 0.3
    found = altered(**{amount: value})
    assert found.shape == photo().shape
    assert found.dtype == np.uint8
    assert 1 < np.abs(found.astype(int) - photo()).mean() < 80
    assert not np.array_equal(found, altered(seed=1, **{amount: value}))


def test_fill_says_what_is_beyond_the_edges() -> None:
    image = np.full((64, 64, 3), 200, np.uint8)

    def darkest(fill: str) -> int:
        given = STILL.model_validate(STILL.model_dump() | {"shift": 0.4, "fill": fill})
        return int(augment(image, given, np.random.default_rng(0)).min())

    assert darkest("constant") == 0
    assert {darkest(fill) for fill in ("reflect", "nearest", "wrap")} == {200}


def test_a_copy_depends_on_photo_number_and_params_alone() -> None:
    given = AugmentParams(copies=3)

    def bytes_of(sha256: str, number: int, params: AugmentParams) -> bytes:
        return augmented_copy(sha256, number, photo(), params).tobytes()

    one = bytes_of("a" * 64, 0, given)
    assert bytes_of("a" * 64, 0, given) == one
    assert bytes_of("a" * 64, 0, AugmentParams(copies=5)) == one  # more copies leave the first as they are
    others = [
        bytes_of("b" * 64, 0, given),
        bytes_of("a" * 64, 1, given),
        bytes_of("a" * 64, 0, AugmentParams(seed=1)),
        bytes_of("a" * 64, 0, AugmentParams(rotation=21)),
    ]
    assert len({one, *others}) == 5


def test_copies_have_a_fingerprint_of_their_own() -> None:
    spec = feature_spec(FeatureParams(sizes=(96,), crops="none")) if needed_weights() else None
    assert spec is not None
    first = AugmentedSpec(spec, AugmentParams(copies=2), 0)
    others = [
        AugmentedSpec(spec, AugmentParams(copies=2), 1),
        AugmentedSpec(spec, AugmentParams(copies=2, seed=1), 0),
        AugmentedSpec(spec, AugmentParams(copies=2, fill="wrap"), 0),
        AugmentedSpec(replace(spec, flip=True), AugmentParams(copies=2), 0),
    ]
    assert len({spec.fingerprint, first.fingerprint, *(each.fingerprint for each in others)}) == 6
    assert AugmentedSpec(spec, AugmentParams(copies=9), 0).fingerprint == first.fingerprint


def test_features_of_copies_are_of_training_photos_only_and_remembered(tmp_path: Path) -> None:
    needed_weights()
    spec = feature_spec(FeatureParams(sizes=(96,), crops="none"))
    held_out, *rest = SHARD.rows
    shard = replace(SHARD, rows=(replace(held_out, split="holdout"), *rest))
    memo = FeatureMemo(tmp_path, None)
    copies = AugmentedSpec(spec, AugmentParams(), 0)
    found = shard_features(copies, memo, shard, lambda: LISTED)
    assert found.sha256s == tuple(row.sha256 for row in rest)

    sha256, data = LISTED[2]
    _, alone = extract(copies, [(sha256, data)], make_extractor(spec))
    np.testing.assert_allclose(found.take([sha256]).arrays["96.out.mean"], alone["96.out.mean"], atol=1e-4)
    photos = Features(*extract(spec, LISTED, make_extractor(spec))).take(found.sha256s)
    assert not np.allclose(photos.arrays["96.out.mean"], found.arrays["96.out.mean"], atol=1e-2)

    def never() -> list[tuple[str, bytes]]:
        raise AssertionError("photos were opened, though the features of their copies are remembered")

    again = shard_features(copies, memo, shard, never)
    assert again.sha256s == found.sha256s
    np.testing.assert_array_equal(again.arrays["96.out.mean"], found.arrays["96.out.mean"])
    whole = photos.with_augmented([found, again])
    assert whole.augmented["96.out.mean"].shape == (3, 2, 1, 1024)
    np.testing.assert_array_equal(whole.rows([2, 0]).augmented["96.out.mean"][0, 1], found.arrays["96.out.mean"][2])


def training_features(copies: int, far: float = 0.0) -> tuple[Features, np.ndarray]:
    """Clouds whose copies are the photos, moved by `far` (of a standard deviation) times another cloud."""
    features, labels = clouds(40, 2, apart=1.0)
    draw = np.random.default_rng(9)
    moved = []
    for _ in range(copies):
        arrays = {name: each + far * draw.normal(size=each.shape) for name, each in features.arrays.items()}
        moved.append(
            Features(
                features.sha256s, {name: each.astype(features.arrays[name].dtype) for name, each in arrays.items()}
            )
        )
    return features.with_augmented(moved), labels


@pytest.mark.parametrize("name", ["linear", "rbf", "bilinear"])
def test_copies_that_are_the_photos_change_nothing(name: str) -> None:
    """Each photo counts as much as before, the penalty as well, and leave-one-out leaves its copies out too."""
    answers = []
    for count in (0, 3):
        features, labels = training_features(count)
        folds = grouped_folds(labels, features.sha256s, ("a", "b"), 3, 0)
        head = HEADS[name](224, 2, TrainParams())
        found = head.cross_validate(features, labels, folds, lambda: None)
        model = head.fit(features, labels, found).model
        answers.append((found.probabilities, np.asarray(model({name: features.arrays[name] for name in head.arrays}))))
    for one, other in zip(*answers, strict=True):
        np.testing.assert_allclose(one, other, atol=2e-3)


@pytest.mark.parametrize("name", HEADS)
def test_heads_learn_from_copies_and_are_judged_on_photos(name: str) -> None:
    """Copies that are other photos under the own label make the answers to the photos worse."""
    features, labels = clouds(40, 2, apart=6.0)
    head = HEADS[name](224, 2, TrainParams(epochs=10, learning_rate=0.03))
    folds = grouped_folds(labels, features.sha256s, ("a", "b"), 3, 0)
    misled = features.with_augmented([features.rows(np.random.default_rng(0).permutation(len(labels)))])
    alone, found = (head.cross_validate(each, labels, folds, lambda: None) for each in (features, misled))
    assert log_loss(found.probabilities, labels) > log_loss(alone.probabilities, labels) + 0.01


def test_a_contact_sheet_shows_each_photo_beside_its_copies() -> None:
    given = AugmentParams(copies=2)
    figure = contact_sheet(LISTED[:2], given, side=32)
    (shown,) = (image.get_array() for image in figure.axes[0].get_images())
    assert shown.shape == (64, 96, 3)
    np.testing.assert_array_equal(shown[32:, :32], decode(LISTED[1][1], 32))
    np.testing.assert_array_equal(shown[:32, 64:], augmented_copy(LISTED[0][0], 1, decode(LISTED[0][1], 32), given))


def test_the_linear_path_sees_rows_alike() -> None:
    x = np.random.default_rng(0).normal(size=(30, 4))
    labels = np.arange(30) % 2
    (one,) = fit_path(x, labels, 2, [0.1])
    (other,) = fit_path(np.repeat(x, 3, axis=0), np.repeat(labels, 3), 2, [0.1])
    np.testing.assert_allclose(one.kernel, other.kernel, atol=1e-4)
