"""Files that were written by the code of each version are read by today's: tests/golden/ has one of each."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

import numpy as np
import pytest

from ssclass import params
from ssclass.data import shards
from ssclass.data.batches import BatchRef, read_batch
from ssclass.data.dataset import Dataset
from ssclass.data.shards import iter_photos, read_shard
from ssclass.errors import FailedError, NotFoundError, ParamsError, WorkspaceError
from ssclass.model import adopted, classifier
from ssclass.model.features import Features
from ssclass.params import load_params
from ssclass.store import Store
from ssclass.workspace import ledger
from tests.support.pipelines import CLASSES

GOLDEN = Path(__file__).parent / "golden"
sys.path.insert(0, str(GOLDEN))
import write as golden  # noqa: E402 - beside the files that it wrote


def versions(name: str) -> list[Path]:
    """The golden files of a format, oldest first."""
    return sorted(GOLDEN.glob(f"{name}-*"), key=lambda path: int(path.stem.rsplit("-", 1)[1]))


@pytest.mark.parametrize(
    ("name", "newest"),
    [
        ("shard", shards.SCHEMA_VERSION),
        ("params", params.SCHEMA_VERSION),
        ("ledger", ledger.VERSION),
        ("manifest", 1),
        ("classifier", max(classifier.FORMAT, adopted.FORMAT)),
    ],
)
def test_every_version_has_a_file(name: str, newest: int):
    found = [int(path.stem.rsplit("-", 1)[1]) for path in versions(name)]
    assert found == list(range(1, newest + 1)), "`python tests/golden/write.py` writes the newest"


@pytest.mark.parametrize("path", versions("shard"), ids=lambda path: path.stem)
def test_shards(path: Path):
    shard = read_shard(path)
    assert [(row.label, row.split, row.key) for row in shard.rows] == [
        ("sushi", "train", "sushi/é 0.png"),
        ("sandwich", "train", "sandwich/é 1.png"),
        ("sushi", "holdout", "sushi/é 2.png"),
    ]
    photos = [golden.picture(place) for place in range(3)]
    sha256s = [hashlib.sha256(photo).hexdigest() for photo in photos]
    assert list(iter_photos(path)) == list(zip(sha256s, photos, strict=True))
    assert [row.group for row in shard.rows] == [sha256s[0], sha256s[0], sha256s[2]]
    assert [(row.width, row.height, row.dhash, row.palette) for row in shard.rows] == [
        (40, 32, f"{place:016x}", bytes([place]) * 512 if place else b"") for place in range(3)
    ]
    receipt = shard.receipt
    assert (receipt.batch_id, receipt.marker, receipt.etag) == ("golden", "manifest.json", "0123")
    assert receipt.source == ("main" if path.stem == "shard-1" else "bought")
    assert (receipt.sequence, receipt.accepted, receipt.duplicates) == (3, 3, 1)
    assert receipt.counts == {"sandwich": {"train": 1, "holdout": 0}, "sushi": {"train": 1, "holdout": 1}}
    assert [(each.key, each.reason, each.detail) for each in receipt.refused] == [
        ("sushi/cut.jpg", "truncated", "JPEG: cut off")
    ]
    assert [(each.code, each.detail) for each in receipt.warnings] == [("flood", "2 of 3")]
    assert (receipt.relabel, receipt.remove) == ({"a" * 64: "sushi"}, ("b" * 64,))
    rows = [[row.sha256, row.label, row.split, row.group] for row in shard.rows]
    text = json.dumps(rows, separators=(",", ":"))
    assert Dataset.of([shard]).digest == hashlib.sha256(text.encode()).hexdigest(), "docs/formats.md"


@pytest.mark.parametrize("path", versions("params"), ids=lambda path: path.stem)
def test_params(path: Path, tmp_path: Path):
    found = load_params(path)
    assert found.dataset.classes == CLASSES
    assert (found.dataset.holdout_fraction, found.features.sizes, found.gate.min_net_wins) == (0.2, (224,), 1)
    short = tmp_path / "params.yaml"
    short.write_text("dataset:\n  classes: [sandwich, sushi]\n")
    assert load_params(short).result_digest == load_params(short).result_digest
    assert load_params(short).ingest.max_pixels == found.ingest.max_pixels, "a missing field takes its default"


@pytest.mark.parametrize("path", versions("ledger"), ids=lambda path: path.stem)
def test_ledgers(path: Path):
    events = ledger.parse(path.read_text())
    assert {event.kind for event in events} == set(ledger.BODIES)
    state = ledger.fold(events)
    assert (state.champions, state.champion, state.frozen) == (["k1", "k2"], "k1", "holiday")
    assert (list(state.ingested), list(state.revoked), state.held) == (["one", "two"], ["one"], {})
    assert (state.admitted, state.dropped) == ({("two", "2")}, {("three", "3")})
    assert (state.next_version, state.record_of("k1")) == (5, (8, 10))


@pytest.mark.parametrize("path", versions("manifest"), ids=lambda path: path.stem)
def test_manifests(path: Path, s3: Store):
    s3.put("incoming/golden/manifest.json", path.read_bytes())
    (marker,) = s3.list("incoming/golden/manifest.json")
    batch = read_batch(s3, BatchRef("golden", "manifest.json", marker.etag, "2026-01-01"), CLASSES)
    one, two = batch.entries
    assert (one.key, one.label, one.sha256, one.split) == ("sushi/é 1.jpg", "sushi", None, None)
    assert (two.key, two.label, two.sha256, two.size, two.split) == ("2.heic", "sandwich", "9" * 64, 48213, "holdout")
    assert two.metadata == {"user": 7}
    assert (batch.relabel, batch.remove) == ({"a" * 64: "sandwich"}, ("b" * 64,))


@pytest.mark.parametrize("path", versions("classifier"), ids=lambda path: path.stem)
def test_classifiers(path: Path):
    made = adopted.open_classifier(path)
    assert made.classes == CLASSES
    expected = np.load(path / "answers.npy")
    if isinstance(made, adopted.Adopted):
        answers = made.whole()(golden.images()).numpy()
        assert made.size == 8
    else:
        names = tuple(f"{place:064x}" for place in range(4))
        answers = made.predict(lambda spec: Features(names, {"224.out.mean": golden.formula((4, 1, 6))}))
        assert (made.head_name, made.specs[0].backbone, made.size) == ("linear", "mobilenet", 224)
    np.testing.assert_allclose(answers, expected, atol=1e-6)


def test_what_a_newer_ssclass_wrote_is_said_to_be_newer(tmp_path: Path):
    import pyarrow as pa
    from pyarrow import parquet

    table = pa.table({"x": [1]}).replace_schema_metadata({"ssclass.schema": "99"})
    parquet.write_table(table, tmp_path / "b.parquet")
    with pytest.raises(FailedError, match=r"shard schema 99.*newer ssclass"):
        read_shard(tmp_path / "b.parquet")
    (tmp_path / "params.yaml").write_text("schema: 99\ndataset: {classes: [a, b]}\n")
    with pytest.raises(ParamsError, match=r"schema 99.*newer ssclass"):
        load_params(tmp_path / "params.yaml")
    with pytest.raises(WorkspaceError, match="newer ssclass"):
        ledger.parse('{"version": 99, "event": "ingest", "at": "…"}\n')
    (tmp_path / "classifier.json").write_text('{"format": 99}')
    with pytest.raises(NotFoundError, match="format 99"):
        adopted.open_classifier(tmp_path)
