"""Many photos are learnt from without their maps in memory, and of a forgotten one nothing is remembered."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from ssclass.data.dataset import Dataset
from ssclass.data.shards import Receipt, Row, Shard
from ssclass.errors import DistrustedError
from ssclass.model import pooled
from ssclass.model.features import SEEN, FeatureMemo, Features
from ssclass.model.folds import grouped_folds
from ssclass.model.gathered import Gathered
from ssclass.model.heads import bilinear, kernel, registry, ridge
from ssclass.model.heads.bilinear import BilinearHead
from ssclass.model.heads.kernel import RbfHead
from ssclass.model.pooled import AXES_FILE, PooledSpec, asked_of, fixed_axes, remembered_axes, sample
from ssclass.model.spec import FeatureSpec
from ssclass.model.training import plan
from ssclass.params import Params, TrainParams
from ssclass.retrain.predict import HeldOut
from ssclass.retrain.results import _same_features
from ssclass.retrain.train import fit, save_candidate
from ssclass.store import Store
from ssclass.upkeep import gc
from ssclass.upkeep.leftovers import erase_features
from ssclass.upkeep.verify.data import features as verify_features
from tests.support.models import clouds, needed_weights, pictures, shard_of

CLASSES = ("sandwich", "sushi")
PARAMS = Params.model_validate(
    {"dataset": {"classes": list(CLASSES)}, "features": {"sizes": [64]}, "model": {"head": "bilinear"}}
)


# -- kernel ridge regression, a block at a time -------------------------------------------------------------


@pytest.mark.parametrize("copies", [0, 2])
def test_the_fit_and_each_fold_are_what_the_normal_equations_of_their_photos_give(copies: int) -> None:
    features, labels = clouds(40, 2, apart=3.0)
    draw = np.random.default_rng(1)
    photos = kernel.unit_roots(features.arrays["224.out.mean"].mean(axis=1))[:, None]
    altered = np.abs(photos + draw.normal(0, 0.05, (len(labels), copies, photos.shape[-1])))
    z = np.concatenate([photos, altered / np.linalg.norm(altered, axis=-1, keepdims=True)], axis=1)
    folds = grouped_folds(labels, features.sha256s, CLASSES, 4, 0)
    many = ridge.Solved.of(
        lambda rows: z[rows].astype(np.float32), None, labels, folds, 2, 30, 0, 4.0, None, lambda: None
    )

    def solved(rows: np.ndarray, at: np.ndarray) -> np.ndarray:
        """The scores of photos by ridge regression on the others, written out."""
        landmarks = many.landmarks.astype(float)
        values, vectors = np.linalg.eigh(ridge.kernel(landmarks, landmarks, 4.0))
        root = vectors / np.sqrt(values)
        phi = (ridge.kernel(z[rows].reshape(-1, z.shape[-1]), landmarks, 4.0) @ root) / np.sqrt(copies + 1)
        targets = 2.0 * np.eye(2)[labels[rows]] - 1
        wanted = np.repeat(targets - targets.mean(axis=0), copies + 1, axis=0) / np.sqrt(copies + 1)
        weights = np.linalg.solve(phi.T @ phi + l2 * np.eye(len(landmarks)), phi.T @ wanted)
        return ridge.kernel(z[at, 0], landmarks, 4.0) @ root @ weights + targets.mean(axis=0)

    l2, everything = float(many.validation.l2 or 0), np.arange(len(labels))
    fit_ = many.fit()
    found = ridge.kernel(z[:, 0], fit_.landmarks, 4.0) @ fit_.weights + fit_.bias
    np.testing.assert_allclose(found, solved(everything, everything), atol=2e-3)
    for train, test in folds:
        scores = solved(train, test)
        expected = np.exp(scores / fit_.temperature)
        expected /= expected.sum(axis=1, keepdims=True)
        np.testing.assert_allclose(many.validation.probabilities[test], expected, atol=2e-3)


def test_middles_of_photos_say_more_than_as_many_photos_by_lot() -> None:
    """Forty dishes, each photographed often: twelve photos by lot miss most of them, twelve middles do not all."""
    draw = np.random.default_rng(0)
    dishes = kernel.unit_roots(np.abs(draw.normal(size=(40, 32))))
    z = kernel.unit_roots(np.abs(np.repeat(dishes, 20, axis=0) ** 2 + draw.normal(0, 0.02, (800, 32)))).astype(
        np.float32
    )

    def nearest(landmarks: np.ndarray) -> float:
        return float((z @ landmarks.T).max(axis=1).mean())

    by_lot = np.mean([nearest(z[np.random.default_rng(seed).choice(800, 12, replace=False)]) for seed in range(5)])
    middles = ridge.middles(lambda rows: z[rows][:, None], len(z), 12, 0)
    np.testing.assert_allclose(np.linalg.norm(middles, axis=1), 1, atol=1e-5)
    assert nearest(middles) > by_lot
    few = ridge.middles(lambda rows: z[rows][:, None], 10, 12, 0)
    np.testing.assert_array_equal(few, z[:10])


def test_of_many_photos_both_heads_learn_as_much_as_of_few(monkeypatch: pytest.MonkeyPatch) -> None:
    features, labels = clouds(60, 2, apart=6.0)
    folds = grouped_folds(labels, features.sha256s, CLASSES, 5, 0)
    for kind in (RbfHead, BilinearHead):
        exact = kind(224, 2, TrainParams()).cross_validate(features, labels, folds, lambda: None)
        with monkeypatch.context() as patch:
            patch.setattr(kernel, "LANDMARKS", 60)
            head = kind(224, 2, TrainParams())
            ticks: list[int] = []
            found = head.cross_validate(features, labels, folds, lambda ticks=ticks: ticks.append(1))  # type: ignore[misc]
            model = head.fit(features, labels, found).model
            again = kind(224, 2, TrainParams()).fit(features, labels, replace(found, l2=None)).model
        assert len(ticks) == len(folds)
        assert found.mean > exact.mean - 0.04
        given = {name: features.arrays[name] for name in model.input}
        answers = np.asarray(model(given))
        assert (answers.argmax(axis=1) == labels).mean() > 0.9
        assert (np.asarray(again(given)).argmax(axis=1) == labels).mean() > 0.9


def test_folds_of_many_photos_are_dealt_with_groups_whole_and_shares_alike() -> None:
    draw = np.random.default_rng(0)
    groups = draw.integers(0, 1500, 3000)
    labels = (groups % 3 == 0).astype(int)
    folds = grouped_folds(labels, [f"g{group}" for group in groups], CLASSES, 5, 0)
    assert ridge.partition(folds, 3000)
    for train, test in folds:
        assert not set(groups[train]) & set(groups[test])
        assert len(test) == pytest.approx(600, abs=12)
        assert labels[test].mean() == pytest.approx(labels.mean(), abs=0.01)
    other = grouped_folds(labels, [f"g{group}" for group in groups], CLASSES, 5, 1)
    assert not np.array_equal(folds[0][1], other[0][1])


# -- roots ----------------------------------------------------------------------------------------------------


def test_packed_roots_have_the_products_of_roots_and_are_unpacked_again() -> None:
    maps = clouds(10, 2, apart=3.0)[0].arrays["224.out.map"]
    z = bilinear.pool(maps, np.arange(20), bilinear.find_axes(maps, np.arange(20), 0))
    packed = bilinear.pack(z)
    assert packed.dtype == np.float16
    assert packed.shape == (20, 16 * 17 // 2)
    unit = bilinear.unit(packed)
    np.testing.assert_allclose(unit @ unit.T, z @ z.T, atol=1e-3)
    np.testing.assert_allclose(bilinear.unpack(unit), z, atol=1e-3)


def test_features_are_put_where_they_belong_and_a_photo_that_is_nowhere_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = np.arange(12, dtype=np.float32).reshape(6, 2)
    for limit in (10**9, 0):  # in memory, and in a file without a name
        monkeypatch.setattr("ssclass.model.gathered.ON_DISK", limit)
        gathered = Gathered(["e", "a", "c"], tmp_path / "memo")
        assert not gathered.wants(["x"])
        gathered.add(Features(("a", "b", "c"), {"one": values[:3], "other": values[:3]}), ("one",))
        with pytest.raises(KeyError, match="e"):
            gathered.features()
        gathered.add(Features(("d", "e"), {"one": values[3:5]}))
        gathered.add(Features(("c",), {"one": values[5:]}))  # came again: the newest counts
        found = gathered.features()
        assert found.sha256s == ("e", "a", "c")
        np.testing.assert_array_equal(found.arrays["one"], values[[4, 0, 5]])
        assert found.arrays.keys() == {"one"}
    assert list((tmp_path / "memo").iterdir()) == []


# -- a data set of shards, their maps remembered ----------------------------------------------------------------


def shards(count: int, size: int = 20) -> tuple[Shard, ...]:
    def rows(batch: int) -> tuple[Row, ...]:
        names = [f"{batch:032x}{at:032x}" for at in range(size)]
        return tuple(
            Row(name, CLASSES[at % 2], ("train", "holdout")[at % 5 == 4], name, "", b"", "", 1, 1)
            for at, name in enumerate(names)
        )

    return tuple(Shard(rows(number), Receipt(f"b{number}", "", "", number + 1, size, 0)) for number in range(count))


def remember(memo: FeatureMemo, spec: FeatureSpec, some: Iterable[Shard]) -> None:
    """Features as `clouds` has them, of two classes that are told apart."""
    for shard in some:
        made, labels = clouds(len(shard.rows) // 2, 2, apart=5.0, seed=shard.receipt.sequence)
        order = np.array([at // 2 + (at % 2) * (len(labels) // 2) for at in range(len(labels))])
        arrays = {name.replace("224", "64"): array[order] for name, array in made.arrays.items()}
        memo.put(spec, shard.photos_digest, Features(tuple(row.sha256 for row in shard.rows), arrays))


def version(some: Sequence[Shard], params: Params = PARAMS) -> Any:
    def photos(*_: object) -> Iterable[tuple[str, bytes]]:
        raise AssertionError("photos were opened, though their features are remembered")

    return SimpleNamespace(dataset=Dataset.of(some), params=params, photos=photos)


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """So few are many, and so few are a sample of them."""
    monkeypatch.setattr(kernel, "LANDMARKS", 40)
    monkeypatch.setattr(pooled, "SAMPLE", 20)


@pytest.mark.parametrize("head", ["bilinear", "auto"])
@pytest.mark.usefixtures("few")
def test_one_more_batch_reads_the_maps_of_that_batch_alone(head: str, tmp_path: Path) -> None:
    needed_weights()
    changed = {"model": {"head": head}, "train": {"epochs": 3, "folds": 3}}  # T1 takes seconds else
    params = Params.model_validate(PARAMS.model_dump() | changed)
    ((spec, _),) = plan(params)
    memo, some = FeatureMemo(tmp_path, None), shards(6)
    remember(memo, spec, some)
    first = fit(version(some[:5], params), memo, params, Dataset.of(some[:5]))
    if head == "bilinear":  # else the other heads read their means
        for shard in some[:5]:
            (tmp_path / FeatureMemo.key(spec, shard.photos_digest)).unlink()

    later = version(some, params)
    held_out = HeldOut(later, memo, later.dataset.holdout)
    trained = fit(later, memo, params, later.dataset, held_out=held_out)
    right = [CLASSES.index(row.label) for row in later.dataset.holdout]
    for model in (trained.classifier, first.classifier):
        answers = held_out.probabilities(model)
        assert (answers.argmax(axis=1) == right).mean() > 0.9
    again = fit(later, memo, params, later.dataset)
    for one, other in zip(
        trained.classifier.members[0].head.get_weights(), again.classifier.members[0].head.get_weights(), strict=True
    ):
        np.testing.assert_array_equal(one, other)


@pytest.mark.usefixtures("few")
def test_roots_and_maps_have_the_same_answers(tmp_path: Path) -> None:
    needed_weights()
    ((spec, _),) = plan(PARAMS)
    memo, some = FeatureMemo(tmp_path, None), shards(5)
    remember(memo, spec, some)
    there = version(some)
    classifier = fit(there, memo, PARAMS, there.dataset).classifier
    held_out = HeldOut(there, memo, there.dataset.holdout)
    by_roots = held_out.probabilities(classifier)
    by_maps = classifier.predict(held_out.of)
    np.testing.assert_allclose(by_roots, by_maps, atol=5e-3)
    asked, names = asked_of(classifier.members[0], ())
    assert isinstance(asked, PooledSpec)
    assert names is None
    assert (tmp_path / FeatureMemo.key(asked, some[0].photos_digest)).exists()


@pytest.mark.usefixtures("few")
def test_copies_of_photos_are_learnt_from_by_their_roots(tmp_path: Path) -> None:
    needed_weights()
    from ssclass.model.augmentation import AugmentedSpec

    params = Params.model_validate(PARAMS.model_dump() | {"augment": {"copies": 1}})
    ((spec, _),) = plan(params)
    memo, some = FeatureMemo(tmp_path, None), shards(3)
    remember(memo, spec, some)
    copy = AugmentedSpec(spec, params.augment, 0)
    for shard in some:
        named = copy.photos(shard.rows)
        found = memo.get(spec, shard.photos_digest, spec.photos(shard.rows))
        assert found is not None
        memo.put(copy, shard.photos_digest, found.take(named))  # type: ignore[arg-type]
    there = version(some, params)
    trained = fit(there, memo, params, there.dataset)
    assert trained.cv["bilinear"].mean > 0.9
    prints = pooled.pooled_fingerprints(trained.classifier, params.augment)
    assert {path.name for path in (tmp_path / "features").glob("pooled-*")} == set(prints)
    assert len(prints) == 2


@pytest.mark.usefixtures("few")
def test_of_very_many_photos_auto_tries_the_heads_that_read_a_block_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    needed_weights()
    monkeypatch.setattr(registry, "ALL_RACED", 50)
    params = Params.model_validate(PARAMS.model_dump() | {"model": {"head": "auto"}})
    ((spec, _),) = plan(params)
    memo, some = FeatureMemo(tmp_path, None), shards(5)
    remember(memo, spec, some)
    there = version(some, params)
    assert set(fit(there, memo, params, there.dataset).cv) == {"rbf", "bilinear"}
    assert set(fit(there, memo, params, there.dataset, head="bilinear").cv) == {"bilinear"}


# -- the axes -----------------------------------------------------------------------------------------------------


def test_axes_are_others_when_data_has_grown_tenfold_or_a_photo_of_the_sample_is_gone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(pooled, "SAMPLE", 20)
    some = shards(40, 10)  # 8 of 10 photos train

    def drawn(shards_: Sequence[Shard]) -> tuple[tuple[str, ...], tuple[str, ...]]:
        return sample(shards_, [row.sha256 for row in Dataset.of(shards_).train])

    at_first = drawn(some[:3])
    assert [drawn(some[:count]) for count in (5, 24)] == [at_first] * 2
    assert len(at_first[0]) == 20
    grown = drawn(some[:25])  # 200 photos
    assert grown != at_first
    assert drawn(some) == grown
    assert set(grown[1]) - {shard.photos_digest for shard in some[:3]}

    (holder, *_) = [shard for shard in some if shard.photos_digest in grown[1]]
    gone = next(row for row in holder.rows if row.sha256 in grown[0])
    left = replace(holder, rows=tuple(row for row in holder.rows if row != gone))
    after = drawn([left if shard is holder else shard for shard in some])
    assert gone.sha256 not in after[0]
    assert after[1] != grown[1]


def test_axes_have_the_same_bits_whatever_the_number_of_threads() -> None:
    from threadpoolctl import threadpool_limits

    made, _ = clouds(50, 2, apart=3.0)
    features = Features(made.sha256s, {"64.out.map": made.arrays["224.out.map"]})
    found = []
    for threads in (1, 2):
        with threadpool_limits(threads):
            found.append(PooledSpec.of(SimpleNamespace(fingerprint="x"), fixed_axes(features, 0), ()).digest)  # type: ignore[arg-type]
    assert len(set(found)) == 1


def maps_of(photos: int) -> Features:
    made, _ = clouds(photos // 2, 2, apart=3.0)
    return Features(made.sha256s, {"64.out.map": made.arrays["224.out.map"]})


def test_axes_are_remembered_with_their_bits_and_found_anew_where_they_are_damaged_or_others(tmp_path: Path) -> None:
    found: list[int] = []
    source: Any = SimpleNamespace(fingerprint="x")

    def features() -> Features:
        found.append(1)
        return maps_of(50)

    def digest(drawn: tuple[str, ...] = ("a", "b"), seed: int = 0) -> str:
        axes = remembered_axes(tmp_path, source, seed, drawn, ("shard",), features)
        assert list(axes.shapes) == ["64.out.map"]
        assert axes.shapes["64.out.map"].shape == (0, 2, 2, 2, 16)
        return PooledSpec.of(source, axes, ()).digest

    first = digest()
    assert digest() == first
    assert len(found) == 1
    (path,) = tmp_path.rglob("axes.npz")
    for damage in (path.read_bytes()[:500], b""):
        path.write_bytes(damage)
        assert digest() == first
    assert len(found) == 3
    digest(("a", "c"))
    digest(seed=1)
    assert len(found) == 5


def test_of_few_photos_the_sample_is_no_less_than_half() -> None:
    some = shards(130, 10)  # 8 of 10 photos train
    for count in (10, 20, 40, 80, 120, 130):
        train = [row.sha256 for row in Dataset.of(some[:count]).train]
        photos, _ = sample(some[:count], train)
        assert len(train) / 2 <= len(photos) <= min(len(train), 1008)
    at_first, later = (
        sample(some[:count], [row.sha256 for row in Dataset.of(some[:count]).train]) for count in (65, 120)
    )
    assert at_first == later, "500 photos until there are 1,000"


@pytest.mark.usefixtures("few")
def test_roots_on_axes_that_a_forgotten_photo_had_a_part_in_are_gone_here_and_in_the_bucket(
    tmp_path: Path, s3: Store
) -> None:
    needed_weights()
    ((spec, _),) = plan(PARAMS)
    memo, some = FeatureMemo(tmp_path, s3), shards(5)
    remember(memo, spec, some)
    there = version(some)
    fit(there, memo, PARAMS, there.dataset)
    workspace: Any = SimpleNamespace(private=tmp_path, store=s3)
    _, seen = sample(some, [row.sha256 for row in there.dataset.train])
    (folder,) = (tmp_path / "features").glob("pooled-*")
    assert set(json.loads((folder / SEEN).read_text())) == set(seen)

    def roots() -> set[str]:
        here = {path.relative_to(tmp_path).as_posix() for path in folder.glob("*")}
        assert here == {item.key for item in s3.list(f"features/{folder.name}/")}
        return here

    everything = roots()
    assert len(everything) == 6
    (axes,) = (tmp_path / "features").glob("axes-*")
    assert set(json.loads((axes / SEEN).read_text())) == set(seen)
    whole: Any = SimpleNamespace(private=tmp_path, store=s3, at=lambda: there)
    assert list(verify_features(whole)) == [], "axes are no features, and tell of no photos"
    unseen = next(shard for shard in some if shard.photos_digest not in seen)
    erase_features(workspace, [shard for shard in some if shard is not unseen])
    assert len(roots()) == 5  # its own are gone, the others tell nothing of it
    (axes / AXES_FILE).write_bytes((axes / AXES_FILE).read_bytes()[:-500])  # which stays, too
    (found,) = verify_features(whole)
    assert AXES_FILE in found.thing
    holder = next(shard for shard in some if shard.photos_digest in seen)
    remembered_axes(tmp_path, spec, 0, ("a",), seen, lambda: maps_of(20))
    erase_features(workspace, [shard for shard in some if shard is not holder])
    assert roots() == set()
    assert not list((tmp_path / "features").glob("axes-*"))
    kept = {path.name for path in (tmp_path / "features" / spec.fingerprint).glob("*")}
    assert f"{holder.photos_digest}.npz" not in kept
    assert len(kept) == 3


@pytest.mark.usefixtures("few")
def test_gc_keeps_the_roots_that_a_kept_candidate_learnt_from_and_no_others(tmp_path: Path, s3: Store) -> None:
    needed_weights()
    ((spec, _),) = plan(PARAMS)
    memo, some = FeatureMemo(tmp_path / "private", s3), shards(5)
    remember(memo, spec, some)
    there = version(some)
    trained = fit(there, memo, PARAMS, there.dataset)
    save_candidate(trained, there.dataset, tmp_path / "candidate", PARAMS)
    files = {path.name: path.read_bytes() for path in (tmp_path / "candidate").iterdir()}
    workspace: Any = SimpleNamespace(private=tmp_path / "private", store=s3, objects=SimpleNamespace(read=files.get))
    objects: Any = SimpleNamespace(
        workspace=workspace,
        version=there,
        _tracked=lambda rev, only: ["candidate.dir"],
        _listing=lambda oid: [{"relpath": name, "md5": name} for name in files],
    )
    kept = gc._Objects.fingerprints(objects, set())
    later = datetime.now(UTC) + timedelta(days=1)

    def garbage(fingerprints: set[str]) -> list[str]:
        return [item.where for item in gc._features(workspace, there, fingerprints, later)]

    old = garbage(kept)
    assert len(old) == 2  # axes and their note, on this machine alone: they are found again where they are asked for
    assert all("/axes-" in name for name in old)
    gone = set(garbage({name for name in kept if not name.startswith("pooled-")})) - set(old)
    assert len(gone) == 2 * 6  # the roots of five shards and their note, here and in the bucket
    assert all("/pooled-" in name for name in gone)


def test_roots_that_are_not_those_of_the_photos_are_found_out(tmp_path: Path) -> None:
    needed_weights()
    shard, listed = shard_of(pictures())
    rows = tuple(
        replace(row, label=CLASSES[at % 2], split="holdout" if at == 3 else "train")
        for at, row in enumerate(shard.rows)
    )
    there = version([replace(shard, rows=rows)])
    there.photos = lambda batch, wanted=None: (each for each in listed if wanted is None or each[0] in wanted)
    ((spec, _),) = plan(PARAMS)
    memo = FeatureMemo(tmp_path, None)
    from ssclass.model.extraction import extract, make_extractor

    features = Features(*extract(spec, listed, make_extractor(spec)))
    memo.put(spec, shard.photos_digest, features)
    learn = features.rows([0, 1, 2] * 4)
    from ssclass.model.training import train

    labels = np.array([0, 1, 0] * 4)
    classifier = train(learn, labels, [str(row) for row in range(12)], spec, PARAMS).classifier
    workspace: Any = SimpleNamespace(store=SimpleNamespace(place="bucket"))
    _same_features(workspace, there, memo, classifier)
    asked, _ = asked_of(classifier.members[0], ())
    found = memo.get(asked, shard.photos_digest, features.sha256s)
    assert found is not None
    forged = {
        name: np.random.default_rng(0).random(array.shape).astype(array.dtype) for name, array in found.arrays.items()
    }
    memo.put(asked, shard.photos_digest, replace(found, arrays=forged))
    with pytest.raises(DistrustedError, match="not the features of the photos"):
        _same_features(workspace, there, memo, classifier)


def test_a_processs_first_axes_have_the_same_bits_as_its_next():
    """SciPy's linear algebra was loaded inside the block that limits threads, and used all cores the first time."""
    said = """
import numpy as np
from ssclass.model.features import Features
from ssclass.model.pooled import fixed_axes

maps = np.random.default_rng(0).random((40, 1, 10, 10, 1024)).astype(np.float16)
features = Features(tuple(map(str, range(40))), {"320.out.map": maps})
first, second = (fixed_axes(features, 0).axes.tobytes() for _ in range(2))
assert first == second
"""
    subprocess.run([sys.executable, "-c", said], check=True)
