"""Features of many small shards in one file: the same rows, whatever became of that file, and no row that must go."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from ssclass.data.dataset import Dataset
from ssclass.data.shards import Receipt, Row, Shard
from ssclass.model import packed
from ssclass.model.features import FeatureMemo, Features, concat, shard_features
from ssclass.model.packed import BLOCK, is_pack, photos_in, read_packed
from ssclass.model.spec import FeatureSpec
from ssclass.store import Store
from ssclass.upkeep import gc
from ssclass.upkeep.leftovers import erase_features

SPEC = FeatureSpec("b", "w", (32,), False)
SHARDS = 2 * BLOCK + 5  # sequences 1 to 133: of blocks 0, 1 and 2, the last of which goes on


def shards(count: int = SHARDS) -> list[Shard]:
    def row(number: int, at: int) -> Row:
        name = f"{number:032x}{at:032x}"
        return Row(name, "sushi", ("train", "holdout")[at], name, "", b"", "", 1, 1)

    return [
        Shard((row(number, 0), row(number, 1)), Receipt(f"b{number}", "", "", number, 2, 0))
        for number in range(1, count + 1)
    ]


def features_of(shard: Shard) -> Features:
    seed = shard.receipt.sequence
    arrays = {name: np.arange(6, dtype=np.float32).reshape(2, 3) + 10 * seed + at for at, name in enumerate("xy")}
    return Features(tuple(row.sha256 for row in shard.rows), arrays)


class Reader:
    """Reads a data set's features, and notes which shards were opened one by one."""

    def __init__(self, folder: Path, some: Sequence[Shard], store: Store | None = None) -> None:
        self.memo = FeatureMemo(folder, store)
        self.opened: list[str] = []
        for shard in some:
            self.memo.put(SPEC, shard.photos_digest, features_of(shard))

    def one(self, shard: Shard) -> Features:
        self.opened.append(shard.batch_id)
        return shard_features(SPEC, self.memo, shard, lambda: pytest.fail("photos were opened"))

    def read(
        self, dataset: Dataset, names: Sequence[str] | None = None, wanted: Sequence[Shard] | None = None
    ) -> tuple[Features, list[str]]:
        """The features of the wanted shards' photos, held against those that were put; the shards that were opened."""
        self.opened = []
        asked = dataset.shards if wanted is None else wanted
        found = concat(list(read_packed(self.memo, SPEC, dataset, asked, names, self.one)))
        expected = concat([features_of(shard) for shard in asked])
        taken = found.take(expected.sha256s)
        for name in names or "xy":
            np.testing.assert_array_equal(taken.arrays[name], expected.arrays[name])
            assert taken.arrays[name].dtype == np.float32
        return found, self.opened

    @property
    def packs(self) -> list[Path]:
        return sorted(path for path in (self.memo.local / "features" / SPEC.fingerprint).iterdir() if is_pack(path))


def test_a_long_data_set_is_read_from_a_few_files(tmp_path: Path) -> None:
    reader, dataset = Reader(tmp_path, shards()), Dataset.of(shards())
    _, opened = reader.read(dataset)
    assert len(opened) == SHARDS, "there are no packs yet: as on a new clone"
    assert len(reader.packs) == 2
    tail = [f"b{number}" for number in range(2 * BLOCK, SHARDS + 1)]
    assert reader.read(dataset)[1] == tail
    found, opened = reader.read(dataset, ["y"])
    assert len(opened) == SHARDS, "a pack has the arrays that were asked for"
    assert reader.read(dataset, ["y"])[1] == tail
    assert len(reader.packs) == 4
    assert found.arrays.keys() >= {"y"}
    assert [set(photos_in(path) or ()) for path in reader.packs[:1]] == [
        {row.sha256 for shard in shards(BLOCK - 1) for row in shard.rows}
    ]


def test_a_few_shards_are_opened_by_themselves_and_more_of_them_by_their_pack(tmp_path: Path) -> None:
    reader, dataset = Reader(tmp_path, shards()), Dataset.of(shards())
    few, many = dataset.shards[3:6], dataset.shards[:40]
    assert reader.read(dataset, None, many)[1] == [shard.batch_id for shard in many]
    assert reader.packs == [], "a pack is of all that is in use"
    reader.read(dataset)
    assert reader.read(dataset, None, few)[1] == [shard.batch_id for shard in few]
    assert reader.read(dataset, None, many)[1] == []


@pytest.mark.parametrize(
    "damage",
    [
        lambda body: body[: len(body) // 2],
        lambda body: b"",
        lambda body: body[:300] + bytes(100) + body[400:],
        lambda body: b"a text",
    ],
)
def test_a_damaged_pack_is_made_anew(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    reader, dataset = Reader(tmp_path, shards()), Dataset.of(shards())
    reader.read(dataset)
    first, second = reader.packs
    whole = first.read_bytes()
    first.write_bytes(damage(whole))
    assert reader.read(dataset)[1][: BLOCK - 1] == [f"b{number}" for number in range(1, BLOCK)]
    assert first.read_bytes() == whole
    first.write_bytes(second.read_bytes())  # whole, but of other photos
    reader.read(dataset)
    assert first.read_bytes() == whole


def test_what_changes_a_block_replaces_its_pack_and_no_other(tmp_path: Path) -> None:
    reader, some = Reader(tmp_path, shards()), shards()
    reader.read(Dataset.of(some))
    first, second = reader.packs
    revoked = Dataset.of([shard for shard in some if shard.batch_id != "b70"])
    opened = reader.read(revoked)[1]
    assert {f"b{number}" for number in range(1, BLOCK)}.isdisjoint(opened)
    assert reader.packs[0] == first
    assert len(reader.packs) == 2
    assert second not in reader.packs
    photos = photos_in(reader.packs[1])
    assert photos is not None
    assert photos.isdisjoint(row.sha256 for row in some[69].rows)


def test_photos_that_nobody_uses_are_in_no_pack(tmp_path: Path) -> None:
    some = shards()
    other = replace(some[4], receipt=replace(some[4].receipt, source="another shop"))
    removed = replace(some[-1], receipt=replace(some[-1].receipt, remove=tuple(row.sha256 for row in some[7].rows)))
    reader, dataset = Reader(tmp_path, some), Dataset.of([*some[:4], other, *some[5:-1], removed], ("main",))
    used = [shard for shard in dataset.shards if any(dataset.uses(row.sha256) for row in shard.rows)]
    assert len(used) == SHARDS - 2
    reader.read(dataset, None, used)
    photos = photos_in(reader.packs[0])
    assert photos is not None
    assert photos.isdisjoint(row.sha256 for row in (*some[4].rows, *some[7].rows))
    tail = [f"b{number}" for number in range(2 * BLOCK, SHARDS + 1)]
    assert reader.read(dataset, None, used)[1] == tail
    # a row of the study may ask for another source's photos too
    assert reader.read(dataset, None, dataset.shards)[1] == ["b5", "b8", *tail]


def test_large_shards_are_not_packed_and_a_full_disk_costs_no_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader, dataset = Reader(tmp_path, shards()), Dataset.of(shards())
    with monkeypatch.context() as patch:
        patch.setattr(packed, "MOST", 1000)
        reader.read(dataset)
    assert reader.packs == []

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(packed, "write_whole", full)
        reader.read(dataset)
    assert reader.packs == []


def test_with_a_forgotten_photo_goes_the_pack_that_has_it_and_no_other(tmp_path: Path, s3: Store) -> None:
    some = shards()
    reader, workspace = Reader(tmp_path, some, s3), SimpleNamespace(private=tmp_path, store=s3)
    reader.read(Dataset.of(some))
    first, second = reader.packs
    gone = some[70]
    left: Any = [shard for shard in some if shard is not gone]
    erase_features(workspace, left)  # type: ignore[arg-type]
    assert reader.packs == [first]
    first.write_bytes(first.read_bytes()[:1000])  # who cannot tell what is in it deletes it
    erase_features(workspace, left)  # type: ignore[arg-type]
    assert reader.packs == []
    reader.read(Dataset.of(left))
    texts = [gone.rows[0].sha256.encode(form) for form in ("ascii", "utf-32-le")]
    bodies = [path.read_bytes() for path in reader.packs]
    assert len(bodies) == 2
    assert not any(text in body for text in texts for body in bodies), "packs are not compressed"
    assert second not in reader.packs


def test_gc_keeps_packs_of_models_in_use_and_takes_the_others(tmp_path: Path, s3: Store) -> None:
    some = shards()
    reader, workspace = Reader(tmp_path, some), SimpleNamespace(private=tmp_path, store=s3)
    dataset, later = Dataset.of(some), datetime.now(UTC) + timedelta(days=1)
    reader.read(dataset)

    def garbage(kept: Sequence[str], shards: Sequence[Shard]) -> set[Path]:
        version: Any = SimpleNamespace(dataset=Dataset.of(shards))
        found = gc._features(workspace, version, kept, later)  # type: ignore[arg-type]
        return {Path(item.where) for item in found if is_pack(Path(item.where))}

    first, second = reader.packs
    assert garbage([SPEC.fingerprint], some) == set()
    assert garbage([SPEC.fingerprint], some[:69] + some[70:]) == {second}
    assert garbage([], some) == {first, second}
