"""A retrain with nothing new: it says SKIPPED without what takes seconds to import, and only when that is so."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ssclass.settings import CHECKOUT
from ssclass.tracking.client import ALIAS, DECISION_TAG, KEY_TAG, Tracking
from ssclass.tracking.glance import Seen, glance
from ssclass.upkeep.decisions import append, roll_back
from ssclass.upkeep.forget import forget
from ssclass.upkeep.settled import look
from ssclass.workspace.workspace import Workspace
from tests.support.shops import Shop, open_shop

HEAVY = ("prefect", "mlflow", "tensorflow", "keras", "dvc", "flows", "tasks")


@pytest.fixture(scope="module")
def shop(s3_endpoint, tmp_path_factory) -> Iterator[Shop]:
    """A shop with two champions and a candidate that was rejected, all told."""
    with open_shop(tmp_path_factory.mktemp("settled"), s3_endpoint, 60) as shop:
        said = look(with_settings(shop, mlflow_uri="http://127.0.0.1:9"))
        assert said is not None
        assert (said.decision, said.version) == ("SKIPPED", None), "before the first decision MLflow is not asked"
        shop.two_champions_and_a_rejected()
        yield shop


class Told:
    """A copy of the shop's MLflow, which a test may change, in its file and behind its own REST server."""

    def __init__(self, shop: Shop, folder: Path, server: str) -> None:
        uri = f"sqlite:///{folder / 'mlflow.db'}"
        self.places = [Workspace(with_settings(shop, mlflow_uri=where)) for where in (uri, server)]
        self.tracking = Tracking(self.places[0].settings)
        self.client = self.tracking.client
        self.state = shop.workspace.at().state

    def seen(self) -> list[Seen | None]:
        return [glance(place, self.state) for place in self.places]


@pytest.fixture
def told(shop, tmp_path) -> Iterator[Told]:
    from mlflow.server import app, handlers
    from werkzeug.serving import make_server

    shutil.copy(shop.folder / "mlflow.db", tmp_path / "mlflow.db")
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(handlers, "_tracking_store", None)
        patch.setattr(handlers, "_model_registry_store", None)
        handlers.initialize_backend_stores(uri, uri, str(tmp_path / "artifacts"))
        server = make_server("127.0.0.1", 0, app, threaded=True)
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield Told(shop, tmp_path, f"http://127.0.0.1:{server.server_port}")
        server.shutdown()
        thread.join()


def with_settings(shop: Shop, **settings: Any) -> Any:
    return shop.workspace.settings.model_copy(update=settings)


def test_with_nothing_new_it_says_what_the_flow_says_and_imports_nothing_heavy(shop):
    said = look(shop.workspace.settings)
    assert said is not None
    assert said.as_dict() == shop.retrain().as_dict()
    assert (said.decision, said.version) == ("SKIPPED", "2")

    program = (
        "import sys; from ssclass.cli import cli; cli.main(sys.argv[1:], standalone_mode=False); "
        f"print([name for name in {HEAVY} if name in sys.modules])"
    )
    for arguments, wanted in ((["--json"], None), ([], "SKIPPED: nothing new to learn from")):
        command = [sys.executable, "-c", program, "retrain", "--workspace", str(shop.workspace.root), *arguments]
        done = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        text, _, imported = done.stdout.strip().rpartition("\n")
        assert imported == "[]"
        assert text == wanted if wanted else json.loads(text) == {**said.as_dict(), "batches": []}


@pytest.mark.parametrize("away", [{"mlflow_uri": "http://127.0.0.1:9"}, {"s3_endpoint": "http://127.0.0.1:9"}])
def test_where_a_service_is_away_the_retrain_is_the_one_to_say_so(shop, away):
    assert look(with_settings(shop, **away)) is None


# -- what MLflow says, by its file and by its server --------------------------------------------------------


def newest(told: Told) -> str:
    """The run of the newest decision."""
    return str(next(reversed(told.state.decisions.values())).body["run_id"])


def move_alias(told: Told) -> None:
    told.client.set_registered_model_alias("ssclass", ALIAS, "1")


def drop_alias(told: Told) -> None:
    told.client.delete_registered_model_alias("ssclass", ALIAS)


def delete_version(told: Told) -> None:
    told.client.delete_model_version("ssclass", "1")


def untag_version(told: Told) -> None:
    told.client.delete_model_version_tag("ssclass", "2", KEY_TAG)


def delete_model(told: Told) -> None:
    told.client.delete_registered_model("ssclass")


def open_again(told: Told) -> None:
    """An earlier decision is not concluded: its run is as it was before."""
    first = next(iter(told.state.decisions.values()))
    told.client.update_run(first.body["run_id"], status="RUNNING")
    told.client.delete_tag(first.body["run_id"], DECISION_TAG)


def not_concluded(told: Told) -> None:
    told.client.delete_tag(newest(told), DECISION_TAG)


def throw_away(told: Told) -> None:
    told.client.delete_run(newest(told))


def delete_experiment(told: Told) -> None:
    told.client.delete_experiment(told.client.get_experiment_by_name("ssclass").experiment_id)


def give_to_another(told: Told) -> None:
    experiment = told.client.get_experiment_by_name("ssclass").experiment_id
    told.client.set_experiment_tag(experiment, "ssclass.workspace", "0" * 16)


CHANGES = (
    move_alias,
    drop_alias,
    delete_version,
    untag_version,
    delete_model,
    open_again,
    not_concluded,
    throw_away,
    delete_experiment,
    give_to_another,
)


@pytest.mark.parametrize("change", CHANGES)
def test_what_mlflow_says_otherwise_is_seen_in_its_file_and_by_its_server(told, change: Callable[[Told], None]):
    version = str(told.state.number_of(told.state.champion))
    assert told.seen() == [Seen(version)] * 2
    told.tracking.open_run("0" * 16, "another clone")
    assert told.seen() == [Seen(version)] * 2, "a run of another that is under way is no reason to wait"
    change(told)
    assert told.seen() == [None, None]


def test_a_database_or_a_login_that_it_does_not_know_is_left_to_mlflow(told, tmp_path, monkeypatch):
    (tmp_path / "empty.db").touch()
    settings = told.places[0].settings
    for uri in (f"sqlite:///{tmp_path}/empty.db", f"sqlite:///{tmp_path}/none.db", "postgresql://127.0.0.1:9/mlflow"):
        assert glance(Workspace(settings.model_copy(update={"mlflow_uri": uri})), told.state) is None
    assert not (tmp_path / "none.db").exists()
    monkeypatch.setenv("MLFLOW_TRACKING_AWS_SIGV4", "true")
    assert told.seen()[1] is None


# -- what a retrain would do: last, as it changes the shop -----------------------------------------------------


def send(shop: Shop) -> None:
    shop.send("fourth")


def send_again(shop: Shop) -> None:
    shop.mark("second", photos=[], remove=[next(iter(shop.sent["second"]))])


def ask_anew(shop: Shop) -> None:
    shop.set(min_net_wins=2)


def go_back(shop: Shop) -> None:
    """The command is killed after its push: the alias is as it was."""
    roll_back(shop.workspace, 1)
    shop.tracking.set_alias("2")


def go_on(shop: Shop) -> None:
    append(shop.workspace, "unfreeze", "Unfreeze")


def test_what_is_to_be_done_is_left_to_the_retrain_and_then_nothing_is(shop):
    """The whole way: each change is seen, and once the flow has done what it asks for, it says SKIPPED as the flow."""
    for change in (send, send_again, ask_anew, go_back, go_on):
        change(shop)
        there = look(shop.workspace.settings)
        if change is not go_on:
            assert there is None, change.__name__
        shop.retrain()
        said = look(shop.workspace.settings)
        assert said is not None, change.__name__
        assert said.as_dict() == shop.retrain().as_dict()

    shop.workspace.git("config", "user.name", "a person")
    (shop.workspace.root / "ledger.jsonl").write_text("by hand\n")
    assert look(shop.workspace.settings) is None
    shop.workspace.git("checkout", "ledger.jsonl")
    forget(shop.workspace, [next(iter(shop.sent["third"]))], "by request")
    shop.retrain()
    assert look(shop.workspace.settings) is None, "it is young: what others write back goes with the next retrain"
