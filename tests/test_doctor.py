"""`ssclass doctor` does with each part what a retrain needs, and says how to mend what fails."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ssclass.environment import free_port
from ssclass.settings import load_settings
from ssclass.store import Store
from ssclass.upkeep.doctor import FAILED, NOTE, OK, examine
from ssclass.workspace.create import create
from ssclass.workspace.workspace import Workspace
from tests.support.pipelines import Command

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
