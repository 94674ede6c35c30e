"""Revoking a batch, and lineage both ways, against what one computes by hand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ssclass.data.submit import submit
from ssclass.demo.drawings import draw
from ssclass.errors import NotFoundError
from ssclass.history.batches import story
from ssclass.history.lineage import lineage
from ssclass.retrain.ingest import ingest, waiting
from ssclass.retrain.key import pending_key
from ssclass.store import Store
from ssclass.upkeep.decisions import revoke
from ssclass.workspace.create import create
from ssclass.workspace.dvc import repository
from ssclass.workspace.ledger import Event
from ssclass.workspace.workspace import Workspace
from tests.support.pipelines import CLASSES, Command, ingest_all


@pytest.fixture
def workspace(s3: Store, tmp_path: Path) -> Workspace:
    at = {"bucket": s3.bucket, "s3_endpoint": s3.settings.s3_endpoint or "", "s3_region": "us-east-1"}
    made = create(tmp_path / "workspace", at)
    for number in (1, 2):
        deliver(made, tmp_path, f"day-{number}", number)
    return made


def deliver(workspace: Workspace, folder: Path, batch: str, seed: int, decision: str = "REJECTED") -> None:
    """A batch, taken in and decided on; the decision is written, nothing is trained."""
    if not (folder / batch).exists():
        draw(folder / batch, CLASSES, 5, seed)
    submit(workspace.store, folder / batch, batch, CLASSES)
    ingest_all(workspace)
    decide(workspace, decision)


def decide(workspace: Workspace, decision: str) -> None:
    with workspace.transaction() as change:
        version = change.version
        key = pending_key(version)
        assert key is not None
        champion = version.state.champion and {"key": version.state.champion, "right": 1}
        body = {"decision": decision, "reason": "…", "key": key, "data_version": version.data_version}
        body |= {"batches": version.state.undecided(), "run_id": "r", "code": "c", "champion": champion}
        scores = {"candidate": {"right": 1}, "holdout": {"size": 2}, "params": "p"}
        change.publish(decision, [Event.now("decision", **body, **scores)], tags=[f"run/{key}"])


def keys(found: list[dict[str, object]]) -> list[object]:
    return [item["key"] for item in found]


def test_revoking_the_newest_batch_gives_the_data_before_it_and_a_new_question(workspace, tmp_path):
    before = workspace.at("data/1").dataset
    revoke(workspace, "day-2", "wrong restaurant")
    assert workspace.at().data_version == "data/3"
    assert workspace.at().dataset.digest == before.digest
    assert workspace.at("data/2").dataset.digest != before.digest, "history is kept"
    told = story(workspace, "day-2")
    assert (told.status, told.reason, told.receipt["accepted"]) == ("revoked", "wrong restaurant", 10)
    assert waiting(workspace.store, workspace.at().state) == [], "it does not come back by itself"
    assert pending_key(workspace.at()) is None, "the same photos, against no champion, as before day-2"

    deliver(workspace, tmp_path, "day-3", 3)
    assert workspace.at().data_version == "data/4"
    assert [shard.batch_id for shard in workspace.at().dataset.shards] == ["day-1", "day-3"]
    with pytest.raises(NotFoundError, match="not in the data set"):
        revoke(workspace, "day-2", "again")


def test_a_revoked_batchs_photos_may_come_again_in_another(workspace, tmp_path):
    rows = {row.sha256 for row in workspace.at().dataset.rows}
    revoke(workspace, "day-1", "labels")
    (tmp_path / "day-1").rename(tmp_path / "again")
    deliver(workspace, tmp_path, "again", 1)
    assert {row.sha256 for row in workspace.at().dataset.rows} == rows


def test_a_clone_without_shards_revokes_and_a_fresh_one_pulls_the_result(workspace, tmp_path):
    origin = workspace.git("remote", "get-url", "origin")
    revoke(create(tmp_path / "other", {}, git=origin), "day-1", "late")
    fresh = create(tmp_path / "fresh", {}, git=origin)
    assert [shard.batch_id for shard in fresh.at().dataset.shards] == ["day-2"]
    with repository(fresh.settings) as repo:
        repo.pull(targets=[str(fresh.root / "data.dvc")])
    assert [path.name for path in (fresh.root / "data").iterdir()] == ["day-2.parquet"]
    assert fresh.git("status", "--porcelain") == ""
    deliver(workspace, tmp_path, "day-3", 3)
    assert [shard.batch_id for shard in workspace.at().dataset.shards] == ["day-2", "day-3"]


def test_lineage_from_a_model_back_and_from_a_photo_on(workspace, tmp_path, ssclass: Command):
    first, second = workspace.at().state.decisions
    (photo, *_) = [row for row in workspace.at("data/1").dataset.rows if row.split == "train"]
    body = {"schema": 1, "relabel": [{"sha256": photo.sha256, "label": "sandwich"}]}
    if photo.label == "sandwich":
        body["relabel"][0]["label"] = "sushi"
    workspace.store.put("incoming/fix/manifest.json", json.dumps(body).encode())
    (ref,) = waiting(workspace.store, workspace.at().state)
    ingest(workspace, ref)
    decide(workspace, "PROMOTED")
    third = list(workspace.at().state.decisions)[2]
    revoke(workspace, "day-1", "…")
    decide(workspace, "REJECTED")

    model = lineage(workspace, "1")
    assert (model["key"], model["data_version"], model["champion"]) == (third, "data/3", 1)
    contents = [(item["batch"], item["photos"]) for item in model["batches"]]
    assert contents == [("day-1", 10), ("day-2", 10), ("fix", 0)]
    assert lineage(workspace, "champion") == model == lineage(workspace, f"run/{third}")
    assert keys(lineage(workspace, "data/1")["decisions"]) == [first]
    assert keys(lineage(workspace, "day-1")["decisions"]) == [first, second, third]

    told = lineage(workspace, photo.sha256[:12])
    assert (told["sha256"], told["in"]) == (photo.sha256, False)
    assert [item["event"] for item in told["history"]] == ["ingest", "ingest", "revoke"]
    assert [item["batch"] for item in told["history"]] == ["day-1", "fix", "day-1"]
    assert keys(told["models"]) == [first, second, third]
    assert {item["use"] for item in told["models"]} == {"trained on"}
    assert [item["label"] == photo.label for item in told["models"]] == [True, True, False]

    for name in ("1", "day-1", "data/2", photo.sha256):
        done = ssclass("lineage", name, "--workspace", workspace.root)
        assert done.returncode == 0, done.stderr
    missing = ssclass("lineage", "nothing", "--workspace", workspace.root)
    assert missing.returncode == 2
    assert "`ssclass history`" in missing.stderr
