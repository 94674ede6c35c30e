"""What people see of a retrain in Prefect: a final state named by the decision, why, artifacts, names, links."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import requests

from ssclass.workspace.workspace import Workspace
from tests.support.pipelines import Pipeline


@pytest.fixture(scope="module")
def workspace(pipeline: Pipeline, tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    return pipeline.workspace(tmp_path_factory.mktemp("telling") / "shop", head="linear")


def ask(pipeline: Pipeline, path: str, body: Any) -> Any:
    answer = requests.post(f"{pipeline.prefect}/{path}", json=body, timeout=30)
    answer.raise_for_status()
    return answer.json()


def last(pipeline: Pipeline, workspace: Workspace) -> dict[str, Any]:
    """The newest retrain of this workspace."""
    body = {"flows": {"name": {"any_": ["retrain"]}}, "sort": "START_TIME_DESC", "limit": 20}
    runs = ask(pipeline, "flow_runs/filter", body)
    return next(run for run in runs if run["parameters"]["workspace"] == str(workspace.root))


def artifacts(pipeline: Pipeline, run: dict[str, Any]) -> dict[str, Any]:
    found = ask(pipeline, "artifacts/filter", {"artifacts": {"flow_run_id": {"any_": [run["id"]]}}})
    return {each["key"]: each for each in found if each["key"]}


def test_a_decision_is_the_state_and_its_reason_the_message(
    pipeline: Pipeline, workspace: Workspace, drawings: Path, tmp_path: Path
):
    outcome = pipeline.deliver(workspace, drawings, "day-1")
    run = last(pipeline, workspace)
    assert run["state"]["type"] == "COMPLETED"
    assert (run["state"]["name"], run["state"]["message"]) == (outcome.decision, outcome.reason)
    assert {outcome.decision, "data/1"} <= set(run["tags"])
    assert run["name"].startswith("retrain 20")
    assert "None" not in run["name"]
    found = artifacts(pipeline, run)
    card, table = found["ssclass-decision"]["data"], found["ssclass-batches"]["data"]
    assert f"# {outcome.decision}: " in card
    assert "| right |" in card
    assert "day-1" in table
    assert "INGESTED" in table
    assert workspace.at().state.decisions[outcome.event["key"]].body == outcome.event
    from ssclass.tracking.client import Tracking

    tags = Tracking(workspace.settings).client.get_run(outcome.event["run_id"]).data.tags
    assert tags["prefect_run"] == f"{pipeline.prefect.removesuffix('/api')}/runs/flow-run/{run['id']}"

    # nothing new
    assert pipeline.retrain(workspace).decision == "SKIPPED"
    run = last(pipeline, workspace)
    assert (run["state"]["name"], run["state"]["message"]) == ("SKIPPED", "nothing new to learn from")
    assert artifacts(pipeline, run) == {}, "a retrain with nothing to do says nothing more"

    # held
    other = tmp_path / "flipped"
    one, two = sorted(each for each in drawings.iterdir() if each.is_dir())
    shutil.copytree(one, other / two.name)
    shutil.copytree(two, other / one.name)
    outcome = pipeline.deliver(workspace, other, "day-2")
    run = last(pipeline, workspace)
    assert run["state"]["name"] == outcome.decision
    assert run["state"]["type"] == "COMPLETED"


@pytest.mark.parametrize(
    ("given", "tags", "name"),
    [
        ({"batch": "day-1", "count": 1}, [], "retrain after day-1"),
        ({"batch": "day-1", "count": 3}, [], "retrain after day-1 and 2 more"),
        ({"batch": None}, ["auto-scheduled"], "scheduled retrain 2026-11-28 02:30 UTC"),
        ({}, [], "retrain 2026-11-28 02:30 UTC"),
        ({"rerun": 2, "batch": None}, [], "retrain again after a crash (2)"),
    ],
)
def test_runs_have_names_that_a_person_understands(
    given: dict[str, Any], tags: list[str], name: str, monkeypatch: pytest.MonkeyPatch, prefect_url: str
):
    from datetime import UTC, datetime
    from types import SimpleNamespace

    from tasks import telling

    at = datetime(2026, 11, 28, 2, 30, tzinfo=UTC)
    monkeypatch.setattr(telling, "flow_run", SimpleNamespace(parameters=given, tags=tags, scheduled_start_time=at))
    assert telling.name_of_retrain() == name
