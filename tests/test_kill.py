"""`ssclass retrain` killed (SIGKILL) at one moment after the other, and run again: the same data set, one decision.

Moments are told by what a person could see change, looked for every few milliseconds while the command runs. A
moment that is over before it is seen is killed a little later: what counts is how it ends.
"""

from __future__ import annotations

import json
import re
import shutil
import signal
import sqlite3
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from ssclass.data.submit import submit
from ssclass.demo.drawings import draw, junk
from ssclass.tracking.client import Tracking
from ssclass.workspace.workspace import Workspace
from tests.support.pipelines import CLASSES, Command, Pipeline

POLL = 0.005
BATCH = "day-1"


@dataclass(frozen=True)
class Place:
    """A workspace with a batch that waits, as an onlooker sees it."""

    workspace: Workspace
    start: str  # main's commit before the retrain
    data_dvc: bytes

    @classmethod
    def ready(cls, workspace: Workspace, photos: Path) -> Place:
        submit(workspace.store, photos, BATCH, CLASSES)
        return cls(workspace, workspace.head, (workspace.root / "data.dvc").read_bytes())

    def has(self, pattern: str) -> bool:
        """A file in the workspace."""
        return next(self.workspace.root.glob(pattern), None) is not None

    def stored(self, prefix: str) -> bool:
        """An object in S3."""
        return next(iter(self.workspace.store.list(prefix)), None) is not None

    def commits(self, repository: str) -> int:
        """Commits of main since the start; `repository` is relative to the workspace."""
        found = subprocess.run(
            ["git", "-C", str(self.workspace.root / repository), "rev-list", "--count", f"{self.start}..main"],
            capture_output=True,
            text=True,
        )
        return int(found.stdout or 0)

    @property
    def origin(self) -> str:
        return f"../{self.workspace.root.name}.git"

    def told(self, query: str) -> bool:
        """A row in MLflow's database."""
        path = self.workspace.private / "mlflow" / "mlflow.db"
        try:
            with sqlite3.connect(f"file:{path}?mode=ro", uri=True) as database:
                return database.execute(query).fetchone() is not None
        except sqlite3.OperationalError:  # not there yet, or without that table
            return False


MOMENTS: dict[str, Callable[[Place], bool]] = {
    "photos come in": lambda place: place.has(".ssclass/tmp/*/photos-*/*"),
    "the shard is built": lambda place: place.has(f".ssclass/tmp/*/{BATCH}.parquet"),
    "junk is in quarantine": lambda place: place.stored("quarantine/"),
    "the shard is in data/": lambda place: place.has(f"data/{BATCH}.parquet"),
    "data.dvc has changed": lambda place: (place.workspace.root / "data.dvc").read_bytes() != place.data_dvc,
    "the batch is committed": lambda place: place.commits(".") >= 1,
    "the batch is at origin": lambda place: place.commits(place.origin) >= 1,
    "the candidate is written": lambda place: place.has("candidate/head.keras"),
    "the result is whole": lambda place: place.has(".ssclass/results/*/result.json"),
    "MLflow has a run": lambda place: place.told("select 1 from runs"),
    "MLflow has a model": lambda place: place.told("select 1 from logged_models"),
    "dvc.lock has changed": lambda place: "candidate" in place.workspace.git("diff", "--", "dvc.lock", check=False),
    "the decision is committed": lambda place: place.commits(".") >= 2,
    "the decision is at origin": lambda place: place.commits(place.origin) >= 2,
    "a version is registered": lambda place: place.told("select 1 from model_versions"),
    "the alias is set": lambda place: place.told("select 1 from registered_model_aliases"),
}
ALWAYS = ("the batch is committed", "MLflow has a run", "the decision is at origin")
"""Killed at in every test run; the other moments only in `make test-all`."""


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Drawings, with junk among them."""
    folder = tmp_path_factory.mktemp("kill-photos")
    draw(folder, CLASSES, per_class=30)
    junk(folder / CLASSES[0], seed=0)
    return folder


CLOCK = ("at", "marked", "run_id", "seconds")  # fields that differ from run to run


@dataclass(frozen=True)
class Ending:
    """What is left when nothing interferes; everything that depends on the clock left out."""

    data_dvc: bytes
    rows: str
    metrics: bytes
    ledger: list[dict[str, object]]

    @classmethod
    def of(cls, workspace: Workspace) -> Ending:
        ledger = [
            {
                name: value
                for name, value in json.loads(event.line()).items()
                if name not in ("at", "marked", "run_id", "seconds")
            }
            for event in workspace.at().events
        ]
        root = workspace.root
        return cls(
            (root / "data.dvc").read_bytes(),
            workspace.at().dataset.digest,
            (root / "metrics.json").read_bytes(),
            ledger,
        )


class Kills:
    """Makes workspaces where a batch waits, and starts, kills and ends `ssclass retrain` in them."""

    def __init__(self, pipeline: Pipeline, command: Command, photos: Path, folder: Path) -> None:
        self.pipeline, self.command, self.photos, self.folder = pipeline, command, photos, folder
        whole = self.place("whole")
        self.finish(whole)
        self.features = whole.workspace.private / "features"
        self.ending = Ending.of(whole.workspace)
        self.check(whole)

    def place(self, name: str, features: Path | None = None) -> Place:
        workspace = self.pipeline.workspace(self.folder / name / "workspace", head="linear")
        if features is not None:  # so that every run is short
            shutil.copytree(features, workspace.private / "features")
        return Place.ready(workspace, self.photos)

    def kill(self, place: Place, moment: str) -> None:
        """Start the command, and kill it when the moment has come."""
        log = place.workspace.root.with_name("killed.log")
        with log.open("a") as output:
            process = subprocess.Popen(
                [str(self.command.folder / "ssclass"), "retrain", "--workspace", str(place.workspace.root)],
                env=self.command.environment(),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )
        try:
            while not MOMENTS[moment](place):
                assert process.poll() is None, f"it ended before {moment!r}: {log.read_text()}"
                time.sleep(POLL)
        finally:
            process.kill()
            process.wait()
        assert process.returncode == -signal.SIGKILL, f"it ended before it was killed: {log.read_text()}"

    def finish(self, place: Place) -> None:
        done = self.command("retrain", "--workspace", place.workspace.root)
        assert done.returncode == 0, done.stderr

    def check(self, place: Place) -> None:
        """The same data set and exactly one decision, wherever one looks."""
        workspace, root = place.workspace, place.workspace.root
        assert Ending.of(workspace) == self.ending
        ingest, decision = workspace.at().events
        key = decision.body["key"]
        assert (ingest.kind, decision.body["decision"]) == ("ingest", "PROMOTED")

        assert workspace.git("status", "--porcelain") == ""
        remote = dict(reversed(line.split()) for line in workspace.git("ls-remote", "origin").splitlines())
        assert remote["refs/heads/main"] == workspace.head
        assert place.commits(".") == 2
        assert {name for name in remote if name.startswith("refs/tags/")} == {
            "refs/tags/data/1",
            f"refs/tags/run/{key}",
        }
        assert remote[f"refs/tags/run/{key}"] == workspace.head
        assert remote["refs/tags/data/1"] == workspace.git("rev-parse", "HEAD~1")
        assert not (workspace.private / "unfinished").exists()
        assert not (workspace.private / "scratch").exists()
        assert list((workspace.private / "tmp").iterdir()) == []
        assert all_stored(workspace), "not every file that git names is in the DVC remote"

        tracking = Tracking.of(workspace)
        (run,) = tracking.client.search_runs([tracking.experiment_id])
        assert run.info.run_id == decision.body["run_id"]
        assert run.info.status == "FINISHED"
        assert (run.data.tags["decision_key"], run.data.tags["decision"]) == (key, "PROMOTED")
        assert "decision.md" in {item.path for item in tracking.client.list_artifacts(run.info.run_id)}
        (version,) = tracking.client.search_model_versions("name = 'ssclass'")
        assert (version.tags["decision_key"], version.run_id) == (key, run.info.run_id)
        assert tracking.alias() == str(version.version)
        assert "Champion" in version.description
        kept = {item.key for item in workspace.store.list(f"quarantine/{BATCH}/")}
        assert len(kept) == 1 + sum(1 for path in self.photos.rglob("junk_*"))
        assert root.joinpath("candidate", "head.keras").exists()


def all_stored(workspace: Workspace) -> bool:
    """Whether every hash in data.dvc and dvc.lock, and in the folders that they name, is in the remote."""
    store = workspace.store
    files = [workspace.root / "data.dvc", workspace.root / "dvc.lock"]
    outs = {found for path in files for found in re.findall(r"md5: ([0-9a-f]{32}\.dir)", path.read_text())}
    assert len(outs) == 2
    for out in outs:
        listing = store.get(f"dvc/files/md5/{out[:2]}/{out[2:]}")
        if listing is None:
            return False
        hashes = [item["md5"] for item in json.loads(listing)]
        if not hashes or any(store.get(f"dvc/files/md5/{md5[:2]}/{md5[2:]}") is None for md5 in hashes):
            return False
    return True


@pytest.fixture(scope="module")
def kills(pipeline: Pipeline, ssclass: Command, photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Kills:
    return Kills(pipeline, ssclass, photos, tmp_path_factory.mktemp("kills"))


@pytest.mark.parametrize(
    "moment", [name if name in ALWAYS else pytest.param(name, marks=pytest.mark.slow) for name in MOMENTS]
)
def test_killed_and_run_again_is_as_if_never_killed(kills: Kills, moment: str):
    place = kills.place(re.sub(r"\W+", "-", moment), kills.features)
    kills.kill(place, moment)
    kills.finish(place)
    kills.check(place)


def test_terminated_it_leaves_no_server_behind(kills: Kills, tmp_path: Path):
    place = kills.place("terminated")
    settings = place.workspace.root / "ssclass.toml"
    settings.write_text(re.sub(r"(?m)^prefect_url.*\n", "", settings.read_text()))  # it starts a server of its own
    with (tmp_path / "log").open("w") as log:
        command = [kills.command.folder / "ssclass", "retrain", "--workspace", place.workspace.root]
        process = subprocess.Popen(command, env=kills.command.environment(), stdout=log, stderr=log)
    children: list[psutil.Process] = []
    while not any("uvicorn" in child.cmdline() for child in children):
        assert process.poll() is None, (tmp_path / "log").read_text()
        time.sleep(0.1)
        children = psutil.Process(process.pid).children(recursive=True)
    process.terminate()
    assert process.wait(60) == 128 + signal.SIGTERM
    _, alive = psutil.wait_procs(children, timeout=60)
    assert alive == []


@pytest.mark.slow
def test_killed_at_every_moment_in_turn(kills: Kills):
    """Sixteen reruns, each of which gets a little further and is killed as well."""
    place = kills.place("in-turn", kills.features)
    for moment in MOMENTS:
        kills.kill(place, moment)
    kills.finish(place)
    kills.check(place)
