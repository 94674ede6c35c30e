"""Batches have a source, and a param says which of them train and judge; the others are kept."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as parquet
import pytest
from test_shards import photos, receipt, row

from ssclass.data.dataset import Dataset
from ssclass.data.shards import Shard, read_shard, write_shard
from ssclass.data.submit import submit
from ssclass.demo.drawings import draw
from ssclass.errors import BatchError
from ssclass.history.batches import story
from ssclass.retrain.key import key_of, pending_key
from ssclass.store import Store
from ssclass.workspace.create import create
from ssclass.workspace.workspace import Workspace
from tests.support.pipelines import CLASSES, Command, ingest_all, set_params


@pytest.fixture
def workspace(s3: Store, tmp_path: Path, ssclass: Command) -> Workspace:
    """A batch of the app's own photos, and one of bought ones."""
    at = {"bucket": s3.bucket, "s3_endpoint": s3.settings.s3_endpoint or "", "s3_region": "us-east-1"}
    made = create(tmp_path / "workspace", at)
    draw(tmp_path / "own", CLASSES, 6, 1)
    draw(tmp_path / "bought", CLASSES, 4, 2)
    submit(Store(made.settings), tmp_path / "own", "own", CLASSES)
    told = ("--id", "bought", "--source", "bought", "--workspace", made.root)
    done = ssclass("submit", tmp_path / "bought", *told)
    assert done.returncode == 0, done.stderr
    ingest_all(made)
    return made


def test_what_a_source_brings_trains_only_where_params_say_so(workspace: Workspace) -> None:
    everything = workspace.at().dataset
    key = key_of(workspace.at())
    assert len(everything.used) == 20
    assert set(everything.by_source()) == {"bought", "main"}

    set_params(workspace, sources="[main]")
    own = workspace.at().dataset
    assert len(own.rows) == 20, "the others are kept"
    assert own.by_source()["bought"] == {"train": 0, "holdout": 0, "unused": 8}
    (shard,) = (shard for shard in own.shards if shard.batch_id == "own")
    assert {row.sha256 for row in own.train + own.holdout} == {row.sha256 for row in shard.rows}
    assert own.digest == Dataset.of([shard]).digest, "as if the other batch had never come"
    assert key_of(workspace.at()) != key
    assert story(workspace, "bought").receipt["source"] == "bought"  # type: ignore[index]

    set_params(workspace, sources="[main, bought, none-yet]")
    assert key_of(workspace.at()) == key, "the same rows are the same question"


def test_a_source_that_has_no_photos_yet_lets_no_others_train(s3: Store, tmp_path: Path) -> None:
    """While no batch named a source, params that chose another one were passed over, and all photos trained."""
    at = {"bucket": s3.bucket, "s3_endpoint": s3.settings.s3_endpoint or "", "s3_region": "us-east-1"}
    made = create(tmp_path / "workspace", at)
    draw(tmp_path / "own", CLASSES, 6, 1)
    submit(Store(made.settings), tmp_path / "own", "own", CLASSES)
    ingest_all(made)
    assert len(made.at().dataset.used) == 12
    set_params(made, sources="[bought]")
    assert made.at().dataset.used == ()
    assert pending_key(made.at()) is None
    draw(tmp_path / "bought", CLASSES, 4, 2)
    submit(Store(made.settings), tmp_path / "bought", "bought", CLASSES, source="bought")
    ingest_all(made)
    assert len(made.at().dataset.used) == 8


def test_a_source_has_a_plain_name(s3: Store, drawings: Path) -> None:
    with pytest.raises(BatchError, match="a/b"):
        submit(s3, drawings, "batch", CLASSES, source="a/b")


def test_a_manifest_without_a_source_says_nothing_of_it(s3: Store, drawings: Path) -> None:
    submit(s3, drawings, "batch", CLASSES)
    assert "source" not in json.loads(s3.get("incoming/batch/manifest.json") or b"")


def test_a_shard_of_schema_1_is_of_main(tmp_path: Path) -> None:
    path = tmp_path / "b1.parquet"
    write_shard(path, photos(), receipt())
    table = parquet.read_table(path)
    meta = dict(table.schema.metadata)
    old = json.loads(meta[b"ssclass.receipt"])
    del old["source"]
    meta |= {b"ssclass.schema": b"1", b"ssclass.receipt": json.dumps(old).encode()}
    parquet.write_table(table.replace_schema_metadata(meta), path)
    shard = read_shard(path)
    assert shard.receipt.source == "main"
    assert shard.rows == tuple(row for row, _ in photos())


def test_the_digest_of_a_data_set_is_what_it_was_before_there_were_sources() -> None:
    dataset = Dataset.of([Shard((row("a"), row("b", "sandwich", "holdout")), receipt(1))])
    assert dataset.digest == "eba27766192bdc151f77510b60edacdd213dac1d4a9591f4e7b17e2e5cb39c19"
