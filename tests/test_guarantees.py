"""Nothing lost, nothing counted twice, nobody let in: each fault that was seen, by kind, on a fake head.

Everything but the model is real: git, DVC, S3, MLflow, and the product's own flow and tasks (tests/support/fake_head).
"""

from __future__ import annotations

import hashlib
import itertools
import json
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ssclass.errors import FailedError, InputError, NotFoundError, TrackingError, WorkspaceError
from ssclass.pages.report import report
from ssclass.retrain import ingest as ingesting
from ssclass.retrain import results
from ssclass.retrain.ingest import sent_again, waiting
from ssclass.settings import load_settings
from ssclass.tracking import publish
from ssclass.tracking.client import DECISION_TAG, MODEL, Tracking
from ssclass.upkeep import decisions
from ssclass.upkeep.decisions import admit, append, drop, freeze, revoke, roll_back
from ssclass.upkeep.verify.history import expected_tags, tags
from ssclass.workspace.git import Git
from ssclass.workspace.ledger import (
    ADMITTED,
    DROPPED,
    HELD_BATCH,
    INGESTED,
    PROMOTED,
    REJECTED,
    REVOKED,
    SKIPPED,
    WAITING,
)
from ssclass.workspace.workspace import Workspace
from tests.support.fake_head import patch_model, retrain_flow
from tests.support.pipelines import CLASSES
from tests.support.shops import Shop, empty_mlflow, pictures

PATIENCE = 2  # seconds: each task is tried twice


@pytest.fixture(scope="module")
def drawn(tmp_path_factory) -> list[bytes]:
    return pictures(tmp_path_factory.mktemp("pictures"), 120)


@pytest.fixture(scope="module")
def mlflow(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    empty_mlflow(path)
    return path


@pytest.fixture
def make_shop(s3_endpoint, drawn, mlflow, tmp_path, monkeypatch) -> Callable[..., Shop]:
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    monkeypatch.setenv("SSCLASS_PATIENCE", str(PATIENCE))
    patch_model(monkeypatch.setattr)
    numbers = itertools.count()

    def make(**settings: Any) -> Shop:
        return Shop.make(tmp_path / f"shop-{next(numbers)}", s3_endpoint, drawn, retrain_flow(), mlflow, **settings)

    return make


@pytest.fixture
def shop(make_shop) -> Shop:
    return make_shop()


@contextmanager
def failing(
    owner: Any, name: str, error: Callable[[], Any], times: int = 1, when: Callable[..., bool] = lambda *a: True
):
    """For the first `times` calls that `when` says yes to, raise (or return) what `error` makes, instead."""
    real, count = getattr(owner, name), itertools.count(1)

    def call(*args: Any, **named: Any) -> Any:
        if when(*args) and next(count) <= times:
            made = error()
            if isinstance(made, BaseException):
                raise made
            return made
        return real(*args, **named)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, name, call)
        yield


class Killed(BaseException):
    """What nothing catches, as nothing catches a kill."""


def git_says(*words: str) -> Callable[..., bool]:
    """Whether a call of Git.run is of this command."""
    return lambda git, *args: args[0] == words[0] and all(any(word in arg for arg in args) for word in words[1:])


def broken(returncode: int = 128, stderr: str = "fatal: unable to write new index file") -> Any:
    return subprocess.CompletedProcess([], returncode, "", stderr)


# -- A. a step that fails half done is not built upon ---------------------------------------------------------


@pytest.mark.parametrize("times", [1, 2])
def test_dvc_push_fails_and_no_photo_is_lost(shop: Shop, times: int):
    """A1: the retry found its own shard, called every photo a duplicate, and replaced the shard by an empty one."""
    from dvc.data_cloud import DataCloud
    from dvc.exceptions import UploadError

    photos = shop.first()
    with failing(DataCloud, "push", lambda: UploadError(1), times):
        try:
            shop.retrain()
        except FailedError:
            assert times > 1
    shop.retrain()
    (ingest,) = shop.lines("ingest")
    assert (ingest["receipt"]["accepted"], ingest["receipt"]["duplicates"]) == (20, 0)
    assert shop.labels() == shop.sent["first"]
    assert {row.sha256 for row in shop.workspace.at("data/1").dataset.rows} == set(photos)
    assert len(shop.state.decisions) == 1


def test_dvc_push_fails_and_no_correction_is_lost(shop: Shop):
    from dvc.data_cloud import DataCloud
    from dvc.exceptions import UploadError

    photos = shop.first()
    shop.retrain()
    wrong = photos[-1]
    label = next(name for name in CLASSES if name != shop.labels()[wrong])
    shop.mark("fix", relabel=[{"sha256": wrong, "label": label}], remove=[{"sha256": photos[-2]}])
    with failing(DataCloud, "push", lambda: UploadError(1)):
        shop.retrain()
    assert shop.labels()[wrong] == label
    assert photos[-2] not in shop.labels()
    assert [event["receipt"]["relabelled"] for event in shop.lines("ingest")] == [0, 1]


@pytest.mark.parametrize("which", ["Ingest", "PROMOTED"])
def test_git_commit_fails_and_nothing_is_written_twice(shop: Shop, which: str):
    """A2: the ledger had the line already, and the retry appended a second."""
    shop.first()
    with failing(Git, "run", broken, when=git_says("commit", which)):
        assert shop.retrain().decision == PROMOTED
    assert [event.kind for event in shop.workspace.newest().events] == ["ingest", "decision"]
    assert shop.labels() == shop.sent["first"]
    assert shop.workspace.git("status", "--porcelain") == ""


def test_an_editor_that_holds_the_index_is_waited_for_or_named(shop: Shop):
    shop.first()
    lock = shop.workspace.root / ".git" / "index.lock"
    lock.touch()
    with pytest.raises(FailedError, match=r"index\.lock"):
        shop.retrain()
    assert lock.exists(), "it is the editor's"
    lock.unlink()
    assert shop.retrain().decision == PROMOTED
    assert [event.kind for event in shop.workspace.newest().events] == ["ingest", "decision"]


def test_killed_after_the_push_and_a_new_batch_before_the_next_run(shop: Shop):
    """A3: only the newest decision was concluded, and the promoted run stayed RUNNING for ever."""
    shop.first()
    with failing(publish, "reconcile", Killed), pytest.raises(Killed):
        shop.retrain()
    (first,) = shop.state.decisions
    assert DECISION_TAG not in shop.run(first).data.tags
    shop.send("second")
    assert shop.retrain().decision == PROMOTED
    for key in shop.state.decisions:
        run = shop.run(key)
        assert (run.info.status, run.data.tags[DECISION_TAG]) == ("FINISHED", PROMOTED)
    assert list(shop.versions().values()) == shop.state.champions
    assert shop.tracking.alias() == "2"


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("call", ["reason", "mlflow.note.content", DECISION_TAG, "end"])
def test_killed_while_a_decision_is_put_on_its_run_and_a_new_batch_before_the_next_run(
    shop: Shop, call: str, after: bool
):
    """Whatever of it was done: a run that ended without its decision was never looked at again."""
    from mlflow import MlflowClient

    shop.first()
    name = "set_terminated" if call == "end" else "set_tag"
    real = getattr(MlflowClient, name)

    def kill(client: Any, *args: Any, **named: Any) -> Any:
        ours = call == "end" or args[1] == call
        if ours and not after:
            raise Killed
        made = real(client, *args, **named)
        if ours:
            raise Killed
        return made

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MlflowClient, name, kill)
        with pytest.raises(Killed):
            shop.retrain()
    assert len(shop.state.decisions) == 1
    shop.send("second")
    assert shop.retrain().decision == PROMOTED
    for key in shop.state.decisions:
        run = shop.run(key)
        assert (run.info.status, run.data.tags[DECISION_TAG]) == ("FINISHED", PROMOTED)
        assert "mlflow.note.content" in run.data.tags
    assert len(shop.tracking.all_runs()) == 2


def test_what_a_killed_process_had_on_its_way_is_swept_away(shop: Shop):
    """Photos of a batch that was being taken in lay in the workspace for ever, out of reach of `forget`."""
    import os

    from ssclass.environment import temporary_folder
    from ssclass.retrain import ingest

    shop.first()
    killed = subprocess.Popen(["true"])
    killed.wait()
    with temporary_folder(shop.workspace.settings) as ours, meanwhile(ingest, "check", lambda: None):
        theirs = ours.with_name(f"{killed.pid}-left")
        theirs.mkdir()
        (theirs / "photo.jpg").write_bytes(b"a dish")
        shop.retrain()
        assert ours.exists()
        assert not theirs.exists()
    assert list((shop.workspace.private / "tmp").iterdir()) == []
    assert int(ours.name.split("-")[0]) == os.getpid()


# -- B. what may be another's is not cleared away ---------------------------------------------------------------


@contextmanager
def meanwhile(owner: Any, name: str, act: Callable[[], Any], after: bool = True) -> Iterator[list[Any]]:
    """Around the first call of a function, as if its process were stopped there: `act`, on another machine."""
    real, came = getattr(owner, name), []

    def call(*args: Any, **named: Any) -> Any:
        first = not came
        if first and not after:
            came.append(None)
            came[0] = act()
        found = real(*args, **named)
        if first and after:
            came.append(None)
            came[0] = act()
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, name, call)
        yield came
    assert came, f"{name} was never called"


def all_is_told(shop: Shop) -> None:
    """Every decision's run is there and finished, every champion registered once, the alias on the one in force."""
    state = shop.state
    for key, event in state.decisions.items():
        run = shop.run(key)
        assert run.info.lifecycle_stage == "active"
        assert run.info.status == "FINISHED"
        assert run.data.tags[DECISION_TAG] == event.body["decision"]
    versions = shop.versions()
    assert sorted(versions.values()) == sorted(set(state.champions))
    assert versions.get(shop.tracking.alias() or "") == state.champion


def test_a_batch_that_another_machine_takes_in_meanwhile_is_taken_once(shop: Shop):
    """The loser of that race found its own photos there already; or called the id in use, and the batch held."""
    from ssclass.retrain import ingest

    other = shop.clone()
    shop.first()
    with meanwhile(ingest, "check", lambda: shop.retrain(other)):
        outcome = shop.retrain()
    assert [(each.outcome, each.accepted) for each in outcome.batches] == [("INGESTED", 20)]
    assert [event.kind for event in shop.workspace.newest().events] == ["ingest", "decision"]
    assert shop.labels() == shop.sent["first"]


def test_the_side_of_a_group_is_for_ever():
    """Each photo's side is told by a hash of its group: another hash would move held-out photos into training."""
    from ssclass.data.split import side_of

    names = [f"{number:064x}" for number in range(12)]
    sides = "".join(side_of(name, 0.5)[0] for name in names)
    assert sides == "hththhhttttt"


@pytest.mark.parametrize("registers", [True, False])
def test_stopped_after_run_json_while_another_adopts_that_run(shop: Shop, registers: bool):
    """B4: resumed, the first said SKIPPED and put the champion's MLflow run in the trash."""
    other = shop.clone()
    shop.first()

    def act() -> Any:
        if registers:
            return shop.retrain(other)
        with failing(publish, "reconcile", Killed), pytest.raises(Killed):
            shop.retrain(other)
        return None

    with meanwhile(results, "note_run", act):
        shop.retrain()
    assert len(shop.state.decisions) == 1
    all_is_told(shop)
    shop.send("second")
    assert shop.retrain().decision == PROMOTED
    all_is_told(shop)


def test_stopped_with_a_run_open_while_another_retrains(shop: Shop):
    """B4: opening a run discarded the run in progress of another machine."""
    other = shop.clone()
    shop.first()
    with meanwhile(Tracking, "open_run", lambda: shop.retrain(other)):
        shop.retrain()
    assert len(shop.state.decisions) == 1
    all_is_told(shop)


def test_another_machines_open_run_is_left_alone(shop: Shop):
    theirs = shop.tracking.open_run("0123456789abcdef", "another clone")
    ours = shop.tracking.open_run("0123456789abcdef", "this clone")
    again = shop.tracking.open_run("0123456789abcdef", "this clone")
    stages = [shop.tracking.client.get_run(run).info.lifecycle_stage for run in (theirs, ours, again)]
    assert stages == ["active", "deleted", "active"]


def test_a_run_that_the_ledger_names_is_never_thrown_away(shop: Shop):
    """B4: whatever a retrain believes of its own run, origin's ledger is asked before it goes."""
    shop.first()
    event = shop.retrain().event
    publish.discard(shop.clone(), event["run_id"])
    assert shop.run(event["key"]).info.lifecycle_stage == "active"
    theirs = shop.tracking.open_run("0123456789abcdef", "this clone")
    publish.discard(shop.workspace, theirs)
    assert shop.tracking.client.get_run(theirs).info.lifecycle_stage == "deleted"


@pytest.mark.parametrize("times", [1, 2])
def test_a_push_that_was_applied_but_not_answered(shop: Shop, times: int):
    """B4: the decision was at origin, the retrain took it for another's and threw its own run away."""
    shop.first()
    real, left = Git.run, [times]

    def push(git: Git, *args: str) -> Any:
        done = real(git, *args)
        if git_says("push", "run/")(git, *args) and left[0]:
            left[0] -= 1
            return broken(stderr="fatal: the remote end hung up unexpectedly")
        return done

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Git, "run", push)
        shop.retrain()
    assert len(shop.state.decisions) == 1
    assert len(shop.lines("decision")) == 1
    all_is_told(shop)


def test_the_losers_own_run_is_cleared_away_when_the_winner_has_its_own(shop: Shop):
    other = shop.clone()
    shop.first()

    def act() -> Any:
        with failing(results, "noted_run", lambda: None):  # it does not see ours yet, and trains and logs its own
            return shop.retrain(other)

    with meanwhile(results, "note_run", act, after=False):
        shop.retrain()
    (key,) = shop.state.decisions
    (run,) = shop.tracking.runs(key)
    assert run.info.run_id == shop.state.decisions[key].body["run_id"]
    all_is_told(shop)


def served(shop: Shop) -> dict[str, bool]:
    """Whether the bytes of each champion's registered model are there."""
    found = {}
    for event in (shop.state.decisions[key] for key in shop.state.champions):
        models = shop.tracking.models_of(shop.tracking.client.get_run(event.body["run_id"]))
        place = Path(models[MODEL].artifact_location.removeprefix("file://")) if MODEL in models else Path("/nowhere")
        found[event.body["key"]] = any(path.is_file() for path in place.rglob("*"))
    return found


@pytest.mark.parametrize("keep", [True, False])
def test_gc_keeps_a_champions_model_whatever_became_of_its_run(shop: Shop, keep: bool):
    """B5: it went by the run's state, and a champion's run in the trash was garbage."""
    from ssclass.upkeep.gc import collect

    shop.first()
    shop.retrain()
    shop.send("second")
    shop.retrain()
    runs = [shop.state.decisions[key].body["run_id"] for key in shop.state.champions]
    assert len(runs) == 2
    shop.tracking.client.delete_run(runs[0])
    shop.tracking.client.delete_tag(runs[1], DECISION_TAG)
    shop.tracking.client.set_tag(runs[1], DECISION_TAG, REJECTED)  # somebody's hand
    collect(shop.workspace, 1, keep_champions=keep, dry_run=False, now=datetime.now(UTC) + timedelta(days=40))
    assert list(served(shop).values()) == [True, True]
    publish.reconcile(shop.workspace)
    assert shop.tracking.alias() == "2"


def test_a_forget_whose_push_fails_has_deleted_nothing(shop: Shop):
    """What is to be deleted goes after the push that says so, or it is gone from a data set that still names it."""
    from ssclass.upkeep.forget import forget

    shop.first()
    (gone, *_) = shop.send("second", 4)
    shop.retrain()
    before = shop.workspace.newest()
    with failing(Git, "run", broken, times=99, when=git_says("push")), pytest.raises(FailedError):
        forget(shop.workspace, [gone], "asked to")
    assert shop.labels().keys() >= {gone}
    for each in before.files("data"):
        assert shop.workspace.store.get(shop.workspace.objects.key(each.md5)) is not None
    assert shop.workspace.store.get(f"incoming/second/{next(shop.keys('second', gone))}") is not None
    forget(shop.workspace, [gone], "asked to")
    assert gone not in shop.labels()


# -- C. the alias follows the ledger ----------------------------------------------------------------------------


def two_champions(shop: Shop) -> None:
    shop.first()
    assert shop.retrain().decision == PROMOTED
    shop.send("second")
    assert shop.retrain().decision == PROMOTED


def test_rolled_back_elsewhere_between_push_and_alias(shop: Shop):
    """C6: the alias was on 2, the ledger on 1, and the key registered twice."""
    shop.first()
    shop.retrain()
    other = shop.clone()
    shop.send("second")
    with meanwhile(Tracking, "set_alias", lambda: roll_back(other, 1), after=False):
        shop.retrain()
    state = shop.state
    assert state.champion == state.champions[0]
    assert shop.tracking.alias() == "1"
    assert list(shop.versions().values()) == state.champions


def test_rolled_back_elsewhere_while_the_version_is_registered(shop: Shop):
    shop.first()
    shop.retrain()
    other = shop.clone()
    shop.send("second")
    with meanwhile(Tracking, "_register", lambda: roll_back(other, 1), after=False):
        shop.retrain()
    state = shop.state
    assert state.champion == state.champions[0]
    assert shop.tracking.alias() == "1"
    assert sorted(shop.versions().values()) == sorted(state.champions)


def test_a_rollback_without_mlflow_moves_once_however_often_it_is_given(shop: Shop):
    """C7: it failed after the ledger had moved, and the natural second try moved one further."""
    two_champions(shop)
    shop.send("third")
    assert shop.retrain().decision == PROMOTED

    away = TrackingError("MLflow is away; start it")
    with failing(Tracking, "register", lambda: away, times=9):
        for _ in range(2):
            with pytest.raises(TrackingError):
                roll_back(shop.workspace, None)
    assert len(shop.lines("rollback")) == 1
    event, number = roll_back(shop.workspace, None)
    assert (event, number) == (None, 2)
    assert shop.tracking.alias() == "2"
    event, number = roll_back(shop.workspace, 1)
    assert (event is not None, number, shop.tracking.alias()) == (True, 1, "1")
    assert roll_back(shop.workspace, 1) == (None, 1)
    assert len(shop.lines("rollback")) == 2


def test_an_emergency_command_names_who_writes_here_and_does_not_wait_for_a_training(shop: Shop, monkeypatch):
    """C7: it waited silently while another process trained in the same folder."""
    two_champions(shop)
    monkeypatch.setattr(decisions, "WAIT", 0.2)
    with Workspace(shop.workspace.settings).transaction(), pytest.raises(FailedError, match="busy with process"):
        roll_back(shop.workspace, 1)
    assert shop.lines("rollback") == []
    with Workspace(shop.workspace.settings).retraining():
        roll_back(shop.workspace, 1)
        freeze(shop.workspace, "for now") if shop.state.frozen is None else None
    assert shop.tracking.alias() == "1"


# -- D. identity --------------------------------------------------------------------------------------------------


def compared_with(outcome: Any) -> str | None:
    return outcome.event["champion"] and outcome.event["champion"]["key"]


@pytest.mark.parametrize("how", ["revoke", "remove", "relabel", "params", "forget"])
def test_a_state_that_was_left_and_comes_back_is_asked_about_again(shop: Shop, how: str):
    """D8: the retrain said SKIPPED, and the champion stayed the model of the undone state."""
    photos = shop.first(train=20)
    assert shop.retrain().decision == PROMOTED
    if how == "params":
        shop.set(folds=4)
        gone: list[str] = []
        append(shop.workspace, "unfreeze", "Unfreeze")
    elif how == "relabel":
        labels = shop.labels()
        turned = {sha256: next(name for name in CLASSES if name != labels[sha256]) for sha256 in photos[-2:]}
        shop.mark("there", relabel=[{"sha256": sha256, "label": label} for sha256, label in turned.items()])
    else:
        gone = shop.send("wrong")
    second = shop.retrain()
    assert second.decision in (PROMOTED, REJECTED)
    if second.decision == REJECTED:  # make its model the champion all the same: this is about what comes then
        append(shop.workspace, "rollback", "By hand", key=shop.state.champion, number=1)
        append(shop.workspace, "unfreeze", "Unfreeze")
    match how:
        case "revoke":
            revoke(shop.workspace, "wrong", "not ours")
        case "remove":
            shop.mark("out", remove=[{"sha256": sha256} for sha256 in gone])
            shop.set(corrections=1)
        case "relabel":
            shop.mark("back", relabel=[{"sha256": sha256, "label": labels[sha256]} for sha256 in turned])
        case "params":
            shop.set(folds=5)
        case "forget":
            from ssclass.upkeep.forget import forget

            forget(shop.workspace, gone, "asked to")
    champion = shop.state.champion
    third = shop.retrain()
    if champion == second.event["key"]:
        assert third.decision in (PROMOTED, REJECTED), third.reason
        assert compared_with(third) == champion
    else:  # the champion is the model of exactly this state: nothing to ask
        assert third.decision == SKIPPED
    assert shop.retrain().decision == SKIPPED
    all_is_told(shop)


def test_a_champion_that_a_person_moved_on_from_may_be_proposed_again(shop: Shop):
    """Rolled back by mistake and forward again: the earlier champion counted as rolled back from, and was not asked."""
    two_champions(shop)
    for number in (1, 2):
        roll_back(shop.workspace, number)
    append(shop.workspace, "unfreeze", "Unfreeze")
    revoke(shop.workspace, "second", "not ours")
    outcome = shop.retrain()
    assert outcome.decision in (PROMOTED, REJECTED), outcome.reason
    assert compared_with(outcome) == shop.state.champions[1]
    all_is_told(shop)


def test_rejected_while_frozen_is_asked_again_after_unfreeze(shop: Shop):
    """D8: SKIPPED for ever: a precondition that says nothing about the candidate had burnt the key."""
    shop.first()
    shop.retrain()
    freeze(shop.workspace, "holiday")
    shop.send("second")
    frozen = shop.retrain()
    assert frozen.decision == REJECTED
    assert "holiday" in frozen.reason
    assert shop.retrain().decision == SKIPPED
    append(shop.workspace, "unfreeze", "Unfreeze")
    assert shop.retrain().decision == PROMOTED
    all_is_told(shop)


def test_a_model_that_was_not_adopted_while_frozen_is_adopted_after_unfreeze(shop: Shop):
    """It was rejected with that remedy, and then called decided on already."""
    from ssclass.upkeep.adopt import Declared, adopt

    model = shop.folder / "theirs.keras"
    model.write_text('{"calls": [0, 1], "skill": 0.8}')
    declared = Declared(model, CLASSES, "none")
    shop.first()
    freeze(shop.workspace, "holiday")
    event, _ = adopt(shop.workspace, declared)
    assert (event.body["decision"], "unfreeze" in event.body["reason"]) == (REJECTED, True)
    with pytest.raises(InputError, match="decided on already"):
        adopt(shop.workspace, declared)
    append(shop.workspace, "unfreeze", "Unfreeze")
    event, _ = adopt(shop.workspace, declared)
    assert event.body["decision"] == PROMOTED
    all_is_told(shop)


def test_a_model_is_adopted_only_as_promotion_stood_when_it_was_scored(shop: Shop):
    from ssclass.errors import OvertakenError
    from ssclass.upkeep import adopt as adopting

    model = shop.folder / "theirs.keras"
    model.write_text('{"calls": [0, 1], "skill": 0.8}')
    declared = adopting.Declared(model, CLASSES, "none")
    other = shop.clone()
    shop.first()
    with (
        meanwhile(adopting, "make_result", lambda: freeze(other, "holiday")),
        pytest.raises(OvertakenError, match="froze promotion"),
    ):
        adopting.adopt(shop.workspace, declared)
    append(other, "unfreeze", "Unfreeze")
    assert adopting.adopt(shop.workspace, declared)[0].body["decision"] == PROMOTED
    all_is_told(shop)


def test_a_rejected_candidate_is_not_asked_again_by_freeze_and_unfreeze(shop: Shop):
    for batch in ("second", "third"):
        (shop.first if not shop.sent else shop.send)("first" if not shop.sent else batch)
        shop.retrain()
    shop.send("fourth", 2)
    assert shop.retrain().decision == REJECTED
    freeze(shop.workspace, "holiday")
    assert shop.retrain().decision == SKIPPED
    append(shop.workspace, "unfreeze", "Unfreeze")
    assert shop.retrain().decision == SKIPPED


def status(shop: Shop, batch: str) -> str:
    from ssclass.workspace.deliveries import find_deliveries

    (ref,) = find_deliveries(shop.workspace.store, shop.state, [batch])
    return str(shop.state.status(ref.id, ref.etag))


def held(shop: Shop, batch: str = "bad") -> list[str]:
    """Deliver a batch that the champion has all wrong, and see it held."""
    photos = shop.send(batch, 12, easy=True, flipped=True)
    shop.retrain()
    assert status(shop, batch) == HELD_BATCH
    return photos


def test_every_edge_of_a_batchs_states(shop: Shop):
    """D9: waiting → held → admitted → ingested → revoked; waiting → dropped; held → dropped → waiting."""
    shop.first()
    assert status(shop, "first") == WAITING
    shop.retrain()
    assert status(shop, "first") == INGESTED
    held(shop)
    admit(shop.workspace, "bad")
    assert status(shop, "bad") == ADMITTED
    assert admit(shop.workspace, "bad") is None
    shop.retrain()
    assert status(shop, "bad") == INGESTED
    revoke(shop.workspace, "bad", "after all")
    assert status(shop, "bad") == REVOKED
    held(shop, "worse")
    drop(shop.workspace, "worse")
    assert status(shop, "worse") == DROPPED
    assert drop(shop.workspace, "worse") is None
    shop.retrain()
    assert status(shop, "worse") == DROPPED
    shop.mark("worse", photos=[])  # written again: another delivery
    assert status(shop, "worse") == WAITING
    drop(shop.workspace, "worse")
    assert status(shop, "worse") == DROPPED
    shop.send("early")
    drop(shop.workspace, "early")
    shop.retrain()
    assert (status(shop, "early"), "early" in shop.state.ingested) == (DROPPED, False)


def test_held_corrected_and_held_again_is_admitted_under_its_newest_marker(shop: Shop):
    """D9: `admit` answered the first marker, and the batch could never be let in."""
    shop.first()
    shop.retrain()
    held(shop)
    held(shop)  # sent again with other photos, and held again
    assert len(shop.state.held) == 1
    admit(shop.workspace, "bad")
    shop.retrain()
    assert status(shop, "bad") == INGESTED
    assert shop.lines("ingest")[-1]["receipt"]["accepted"] == 12


def test_held_and_corrected_is_ingested_and_no_longer_held(shop: Shop):
    """D9: ingested under a new marker, `status` showed it held for ever."""
    shop.first()
    shop.retrain()
    held(shop)
    shop.send("bad", 6)
    shop.retrain()
    assert status(shop, "bad") == INGESTED
    assert shop.state.held == {}


def test_a_broken_manifest_is_held_once_and_cannot_be_admitted(shop: Shop):
    """D9: admitted, it added five HELD commits a retrain."""
    shop.first()
    shop.retrain()
    shop.workspace.store.put("incoming/broken/manifest.json", b'{"schema": 1, "photos": [')
    for _ in range(3):
        shop.retrain()
    assert len([event for event in shop.lines("decision") if event["decision"] == "HELD"]) == 1
    with pytest.raises(InputError, match="cannot be read"):
        admit(shop.workspace, "broken")
    shop.send("broken", 4)
    shop.retrain()
    assert status(shop, "broken") == INGESTED


@pytest.mark.parametrize("gone", [False, True])
def test_new_photos_under_an_id_in_use_are_held_with_a_remedy_that_works(shop: Shop, gone: bool):
    """D9: they were ignored without a word."""
    shop.first()
    shop.send("second", 4)
    shop.retrain()
    if gone:
        revoke(shop.workspace, "second", "wrong dish")
    before = shop.labels()
    shop.send("second", 4)
    (told,) = [batch for batch in shop.retrain().batches if batch.batch == "second"]
    assert told.outcome == "HELD"
    assert "new id" in told.reason
    assert "ssclass batch drop second" in told.reason
    assert shop.labels() == before
    with pytest.raises(InputError, match="new id"):
        admit(shop.workspace, "second")
    drop(shop.workspace, "second")
    shop.retrain()
    assert not sent_again(shop.workspace.store, shop.state)
    assert shop.state.held == {}


def test_success_markers_are_told_apart_though_their_etag_is_always_the_same(shop: Shop):
    """D9: the remedy that the program gives, to write the marker again, had no effect."""
    store = shop.workspace.store
    shop.first()
    store.put("incoming/folders/_SUCCESS", b"")
    shop.retrain()
    assert status(shop, "folders") == HELD_BATCH  # an empty batch
    drop(shop.workspace, "folders")
    for entry in shop.photos(4):
        store.put(f"incoming/folders/{entry['key']}", entry["data"])
    time.sleep(1.1)  # S3 tells times in whole seconds
    store.put("incoming/folders/_SUCCESS", b"")
    assert status(shop, "folders") == WAITING
    shop.retrain()
    assert status(shop, "folders") == INGESTED
    time.sleep(1.1)
    store.put("incoming/folders/_SUCCESS", b"")
    assert not sent_again(store, shop.state), "the same photos, marked once more: nobody need hear of it"
    (entry,) = shop.photos(1)
    store.put(f"incoming/folders/{entry['key']}", entry["data"])
    store.put("incoming/folders/_SUCCESS", b"")
    assert [ref.id for ref in sent_again(store, shop.state)] == ["folders"]


def mark_again(shop: Shop, batch: str, marker: str) -> None:
    """Write a marker again with the same bytes, in a later second: S3 tells times in whole ones."""
    time.sleep(1.1)
    key = f"incoming/{batch}/{marker}"
    shop.workspace.store.put(key, shop.workspace.store.get(key) or b"")


def in_folders(shop: Shop, batch: str, marker: str, entries: list[dict[str, Any]]) -> None:
    """Put photos, and a marker that names them without saying what their bytes are."""
    for entry in entries:
        shop.workspace.store.put(f"incoming/{batch}/{entry['key']}", entry["data"])
    photos = [{"key": entry["key"], "label": entry["label"]} for entry in entries]
    body = json.dumps({"schema": 1, "photos": photos}).encode() if marker == "manifest.json" else b""
    shop.workspace.store.put(f"incoming/{batch}/{marker}", body)


def replaced(shop: Shop, entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Other photos under the keys and labels of these."""
    return [
        {**new, "key": old["key"], "label": old["label"]}
        for old, new in zip(entries, shop.photos(len(entries)), strict=True)
    ]


@pytest.mark.parametrize("marker", ["_SUCCESS", "manifest.json"])
def test_photos_replaced_in_equal_number_and_marked_again_are_another_delivery(shop: Shop, marker: str):
    """D9: the marker had the same bytes, the files were as many, and nobody heard of the new photos."""
    store = shop.workspace.store
    shop.first()
    sent = shop.photos(4)
    in_folders(shop, "folders", marker, sent)
    shop.retrain()
    assert status(shop, "folders") == INGESTED
    before = shop.labels()

    mark_again(shop, "folders", marker)  # a sender that delivers at least once
    assert not sent_again(store, shop.state)

    in_folders(shop, "folders", marker, replaced(shop, sent))
    mark_again(shop, "folders", marker)
    (told,) = [batch for batch in shop.retrain().batches if batch.batch == "folders"]
    assert (told.outcome, "new id" in told.reason) == ("HELD", True)
    assert shop.labels() == before
    assert not sent_again(store, shop.state), "once is enough"
    mark_again(shop, "folders", marker)
    assert not sent_again(store, shop.state), "the same files as those that are held"

    drop(shop.workspace, "folders")
    in_folders(shop, "folders", marker, sent)
    mark_again(shop, "folders", marker)
    assert not sent_again(store, shop.state), "the files that were taken in are there again"
    in_folders(shop, "folders", marker, replaced(shop, sent))
    mark_again(shop, "folders", marker)
    assert [ref.id for ref in sent_again(store, shop.state)] == ["folders"]


@pytest.mark.parametrize("marker", ["_SUCCESS", "manifest.json"])
@pytest.mark.parametrize("first_held", [True, False])
def test_a_batch_kept_out_stays_out_until_other_photos_come_under_its_marker(shop: Shop, marker: str, first_held: bool):
    """D9: the remedy, to send it corrected, had no effect where the marker's bytes stayed the same."""
    shop.first()
    shop.retrain()
    wrong = shop.photos(12, (0.02,), flipped=True)
    in_folders(shop, "bad", marker, wrong)
    if first_held:
        shop.retrain()
        assert status(shop, "bad") == HELD_BATCH
        mark_again(shop, "bad", marker)
        lines = len(shop.lines("decision"))
        shop.retrain()
        assert len(shop.lines("decision")) == lines, "the same files are not held once more"
    drop(shop.workspace, "bad")
    mark_again(shop, "bad", marker)
    assert status(shop, "bad") == DROPPED, "the same files: a person has decided on them"
    shop.retrain()
    assert "bad" not in shop.state.ingested

    in_folders(shop, "bad", marker, replaced(shop, wrong))
    mark_again(shop, "bad", marker)
    assert status(shop, "bad") == WAITING


@pytest.mark.parametrize("marker", ["_SUCCESS", "manifest.json"])
def test_photos_that_were_replaced_after_a_person_admitted_others_are_held(shop: Shop, marker: str):
    """A person's word holds for what that person saw, also where the marker was not written again."""
    shop.first()
    shop.retrain()
    wrong = shop.photos(12, (0.02,), flipped=True)
    in_folders(shop, "bad", marker, wrong)
    shop.retrain()
    admit(shop.workspace, "bad")
    new = replaced(shop, wrong)
    for entry in new:
        shop.workspace.store.put(f"incoming/bad/{entry['key']}", entry["data"])
    shop.retrain()
    assert status(shop, "bad") == HELD_BATCH
    assert "replaced" in next(iter(shop.state.held.values())).body["reason"]
    admit(shop.workspace, "bad")
    shop.retrain()
    assert status(shop, "bad") == INGESTED
    assert {hashlib.sha256(entry["data"]).hexdigest() for entry in new} <= set(shop.labels())


def test_photos_whose_names_class_folders_pass_over_are_part_of_a_delivery(shop: Shop):
    """A manifest may name _DSC0001.jpg beside it; replaced, it was let in on a person's word for another."""
    shop.first()
    shop.retrain()
    wrong = [{**entry, "key": f"_DSC{n}.jpg"} for n, entry in enumerate(shop.photos(12, (0.02,), flipped=True))]
    in_folders(shop, "bad", "manifest.json", wrong)
    shop.retrain()
    admit(shop.workspace, "bad")
    for entry in replaced(shop, wrong):
        shop.workspace.store.put(f"incoming/bad/{entry['key']}", entry["data"])
    shop.retrain()
    assert status(shop, "bad") == HELD_BATCH


def test_a_delivery_that_lost_a_forgotten_photo_is_not_taken_for_the_one_dropped_before_it(shop: Shop):
    """Both had a manifest of the same bytes; what a person admitted was dropped, and never came in."""
    from ssclass.upkeep.forget import forget

    shop.first()
    shop.retrain()
    bad = shop.photos(12, (0.02,), flipped=True)
    in_folders(shop, "bad", "manifest.json", bad)
    shop.retrain()
    drop(shop.workspace, "bad")
    new = replaced(shop, bad)
    in_folders(shop, "bad", "manifest.json", new)
    mark_again(shop, "bad", "manifest.json")
    shop.retrain()
    forget(shop.workspace, [hashlib.sha256(new[0]["data"]).hexdigest()], "asked")
    assert status(shop, "bad") == HELD_BATCH
    admit(shop.workspace, "bad")
    shop.retrain()
    assert status(shop, "bad") == INGESTED


@pytest.mark.parametrize("admitted", [False, True])
def test_a_batch_that_a_person_drops_while_it_is_taken_in_stays_out(
    shop: Shop, monkeypatch: pytest.MonkeyPatch, admitted: bool
):
    """A retrain lists its batches, and is at them for long: the drop was in the ledger, and the photos came in."""
    shop.first()
    shop.retrain()
    sent = shop.photos(12, (0.02,), flipped=admitted)
    in_folders(shop, "second", "manifest.json", sent)
    if admitted:
        shop.retrain()
        admit(shop.workspace, "second")
    other, real = shop.clone(), ingesting.check
    monkeypatch.setattr(ingesting, "check", lambda *args: (drop(other, "second"), real(*args))[1])
    shop.retrain()
    assert status(shop, "second") == DROPPED
    assert "second" not in shop.state.ingested


@pytest.mark.parametrize("dropped_before", [False, True])
def test_a_batch_that_was_admitted_by_mistake_is_dropped_while_s3_is_away(shop: Shop, dropped_before: bool):
    """It was called no held batch, or dropped already where an earlier delivery was: and it joined."""
    shop.first()
    shop.retrain()
    if dropped_before:
        held(shop)
        drop(shop.workspace, "bad")
    held(shop)
    admit(shop.workspace, "bad")
    away = Workspace(shop.workspace.settings.model_copy(update={"s3_endpoint": "http://127.0.0.1:9"}))
    assert drop(away, "bad") is not None
    assert status(shop, "bad") == DROPPED
    assert drop(away, "bad") is None
    shop.retrain()
    assert "bad" not in shop.state.ingested


def test_who_drops_again_what_was_seen_drops_nothing_that_came_since(shop: Shop):
    shop.first()
    shop.retrain()
    held(shop)
    ((_, seen),) = shop.state.held
    drop(shop.workspace, "bad", seen)
    held(shop)
    assert drop(shop.workspace, "bad", seen) is None
    assert status(shop, "bad") == HELD_BATCH


def test_a_manifest_that_could_not_be_read_is_read_again_once_it_is_written_again(shop: Shop):
    """D9: it is held for a class that params.yaml lacks; with the class there, writing it again had no effect."""
    shop.first()
    shop.retrain()
    other = [{**entry, "label": "ramen"} for entry in shop.photos(4)]
    in_folders(shop, "ramen", "manifest.json", other)
    shop.retrain()
    assert status(shop, "ramen") == HELD_BATCH
    with pytest.raises(InputError, match=r"name the class in params\.yaml, then write manifest\.json again"):
        admit(shop.workspace, "ramen")
    shop.set(classes="[sandwich, sushi, ramen]")
    assert waiting(shop.workspace.store, shop.state) == [], "nothing was written again"
    mark_again(shop, "ramen", "manifest.json")
    assert status(shop, "ramen") == WAITING
    shop.retrain()
    assert status(shop, "ramen") == INGESTED


def test_lines_of_older_versions_know_their_deliveries(shop: Shop):
    """They have the etag alone, and that of _SUCCESS with its time: what was decided stays decided."""
    from ssclass.workspace.ledger import Event, fold

    entries = shop.photos(4)
    in_folders(shop, "one", "manifest.json", entries)
    in_folders(shop, "two", "_SUCCESS", entries)
    in_folders(shop, "three", "_SUCCESS", entries)
    refs = {ref.id: ref for ref in waiting(shop.workspace.store, fold([]))}
    etags = {"one": refs["one"].etag, "two": refs["two"].etag, "three": refs["three"].etag.partition("@")[0]}
    state = fold([Event.now("drop", batch=batch, etag=etag) for batch, etag in etags.items()])
    assert waiting(shop.workspace.store, state) == []


def test_a_batch_that_was_sent_again_long_after_is_noticed(shop: Shop, monkeypatch: pytest.MonkeyPatch):
    """Beyond the newest ones nobody looked; some are drawn each hour, and `verify` looks at all."""
    from ssclass.retrain import ingest as module
    from ssclass.upkeep.verify import verify

    monkeypatch.setattr(module, "RECENT", 1)
    monkeypatch.setattr(module, "DRAWN", 1)
    shop.first()
    for batch in ("second", "third", "fourth"):
        shop.send(batch, 2)
    shop.retrain()
    shop.send("first", 2)
    assert [each.thing for each in verify(shop.workspace)] == ["batch first"]
    hours = iter(range(1000))
    monkeypatch.setattr(module, "time", SimpleNamespace(time=lambda: 3600 * next(hours)))
    looked = {ref.id for _ in range(50) for ref in sent_again(shop.workspace.store, shop.state)}
    assert looked == {"first"}
    assert [each.mended for each in verify(shop.workspace, repair=True)] == [True]
    assert shop.state.held, "a person hears of it"
    assert list(verify(shop.workspace)) == []


@pytest.mark.parametrize("order", [("one", "two"), ("two", "one")])
def test_a_correction_that_two_batches_give_stays_when_one_is_revoked(shop: Shop, order: tuple[str, str]):
    """The second was taken for no change, and revoking the first undid both."""
    shop.set(corrections=1)
    shop.first()
    renamed, removed, other = shop.send("photos", 6)[:3]
    shop.retrain()
    before = shop.labels()
    label = next(name for name in CLASSES if name != before[renamed])
    asked: dict[str, Any] = {"relabel": [{"sha256": renamed, "label": label}], "remove": [{"sha256": removed}]}
    shop.mark("one", **asked)
    shop.retrain()
    shop.mark("two", **{**asked, "remove": [*asked["remove"], {"sha256": other}]})
    shop.retrain()
    corrected = shop.labels()
    assert (corrected[renamed], removed in corrected, other in corrected) == (label, False, False)
    receipt = shop.lines("ingest")[-1]["receipt"]
    assert (receipt["relabelled"], receipt["removed"], receipt["refused"]) == (0, 1, {})

    revoke(shop.workspace, order[0], "by mistake")
    found = shop.labels()
    assert (found[renamed], removed in found, other in found) == (label, False, order[0] == "two")
    revoke(shop.workspace, order[1], "by mistake, too")
    assert shop.labels() == before
    all_is_told(shop)


def held_with_corrections(shop: Shop) -> dict[str, str]:
    """A batch `bad` that is held, and `fix`, which is held as it says what its photos show; that, by sha256."""
    photos = held(shop)
    right = {sha256: next(name for name in CLASSES if name != shop.sent["bad"][sha256]) for sha256 in photos}
    shop.mark("fix", relabel=[{"sha256": sha256, "label": label} for sha256, label in right.items()])
    shop.retrain()
    assert status(shop, "fix") == HELD_BATCH
    return right


def test_corrections_of_photos_in_a_held_batch_wait_for_it(shop: Shop):
    """D9: they were consumed, and lost."""
    shop.first()
    shop.retrain()
    right = held_with_corrections(shop)
    admit(shop.workspace, "bad")
    shop.retrain()
    shop.set(corrections=1)
    admit(shop.workspace, "fix")
    shop.retrain()
    assert {sha256: shop.labels()[sha256] for sha256 in right} == right


@pytest.mark.parametrize("when", ["held first", "marked again"])
def test_corrections_that_were_admitted_come_after_the_batch_that_they_waited_for(shop: Shop, when: str):
    """They came by the time of the markers: before a batch whose marker was written again, and were lost."""
    shop.set(corrections=1)
    shop.first()
    shop.retrain()
    if when == "held first":
        shop.workspace.store.put("incoming/fix/manifest.json", b"no JSON")
        shop.retrain()
    right = held_with_corrections(shop)
    time.sleep(1)  # S3 tells times by the second
    marker = "incoming/bad/manifest.json"
    shop.workspace.store.put(marker, shop.workspace.store.get(marker))
    admit(shop.workspace, "bad")
    admit(shop.workspace, "fix")
    shop.retrain()
    assert [event["batch"] for event in shop.lines("ingest")] == ["first", "bad", "fix"]
    assert {sha256: shop.labels()[sha256] for sha256 in right} == right


def test_rolled_back_while_another_machine_trains(shop: Shop):
    """D10: the result under the key was of another champion; that machine failed three trainings a retrain."""
    two_champions(shop)
    other = shop.clone()
    shop.send("third")
    with meanwhile(results, "keep", lambda: roll_back(other, 1)):
        outcome = shop.retrain()
    assert (outcome.decision, "frozen" in outcome.reason) == (REJECTED, True)
    assert compared_with(outcome) == shop.state.champions[0]
    append(shop.workspace, "unfreeze", "Unfreeze")
    assert shop.retrain().decision == PROMOTED
    assert shop.tracking.alias() == "3"
    all_is_told(shop)


def test_a_result_in_s3_of_another_champion_is_not_believed(shop: Shop):
    two_champions(shop)
    shop.send("third")
    with failing(publish, "log_run", Killed), pytest.raises(Killed):
        shop.retrain()
    from ssclass.retrain.key import key_of

    key = key_of(shop.workspace.newest())
    path = f"results/{key}/result.json"
    body = json.loads(shop.workspace.store.get(path) or b"")
    body["champion_key"] = shop.state.champions[0]
    shop.workspace.store.put(path, json.dumps(body).encode())
    other = shop.clone()
    with pytest.raises(FailedError):
        shop.retrain(other)
    assert key not in shop.state.decisions
    assert shop.retrain(other).decision == PROMOTED, "the remedy works: it trains anew"
    all_is_told(shop)


def test_a_full_disk_ends_in_a_sentence(monkeypatch, capsys):
    import errno

    from ssclass import cli

    def full(**_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "/photos/here")

    monkeypatch.setattr(cli.cli, "main", full)
    monkeypatch.setattr(cli.signal, "signal", lambda number, handler: None)  # the test's own process keeps its handlers
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 1
    assert capsys.readouterr().err.splitlines() == [
        "ssclass: /photos/here: No space left on device; make room on this disk, and run this again"
    ]


# -- F. one bad thing does not stop the others ---------------------------------------------------------------------


def test_a_waiting_batch_can_be_dropped(shop: Shop):
    """F14: "not a held batch"."""
    shop.send("unwanted")
    drop(shop.workspace, "unwanted")
    shop.first()
    shop.retrain()
    assert set(shop.state.ingested) == {"first"}
    assert waiting(shop.workspace.store, shop.state) == []
    with pytest.raises(NotFoundError, match="not a held batch"):
        drop(shop.workspace, "nobody-sent-this")


@pytest.mark.parametrize("what", ["manifest", "archived manifest", "forbidden marker", "photo"])
def test_a_batch_that_cannot_be_read_does_not_stop_the_others(shop: Shop, what: str, monkeypatch):
    """F14: every later batch waited behind it."""
    store = shop.workspace.store
    if what == "manifest":
        store.put("incoming/a-bad/manifest.json", b"\x00\x01")
    elif what == "archived manifest":
        body = json.dumps({"schema": 1, "photos": []}).encode()
        store.client.put_object(
            Bucket=store.bucket, Key="incoming/a-bad/manifest.json", Body=body, StorageClass="GLACIER"
        )
    elif what == "forbidden marker":
        store.put("incoming/a-bad/manifest.json", b"{}")
        _forbid(monkeypatch, "incoming/a-bad/manifest.json")
    else:
        archived, fine = shop.photos(2)
        shop.deliver("a-bad", [archived, fine])
        key = f"incoming/a-bad/{archived['key']}"
        store.client.put_object(Bucket=store.bucket, Key=key, Body=archived["data"], StorageClass="GLACIER")
    shop.first()
    shop.retrain()
    assert "first" in shop.state.ingested
    if what != "photo":
        assert status(shop, "a-bad") == HELD_BATCH
        shop.retrain()
        assert len(shop.state.held) == 1
        drop(shop.workspace, "a-bad")
    else:
        assert status(shop, "a-bad") == INGESTED
        (event,) = [event for event in shop.lines("ingest") if event["batch"] == "a-bad"]
        assert (event["receipt"]["accepted"], sum(event["receipt"]["refused"].values())) == (1, 1)
        assert fine["sha256"] in shop.labels()
    shop.send("second")
    assert shop.retrain().decision == PROMOTED


def _forbid(monkeypatch, key: str) -> None:
    """Have S3 refuse an object, as a rule of the bucket's policy would."""
    from botocore.client import BaseClient
    from botocore.exceptions import ClientError

    call = BaseClient._make_api_call

    def refuse(self, operation: str, given: dict[str, Any]) -> Any:
        if operation in ("HeadObject", "GetObject") and given["Key"] == key:
            raise ClientError({"Error": {"Code": "403" if operation == "HeadObject" else "AccessDenied"}}, operation)
        return call(self, operation, given)

    monkeypatch.setattr(BaseClient, "_make_api_call", refuse)


def test_the_batch_with_all_held_out_photos_is_revoked_and_the_retrain_says_so(shop: Shop):
    """It ended in a division by zero, with a champion there: now it is rejected, and the next held-out photos judge."""
    shop.first()
    assert shop.retrain().decision == PROMOTED
    shop.send("second")
    shop.retrain()
    revoke(shop.workspace, "first", "not ours")
    outcome = shop.retrain()
    assert (outcome.decision, outcome.reason) == (REJECTED, "no held-out photos yet")
    shop.first("again")
    assert shop.retrain().decision in (PROMOTED, REJECTED)
    assert shop.state.champion is not None


def test_workspaces_on_one_bucket_keep_to_their_own_part_and_leave_what_is_anothers(make_shop):
    from ssclass.upkeep.forget import forget
    from ssclass.upkeep.gc import collect
    from ssclass.upkeep.verify import verify

    bucket = f"shared-{uuid.uuid4().hex[:8]}"
    shops = [
        make_shop(bucket=bucket, s3_prefix=name) if name else make_shop(bucket=bucket) for name in ("", "one", "a/b")
    ]
    for shop in shops:
        shop.first()
        assert shop.retrain().decision == "PROMOTED"
    for shop in shops:
        assert set(shop.state.ingested) == {"first"}
        assert not list(verify(shop.workspace))
    keys = {item.key.split("/")[0] for item in shops[0].workspace.store.list("")}
    assert {"incoming", "dvc", "one", "a"} <= keys

    stranger = make_shop(bucket=bucket, s3_prefix="one", name="stranger")
    before = {item.key: item.etag for item in shops[1].workspace.store.list("")}
    stranger.send("theirs")
    for act in (
        stranger.retrain,
        lambda: collect(stranger.workspace, 30, keep_champions=True, dry_run=False),
        lambda: forget(stranger.workspace, [next(iter(shops[1].sent["first"]))], "..."),
        lambda: list(verify(stranger.workspace, repair=True)),
    ):
        with pytest.raises(WorkspaceError, match=r"one belongs to another workspace, 'ssclass'.*s3_prefix"):
            act()
    after = {item.key: item.etag for item in shops[1].workspace.store.list("")}
    assert {key: etag for key, etag in after.items() if "/theirs/" not in key} == before

    clone = shops[1].clone()
    shops[1].workspace.store.delete("incoming/theirs/manifest.json")
    shops[1].send("second")
    assert shops[1].retrain(clone).decision == "PROMOTED", "a clone is the same workspace"


# -- what others, editors and half-done commands leave --------------------------------------------------------------


def test_a_ledger_whose_last_line_an_editor_left_without_an_end_is_not_spoilt(shop: Shop):
    """The next event stood on the same line: a line of no event, pushed, and every command failed from then on."""
    two_champions(shop)
    before = expected_tags(shop.workspace)
    assert list(before) == ["data/1", f"run/{shop.state.champions[0]}", "data/2", f"run/{shop.state.champions[1]}"]
    path = shop.workspace.root / "ledger.jsonl"

    def shorter(text: str) -> str:
        return "\n" + "\r\n".join(json.dumps(json.loads(line), separators=(",", ":")) for line in text.splitlines())

    for edited in (str.rstrip, shorter):
        path.write_text(edited(path.read_text()))
        for words in (["commit", "-qam", "Edited"], ["push", "-q", "origin", "main"]):
            subprocess.run(["git", "-C", str(shop.workspace.root), *words], check=True)
        freeze(shop.workspace, "holiday")
        assert shop.state.frozen == "holiday"
        append(shop.workspace, "unfreeze", "Unfreeze")
    kinds = [event.kind for event in shop.workspace.newest().events]
    assert kinds == ["ingest", "decision"] * 2 + ["freeze", "unfreeze"] * 2
    assert expected_tags(shop.workspace) == before, "`verify --repair` would move each tag to the editor's commit"
    assert not list(tags(shop.workspace))


def test_a_manifest_that_is_written_again_while_it_is_read_is_not_let_in_as_the_one_that_was_admitted(shop: Shop):
    shop.first()
    shop.retrain()
    held(shop)
    admit(shop.workspace, "bad")
    real, at = type(shop.workspace.store).get, "incoming/bad/manifest.json"
    sent: list[str] = []

    def get(store: Any, key: str, **more: Any) -> Any:
        if key == at and not sent:
            sent.append("now")
            sent.extend(shop.send("bad", 12, easy=True, flipped=True))
        return real(store, key, **more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(shop.workspace.store), "get", get)
        shop.retrain()
    assert not set(sent) & set(shop.labels()), "nobody has admitted these"
    assert status(shop, "bad") == HELD_BATCH


def test_admitted_then_dropped_it_cannot_be_said_to_join(shop: Shop):
    shop.first()
    shop.retrain()
    held(shop)
    admit(shop.workspace, "bad")
    drop(shop.workspace, "bad")
    with pytest.raises(NotFoundError, match="not a held batch"):
        admit(shop.workspace, "bad")
    assert status(shop, "bad") == DROPPED


@pytest.mark.parametrize("who", ["candidate", "champion"])
def test_a_model_whose_probabilities_are_no_numbers_neither_wins_nor_stops_the_others(shop: Shop, who: str):
    """A candidate's were an error of scoring at each retrain, a champion's kept every candidate out for ever."""
    from tests.support.fake_head import FakeClassifier

    shop.first()
    if who == "champion":
        assert shop.retrain().decision == PROMOTED
        shop.send("second", 1)
    real, broken_skill = FakeClassifier.predict, [0.0]

    def predict(model: FakeClassifier, features_of: Any) -> Any:
        found = real(model, features_of)
        return found * float("nan") if model.skill in broken_skill else found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FakeClassifier, "predict", predict)
        broken_skill.append(round(10 / 15, 6))
        outcome = shop.retrain()
        if who == "candidate":
            assert (outcome.decision, shop.state.champion) == (REJECTED, None)
            assert outcome.reason.startswith("finite scores: ")
            (event,) = shop.state.decisions.values()
            page = report(shop.workspace.at(), event, results.kept(shop.workspace, event.body["key"]))
            assert "a probability is not a number" in page.html(), "or no retrain would end from now on"
            assert shop.retrain().decision == SKIPPED
            shop.send("second")
            assert shop.retrain().decision == PROMOTED
        else:
            assert outcome.decision == PROMOTED
            assert outcome.event["champion"]["right"] == 0


def test_a_photo_that_was_removed_and_comes_again_keeps_its_side(shop: Shop):
    """A champion has learnt it: held out, it would be a vote for that champion."""
    shop.first()
    (learnt, *_) = shop.send("second", 4)
    shop.retrain()
    data = shop.workspace.store.get(f"incoming/second/{next(shop.keys('second', learnt))}")
    label = shop.sent["second"][learnt]
    shop.mark("out", remove=[{"sha256": learnt}])
    shop.retrain()
    assert learnt not in shop.labels()
    again = {"key": f"{label}/again.jpg", "label": label, "sha256": learnt, "data": data}
    shop.deliver("bent", [{**again, "split": "holdout"}])
    shop.retrain()
    assert learnt not in shop.labels()
    assert shop.lines("ingest")[-1]["receipt"]["refused"] == {"copy across split": 1}
    shop.deliver("again", [again])
    shop.retrain()
    assert shop.workspace.newest().dataset.by_sha256[learnt].split == "train"


def test_a_machine_whose_settings_name_another_bucket_adds_nothing_that_the_others_lack(shop: Shop, monkeypatch):
    """Its shards and its list of them went into that bucket, and every other machine failed from then on."""
    other, at = shop.clone(), f"other-{shop.workspace.settings.bucket}"
    shop.first()
    shop.retrain(other)  # so it has the list in its cache
    monkeypatch.setenv("SSCLASS_BUCKET", at)
    wrong = Workspace(load_settings(other.root))
    wrong.store.make_bucket()
    shop.workspace, ours = wrong, shop.workspace
    shop.send("lost", 4)
    shop.workspace = ours
    with pytest.raises(WorkspaceError, match=f"s3://{at}: lacks the data set of main"):
        shop.retrain(wrong)
    with pytest.raises(WorkspaceError, match="lacks the data set of main"):
        revoke(wrong, "first", "…")
    monkeypatch.delenv("SSCLASS_BUCKET")
    shop.send("second", 4)
    assert shop.retrain(ours).event["batches"] == ["second"]
