"""Points of a process: the calls by which a command makes something last, or needs somebody. Never part of the product.

`install` wraps them in this process, as ``CHAOS_POINT`` in the environment says (JSON):

    {"do": "record"}                                   note each point's name, do nothing
    {"do": "kill" | "stop", "at": 7, "when": "before" | "after"}   SIGKILL, or SIGSTOP, to this process at the seventh
    {"do": "fail", "at": 7, "when": ..., "times": 2}   the seventh's call fails so often; "after": done, not answered

``CHAOS_LOG`` names the file that the names go to, one a line, each before its call.
"""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

GIT = {
    "commit": "git commit",
    "push": "git push",
    "tag": "git tag",
    "update-ref": "git update-ref",
    "reset": "git reset",
    "checkout": "git checkout",
}
GIT_READ = {"fetch": "git fetch", "ls-remote": "git ls-remote"}
S3 = {"PutObject": "S3 put", "CopyObject": "S3 copy", "DeleteObject": "S3 delete"}
S3_READ = {"GetObject": "S3 get", "ListObjectsV2": "S3 list", "HeadObject": "S3 head"}
MLFLOW = (
    "create_experiment",
    "create_run",
    "log_batch",
    "log_artifacts",
    "log_inputs",
    "set_tag",
    "create_logged_model",
    "log_model_artifacts",
    "log_outputs",
    "finalize_logged_model",
    "log_text",
    "update_run",
    "set_terminated",
    "delete_run",
    "restore_run",
    "create_registered_model",
    "create_model_version",
    "delete_model_version",
    "set_registered_model_alias",
    "delete_logged_model",
)
MLFLOW_READ = ("search_runs", "get_run", "search_model_versions", "search_registered_models")


class Points:
    """Counts the calls of one process, and does what is wanted at one of them."""

    def __init__(self, wanted: dict[str, Any], log: Path) -> None:
        self.wanted, self.log = wanted, log
        self.seen, self.failed, self.name = 0, 0, ""
        self.lock = threading.RLock()

    def call(self, name: str, real: Callable[[], Any], error: Callable[[], Any]) -> Any:
        with self.lock:
            self.seen += 1
            mine = self.wanted.get("at") == self.seen
            if mine:
                self.name = name
            with self.log.open("a") as log:
                log.write(name + "\n")
        if self.wanted["do"] == "fail":
            again = name == self.name and 0 < self.failed < self.wanted["times"]
            if not (mine or again):
                return real()
            self.failed += 1
            if self.wanted["when"] == "after":
                real()
            made = error()
            if isinstance(made, BaseException):
                raise made
            return made
        if mine and self.wanted["when"] == "before":
            self._act()
        found = real()
        if mine and self.wanted["when"] == "after":
            self._act()
        return found

    def _act(self) -> None:
        os.kill(os.getpid(), {"kill": signal.SIGKILL, "stop": signal.SIGSTOP}[self.wanted["do"]])


def install() -> None:
    """Wrap the points of this process, where ``CHAOS_POINT`` asks for it."""
    if "CHAOS_POINT" not in os.environ:
        return
    wanted = json.loads(os.environ["CHAOS_POINT"])
    points = Points(wanted, Path(os.environ["CHAOS_LOG"]))
    reads = wanted.get("reads", False)
    _git(points, GIT | (GIT_READ if reads else {}))
    _s3(points, S3 | (S3_READ if reads else {}))
    _dvc(points)
    _mlflow(points, MLFLOW + (MLFLOW_READ if reads else ()))
    _files(points)


def _away() -> Any:
    return subprocess.CompletedProcess([], 128, "", "fatal: unable to access origin: Could not resolve host: origin")


def _full() -> OSError:
    return OSError(errno.ENOSPC, "No space left on device")


def _git(points: Points, named: dict[str, str]) -> None:
    from ssclass.workspace.git import Git

    real = Git.run

    def run(git: Git, *args: str) -> Any:
        if args[0] not in named:
            return real(git, *args)
        return points.call(named[args[0]], lambda: real(git, *args), _away)

    Git.run = run  # type: ignore[method-assign]


def _s3(points: Points, named: dict[str, str]) -> None:
    from aiobotocore.client import AioBaseClient
    from botocore.client import BaseClient
    from botocore.exceptions import EndpointConnectionError

    def away() -> Exception:
        return EndpointConnectionError(endpoint_url="http://s3")

    real, real_async = BaseClient._make_api_call, AioBaseClient._make_api_call

    def where(operation: str, params: dict[str, Any]) -> str:
        key = str(params.get("Key") or params.get("Prefix") or "")
        return f"{named[operation]} {key.split('/')[0]}{' run.json' if key.endswith('run.json') else ''}"

    def call(client: Any, operation: str, params: dict[str, Any]) -> Any:
        if isinstance(client, AioBaseClient) or operation not in named:
            return real(client, operation, params)
        return points.call(where(operation, params), lambda: real(client, operation, params), away)

    async def call_async(client: Any, operation: str, params: dict[str, Any]) -> Any:
        if operation not in S3:
            return await real_async(client, operation, params)
        wanted = points.wanted
        points.call(f"{where(operation, params)} (begins)", lambda: None, away)  # DVC's own: in mid-push
        found = await real_async(client, operation, params)
        if wanted["do"] != "fail":
            points.call(f"{where(operation, params)} (done)", lambda: None, away)
        return found

    BaseClient._make_api_call = call
    AioBaseClient._make_api_call = call_async


def _dvc(points: Points) -> None:
    from dvc.data_cloud import DataCloud
    from dvc.exceptions import UploadError
    from dvc.repo import Repo

    _wrap(points, Repo, "add", "DVC add", _full)
    _wrap(points, DataCloud, "push", "DVC push", lambda: UploadError(1))


def _mlflow(points: Points, names: tuple[str, ...]) -> None:
    import mlflow
    import requests

    for name in names:
        _wrap(points, mlflow.MlflowClient, name, f"MLflow {name}", lambda: requests.ConnectionError("MLflow is away"))


def _files(points: Points) -> None:
    import shutil

    _wrap(points, Path, "replace", "file in place", _full)
    _wrap(points, shutil, "move", "shard in data/", _full)

    from ssclass import notices

    real = notices.tell

    def tell(*args: Any, **named: Any) -> None:
        points.call("notice", lambda: real(*args, **named), lambda: None)

    notices.tell = tell


def _wrap(points: Points, owner: Any, name: str, called: str, error: Callable[[], Any]) -> None:
    real = getattr(owner, name)

    def call(*args: Any, **named: Any) -> Any:
        return points.call(called, lambda: real(*args, **named), error)

    setattr(owner, name, call)
