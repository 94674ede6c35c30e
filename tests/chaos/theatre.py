"""Worlds for stories: one is played to a point once, and copied for each story; its processes are forks of one."""

from __future__ import annotations

import json
import os
import random
import shutil
import sqlite3
import subprocess
import sys
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from ssclass.settings import CHECKOUT
from ssclass.store import Store
from tests.support.fake_head import photo
from tests.support.pipelines import CLASSES

ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "testing",
    "AWS_SECRET_ACCESS_KEY": "testing",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "GIT_CONFIG_GLOBAL": os.devnull,
    "GIT_CONFIG_NOSYSTEM": "1",
}


@dataclass
class Ended:
    """How a process ended: its exit code, or less than 0 for a signal; what it said; what its call returned."""

    state: str
    code: int
    said: str
    value: Any

    @property
    def well(self) -> bool:
        return self.state == "exited" and self.code == 0

    @property
    def politely(self) -> bool:
        """Well, or with an error that was foreseen: one line, exit code 1 or 2."""
        return self.well or (self.state == "exited" and self.code in (1, 2) and "Traceback" not in self.said)


class Forks:
    """The process that forks."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.chaos.zygote"],
            env=os.environ | ENVIRONMENT | {"PYTHONPATH": str(CHECKOUT)},
            cwd=CHECKOUT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, "the process that forks is gone"
        return dict(json.loads(line))

    def ask(self, **request: Any) -> dict[str, Any]:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        return self._answer()

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(30)


@dataclass
class Running:
    """A process of a world."""

    world: World
    pid: int
    out: Path

    def wait(self) -> Ended:
        answer = self.world.forks.ask(wait=self.pid)
        log = Path(f"{self.out}.log")
        value = json.loads(self.out.read_text()) if self.out.exists() and answer["state"] == "exited" else None
        return Ended(answer["state"], answer["code"], log.read_text() if log.exists() else "", value)

    def go_on(self) -> Ended:
        self.world.forks.ask(**{"continue": self.pid})
        return self.wait()


@dataclass
class World:
    """An origin, two clones `a` and `b`, a bucket, an MLflow; what was sent, and what must be forgotten."""

    forks: Forks
    folder: Path
    endpoint: str
    bucket: str
    pictures: Sequence[bytes]
    sent: dict[str, dict[str, str]] = field(default_factory=dict)
    forgotten: list[str] = field(default_factory=list)
    used: int = 0
    processes: int = 0

    @classmethod
    def new(cls, forks: Forks, folder: Path, endpoint: str, pictures: Sequence[bytes], mlflow: Path) -> World:
        """An empty one."""
        from ssclass.workspace.create import create

        folder.mkdir(parents=True)
        shutil.copy(mlflow, folder / "mlflow.db")
        world = cls(forks, folder, endpoint, f"chaos-{uuid.uuid4().hex[:12]}", pictures)
        values = {"bucket": world.bucket, "s3_endpoint": endpoint, "s3_region": "us-east-1"}
        made = create(folder / "a", {**values, "mlflow_uri": f"sqlite:///{folder / 'mlflow.db'}"})
        made.store.make_bucket()
        assert world.run("clone", str(folder / "b"), made.origin).well
        return world

    def copy(self, folder: Path) -> World:
        """A world of its own that has come as far as this one."""
        shutil.copytree(self.folder, folder, symlinks=True, ignore=shutil.ignore_patterns("process-*"))
        bucket = f"chaos-{uuid.uuid4().hex[:12]}"
        world = World(self.forks, folder, self.endpoint, bucket, self.pictures, used=self.used)
        world.sent = {batch: dict(photos) for batch, photos in self.sent.items()}
        world.forgotten = list(self.forgotten)
        for clone in ("a", "b"):
            config = folder / clone / ".git" / "config"
            config.write_text(config.read_text().replace(str(self.folder), str(folder)))
        database = sqlite3.connect(folder / "mlflow.db")
        with database:
            for table, column in (
                ("experiments", "artifact_location"),
                ("runs", "artifact_uri"),
                ("logged_models", "artifact_location"),
                ("model_versions", "storage_location"),
            ):
                database.execute(
                    f"update {table} set {column} = replace({column}, ?, ?)", (str(self.folder), str(folder))
                )
        database.close()
        to = world.store
        to.client.create_bucket(Bucket=bucket)
        for item in self.store.list(""):
            to.client.copy_object(Bucket=bucket, Key=item.key, CopySource={"Bucket": self.bucket, "Key": item.key})
        return world

    def close(self) -> None:
        """Delete its files; the bucket is gone with its server."""
        shutil.rmtree(self.folder)

    # -- processes --------------------------------------------------------------------------------------------

    @property
    def environment(self) -> dict[str, str]:
        return {
            "SSCLASS_BUCKET": self.bucket,
            "SSCLASS_S3_ENDPOINT": self.endpoint,
            "SSCLASS_MLFLOW_URI": f"sqlite:///{self.folder / 'mlflow.db'}",
            "SSCLASS_PATIENCE": "2",
        }

    def start(self, *call: Any, point: dict[str, Any] | None = None, **more: str) -> Running:
        """Start a call of tests.chaos.commands, with a point where something happens."""
        self.processes += 1
        out = self.folder / f"process-{self.processes}"
        environment = {**self.environment, **more}
        if point is not None:
            environment |= {"CHAOS_POINT": json.dumps(point), "CHAOS_LOG": f"{out}.points"}
        answer = self.forks.ask(start=list(call), env=environment, out=str(out))
        return Running(self, answer["pid"], out)

    def run(self, *call: Any, **more: Any) -> Ended:
        return self.start(*call, **more).wait()

    def path(self, clone: str = "a") -> str:
        return str(self.folder / clone)

    def ssclass(self, *arguments: str, clone: str = "a", **more: Any) -> Ended:
        """A command line in a clone."""
        return self.run(*self.line(*arguments, clone=clone), **more)

    def line(self, *arguments: str, clone: str = "a") -> tuple[str, ...]:
        if arguments[0] == "gc":
            return ("gc", self.path(clone))
        return ("ssclass", *arguments, "--workspace", self.path(clone))

    def points(self, *call: Any) -> list[str]:
        """Names of the points that a call comes to."""
        running = self.start(*call, point={"do": "record"})
        ended = running.wait()
        assert ended.politely, ended.said
        return Path(f"{running.out}.points").read_text().splitlines()

    def findings(self, clone: str = "a") -> dict[str, list[str]]:
        """What is wrong in this world."""
        ended = self.run(
            "check", [self.path(clone), self.path("b" if clone == "a" else "a")], self.sent, self.forgotten
        )
        if not ended.well:
            return {"others": [f"the check itself failed: {ended.said[-1500:]}"]}
        return dict(ended.value)

    def told(self, clone: str = "a") -> dict[str, Any]:
        ended = self.run("told", self.path(clone))
        assert ended.well, ended.said
        return dict(ended.value)

    # -- senders ------------------------------------------------------------------------------------------------

    @cached_property
    def store(self) -> Store:
        from ssclass.settings import Settings

        return Store(Settings(workspace=self.folder / "a", bucket=self.bucket, s3_endpoint=self.endpoint))

    def photos(
        self, count: int, *, flipped: bool = False, difficulties: Sequence[float] = (0.5,)
    ) -> list[dict[str, Any]]:
        made = []
        for number in range(count):
            truth = number % 2
            seen = difficulties[number % len(difficulties)]
            data = photo(self.pictures[self.used], truth, seen + self.used / 10000)
            self.used += 1
            label = CLASSES[1 - truth if flipped else truth]
            made.append({"key": f"{label}/{self.used}.jpg", "label": label, "split": "train", "data": data})
        return made

    def deliver(self, batch: str, photos: list[dict[str, Any]], **corrections: Any) -> None:
        """Send photos and corrections under an id, the marker last."""
        import hashlib

        store, told = self.store, self.sent.setdefault(batch, {})
        for each in photos:
            each["sha256"] = hashlib.sha256(each["data"]).hexdigest()
            store.put(f"incoming/{batch}/{each['key']}", each["data"])
            told[each["sha256"]] = each["label"]
        listed = [{name: value for name, value in each.items() if name != "data"} for each in photos]
        body = {"schema": 1, "photos": listed, **corrections}
        store.put(f"incoming/{batch}/manifest.json", json.dumps(body).encode())

    def first(self) -> None:
        """Deliver ten held-out photos of rising difficulty, and ten to learn from."""
        held_out = self.photos(10, difficulties=[number / 10 + 0.05 for number in range(10)])
        for each in held_out:
            each["split"] = "holdout"
        self.deliver("first", held_out + self.photos(10))


def base(world: World) -> World:
    """Play a world to where every command has something to do: two champions, a held batch, one that waits."""
    world.first()
    for name in ("second", "bad"):
        ended = world.ssclass("retrain")
        assert ended.well, ended.said
        bad = name == "bad"
        world.deliver(name, world.photos(12 if bad else 10, flipped=bad, difficulties=(0.0,) if bad else (0.5,)))
    ended = world.ssclass("retrain")
    assert ended.code == 2, ended.said  # held
    told = world.told()
    assert told["champions"] == 2, told
    assert told["batches"]["bad"] == "held", told
    world.deliver("third", world.photos(10))
    return world


def seed_of_today() -> int:
    """CHAOS_SEED, else one drawn by lot; it is printed either way."""
    return int(os.environ.get("CHAOS_SEED") or random.SystemRandom().randrange(10**6))
