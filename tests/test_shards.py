"""What went in comes out, byte for byte; a shard is there whole or not at all."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from ssclass.data.dataset import Dataset
from ssclass.data.shards import (
    Receipt,
    Refusal,
    Row,
    Shard,
    Warned,
    iter_photos,
    read_memo,
    read_shard,
    write_memo,
    write_shard,
)
from ssclass.errors import FailedError, NotFoundError


def row(name: str, label: str = "sushi", split: str = "train") -> Row:
    sha256 = hashlib.sha256(name.encode()).hexdigest()
    return Row(sha256, label, split, sha256, "0123456789abcdef", b"\1" * 512, f"{label}/{name}.jpg", 640, 480)


def receipt(sequence: int = 1, **fields: object) -> Receipt:
    base: dict[str, object] = {"accepted": 1, "duplicates": 0, **fields}
    return Receipt(f"b{sequence}", "manifest.json", "etag", sequence, **base)  # type: ignore[arg-type]


FULL = receipt(
    counts={"sushi": {"train": 3, "holdout": 0}},
    refused=(Refusal("sushi/é \n.jpg", "truncated", "cut"),),
    warnings=(Warned("flood", "…"),),
    relabel={"0" * 64: "sandwich"},
    remove=("1" * 64,),
)


def photos(count: int = 3, size: int = 5) -> list[tuple[Row, bytes]]:
    return [(row(f"p{i}"), bytes([i]) * size) for i in range(count)]


def test_a_shard_comes_back_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "b1.parquet"
    written = write_shard(path, photos(), FULL)
    assert read_shard(path) == written == Shard(tuple(r for r, _ in photos()), FULL)
    assert list(iter_photos(path)) == [(r.sha256, data) for r, data in photos()]
    assert list(iter_photos(path, {row("p1").sha256})) == [(row("p1").sha256, b"\1" * 5)]
    with path.open("rb") as file:
        assert read_shard(file) == written


def test_the_same_batch_gives_the_same_file(tmp_path: Path) -> None:
    for name in ("one", "two"):
        write_shard(tmp_path / name, photos(), FULL)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_a_shard_without_photos_works(tmp_path: Path) -> None:
    path = tmp_path / "none.parquet"
    write_shard(path, [], receipt(accepted=0, duplicates=7))
    assert read_shard(path).rows == ()
    assert read_shard(path).receipt.duplicates == 7
    assert list(iter_photos(path)) == []


def test_bytes_are_not_read_for_the_other_columns(tmp_path: Path) -> None:
    path = tmp_path / "large.parquet"
    write_shard(path, photos(count=12, size=2_000_000), FULL)

    class Counting:
        def __init__(self) -> None:
            self.file, self.read_bytes, self.name = path.open("rb"), 0, str(path)

        def read(self, size: int = -1) -> bytes:
            data = self.file.read(size)
            self.read_bytes += len(data)
            return data

        def __getattr__(self, name: str) -> object:
            return getattr(self.file, name)

    source = Counting()
    assert len(read_shard(source).rows) == 12  # type: ignore[arg-type]
    assert source.read_bytes < 200_000
    source.file.close()


def test_a_failure_half_way_leaves_nothing(tmp_path: Path) -> None:
    def breaking() -> Iterator[tuple[Row, bytes]]:
        yield from photos()
        raise OSError("disk unplugged")

    with pytest.raises(OSError, match="unplugged"):
        write_shard(tmp_path / "b.parquet", breaking(), FULL)
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_or_newer_shard_is_named(tmp_path: Path) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    path = tmp_path / "b.parquet"
    write_shard(path, photos(), FULL)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(FailedError, match=r"b\.parquet: not a readable shard .*dvc pull"):
        read_shard(path)
    schema = pa.schema([pa.field("x", pa.int32())]).with_metadata({"ssclass.schema": "99"})
    parquet.write_table(pa.table({"x": [1]}, schema=schema), path)
    with pytest.raises(FailedError, match=r"b\.parquet: shard schema 99"):
        read_shard(path)


@pytest.mark.parametrize("count", [0, 3])
def test_a_memo_has_all_but_the_bytes_and_a_damaged_one_is_named(tmp_path: Path, count: int) -> None:
    shard = write_shard(tmp_path / "b1.parquet", photos(count, size=100_000), FULL)
    memo = tmp_path / "memo.json"
    write_memo(shard, memo)
    assert read_memo(memo) == shard == read_shard(tmp_path / "b1.parquet")
    assert memo.stat().st_size < 5_000
    whole = memo.read_bytes()
    for damaged in (whole[:-20], b"", b"[]", b"{}", whole.replace(b'"sha256"', b'"sha257"'), b"\xff" + whole):
        memo.write_bytes(damaged)
        with pytest.raises(FailedError, match=r"memo\.json"):
            read_memo(memo)


def test_digests_see_what_training_sees() -> None:
    one = Shard((row("a"), row("b")), receipt())
    relabelled = Shard((row("a"), row("b", label="sandwich")), receipt())
    swapped = Shard((row("b"), row("a")), receipt())
    assert one.photos_digest == relabelled.photos_digest != swapped.photos_digest
    assert len({one.digest, relabelled.digest, swapped.digest}) == 3
    assert one.digest == Shard(one.rows, receipt(2)).digest
    assert one.digest != Shard(one.rows, receipt(remove=("1" * 64,))).digest


def test_the_last_decision_wins() -> None:
    a, b, c = row("a"), row("b"), row("c", split="holdout")
    shards = [
        Shard((a, b), receipt(1)),
        Shard((c,), receipt(2, relabel={a.sha256: "sandwich"}, remove=(b.sha256,))),
        Shard((), receipt(3, relabel={a.sha256: "sushi", c.sha256: "sandwich"})),
        Shard((b,), receipt(4)),
    ]
    dataset = Dataset.of(reversed(shards))
    assert {r.key: r.label for r in dataset.rows} == {a.key: "sushi", b.key: "sushi", c.key: "sandwich"}
    assert [r.sha256 for r in dataset.holdout] == [c.sha256]
    assert {r.sha256 for r in dataset.train} == {a.sha256, b.sha256}
    assert dataset.batch_of(b.sha256) == "b4"
    assert dataset.counts() == {"sandwich": {"train": 0, "holdout": 1}, "sushi": {"train": 2, "holdout": 0}}
    assert dataset.next_sequence == 5
    assert {row.sha256: row.label for row in Dataset.of(shards[:2]).rows}[a.sha256] == "sandwich"
    assert b.sha256 not in Dataset.of(shards[:2]).by_sha256
    with pytest.raises(NotFoundError):
        dataset.batch_of("f" * 64)


def test_two_data_sets_that_train_alike_have_one_digest() -> None:
    a, b = row("a"), row("b")
    once = Dataset.of([Shard((a, b), receipt(1))])
    twice = Dataset.of([Shard((a,), receipt(1)), Shard((b,), receipt(2))])
    assert once.digest == twice.digest != Dataset.of([Shard((a,), receipt(1))]).digest
    assert Dataset().rows == ()
