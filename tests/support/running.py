"""A whole stack of its own for a test session: real Prefect, MLflow and S3 servers, listener and workers."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import requests
from tenacity import retry, retry_if_exception_type, stop_after_delay, wait_fixed

from ssclass.demo.drawings import draw
from ssclass.environment import leave_user_settings, logins
from ssclass.settings import CHECKOUT, Settings, load_settings
from ssclass.stack.manager import Manager
from ssclass.workspace.origin import Origin
from ssclass.workspace.workspace import Workspace

CLASSES = ("sandwich", "sushi")


def clean_environment(**more: str) -> dict[str, str]:
    """The environment of a user who has set nothing."""
    before = dict(os.environ)
    try:
        leave_user_settings()
        found = dict(os.environ)
    finally:
        os.environ.clear()
        os.environ.update(before)
    kept = {name: value for name, value in found.items() if not name.startswith("AWS_ACCESS")}
    kept.pop("AWS_SECRET_ACCESS_KEY", None)
    path = f"{Path(sys.executable).parent}{os.pathsep}{kept['PATH']}"
    return kept | {"PATH": path, "PYTHONPATH": str(CHECKOUT)} | more


def eventually(what: str, found: Callable[[], Any], within: float = 300.0) -> Any:
    """What `found` gives once that is true; the test fails when it never is. `within` is patience, not a budget."""
    end = time.monotonic() + within
    while time.monotonic() < end:
        if value := found():
            return value
        time.sleep(0.3)
    raise AssertionError(f"still not after {within:.0f} s: {what}")


@dataclass
class Running:
    """A workspace with its stack up."""

    folder: Path
    environment: dict[str, str]
    drawn: int = field(default=0)

    def cli(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "ssclass", *arguments]
        done = subprocess.run(command, cwd=self.folder, env=self.environment, capture_output=True, text=True)
        assert not check or done.returncode == 0, f"{arguments}: {done.stdout}{done.stderr}"
        return done

    def make(self) -> None:
        """A workspace that trains in seconds, and its stack."""
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "ssclass", "init", str(self.folder)]
        subprocess.run(command, env=self.environment, check=True, capture_output=True)
        params = self.folder / "params.yaml"
        params.write_text(params.read_text().replace("head: auto", "head: linear"))
        git = ["git", "-C", str(self.folder)]
        subprocess.run([*git, "commit", "-qam", "A quick head"], env=self.environment, check=True)
        subprocess.run([*git, "push", "-q", "origin", "main"], env=self.environment, check=True)
        self.cli("up", "--detach")

    @property
    def settings(self) -> Settings:
        return load_settings(self.folder)

    @property
    def manager(self) -> Manager:
        return Manager(self.settings)

    def login(self, part: str) -> tuple[str, str]:
        """User and password of Prefect or MLflow."""
        known = logins(self.settings)[part]
        return known["user"], known["password"]

    def log(self, part: str) -> str:
        return (self.manager.folder / "logs" / f"{part}.log").read_text(errors="replace")

    # -- what happened ----------------------------------------------------------------------------------

    @retry(retry=retry_if_exception_type(requests.RequestException), stop=stop_after_delay(120), wait=wait_fixed(1))
    def api(self, path: str, body: Any = None) -> Any:
        """Prefect's answer; asked again while it is away, or says 503, as SQLite does under load."""
        url = f"{self.settings.prefect_url}/{path}"
        how: dict[str, Any] = {"timeout": 20, "auth": self.login("prefect")}
        answer = requests.get(url, **how) if body is None else requests.post(url, json=body, **how)
        answer.raise_for_status()
        return answer.json() if answer.content else None

    def runs(self, flow: str, *states: str, **more: Any) -> list[dict[str, Any]]:
        """Flow runs, oldest first; only started or finished ones unless states are named."""
        wanted = states or ("RUNNING", "PENDING", "COMPLETED", "FAILED", "CRASHED", "CANCELLED")
        body = {
            "flows": {"name": {"any_": [flow]}},
            "flow_runs": {"state": {"type": {"any_": list(wanted)}}},
            "sort": "EXPECTED_START_TIME_ASC",
            **more,
        }
        return list(self.api("flow_runs/filter", body))

    def events(self, prefix: str) -> list[dict[str, Any]]:
        found = self.api("events/filter", {"filter": {"event": {"prefix": [prefix]}}, "limit": 50})
        return list(found["events"])

    def state(self) -> Any:
        return Origin(self.settings).state()

    def decided(self) -> set[str]:
        """Batches that a decision has seen."""
        return {batch for event in self.state().decisions.values() for batch in event.body["batches"]}

    def one_decision(self, batch: str) -> dict[str, Any]:
        """The only decision that has seen a batch, once it is there; the test fails when there are more."""
        eventually(f"{batch} is decided", lambda: batch in self.decided(), within=400)
        self.idle()
        decisions = [event.body for event in self.state().decisions.values() if batch in event.body["batches"]]
        assert len(decisions) == 1
        commits = self.workspace().git("log", "--format=%s", "--all").splitlines()
        assert len({commit for commit in commits if decisions[0]["key"] in commit}) == 1
        return dict(decisions[0])

    def trainings(self, key: str) -> list[dict[str, Any]]:
        """Training runs of a key, oldest first."""
        return [run for run in self.runs("train") if run["parameters"]["key"] == key]

    def no_slot_is_taken(self) -> None:
        """Wait until no deployment's concurrency slot is taken; the test fails when one stays so."""

        def free() -> bool:
            limits = self.api("v2/concurrency_limits/filter", {})
            return all(each["active_slots"] == 0 for each in limits if each["name"].startswith("deployment:"))

        self.idle()
        eventually("every slot is free", free, within=400)

    def workspace(self) -> Workspace:
        return Workspace(self.settings)

    def retrain_now(self) -> dict[str, Any]:
        """Have the deployment run, as its schedule would; the run once it has ended."""
        deployment = self.api("deployments/name/retrain/retrain")
        made = self.api(f"deployments/{deployment['id']}/create_flow_run", {"state": {"type": "SCHEDULED"}})

        def ended() -> Any:
            run = self.api(f"flow_runs/{made['id']}")
            return run if run["state"]["type"] in ("COMPLETED", "FAILED", "CRASHED") else None

        return dict(eventually("the run has ended", ended))

    def idle(self) -> None:
        """Wait until nothing runs or is about to."""

        busy: list[str] = []

        def rests() -> bool:
            late = {"flow_runs": {"state": {"name": {"any_": ["Late", "AwaitingConcurrencySlot", "AwaitingRetry"]}}}}
            found = [run for flow in ("retrain", "train") for run in self.runs(flow, "RUNNING", "PENDING")]
            found += self.api("flow_runs/filter", late)
            busy[:] = [f"{run['name']} {run['state']['name']} since {run['state']['timestamp']}" for run in found]
            return not busy

        try:
            eventually("nothing runs", rests, within=600)
        except AssertionError as error:
            raise AssertionError(f"{error}: {busy}") from None

    # -- what somebody does -----------------------------------------------------------------------------

    def submit(self, batch: str, per_class: int = 8, *, flipped: bool = False) -> None:
        """Deliver a batch of drawings; `flipped`: each under the other class."""
        self.drawn += 1
        photos = self.folder.parent / f"photos-{self.drawn}"
        draw(photos, CLASSES, per_class, seed=1000 + self.drawn)
        if flipped:
            one, other = (photos / name for name in CLASSES)
            one.rename(photos / "aside")
            other.rename(one)
            (photos / "aside").rename(other)
        self.cli("submit", str(photos), "--id", batch)
        shutil.rmtree(photos)

    def stop(self, part: str) -> None:
        self.manager.rpc.supervisor.stopProcess(part)

    def start(self, part: str) -> None:
        self.manager.rpc.supervisor.startProcess(part)

    def pid(self, part: str) -> int:
        return int(self.manager.rpc.supervisor.getProcessInfo(part)["pid"])

    def engines(self, worker: str) -> list[int]:
        """Processes of the flow runs that a worker has started."""
        found = subprocess.run(["ps", "-eo", "pid=,ppid=,args="], capture_output=True, text=True, check=True).stdout
        lines = [line.split(None, 2) for line in found.splitlines()]
        parent = str(self.pid(worker))
        return [int(pid) for pid, ppid, args in lines if ppid == parent and "prefect.engine" in args]

    def caught(self, worker: str) -> int:
        """The process of a flow run that has begun, stopped in its tracks, so that it cannot finish meanwhile."""

        def first() -> int | None:
            for pid in self.engines(worker):
                os.kill(pid, signal.SIGSTOP)
                return pid
            return None

        return int(eventually(f"{worker} has begun", first))


def dump(value: Any) -> str:
    """For messages of failed asserts."""
    return json.dumps(value, indent=1, default=str)
