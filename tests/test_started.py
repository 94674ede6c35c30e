"""A server of the workspace's own stack that does not answer is said to be so, at once, with the command that helps."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from ssclass.environment import free_port
from ssclass.errors import FailedError, ParamsError, StoreError, TrackingError
from ssclass.settings import SETTINGS_FILE, STARTED_FILE, Settings, load_settings
from ssclass.stack.storage import storage
from ssclass.started import check_started, command
from ssclass.store import Store
from ssclass.tracking.client import Tracking
from tests.support.pipelines import Command


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A workspace whose stack was up once, and is not now."""
    folder = tmp_path / "a shop"
    (folder / ".ssclass").mkdir(parents=True)
    (folder / SETTINGS_FILE).touch()
    at = f"http://127.0.0.1:{free_port()}"
    started = {"s3_endpoint": at, "s3_region": "us-east-1", "mlflow_uri": at, "prefect_url": f"{at}/api"}
    (folder / STARTED_FILE).write_text("".join(f"{name} = {json.dumps(value)}\n" for name, value in started.items()))
    return folder


def test_each_server_of_ours_is_told_with_the_command(folder: Path, monkeypatch: pytest.MonkeyPatch):
    settings = load_settings(folder)
    with pytest.raises(StoreError, match=r"the stack is not running .*`ssclass up --workspace .*a shop'`"):
        list(Store(settings).list("incoming/"))
    with pytest.raises(TrackingError, match=r"MLflow: the stack is not running .*`ssclass up"):
        Tracking(settings).alias()
    with pytest.raises(FailedError, match="S3 does not answer"):
        check_started(settings)
    monkeypatch.chdir(folder)
    assert command(settings, "up") == "ssclass up"
    monkeypatch.chdir(folder.parent)
    assert command(settings, "up") == "ssclass up --workspace 'a shop'"


def test_a_server_of_others_is_not_taken_for_ours(folder: Path):
    settings = load_settings(folder).model_copy(update={"s3_endpoint": f"http://127.0.0.1:{free_port()}"})
    with pytest.raises(StoreError, match="check s3_endpoint"):
        list(Store(settings).list("incoming/"))


def test_a_part_that_is_being_started_again_is_waited_for(folder: Path):
    """While the stack's supervisor runs, a server that does not answer is no reason to stop at once."""
    (folder / ".ssclass" / "stack").mkdir()
    (folder / ".ssclass" / "stack" / "supervisord.pid").write_text(str(os.getpid()))
    check_started(load_settings(folder))
    with pytest.raises(StoreError, match=r"S3 of this workspace's stack does not answer .*s3\.log"):
        list(Store(load_settings(folder)).list("incoming/"))


def test_where_no_s3_is_named_up_is(folder: Path, monkeypatch: pytest.MonkeyPatch):
    """After `ssclass init`, without AWS."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    (folder / STARTED_FILE).unlink()
    settings = load_settings(folder)
    with pytest.raises(StoreError, match=r"no S3 is running or named; `ssclass up .*starts one on this machine"):
        list(Store(settings).list("incoming/"))
    named = settings.model_copy(update={"s3_region": "eu-central-1"})
    with pytest.raises(StoreError, match="Unable to locate credentials"):
        list(Store(named).list("incoming/"))
    from ssclass.cli.stack import needs_prefect

    with pytest.raises(ParamsError, match="no Prefect server is running or named; `ssclass up"):
        needs_prefect(settings)


@pytest.mark.parametrize("arguments", ["retrain", "submit {photos}", "status"])
def test_commands_say_it(ssclass: Command, tmp_path: Path, drawings: Path, arguments: str):
    workspace = tmp_path / "shop"
    assert ssclass("init", str(workspace)).returncode == 0
    (workspace / STARTED_FILE).parent.mkdir(exist_ok=True)
    (workspace / STARTED_FILE).write_text(f's3_endpoint = "http://127.0.0.1:{free_port()}"\ns3_region = "x"\n')
    done = ssclass(*arguments.format(photos=drawings).split(), cwd=workspace)
    said = done.stdout + done.stderr
    assert "the stack is not running (S3 does not answer at" in said, said
    assert "`ssclass up`" in said
    assert done.returncode == (0 if arguments == "status" else 1)


def test_storage_is_what_up_goes_on_with(tmp_path: Path):
    """What was put there by the demo is there the next time, under the same secrets, also in another folder."""
    folder = tmp_path / "shop"
    folder.mkdir()
    (folder / SETTINGS_FILE).touch()
    with storage(Settings(workspace=folder)) as settings:
        Store(settings).put("incoming/day-1/manifest.json", b"{}")
    with pytest.raises(StoreError, match="the stack is not running"):
        Store(load_settings(folder)).get("incoming/day-1/manifest.json")
    moved = Path(shutil.move(folder, tmp_path / "moved"))
    with storage(Settings(workspace=moved)) as settings:
        assert Store(settings).get("incoming/day-1/manifest.json") == b"{}"
    left = subprocess.run(["ps", "-eo", "args="], capture_output=True, text=True, check=True).stdout
    assert str(tmp_path) not in left


def test_why_the_last_retrain_failed_is_told():
    """As an uncommitted params.yaml stops the daily one."""
    from ssclass.stack.health import _brief, lines

    said = "Flow run encountered an exception: WorkspaceError: shop: params.yaml has uncommitted changes; commit them"
    run = {"state": {"type": "FAILED", "name": "Failed", "message": said}, "start_time": "2026-11-28T02:30:00+00:00"}
    last = _brief(run)
    assert last["why"] == "shop: params.yaml has uncommitted changes; commit them"
    told = lines({"parts": {}, "workers": {}, "last": last, "next": None})
    assert told[0].startswith("retrains   last failed, 2026-11-28 02:30 UTC")
    assert "it failed: shop: params.yaml has uncommitted changes" in told[1]
    run["state"] = {"type": "COMPLETED", "name": "REJECTED", "message": "candidate 1/2, champion 1/2"}
    assert _brief(run)["why"] is None
