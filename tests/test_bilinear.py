"""Second-order pooling: against its definition, and for what the mean over a map cannot say."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ssclass.data.images import decode
from ssclass.model.backbones import import_keras
from ssclass.model.classifier import Classifier
from ssclass.model.extraction import extract, make_extractor
from ssclass.model.features import Features
from ssclass.model.folds import grouped_folds
from ssclass.model.head_file import HeadGraph
from ssclass.model.heads import bilinear
from ssclass.model.heads.bilinear import BilinearHead
from ssclass.model.heads.kernel import unit_roots
from ssclass.model.heads.registry import HEADS
from ssclass.model.saved_head import SavedHead
from ssclass.model.spec import feature_spec
from ssclass.model.training import train
from ssclass.params import FeatureParams, Params, TrainParams
from tests.support.models import clouds, needed_weights, pictures, shard_of


def some_maps(n: int = 6, views: int = 2, side: int = 5, channels: int = 8, seed: int = 0) -> np.ndarray:
    draw = np.random.default_rng(seed)
    return np.maximum(draw.normal(size=(n, views, side, side, channels)), 0).astype(np.float16)


def test_it_is_the_root_of_the_second_moments(monkeypatch: pytest.MonkeyPatch) -> None:
    from scipy.linalg import sqrtm

    monkeypatch.setattr(bilinear, "STEPS", 25)  # until nothing moves
    maps = some_maps()
    axes = bilinear.find_axes(maps, np.arange(len(maps)), 0)
    weights = bilinear.place_weights(*maps.shape[1:4])
    assert weights.sum() == pytest.approx(1)
    assert weights[12] == max(weights) == pytest.approx(weights[0] * np.exp(2 / (2 * bilinear.CENTRE**2)))
    for photo, z in zip(maps, bilinear.pool(maps, np.arange(len(maps)), axes), strict=True):
        y = (unit_roots(photo.reshape(-1, 8).astype(float)) - axes.mean) @ axes.axes
        root = np.real(sqrtm((y * weights[:, None]).T @ y))
        np.testing.assert_allclose(z.reshape(8, 8), root / np.linalg.norm(root), atol=1e-4)


def test_few_steps_are_the_root_where_it_matters() -> None:
    maps = some_maps(channels=12)
    axes = bilinear.find_axes(maps, np.arange(len(maps)), 0)
    few = bilinear.pool(maps, np.arange(len(maps)), axes)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bilinear, "STEPS", 25)
        many = bilinear.pool(maps, np.arange(len(maps)), axes)
    assert ((few * many).sum(axis=1) > 0.98).all()
    np.testing.assert_allclose(np.linalg.norm(few, axis=1), 1, atol=1e-6)


def test_axes_are_the_principal_ones_of_the_photos_to_learn_from(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bilinear, "AXES", 3)
    maps = some_maps(n=40, channels=6)
    maps[..., 2] *= 4
    learn = np.arange(30)
    found = bilinear.find_axes(maps, learn, 0)
    roots = unit_roots(maps[learn].reshape(-1, 6).astype(float))
    _, _, expected = np.linalg.svd(roots - roots.mean(axis=0), full_matrices=False)
    np.testing.assert_allclose(found.mean, roots.mean(axis=0), atol=1e-4)
    np.testing.assert_allclose(found.axes @ found.axes.T, expected[:3].T @ expected[:3], atol=1e-3)

    others = maps.copy()
    others[30:] = 7  # photos to judge
    again = bilinear.find_axes(others, learn, 0)
    np.testing.assert_array_equal(again.axes, found.axes)
    monkeypatch.setattr(bilinear, "PLACES", 600)  # fewer than the 1,500 that there are
    drawn = bilinear.find_axes(maps, learn, 0)
    np.testing.assert_allclose(abs((drawn.axes * found.axes).sum(axis=0))[-1], 1, atol=0.02)


def test_the_layers_give_what_numpy_gives() -> None:
    maps = some_maps()
    axes = bilinear.find_axes(maps, np.arange(len(maps)), 0)
    graph, arrays = HeadGraph(), {"map": maps}
    head = SavedHead(graph.config("head", bilinear.pool_layers(graph, arrays, "map", axes)), graph.tensors)
    expected = bilinear.pool(maps, np.arange(len(maps)), axes)
    np.testing.assert_allclose(head.keras(arrays).numpy(), expected, atol=1e-5)
    np.testing.assert_allclose(head(arrays), expected, atol=1e-5)


def test_what_occurs_together_is_told_apart() -> None:
    """Channels 0 and 1 are each active at half of the places: at the same ones in one class, at others in the other."""
    draw = np.random.default_rng(0)
    labels = np.arange(80) % 2
    maps = draw.uniform(0, 0.3, (80, 1, 4, 4, 6))
    for photo, label in zip(maps, labels, strict=True):
        active = draw.permutation(16) < 8
        photo[0, ..., 0] += active.reshape(4, 4)
        photo[0, ..., 1] += (active if label else ~active).reshape(4, 4)
    arrays = {"map": maps.astype(np.float16), "mean": maps.mean(axis=(2, 3)).astype(np.float32)}
    features = Features(tuple(map(str, range(80))), {f"224.out.{name}": array for name, array in arrays.items()})
    folds = grouped_folds(labels, features.sha256s, ("a", "b"), 4, 0)
    right = {
        name: HEADS[name](224, 2, TrainParams()).cross_validate(features, labels, folds, lambda: None).mean
        for name in ("bilinear", "rbf")
    }
    assert right["bilinear"] > 0.95
    assert right["rbf"] < 0.7


def test_a_photo_without_any_activation_gets_an_answer() -> None:
    features, labels = clouds(20, 2, apart=6.0)
    head = BilinearHead(224, 2, TrainParams())
    folds = grouped_folds(labels, features.sha256s, ("a", "b"), 2, 0)
    model = head.fit(features, labels, head.cross_validate(features, labels, folds, lambda: None)).model
    assert np.isfinite(model({"224.out.map": np.zeros((1, 2, 2, 2, 16), np.float16)})).all()


def test_the_export_answers_pixels_as_the_head_answers_features(tmp_path: Path) -> None:
    needed_weights()
    spec = feature_spec(FeatureParams(sizes=(64,), crops="five"), maps=True)
    _, photos = shard_of(pictures())
    features = Features(*extract(spec, photos, make_extractor(spec)))
    params = Params.model_validate(
        {"dataset": {"classes": ["a", "b"]}, "model": {"head": "bilinear"}, "train": {"folds": 2}}
    )
    learn = features.rows([0, 1, 2, 3] * 3)
    classifier = train(learn, np.array([0, 1] * 6), [str(row) for row in range(12)], spec, params).classifier
    classifier.save(tmp_path)
    classifier.export(tmp_path / "model.keras")
    expected = classifier.predict(lambda spec: features)
    np.testing.assert_array_equal(Classifier.load(tmp_path).predict(lambda spec: features), expected)
    model = import_keras().models.load_model(tmp_path / "model.keras")
    pixels = np.stack([decode(data, classifier.size) for _, data in photos])
    np.testing.assert_allclose(model(pixels).numpy(), expected, atol=1e-5)
