"""Fine-tuning the last blocks of the backbone: what it learns, what it leaves alone, where it is kept."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ssclass.data.images import decode
from ssclass.demo.drawings import draw
from ssclass.errors import NotFoundError, ParamsError
from ssclass.model import compute
from ssclass.model.backbones import BACKBONES
from ssclass.model.classifier import Classifier
from ssclass.model.extraction import extract, make_extractor
from ssclass.model.features import FeatureMemo, Features, shard_features
from ssclass.model.folds import grouped_folds
from ssclass.model.heads.registry import AUTO, HEADS
from ssclass.model.spec import FeatureSpec, feature_spec
from ssclass.model.training import train
from ssclass.model.tuning import Tuner, through_tuned_blocks, tune_folds
from ssclass.params import DatasetParams, FeatureParams, ModelParams, Params, TrainParams
from tests.support.models import needed_weights, shard_of

CLASSES = ("sandwich", "sushi")
PARAMS = TrainParams(folds=3, epochs=5, unfreeze_blocks=1, tune_epochs=2, tune_learning_rate=3e-4)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[str, bytes]]:
    folder = tmp_path_factory.mktemp("drawn")
    draw(folder, CLASSES, per_class=12)
    files = sorted(folder.rglob("*.jpg"))
    return [(hashlib.sha256(path.read_bytes()).hexdigest(), path.read_bytes()) for path in files]


@pytest.fixture(scope="module")
def spec() -> FeatureSpec:
    needed_weights()
    return feature_spec(FeatureParams(sizes=(64,), crops="none", flip=True), maps=True, before_blocks=1)


@pytest.fixture(scope="module")
def cuts(spec: FeatureSpec, photos: list[tuple[str, bytes]]) -> Features:
    return Features(*extract(spec, photos, make_extractor(spec)))


@pytest.fixture(scope="module")
def labels(photos: list[tuple[str, bytes]]) -> np.ndarray:
    return np.repeat([0, 1], len(photos) // 2)


@pytest.fixture(scope="module")
def classifier(spec: FeatureSpec, cuts: Features, labels: np.ndarray) -> Classifier:
    params = Params(dataset=DatasetParams(classes=CLASSES), model=ModelParams(head="linear"), train=PARAMS)
    trained = train(cuts, labels, cuts.sha256s, spec, params)
    assert trained.history["tune_loss"][1] < trained.history["tune_loss"][0]
    return trained.classifier


def everything(cuts: Features) -> np.ndarray:
    return np.arange(len(cuts))


def test_the_cut_is_where_the_last_block_begins(spec: FeatureSpec, cuts: Features) -> None:
    assert cuts.arrays["64.cut"].shape == (24, 2, 2, 2, 1024)
    assert cuts.arrays["64.cut"].dtype == np.float16


def test_what_is_made_of_them_later_makes_no_other_activations_at_the_cut(spec: FeatureSpec) -> None:
    assert replace(spec, maps=False).fingerprint == spec.fingerprint
    assert replace(spec, before_blocks=2).fingerprint != spec.fingerprint


def test_the_published_tail_after_the_cut_is_the_network(
    spec: FeatureSpec, cuts: Features, photos: list[tuple[str, bytes]]
) -> None:
    """But for the rounding at the cut."""
    tuner = Tuner(spec, 2, PARAMS)
    whole = replace(spec, before_blocks=0)
    expected = Features(*extract(whole, photos, make_extractor(whole)))
    found = through_tuned_blocks(tuner.tuned(tuner.published), cuts)
    for name, each in expected.arrays.items():
        np.testing.assert_allclose(found.arrays[name], each, atol=0.02 * each.max())


def test_one_seed_gives_the_same_weights_bit_for_bit_and_what_changes_them_another_fingerprint(
    spec: FeatureSpec, cuts: Features, labels: np.ndarray
) -> None:
    tuner = Tuner(spec, 2, PARAMS)
    rows = everything(cuts)
    tail, curves = tuner.tune(cuts, labels, rows)
    tuner.tune(cuts, labels, rows[::2])  # leaves no trace
    again, curves_again = Tuner(spec, 2, PARAMS).tune(cuts, labels, rows)
    assert curves == curves_again
    for one, other in zip(tail.tensors, tuner.tune(cuts, labels, rows)[0].tensors, strict=True):
        np.testing.assert_array_equal(one, other)
    assert again == tail
    assert tuner.tuned(again).fingerprint == tuner.tuned(tail).fingerprint

    others = [
        tuner.tune(cuts, labels, rows[:-1])[0],
        *(
            Tuner(spec, 2, PARAMS.model_copy(update=change)).tune(cuts, labels, rows)[0]
            for change in ({"seed": 1}, {"tune_epochs": 1}, {"tune_learning_rate": 1e-4})
        ),
    ]
    assert len({tuner.tuned(each).fingerprint for each in (tail, *others)} | {spec.fingerprint}) == 6


def test_batch_norms_stay_and_convolutions_move(spec: FeatureSpec, cuts: Features, labels: np.ndarray) -> None:
    tuner = Tuner(spec, 2, PARAMS)
    tail, _ = tuner.tune(cuts, labels, everything(cuts))
    moved = [not np.array_equal(one, other) for one, other in zip(tuner.published.tensors, tail.tensors, strict=True)]
    shapes = [tensor.ndim for tensor in tail.tensors]
    assert moved == [dimensions == 4 for dimensions in shapes]
    assert sum(moved) == 2


def test_what_a_fold_judges_has_no_part_in_its_network(spec: FeatureSpec, cuts: Features, labels: np.ndarray) -> None:
    """Turning the judged labels round changes no feature, and no answer, of that fold."""
    folds = grouped_folds(labels, cuts.sha256s, CLASSES, 3, 0)[:1]
    turned = labels.copy()
    turned[folds[0][1]] = 1 - turned[folds[0][1]]
    one, other = (tune_folds(Tuner(spec, 2, PARAMS), cuts, each, folds, lambda: None) for each in (labels, turned))
    for name, each in one.features.arrays.items():
        np.testing.assert_array_equal(each, other.features.arrays[name])


def test_features_of_all_folds_are_gathered_into_one_answer_a_photo(
    spec: FeatureSpec, cuts: Features, labels: np.ndarray
) -> None:
    folds = grouped_folds(labels, cuts.sha256s, CLASSES, 3, 0)
    tuned = tune_folds(Tuner(spec, 2, PARAMS), cuts, labels, folds, lambda: None)
    for name in AUTO:
        found = HEADS[name](64, 2, PARAMS).cross_validate(tuned.features, tuned.labels, tuned.folds, lambda: None)
        gathered = tuned.gather(found)
        assert gathered.probabilities.shape == (24, 2), name
        np.testing.assert_allclose(gathered.probabilities.sum(axis=1), 1, atol=1e-5)
        hits = gathered.probabilities.argmax(axis=1) == labels
        assert gathered.accuracy == pytest.approx([hits[test].mean() for _, test in folds])
        assert np.isfinite(list(gathered.curves.values())).all()


def test_saved_it_answers_the_same_and_gives_the_same_bytes(
    classifier: Classifier, cuts: Features, tmp_path: Path
) -> None:
    for name in ("one", "other"):
        classifier.save(tmp_path / name)
    loaded = Classifier.load(tmp_path / "one")
    assert loaded.specs == classifier.specs
    assert loaded.fingerprint == classifier.fingerprint
    np.testing.assert_array_equal(
        loaded.predict(lambda spec: through_tuned_blocks(spec, cuts)),
        classifier.predict(lambda spec: through_tuned_blocks(spec, cuts)),
    )
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "other" / path.name).read_bytes()


@pytest.mark.parametrize("damage", ["gone", "junk", "another's"])
def test_a_tail_that_is_not_the_classifiers_is_refused(classifier: Classifier, damage: str, tmp_path: Path) -> None:
    classifier.save(tmp_path)
    (tuned,) = classifier.specs
    assert tuned.tuned_blocks is not None
    if damage == "gone":
        (tmp_path / "tail.npz").unlink()
    elif damage == "junk":
        (tmp_path / "tail.npz").write_bytes(b"junk")
    else:
        first, *rest = tuned.tuned_blocks.tensors
        replace_tensors = type(tuned.tuned_blocks)(1, (first + 1, *rest))
        replace_tensors.save(tmp_path / "tail.npz")
    with pytest.raises(NotFoundError, match="ssclass retrain"):
        Classifier.load(tmp_path)


def test_the_export_answers_as_the_classifier_does(
    classifier: Classifier, cuts: Features, photos: list[tuple[str, bytes]], tmp_path: Path
) -> None:
    import keras

    classifier.export(tmp_path / "model.keras")
    images = np.stack([decode(data, classifier.size) for _, data in photos])
    model = keras.models.load_model(tmp_path / "model.keras")
    answers = model(images).numpy()
    # One network, as without tuning: `ssclass explain` goes through its layers.
    assert {"conv_dw_1_relu", "conv_pw_13_relu"} <= {layer.name for layer in model.get_layer("mobilenet_64").layers}
    np.testing.assert_allclose(answers, classifier.predict(lambda spec: through_tuned_blocks(spec, cuts)), atol=1e-5)


def test_features_of_a_tuned_network_come_from_the_remembered_cut(
    classifier: Classifier, spec: FeatureSpec, photos: list[tuple[str, bytes]], tmp_path: Path
) -> None:
    shard, listed = shard_of(dict(photos))
    memo = FeatureMemo(tmp_path, None)
    shard_features(spec, memo, shard, lambda: listed)

    def never() -> list[tuple[str, bytes]]:
        raise AssertionError("photos were opened, though their activations at the cut are remembered")

    (tuned,) = classifier.specs
    found = shard_features(tuned, memo, shard, never)
    _, directly = extract(tuned, photos, make_extractor(tuned))
    for name, each in directly.items():
        np.testing.assert_allclose(found.arrays[name], each, atol=1e-4)


def test_copies_are_learnt_from_too(spec: FeatureSpec, cuts: Features, labels: np.ndarray) -> None:
    tuner = Tuner(spec, 2, PARAMS)
    with_copies = cuts.with_augmented([cuts.rows(everything(cuts)[::-1])])
    alone, _ = tuner.tune(cuts, labels, everything(cuts))
    found, _ = tuner.tune(with_copies, labels, everything(cuts))
    assert found != alone
    arrays = through_tuned_blocks(tuner.tuned(alone), with_copies)
    name = "64.out.mean"
    np.testing.assert_allclose(arrays.augmented[name][:, 0], arrays.arrays[name][::-1], atol=1e-5)


def test_more_blocks_than_there_are_is_said_plainly(spec: FeatureSpec) -> None:
    with pytest.raises(ParamsError, match=r"train.unfreeze_blocks: 13; of mobilenet at most 12"):
        make_extractor(replace(spec, before_blocks=13))


@pytest.mark.parametrize("name", ["mobilenet", "efficientnet_lite0"])
def test_the_network_can_be_split_before_each_block(name: str) -> None:
    """The two parts in a row are the whole."""
    backbone = BACKBONES[name]
    trunk = backbone.trunk(needed_weights(name).tensors, 64)
    pixels = np.random.default_rng(0).uniform(-1, 1, (1, 64, 64, 3)).astype(np.float32)
    expected = trunk(pixels).numpy()
    for blocks in (1, 2, 12):
        front, back = backbone.split(trunk, blocks)
        assert len(back.layers) < len(trunk.layers)
        np.testing.assert_allclose(back(front(pixels)), expected, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", BACKBONES)
def test_every_backbone_has_blocks_to_tune(name: str) -> None:
    backbone = BACKBONES[name]
    trunk = backbone.build(top=False, size=max(64, backbone.min_size))
    for blocks in range(1, len(backbone.block_ends) + 1):
        front, back = backbone.split(trunk, blocks)
        assert front.output_shape == back.input_shape
        assert back.output_shape == trunk.output_shape
    assert backbone.block_ends


def test_half_precision_is_for_gpus(
    spec: FeatureSpec, cuts: Features, labels: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a GPU is seen, what is computed is float16; the weights, and what comes of them, stay float32."""
    asked = PARAMS.model_copy(update={"mixed_precision": True})
    assert Tuner(spec, 2, asked).dtype == "float32"
    monkeypatch.setattr(compute, "share_gpus", lambda: ["NVIDIA A100"])
    tuner = Tuner(spec, 2, asked)
    assert tuner.dtype == "mixed_float16"
    tail, curves = tuner.tune(cuts, labels, everything(cuts))
    assert {tensor.dtype for tensor in tail.tensors} == {np.dtype(np.float32)}
    assert curves["tune_loss"][1] < curves["tune_loss"][0]
    assert tail != Tuner(spec, 2, PARAMS).tune(cuts, labels, everything(cuts))[0]
