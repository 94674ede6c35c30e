"""Partners that have a bad day for the length of one command: S3, origin, MLflow, the disk, DVC's lock."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import requests

from tests.chaos.stories import Stage, Tally, again
from tests.chaos.theatre import Ended, World


@contextmanager
def s3(world: World, **rule: object) -> Iterator[dict[str, str]]:
    """S3 answers otherwise than it should."""
    requests.post(f"{world.endpoint}/_chaos", json=rule, timeout=10)
    try:
        yield {}
    finally:
        requests.post(f"{world.endpoint}/_chaos", json={}, timeout=10)


@contextmanager
def origin_away(world: World) -> Iterator[dict[str, str]]:
    there, gone = world.folder / "a.git", world.folder / "gone.git"
    there.rename(gone)
    try:
        yield {}
    finally:
        gone.rename(there)


@contextmanager
def mlflow_away(world: World) -> Iterator[dict[str, str]]:
    """Nothing listens there."""
    yield {"SSCLASS_MLFLOW_URI": "http://127.0.0.1:9", "SSCLASS_PATIENCE": "0"}


@contextmanager
def disk_full(world: World) -> Iterator[dict[str, str]]:
    """No file may become larger than the kilobytes that git and SQLite get by with: what a full disk says, at once."""
    yield {"CHAOS_FILE_LIMIT": "20000"}


@contextmanager
def dvc_locked(world: World) -> Iterator[dict[str, str]]:
    """Another DVC works in this folder."""
    from filelock import FileLock

    folder = world.folder / "a" / ".dvc" / "tmp"
    folder.mkdir(exist_ok=True)
    lock = FileLock(folder / "lock")
    with lock:
        yield {}


BAD_DAYS: dict[str, Callable[[World], object]] = {
    "S3 says 500 once": lambda world: s3(world, what="500", times=1),
    "S3 says 503 three times": lambda world: s3(world, what="503", times=3),
    "S3 says 500 to every PUT": lambda world: s3(world, what="500", times=10**6, method="PUT"),
    "S3 is slow": lambda world: s3(world, what="slow", times=20),
    "S3 resets in mid-body": lambda world: s3(world, what="cut", times=2, method="GET"),
    "S3 resets photos for good": lambda world: s3(world, what="cut", times=10**6, method="GET", path="incoming/"),
    "S3 gives wrong bytes of objects": lambda world: s3(world, what="wrong", times=10**6, method="GET", path="/dvc/"),
    "S3 gives wrong bytes of a photo": lambda world: s3(world, what="wrong", times=1, method="GET", path="third/s"),
    "S3's credentials have expired": lambda world: s3(world, what="expired", times=10**6),
    "origin is away": origin_away,
    "MLflow is away": mlflow_away,
    "the disk is full": disk_full,
    "DVC's lock is held": dvc_locked,
}


def play(stage: Stage, name: str, tally: Tally, *, cold: bool = False) -> None:
    """A retrain on a bad day, and one on the next; `cold`: with empty local caches, so that S3 is asked for all."""
    world = stage.world("retrain")
    if cold:
        for folder in ("shards", "champions", "features", "results"):
            shutil.rmtree(world.folder / "a" / ".ssclass" / folder, ignore_errors=True)
        shutil.rmtree(world.folder / "a" / ".dvc" / "cache", ignore_errors=True)
    findings: dict[str, list[str]] = {"others": []}

    def expect(ended: Ended, how: str, what: str) -> Ended:
        if not getattr(ended, how):
            findings["others"].append(f"{what} ended {ended.state} {ended.code}: {ended.said[-1500:]}")
        return ended

    tally.count("bad days of partners")
    with BAD_DAYS[name](world) as more:  # type: ignore[attr-defined]
        expect(world.ssclass("retrain", **more), "politely", "the retrain on a bad day")
    again(world, expect, "the retrain on the next day")
    tally.add(name, findings)
    tally.add(name, world.findings())
    world.close()
