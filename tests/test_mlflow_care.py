"""What people do with MLflow's and DVC's own commands, and what a workspace needs then: docs/howto.md."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from ssclass.environment import free_port
from ssclass.errors import TrackingError
from ssclass.tracking.client import MODEL, Tracking
from ssclass.upkeep.rebuild import rebuild
from ssclass.upkeep.verify import verify
from ssclass.workspace.workspace import Workspace
from tests.support.browsing import in_a_thread
from tests.support.shops import Shop, open_shop


@pytest.fixture(scope="module")
def shop(s3_endpoint, tmp_path_factory) -> Iterator[Shop]:
    """A shop with a champion, and a candidate that was rejected."""
    with open_shop(tmp_path_factory.mktemp("care"), s3_endpoint, 40) as shop:
        shop.first(train=20)
        assert shop.retrain().decision == "PROMOTED"
        shop.send("second", 1)
        assert shop.retrain().decision == "REJECTED"
        yield shop


def mlflow(*arguments: str) -> None:
    """One of MLflow's own commands."""
    done = subprocess.run(
        [sys.executable, "-m", "mlflow", *arguments],
        env={**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


def wrong(workspace: Workspace) -> set[str]:
    return {finding.thing for finding in verify(Workspace(workspace.settings))}


def test_runs_that_mlflow_gc_purged_are_made_again_from_the_ledger(shop):
    """Somebody threw runs away that the ledger names, and MLflow purged them with their models."""
    client = shop.tracking.client
    for event in shop.state.decisions.values():
        client.delete_run(event.body["run_id"])
    uri = shop.workspace.settings.tracking_uri
    mlflow("gc", "--backend-store-uri", uri, "--tracking-uri", uri)
    names = {f"run/{key}" for key in shop.state.decisions}
    assert names <= wrong(shop.workspace)
    anew = Workspace(shop.workspace.settings)
    list(verify(anew, repair=True))
    assert wrong(shop.workspace) == set()
    assert shop.retrain().decision == "SKIPPED"
    assert list(shop.versions().values()) == shop.state.champions
    for event in shop.state.decisions.values():
        assert MODEL in shop.tracking.models_of(shop.tracking.run_of(event)), "champion and challenger, whole"


def test_a_database_of_an_older_mlflow_is_named_with_its_remedy_which_helps(shop, tmp_path):
    from alembic import command
    from alembic.script import ScriptDirectory
    from mlflow.store.db.utils import _get_alembic_config
    from mlflow.store.tracking.dbmodels.initial_models import Base as InitialBase
    from sqlalchemy import create_engine

    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    config = _get_alembic_config(uri)
    newest = ScriptDirectory.from_config(config).get_current_head()
    before = ScriptDirectory.from_config(config).get_revision(newest).down_revision
    InitialBase.metadata.create_all(create_engine(uri))
    command.upgrade(config, before)
    mlflow("db", "upgrade", uri)
    anew = Workspace(shop.workspace.settings.model_copy(update={"mlflow_uri": uri}))
    rebuild(anew)
    assert wrong(anew) == set()
    shutil.copy(tmp_path / "mlflow.db", tmp_path / "old.db")
    with closing(sqlite3.connect(tmp_path / "old.db")) as database, database:
        database.execute("UPDATE alembic_version SET version_num = ?", (before,))
    old = anew.settings.model_copy(update={"mlflow_uri": f"sqlite:///{tmp_path / 'old.db'}"})
    with pytest.raises(TrackingError, match="mlflow db upgrade"):
        rebuild(Workspace(old))


def test_dvc_gets_the_model_of_any_decision_by_its_name(shop, tmp_path):
    name = ["-c", "user.name=p", "-c", "user.email=p@example.org"]
    for number, key in enumerate(shop.state.decisions, 1):
        tag = ["tag", "-a", f"classifier@v{number}.0.0", f"run/{key}", "-m", "for whoever uses DVC's registry"]
        subprocess.run(["git", "-C", str(shop.workspace.root), *name, *tag], check=True)
        command = [sys.executable, "-m", "dvc", "artifacts", "get", str(shop.workspace.root), "classifier"]
        command += ["--rev", f"v{number}.0.0", "--out", str(tmp_path / key)]
        done = subprocess.run(command, cwd=tmp_path, env={**os.environ, "DVC_NO_ANALYTICS": "1"}, capture_output=True)
        assert done.returncode == 0, done.stderr.decode()
        with shop.workspace.decided(key).open("candidate/classifier.json") as ours:
            assert ours.read() == (tmp_path / key / "classifier.json").read_bytes()


@contextmanager
def serving(folder: Path, allowed: str, port: int) -> Iterator[str]:
    """MLflow's own server, as `mlflow server --allowed-hosts` has it."""
    from mlflow.server import app, handlers  # before it hears of names: its inner application knows loopback
    from mlflow.server.fastapi_app import create_fastapi_app

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_SERVER_ALLOWED_HOSTS", allowed)
        patch.setattr(handlers, "_tracking_store", None)
        patch.setattr(handlers, "_model_registry_store", None)
        uri = f"sqlite:///{folder / 'mlflow.db'}"
        handlers.initialize_backend_stores(uri, uri, str(folder / "artifacts"))
        with in_a_thread(create_fastapi_app(app), port):
            yield f"http://127.0.0.1:{port}"


def test_a_server_that_does_not_know_its_name_says_which_option_helps(shop):
    port = free_port()

    def ask(address: str) -> list[object]:
        tracking = Tracking(shop.workspace.settings.model_copy(update={"mlflow_uri": address}))
        with tracking.named():
            return list(tracking.client.search_experiments(filter_string="name = 'ssclass'"))

    with serving(shop.folder, "mlflow.example.org", port) as address, pytest.raises(TrackingError) as told:
        ask(address)
    assert f"--allowed-hosts 127.0.0.1:{port}" in str(told.value)
    with serving(shop.folder, f"mlflow.example.org,127.0.0.1:{port}", port) as address:
        assert len(ask(address)) == 1
