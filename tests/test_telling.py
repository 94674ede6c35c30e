"""A run of the retrain has a name that a person understands. What else Prefect shows: tests/test_retrain.py."""

from typing import Any

import pytest


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
