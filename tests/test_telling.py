"""A run of the retrain has a name that a person understands, bars, and a result. More: tests/test_retrain.py."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest
import requests

from ssclass import notices, progress
from ssclass.errors import FailedError
from ssclass.retrain.ingest import Ingested
from ssclass.retrain.outcome import Outcome


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


@contextmanager
def answering(status: int) -> Iterator[tuple[str, list[dict[str, str]]]]:
    """The API of a Prefect that answers so to everything, as Prefect Cloud may; the headers of what it was asked."""
    asked: list[dict[str, str]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            asked.append(dict(self.headers))
            self.send_response(status)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def do_GET(self) -> None:
            self.send_error(404)

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/api", asked
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize(("status", "taken"), [(204, True), (201, True), (202, True), (200, False), (403, False)])
def test_an_event_counts_as_told_once_a_prefect_server_or_cloud_took_it(status: int, taken: bool):
    from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_KEY, PREFECT_API_URL, temporary_settings

    with answering(status) as (url, asked):
        values = {PREFECT_API_URL: url, PREFECT_API_KEY: "pnu_key", PREFECT_API_AUTH_STRING: None}
        with temporary_settings(values):
            if taken:
                notices.post("ssclass.batch.arrived", "ssclass.batch.day-1", {"batch": "day-1"})
            else:
                with pytest.raises(FailedError, match="Prefect"):
                    notices.post("ssclass.batch.arrived", "ssclass.batch.day-1", {"batch": "day-1"})
    assert asked[0]["Authorization"] == "Bearer pnu_key"


def test_a_long_step_is_a_bar_on_the_page_of_its_run_and_the_outcome_is_the_runs_result(
    prefect_url: str, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
):
    """A real run of a real server; the workspace has nothing to do with it but its name."""
    from prefect import flow
    from prefect.settings import PREFECT_API_URL, temporary_settings

    from ssclass.workspace.create import create
    from tasks import telling

    create(tmp_path / "shop", {"name": "shop-bars", "prefect_url": prefect_url})
    folder = str(tmp_path / "shop")
    monkeypatch.setenv("PREFECT__FLOW_RUN_ID", "a worker's")
    monkeypatch.setattr(progress._Lines, "every", 0.0)
    outcome = Outcome("SKIPPED", "nothing new to learn from", (Ingested("day-1", "HELD", reason="wrong"),))
    seen = []

    @flow(persist_result=True, result_serializer="json")
    def run() -> Any:
        with telling.logged(folder):
            for done in (1, 2, 4):
                thread = threading.Thread(target=progress.report, args=("features", done, 4))
                thread.start()
                thread.join()
                seen.append(bars())
            progress.report("training", 1, 3)
            seen.append(bars())
        from prefect.runtime import flow_run

        seen.append(flow_run.id)
        return telling.ended(folder, outcome)

    def bars() -> list[tuple[float, str]]:
        body = {"artifacts": {"key": {"any_": ["shop-bars-progress"]}}}
        found = requests.post(f"{prefect_url}/artifacts/filter", json=body, timeout=30).json()
        seen_by.update(each["flow_run_id"] for each in found)
        found.sort(key=lambda each: each["created"])
        return [(json.loads(str(each["data"])), each["description"]) for each in found]

    seen_by: set[str] = set()
    with temporary_settings({PREFECT_API_URL: prefect_url}):
        state = run(return_state=True)
        assert state.name == "SKIPPED"
        kept = state.result(raise_on_failure=False)
    assert kept == outcome
    assert seen[:4] == [
        [(25.0, "features: 1 of 4")],
        [(50.0, "features: 2 of 4")],
        [(100.0, "features: 4 of 4")],
        [(100.0, "features: 4 of 4"), (pytest.approx(100 / 3), "training: 1 of 3")],
    ]
    assert seen_by == {seen[4]}, "on the page of the run, whatever thread told it"


def test_the_flows_keep_small_results_and_no_task_is_answered_from_what_was_kept(prefect_url: str):
    from prefect import Task

    from flows.retrain import retrain
    from flows.train import train
    from tasks import remote, retraining

    for each in (retrain, train):
        assert (each.persist_result, each.result_serializer) == (True, "json")
    tasks = [made for module in (retraining, remote) for made in vars(module).values() if isinstance(made, Task)]
    tasks += [made.task for made in vars(retraining).values() if hasattr(made, "task") and callable(made)]
    assert len(tasks) >= 12
    assert not [each.name for each in tasks if each.persist_result is not False]
