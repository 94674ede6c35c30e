"""A process that has imported everything, and forks one for each command: a command then starts in milliseconds.

``python -m tests.chaos.zygote`` reads lines of JSON and answers each with one:

    {"start": [call, ...arguments], "env": {...}, "out": file}   fork; {"pid": n}
    {"wait": pid}        until it has ended or was stopped; {"state": "exited" | "killed" | "stopped", "code": n}
    {"continue": pid}    SIGCONT; {}

What the call prints goes to ``out`` + ``.log``, what it returns to ``out`` as JSON.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys
import traceback
from contextlib import suppress
from pathlib import Path
from typing import Any


def warm_up() -> None:
    """Import what commands import, put the fake in the place of TensorFlow, and tasks that run at once in Prefect's."""
    import dvc.repo  # noqa: F401
    import dvc_s3  # noqa: F401
    import mlflow
    import mlflow.store.model_registry.sqlalchemy_store
    import mlflow.store.tracking.sqlalchemy_store  # noqa: F401
    import scipy.stats  # noqa: F401

    import ssclass.cli  # noqa: F401
    from tests.support.fake_head import patch_model, retrain_flow

    patch_model(setattr)
    flow = retrain_flow()
    import flows

    sys.modules["flows.retrain"] = flows.retrain = flow  # type: ignore[attr-defined]
    from ssclass import environment

    environment.check_imports = lambda: None
    import boto3

    from ssclass.code import code_digest
    from tests.chaos import commands, points  # noqa: F401

    code_digest()
    boto3.client("s3", endpoint_url="http://127.0.0.1:9", region_name="us-east-1")  # reads AWS's descriptions


def learn(out: str) -> None:
    """Import what a child had to import: the next ones find it there. Half of a child's time went into that."""
    try:
        names = Path(f"{out}.modules").read_text().split()
    except FileNotFoundError:
        return
    for name in names:
        if name not in sys.modules and name.split(".")[0] not in ("tensorflow", "keras", "prefect", "flows", "tasks"):
            with suppress(Exception):
                importlib.import_module(name)


def child(request: dict[str, Any]) -> int:
    """In the forked process: do the call; its exit code."""
    os.environ.update(request["env"])
    log = os.open(request["out"] + ".log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(log, stream)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    from tests.chaos import commands, points

    if limit := request["env"].get("CHAOS_FILE_LIMIT"):
        import resource
        import signal as signals

        signals.signal(signals.SIGXFSZ, signals.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit), int(limit)))
    name, *arguments = request["start"]
    before = set(sys.modules)
    try:
        points.install()
        found = getattr(commands, name)(*arguments)
        Path(request["out"]).write_text(json.dumps(found))
        code = 0
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException:
        traceback.print_exc()
        code = 70
    sys.stdout.flush()
    sys.stderr.flush()
    Path(request["out"] + ".modules").write_text(" ".join(sorted(set(sys.modules) - before)))
    return code


def serve() -> None:
    warm_up()
    print(json.dumps({}), flush=True)
    outs: dict[int, str] = {}
    for line in sys.stdin:
        request = json.loads(line)
        answer: dict[str, Any] = {}
        if "start" in request:
            pid = os.fork()
            if pid == 0:
                code = 70
                try:
                    code = child(request)
                finally:
                    os._exit(code)
            outs[pid] = request["out"]
            answer = {"pid": pid}
        elif "wait" in request:
            _, status = os.waitpid(request["wait"], os.WUNTRACED)
            if os.WIFSTOPPED(status):
                answer = {"state": "stopped", "code": 0}
            elif os.WIFSIGNALED(status):
                answer = {"state": "killed", "code": -os.WTERMSIG(status)}
            else:
                answer = {"state": "exited", "code": os.WEXITSTATUS(status)}
                learn(outs.pop(request["wait"]))
        elif "continue" in request:
            os.kill(request["continue"], signal.SIGCONT)
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    serve()
