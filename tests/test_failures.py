"""What the stack makes of killed processes, absent servers and crowds. Slow: `make test-all`.

Two more are in test_stack.py, and so in `make test`: a killed retrain, and an event that died with Prefect.
"""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from datetime import datetime
from itertools import pairwise
from pathlib import Path

import pytest

from ssclass.environment import free_port
from ssclass.settings import CHECKOUT, home
from ssclass.store import Store
from tests.support.running import Running, dump, eventually

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.mark.parametrize("moment", ["before it runs", "in mid-training"])
def test_a_worker_killed_is_replaced(stack: Running, moment: str):
    name = f"worker-{uuid.uuid4().hex[:6]}"
    stack.submit(name)
    if moment == "in mid-training":
        eventually("the training runs", lambda: stack.runs("train", "RUNNING"))
    engine = stack.caught("gpu-worker")
    worker = stack.pid("gpu-worker")
    os.kill(worker, signal.SIGKILL)
    os.kill(engine, signal.SIGKILL)
    killed = datetime.now().astimezone()
    decision = stack.one_decision(name)
    runs = stack.trainings(decision["key"])
    assert [run["state"]["type"] for run in runs] == ["CRASHED", "COMPLETED"], dump(runs)
    again = time_of(runs[1]["start_time"]) - killed
    print(f"killed {moment}: running again {again.total_seconds():.0f} s later")


def test_a_server_killed_under_a_running_retrain_leaves_no_slot_taken(stack: Running):
    name = f"slot-{uuid.uuid4().hex[:6]}"
    stack.submit(name)
    child = stack.caught("gpu-worker")
    os.kill(stack.pid("prefect"), signal.SIGKILL)
    os.kill(child, signal.SIGCONT)
    stack.one_decision(name)
    stack.no_slot_is_taken()


OUTAGE = 45  # seconds that a server stays away once it is wanted; Settings.patience is 60


def test_mlflow_away_for_a_minute_is_waited_for(stack: Running):
    stack.idle()
    name = f"mlflow-{uuid.uuid4().hex[:6]}"
    store = Store(stack.settings)

    def results() -> int:
        return sum(each.key.endswith("/result.json") for each in store.list("results/"))

    before = results()
    stack.stop("mlflow")
    try:
        stack.submit(name)
        eventually("the training is done and wants to log", lambda: results() > before)
        time.sleep(OUTAGE)
        assert name not in stack.decided()
    finally:
        stack.start("mlflow")
    decision = stack.one_decision(name)
    assert len(stack.trainings(decision["key"])) == 1


def test_git_away_for_a_minute_is_waited_for(stack: Running):
    stack.idle()
    name = f"git-{uuid.uuid4().hex[:6]}"
    origin = stack.folder.with_name("workspace.git")
    gone = origin.with_name("gone.git")
    stack.submit(name)
    eventually("the training runs", lambda: stack.runs("train", "RUNNING"))
    child = stack.caught("gpu-worker")
    shutil.move(origin, gone)
    try:
        os.kill(child, signal.SIGCONT)
        eventually("the retrain wants to push", lambda: not stack.runs("train", "RUNNING"))
        time.sleep(OUTAGE)
    finally:
        shutil.move(gone, origin)
    decision = stack.one_decision(name)
    assert len(stack.trainings(decision["key"])) == 1


def test_ten_batches_at_once_are_few_trainings(stack: Running):
    stack.idle()
    before = len(stack.runs("train"))
    names = [f"burst-{number}-{uuid.uuid4().hex[:6]}" for number in range(10)]
    first = datetime.now().astimezone()
    for name in names:
        stack.submit(name, per_class=4)
    eventually("all are decided", lambda: set(names) <= stack.decided(), within=400)
    print(f"ten batches decided {(datetime.now().astimezone() - first).total_seconds():.0f} s after the first was sent")
    stack.idle()
    assert len(stack.runs("train")) - before <= 3
    assert set(names) <= set(stack.at().state.ingested)


def test_schedule_and_event_do_not_overlap(stack: Running):
    stack.idle()
    seen = {run["id"] for run in stack.runs("retrain")}
    deployment = stack.api("deployments/name/retrain/retrain")
    stack.submit(f"overlap-{uuid.uuid4().hex[:6]}")
    for _ in range(2):
        stack.api(f"deployments/{deployment['id']}/create_flow_run", {"state": {"type": "SCHEDULED"}})
    eventually(
        "three have run", lambda: len([r for r in stack.runs("retrain", "COMPLETED") if r["id"] not in seen]) >= 3
    )
    stack.idle()
    runs = [run for run in stack.runs("retrain") if run["id"] not in seen]
    spans = sorted((time_of(run["start_time"]), time_of(run["end_time"])) for run in runs)
    for (_, end), (start, _) in pairwise(spans):
        assert end <= start, dump(runs)


def test_up_stops_cleanly_and_keeps_its_data(stack: Running):
    """Down, then up: the ports, the data, the history are the same."""
    stack.idle()
    decided, ports = stack.decided(), stack.settings.s3_endpoint
    runs = len(stack.runs("retrain"))
    pids = [stack.pid(name) for name in stack.manager.states()]
    stack.cli("down")
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
    stack.cli("up", "--detach")
    assert stack.settings.s3_endpoint == ports
    assert stack.decided() == decided
    assert len(stack.runs("retrain")) == runs
    name = f"again-{uuid.uuid4().hex[:6]}"
    stack.submit(name)
    stack.one_decision(name)


def test_what_a_killed_supervisor_leaves_is_ended_and_two_ups_are_one_stack(stack: Running):
    stack.idle()
    pids, endpoint = [stack.pid(name) for name in stack.manager.states()], stack.settings.s3_endpoint
    os.kill(int((stack.manager.folder / "supervisord.pid").read_text()), signal.SIGKILL)
    assert stack.manager.states() == {}
    command = [sys.executable, "-m", "ssclass", "up", "--detach"]
    both = [
        subprocess.Popen(command, cwd=stack.folder, env=stack.environment, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    said = sorted(process.communicate(timeout=400)[0] for process in both)
    assert "left running" in said[0]
    assert said[1].startswith("up already")
    assert [process.returncode for process in both] == [0, 0]
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
    assert stack.settings.s3_endpoint == endpoint, "its port was free again"
    assert set(stack.manager.states().values()) == {"RUNNING"}


def test_a_training_that_down_interrupted_runs_again_after_up(stack: Running):
    stack.idle()
    name = f"down-{uuid.uuid4().hex[:6]}"
    stack.submit(name)
    stack.caught("gpu-worker")
    stack.cli("down")
    assert name not in stack.decided()
    stack.cli("up", "--detach")
    stack.one_decision(name)
    stack.no_slot_is_taken()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_everything(stack: Running, number: signal.Signals):
    stack.idle()
    stack.cli("down")
    command = [sys.executable, "-m", "ssclass", "up"]
    process = subprocess.Popen(command, cwd=stack.folder, env=stack.environment, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("Ctrl-C"):
                break
        pids = [stack.pid(name) for name in stack.manager.states()]
        assert len(pids) == 6
        process.send_signal(number)
        assert process.wait(90) == 0
        for pid in pids:
            with pytest.raises(ProcessLookupError):
                os.kill(pid, 0)
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        stack.cli("up", "--detach")


def time_of(text: str) -> datetime:
    return datetime.fromisoformat(text.replace("Z", "+00:00"))


def python_of_anybody() -> tuple[str, str] | None:
    """A Python of our version that another user may run, and the PYTHONPATH that it needs."""
    packages = next(path for path in sys.path if path.endswith("site-packages"))
    system = f"/usr/bin/python{sys.version_info[0]}.{sys.version_info[1]}"
    for python, path in ((sys.executable, str(CHECKOUT)), (system, f"{CHECKOUT}{os.pathsep}{packages}")):
        with contextlib.suppress(OSError):
            command = [python, "-c", "import prefect"]
            environment = {"PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1", "HOME": "/tmp"}
            if subprocess.run(command, env=environment, user=65534, group=65534, capture_output=True).returncode == 0:
                return python, path
    return None


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_a_worker_of_another_user_needs_nothing_of_ours_but_urls(stack: Running):
    """Another uid, HOME and TMPDIR, unable to read the retrain's folders: git by its protocol, the rest by HTTP."""
    found = python_of_anybody()
    if found is None:
        pytest.skip("no Python that another user may run")
    python, path = found
    stack.idle()
    own = Path(tempfile.mkdtemp(prefix="other-user-"))
    weights = own / "home"
    shutil.copytree(home(), weights, ignore=shutil.ignore_patterns("clones", "uv", "pip"))
    (own / "bin").mkdir()
    (own / "bin" / "python").write_text(f'#!/bin/sh\nexec "{python}" "$@"\n')  # an environment's, first in PATH
    (own / "bin" / "python").chmod(0o755)
    subprocess.run(["chown", "-R", "65534:65534", str(own)], check=True)
    origin, port = stack.folder.with_name("workspace.git"), free_port()
    settings = stack.settings
    plan = json.loads((stack.manager.folder / "plan.json").read_text())
    environment = {
        "PATH": f"{own / 'bin'}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": path,
        "PYTHONDONTWRITEBYTECODE": "1",
        "HOME": str(own),
        "TMPDIR": str(own),
        "SSCLASS_HOME": str(weights),
        "SSCLASS_GIT": f"git://127.0.0.1:{port}/workspace.git",
        "SSCLASS_BUCKET": settings.bucket,
        "SSCLASS_S3_ENDPOINT": str(settings.s3_endpoint),
        "SSCLASS_S3_REGION": "us-east-1",
        "SSCLASS_MLFLOW_URI": str(settings.mlflow_uri),
        "PREFECT_API_URL": str(settings.prefect_url),
        "PREFECT_HOME": str(own / "prefect"),
        "AWS_ACCESS_KEY_ID": plan["s3_user"],
        "AWS_SECRET_ACCESS_KEY": plan["s3_password"],
    }
    daemon = ["git", "daemon", "--listen=127.0.0.1", f"--port={port}", "--export-all", f"--base-path={origin.parent}"]
    worker = [
        python,
        "-m",
        "prefect",
        "worker",
        "start",
        "--pool",
        "gpu",
        "--name",
        "other",
        "--type",
        "process",
    ]
    log = own / "worker.log"
    stack.stop("gpu-worker")
    serving = subprocess.Popen([*daemon, str(origin.parent)], stderr=subprocess.DEVNULL)
    with log.open("wb") as output:
        working = subprocess.Popen(
            worker, env=environment, cwd=own, user=65534, group=65534, extra_groups=[], stdout=output, stderr=output
        )
    try:
        assert subprocess.run(["ls", str(stack.folder)], user=65534, group=65534, capture_output=True).returncode != 0
        name = f"other-{uuid.uuid4().hex[:6]}"
        stack.submit(name)
        decision = stack.one_decision(name)
        (run,) = stack.trainings(decision["key"])
        assert run["state"]["type"] == "COMPLETED", log.read_text()
        assert decision["key"][:8] in log.read_text(), "it was this worker"
    finally:
        working.send_signal(signal.SIGINT)
        working.wait(60)
        serving.terminate()
        serving.wait(10)
        stack.start("gpu-worker")
        shutil.rmtree(own, ignore_errors=True)
