"""`ssclass doctor` does with each part what a retrain needs, and says how to mend what fails."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ssclass.data.submit import submit
from ssclass.demo.drawings import draw
from ssclass.environment import free_port
from ssclass.settings import load_settings
from ssclass.store import Store
from ssclass.tracking.client import Tracking
from ssclass.upkeep.doctor import FAILED, NOTE, OK, Finding, examine
from ssclass.workspace.create import create
from ssclass.workspace.git import GitRefusedError
from ssclass.workspace.ledger import Event
from ssclass.workspace.workspace import Workspace
from tests.support.pipelines import CLASSES, Command, ingest_all, set_params

S3_PARTS = ("S3", "S3 conditional PUT", "S3 notifications", "DVC remote")


@pytest.fixture
def workspace(s3: Store, tmp_path: Path) -> Workspace:
    at = {"bucket": s3.bucket, "s3_endpoint": s3.settings.s3_endpoint or "", "s3_region": "us-east-1"}
    return create(tmp_path / "workspace", at)


def test_a_workspace_whose_parts_are_there_is_well_and_nothing_is_left_behind(workspace, s3) -> None:
    found = {each.part: each for each in examine(workspace.settings)}
    assert [each for each in found.values() if each.state == FAILED] == []
    assert {found[part].state for part in ("S3", "S3 conditional PUT", "DVC remote", "git origin")} == {OK}
    assert {found[part].state for part in ("MLflow runs", "MLflow registry")} == {OK}
    assert (found["Prefect"].state, found["S3 notifications"].state) == (NOTE, NOTE)
    assert list(s3.list("")) == []
    assert "doctor" not in workspace.git("ls-remote", "origin")
    assert workspace.git("status", "--porcelain") == ""


def test_each_part_that_is_away_is_named_with_its_remedy(workspace, monkeypatch, ssclass: Command) -> None:
    nobody = f"http://127.0.0.1:{free_port()}"
    Path(f"{workspace.root}.git").rename(f"{workspace.root}.moved")
    environment = {
        "SSCLASS_BUCKET": "no-such-bucket",
        "SSCLASS_MLFLOW_URI": nobody,
        "SSCLASS_PREFECT_URL": f"{nobody}/api",
    }
    done = ssclass("doctor", "--json", "--workspace", workspace.root, **environment)
    assert done.returncode == 1, done.stderr
    found = {each["part"]: each for each in json.loads(done.stdout)}
    failed = {part for part, each in found.items() if each["state"] == FAILED}
    assert failed >= {*S3_PARTS, "git origin", "MLflow runs", "MLflow registry", "Prefect"}
    assert all(found[part]["remedy"] for part in failed)
    assert "no-such-bucket" in found["S3"]["detail"]
    assert "bucket setup" in found["S3"]["remedy"]
    assert nobody in found["MLflow runs"]["detail"]
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert load_settings(workspace.root).patience > 0, "the probes are impatient, the settings are not"


# -- git: what the pipeline will be told when it pushes ---------------------------------------------------------


PROTECTED = """#!/bin/sh
while read old new ref; do
  if [ "$ref" = refs/heads/main ]; then echo "main is protected: open a merge request"; exit 1; fi
done
"""
NO_TAGS = """#!/bin/sh
case "$1" in refs/tags/*) echo "only maintainers may tag"; exit 1;; esac
"""


def hook(workspace: Workspace, name: str, script: str) -> Path:
    path = Path(f"{workspace.root}.git") / "hooks" / name
    path.write_text(script)
    path.chmod(0o755)
    return path


def finding(workspace: Workspace, part: str) -> Finding:
    return next(each for each in examine(workspace.settings, parts=[part]))


@pytest.mark.parametrize(
    ("name", "script", "said"),
    [("pre-receive", PROTECTED, "main is protected"), ("update", NO_TAGS, "only maintainers may tag")],
)
def test_an_origin_that_will_refuse_the_pipelines_push_is_found_and_the_retrain_says_so_at_once(
    workspace, s3, tmp_path, name, script, said
) -> None:
    draw(tmp_path / "day-1", CLASSES, 3, 1)
    submit(s3, tmp_path / "day-1", "day-1", CLASSES)
    before = workspace.git("ls-remote", "origin")
    path = hook(workspace, name, script)
    told = finding(workspace, "git origin")
    assert (told.state, said in told.detail) == (FAILED, True), told
    patient = Workspace(workspace.settings.model_copy(update={"patience": 600.0}))  # which it must not need
    with pytest.raises(GitRefusedError, match=said):
        ingest_all(patient)
    assert workspace.git("ls-remote", "origin") == before
    path.unlink()
    assert finding(workspace, "git origin").state == OK
    assert workspace.git("ls-remote", "origin") == before, "the probe has changed nothing"
    assert [each.outcome for each in ingest_all(workspace)] == ["INGESTED"]


def test_a_main_that_was_moved_back_is_told_and_the_pipeline_goes_on_from_there(workspace, s3, tmp_path) -> None:
    for number in (1, 2):
        draw(tmp_path / str(number), CLASSES, 3, number)
        submit(s3, tmp_path / str(number), f"day-{number}", CLASSES)
        ingest_all(workspace)
    assert finding(workspace, "git history").state == OK
    lost = workspace.git("rev-parse", "data/2^{commit}")
    workspace.git("push", "--quiet", "--force", "origin", "data/1^{}:refs/heads/main")
    told = finding(workspace, "git history")
    assert told.state == FAILED
    assert "moved back" in told.detail
    assert "data/2" in told.detail
    assert f"push origin {lost[:12]}:refs/heads/main" in told.detail
    fresh = Workspace(workspace.settings)
    assert [(each.batch, each.outcome) for each in ingest_all(fresh)] == [("day-2", "INGESTED")]
    assert fresh.at().data_version == "data/2"
    assert finding(fresh, "git history").state == OK, "the tag left over was replaced"


def test_a_champions_tag_that_was_lost_is_told_and_found_without_it(workspace, s3, tmp_path) -> None:
    body = {"decision": "PROMOTED", "reason": "…", "key": "abc0123456789def", "data_version": "data/0", "batches": []}
    with workspace.transaction() as change:
        scores = {"candidate": {"right": 1}, "champion": None, "holdout": {"size": 2}}
        event = Event.now("decision", **body, **scores, run_id="r", code="c", params="p")
        change.publish("PROMOTED abc0123456789def: …", [event], tags=["run/abc0123456789def"])
    commit = workspace.head
    workspace.git("push", "--quiet", "origin", ":refs/tags/run/abc0123456789def")
    told = finding(workspace, "git history")
    assert told.state == FAILED
    assert "the champion's" in told.detail
    assert "verify" in told.remedy
    fresh = Workspace(workspace.settings)
    fresh.newest()
    assert fresh.decided("abc0123456789def").commit == commit


def test_the_experiment_of_the_real_name_is_probed_with_the_real_classes(workspace) -> None:
    tracking = Tracking.of(workspace)
    made = tracking.experiment_id
    set_params(workspace, classes='["fish & chips", "50 % off"]')
    assert "fish & chips is fish _ chips." in finding(workspace, "params.yaml").detail
    told = finding(workspace, "MLflow runs")
    assert (told.state, told.detail.endswith("experiment ssclass")) == (OK, True), told
    assert tracking.client.search_runs([made]) == []
    tracking.client.delete_experiment(made)
    told = finding(workspace, "MLflow runs")
    assert told.state == FAILED
    assert "verify --repair" in told.detail
    tracking.restore_experiment()
    assert finding(workspace, "MLflow runs").state == OK
