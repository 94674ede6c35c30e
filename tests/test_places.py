"""Artifacts are found whoever started what: under `ssclass up`, after `ssclass down`, in a moved or a copied folder."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from ssclass.environment import quiet_libraries
from ssclass.settings import SETTINGS_FILE, Settings
from ssclass.stack.parts import is_well, parts
from ssclass.stack.plan import USER, Plan
from ssclass.tracking.client import Tracking
from ssclass.tracking.places import COLUMNS, settled
from tests.support.running import eventually
from tests.support.shops import empty_mlflow


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    empty_mlflow(path)
    return path


@pytest.fixture
def shop(tmp_path: Path, empty: Path) -> Path:
    """A workspace's folder with an empty MLflow, in a path that addresses must spell otherwise."""
    folder = tmp_path / "my shop, №1"
    (folder / ".ssclass" / "mlflow").mkdir(parents=True)
    (folder / SETTINGS_FILE).touch()
    shutil.copy(empty, folder / ".ssclass" / "mlflow" / "mlflow.db")
    for command in (("init", "-q"), ("commit", "-q", "--allow-empty", "-m", "Start")):
        identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
        subprocess.run(["git", *identity, "-C", str(folder), *command], check=True)
    return folder


@contextmanager
def served(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Settings]:
    """The workspace's MLflow as `ssclass up` runs it, guard and all; the settings of its clients."""
    plan = Plan.of(folder / ".ssclass" / "stack")
    settings = Settings(workspace=folder, mlflow_uri=plan.url("mlflow"))
    monkeypatch.setattr("ssclass.stack.parts.brought", lambda settings: {"s3": "-", "prefect": "-"})
    monkeypatch.setattr("ssclass.workspace.origin.Origin", lambda settings: type("O", (), {"url": "-"}))
    (part,) = (each for each in parts(settings, plan, folder / ".ssclass" / "stack") if each.name == "mlflow")
    log = folder / "mlflow.log"
    with log.open("w") as out:
        process = subprocess.Popen(part.command, env={**os.environ, **part.environment}, stdout=out, stderr=out)
    try:
        eventually("MLflow answers", lambda: process.poll() is not None or is_well(part), within=120)
        assert process.poll() is None, log.read_text()
        with pytest.MonkeyPatch.context() as login:
            login.setenv("MLFLOW_TRACKING_USERNAME", USER)
            login.setenv("MLFLOW_TRACKING_PASSWORD", plan.mlflow_password)
            yield settings
    finally:
        process.terminate()
        process.wait(60)


def local(folder: Path) -> Settings:
    """The settings of a command while nothing is up."""
    settings = Settings(workspace=folder)
    quiet_libraries(settings)
    return settings


def write(settings: Settings, said: str, folder: Path) -> str:
    """A run with a card and a registered model, whose one file says `said`; its id."""
    tracking = Tracking(settings)
    with tracking.named():
        run = tracking.client.create_run(tracking.experiment_id)
        tracking.client.log_text(run.info.run_id, said, "decision.md")
        model = tracking.client.create_logged_model(tracking.experiment_id, "model", run.info.run_id)
        (folder / "about").mkdir(exist_ok=True)
        (folder / "about" / "MLmodel").write_text(said)
        tracking.client.log_model_artifacts(model.model_id, str(folder / "about"))
        tracking.client.finalize_logged_model(model.model_id, "READY")
        tracking._ensure_registered(tracking.name, "")
        made = tracking.client.create_model_version(
            tracking.name, f"models:/{model.model_id}", run_id=run.info.run_id, model_id=model.model_id
        )
        tracking.client.set_registered_model_alias(tracking.name, "champion", made.version)
    return str(run.info.run_id)


def read(settings: Settings, run_id: str) -> tuple[str, str]:
    """What the card of a run and the champion's model say, through MLflow's own ways."""
    import mlflow

    tracking = Tracking(settings)
    with tracking.named():
        card = Path(tracking.client.download_artifacts(run_id, "decision.md")).read_text()
        champion = tracking.client.get_model_version_by_alias(tracking.name, "champion")
        return card, (Path(mlflow.artifacts.download_artifacts(champion.source)) / "MLmodel").read_text()


def test_what_was_written_up_or_down_is_found_up_and_down_and_elsewhere(
    shop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    before = write(local(shop), "down", tmp_path)
    moved = shop.rename(tmp_path / "moved")
    with served(moved, monkeypatch) as settings:
        assert read(settings, before) == ("down", "down"), "a server finds what was written without it, elsewhere"
        another = settings.model_copy(update={"model_name": "another"})  # whose experiment the server makes
        run = write(another, "up", tmp_path)
        assert read(another, run) == ("up", "up")
    again = moved.rename(tmp_path / "again")
    settings = local(again)
    assert read(settings, before) == ("down", "down")
    assert read(settings.model_copy(update={"model_name": "another"}), run) == ("up", "up"), "after `ssclass down`"


def test_a_copy_reads_its_own_and_leaves_the_original_alone(shop: Path, tmp_path: Path):
    run = write(local(shop), "original", tmp_path)
    copy = tmp_path / "copy"
    shutil.copytree(shop, copy)
    for path in [*copy.rglob("decision.md"), *copy.rglob("MLmodel")]:
        path.write_text("copy")
    assert read(local(copy), run) == ("copy", "copy")
    assert read(local(shop), run) == ("original", "original")
    shutil.rmtree(shop)
    assert read(local(copy), run) == ("copy", "copy"), "nothing of it refers to the original"


def test_a_settled_database_is_only_read(shop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    import sqlite3

    write(local(shop), "here", tmp_path)
    database = shop / ".ssclass" / "mlflow" / "mlflow.db"
    writer = sqlite3.connect(database)
    writer.execute("begin immediate")  # somebody else writes: a command that only looks need not wait
    try:
        from ssclass.tracking.places import settle

        settle(local(shop))
    finally:
        writer.close()
    for table, column in COLUMNS:
        opened = sqlite3.connect(database)
        assert opened.execute(f"select {column} from {table}").fetchall(), "this MLflow has it"
        opened.close()


@pytest.mark.parametrize(
    ("address", "now"),
    [
        ("mlflow-artifacts:/1/ab/artifacts", "file:///n/.ssclass/mlflow/artifacts/1/ab/artifacts"),
        ("mlflow-artifacts:/", "file:///n/.ssclass/mlflow/artifacts"),
        ("file:///a%20b/.ssclass/mlflow/artifacts", "file:///n/.ssclass/mlflow/artifacts"),
        ("file:///a/.ssclass/mlflow/artifacts/1", "file:///n/.ssclass/mlflow/artifacts/1"),
        ("file:///n/.ssclass/mlflow/artifacts/1", "file:///n/.ssclass/mlflow/artifacts/1"),
        ("s3://bucket/.ssclass/mlflow/artifacts/1", None),
        ("file:///a/.ssclass/mlflow/artifacts-of-mine/1", None),
        ("file:///elsewhere/1", None),
        ("models:/m-1", None),
        ("", None),
    ],
)
def test_an_address_of_our_folder_is_of_where_it_is_now(address: str, now: Any):
    assert settled(address, "file:///n/.ssclass/mlflow/artifacts") == (address if now is None else now)
