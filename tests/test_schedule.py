"""The schedule, as a real Prefect server plans it: a year of daily runs, from `ssclass deploy` alone."""

import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
import requests

from ssclass.environment import free_port
from ssclass.stack.parts import server_environment
from tests.support.running import clean_environment, eventually

DAYS = 380  # more than a year: the clocks are changed twice in it


@pytest.fixture
def prefect(tmp_path: Path) -> Iterator[str]:
    """The API of a server that plans ahead for a year, with nothing on it."""
    port = free_port()
    environment = clean_environment(
        **server_environment(tmp_path),
        PREFECT_HOME=str(tmp_path / "prefect"),
        PREFECT_SERVER_SERVICES_SCHEDULER_MIN_RUNS=str(DAYS),
        PREFECT_SERVER_SERVICES_SCHEDULER_MAX_RUNS=str(DAYS),
        PREFECT_SERVER_SERVICES_SCHEDULER_MAX_SCHEDULED_TIME=f"P{DAYS + 10}D",
    )
    command = [sys.executable, "-m", "prefect", "server", "start", "--port", str(port), "--no-ui"]
    with (tmp_path / "server.log").open("wb") as log:
        server = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    url = f"http://127.0.0.1:{port}/api"
    try:
        eventually("the server answers", lambda: answers(f"{url}/health"))
        yield url
    finally:
        server.terminate()
        server.wait(60)


def answers(url: str) -> bool:
    try:
        return requests.get(url, timeout=5).status_code == 200
    except requests.RequestException:
        return False


def test_scheduled_runs_come_every_day_at_the_same_time_of_the_clock(prefect: str, tmp_path: Path):
    """Nobody starts anything: what is seen here is made by the server's own scheduler."""
    zone = ZoneInfo("Europe/Berlin")
    workspace = tmp_path / "workspace"
    for arguments in (["init", str(workspace), "--prefect", prefect], ["deploy", "--workspace", str(workspace)]):
        command = [sys.executable, "-m", "ssclass", *arguments]
        subprocess.run(command, env=clean_environment(), check=True, capture_output=True)

    def planned() -> list[datetime]:
        found: list[dict[str, Any]] = []
        for offset in range(0, 2 * DAYS, 200):
            body = {
                "flows": {"name": {"any_": ["retrain"]}},
                "flow_runs": {"state": {"name": {"any_": ["Scheduled"]}}},
                "sort": "EXPECTED_START_TIME_ASC",
                "offset": offset,
                "limit": 200,
            }
            found += requests.post(f"{prefect}/flow_runs/filter", json=body, timeout=60).json()
        times = [datetime.fromisoformat(run["expected_start_time"].replace("Z", "+00:00")) for run in found]
        return [time.astimezone(zone) for time in times]

    times = eventually("the scheduler has planned", lambda: (found := planned()) and len(found) >= DAYS and found)
    assert {(time.hour, time.minute) for time in times} == {(3, 30)}
    assert len({time.astimezone(UTC).hour for time in times}) == 2, "no change of the clocks is in it"
    days = [time.date() for time in times]
    assert set(Counter(days).values()) == {1}
    assert [after - before for before, after in pairwise(days)] == [timedelta(1)] * (len(days) - 1)
    assert days[0] <= datetime.now(zone).date() + timedelta(1)
