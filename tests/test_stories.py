"""What becomes of a batch is told, whatever became of it; what is unlike earlier batches is warned about or held."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ssclass.data.submit import submit
from ssclass.demo.drawings import draw, junk
from ssclass.history.batches import stories, story
from ssclass.retrain.ingest import Ingested
from ssclass.store import Store
from ssclass.upkeep.decisions import admit, drop
from ssclass.workspace.create import create
from ssclass.workspace.workspace import Workspace
from tests.support.pipelines import CLASSES, Command, ingest_all, set_params


@pytest.fixture
def workspace(s3: Store, tmp_path: Path) -> Workspace:
    at = {"bucket": s3.bucket, "s3_endpoint": s3.settings.s3_endpoint or "", "s3_region": "us-east-1"}
    return create(tmp_path / "workspace", at)


def take_all(workspace: Workspace) -> list[Ingested]:
    return ingest_all(workspace)


def send(workspace: Workspace, folder: Path, batch: str, seed: int, **per_class: int) -> None:
    wanted = {**dict.fromkeys(CLASSES, 0 if per_class else 6), **per_class}
    draw(folder / batch, CLASSES, max(wanted.values()), seed)
    for label, count in wanted.items():
        for path in sorted((folder / batch / label).iterdir())[count:]:
            path.unlink()
    submit(workspace.store, folder / batch, batch, CLASSES)


def correct(workspace: Workspace, batch: str, **corrections: object) -> None:
    body = json.dumps({"schema": 1, **corrections}).encode()
    workspace.store.put(f"incoming/{batch}/manifest.json", body)


def codes(workspace: Workspace, batch: str) -> list[str]:
    receipt = story(workspace, batch).receipt
    assert receipt is not None
    return [item["code"] for item in receipt["warnings"]]


def test_the_story_of_a_batch_from_arrival_to_data_version(workspace, tmp_path, ssclass: Command):
    draw(tmp_path / "one", CLASSES, 6, 1)
    names = junk(tmp_path / "one" / "sushi")
    submit(workspace.store, tmp_path / "one", "one", CLASSES)
    (told,) = stories(workspace)
    assert (told.batch, told.status, told.receipt) == ("one", "waiting", None)
    take_all(workspace)
    told = story(workspace, "one")
    assert (told.status, told.data_version, told.decision) == ("ingested", "data/1", None)
    assert told.receipt["accepted"] == 12
    assert {item["key"] for item in told.receipt["refused"]} == {f"sushi/{name}" for name in names}

    said = ssclass("batch", "show", "one", "--workspace", workspace.root)
    assert said.returncode == 0, said.stderr
    assert "12 in, 0 there already" in said.stdout
    assert all(item["detail"] in said.stdout for item in told.receipt["refused"])
    listed = ssclass("batch", "list", "--json", "--workspace", workspace.root)
    assert [(item["batch"], item["status"]) for item in json.loads(listed.stdout)] == [("one", "ingested")]
    missing = ssclass("batch", "show", "two", "--workspace", workspace.root)
    assert missing.returncode == 2
    assert "newest: one" in missing.stderr


def test_a_batch_of_many_corrections_is_held_until_somebody_answers(workspace, tmp_path):
    send(workspace, tmp_path, "one", 1, sandwich=6, sushi=10)
    take_all(workspace)
    before = workspace.at().dataset
    sushi = [row.sha256 for row in before.rows if row.label == "sushi"]
    correct(workspace, "flips", relabel=[{"sha256": sha256, "label": "sandwich"} for sha256 in sushi])
    (taken,) = take_all(workspace)
    assert taken.outcome == "HELD"
    assert "10 relabelled and 0 removed of 16 photos" in taken.reason
    assert workspace.at().dataset.digest == before.digest
    assert story(workspace, "flips").status == "held"
    admit(workspace, "flips")
    assert story(workspace, "flips").status == "admitted"
    take_all(workspace)
    assert story(workspace, "flips").status == "ingested"
    assert workspace.at().dataset.counts().keys() == {"sandwich"}

    correct(workspace, "gone", remove=[{"sha256": sha256} for sha256 in sushi])
    assert take_all(workspace)[0].outcome == "HELD"
    drop(workspace, "gone")
    assert take_all(workspace) == []
    told = story(workspace, "gone")
    assert told.status == "dropped"
    assert "10 removed" in told.reason


def test_a_few_corrections_go_through(workspace, tmp_path):
    send(workspace, tmp_path, "one", 1)
    take_all(workspace)
    row = workspace.at().dataset.rows[0]
    correct(workspace, "fix", remove=[{"sha256": row.sha256}])
    assert take_all(workspace)[0].outcome == "INGESTED"
    assert row.sha256 not in workspace.at().dataset.by_sha256
    assert story(workspace, "fix").receipt["remove"] == [row.sha256]


def test_balance_and_size_far_from_before_are_warned_about(workspace, tmp_path):
    for seed in range(1, 4):
        send(workspace, tmp_path, f"day-{seed}", seed, sandwich=3, sushi=3)
    take_all(workspace)
    assert all(codes(workspace, f"day-{seed}") == [] for seed in range(1, 4))
    send(workspace, tmp_path, "lopsided", 5, sushi=24)
    assert take_all(workspace)[0].outcome == "INGESTED"
    assert codes(workspace, "lopsided") == ["class missing", "unlike balance"]
    set_params(workspace, growth="3", hold="[unlike size]")
    send(workspace, tmp_path, "huge", 6, sandwich=12, sushi=16)
    (taken,) = take_all(workspace)
    assert taken.outcome == "HELD"
    assert "28 photos, where batches had 6 so far" in taken.reason
