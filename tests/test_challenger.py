"""The alias `challenger`: on the newest candidate that came close, moved and taken away as the ledger says."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from ssclass.cli import cli
from ssclass.params import GateParams
from ssclass.retrain.challenger import challenger, challenger_key
from ssclass.retrain.gate import Precondition, judge
from ssclass.retrain.statistics import mcnemar_exact
from ssclass.tracking import publish
from ssclass.tracking.client import CANDIDATE, CHALLENGER, MODEL, Tracking
from ssclass.tracking.glance import glance
from ssclass.upkeep import decisions
from ssclass.upkeep.gc import collect
from ssclass.upkeep.rebuild import rebuild
from ssclass.upkeep.verify import verify
from ssclass.workspace.ledger import Event, State, fold
from ssclass.workspace.workspace import Workspace
from tests.support.shops import Shop, open_shop

# -- who it is, by the gate's own words ------------------------------------------------------------------------

N = 40


def decided(wins: int, losses: int, champion: str | None = "first", **gate: Any) -> Event:
    """What the gate and the ledger make of a candidate that alone is right so often, and alone wrong so often."""
    labels = np.tile([0, 1], N // 2)
    ours, theirs = labels.copy(), labels.copy()
    theirs[:wins] = 1 - labels[:wins]
    ours[wins : wins + losses] = 1 - labels[wins : wins + losses]
    conditions = gate.pop("conditions", ())
    verdict = judge(labels, ours, None if champion is None else theirs, GateParams(**gate), conditions)
    body = {"key": f"{wins}-{losses}", "decision": verdict.decision, "reason": verdict.reason, "batches": []}
    body |= {"candidate": {"right": N - losses}, "mcnemar_p": mcnemar_exact(wins, losses)}
    return Event.now("decision", **body, champion=champion and {"key": champion, "right": N - wins})


def after(*events: Event) -> State:
    promoted = {"decision": "PROMOTED", "reason": "", "batches": [], "champion": None, "candidate": {"right": 1}}
    return fold([Event.now("decision", key="first", **promoted), *events])


FROZEN = (Precondition("promotion is frozen", False, "holiday"),)


@pytest.mark.parametrize(
    ("event", "close"),
    [
        (decided(2, 2), True),
        (decided(0, 0), True),
        (decided(1, 4), True),
        (decided(0, 6), False),
        (decided(3, 1, min_net_wins=5), True),
        (decided(3, 1, conditions=FROZEN), True),
        (decided(0, 9, conditions=FROZEN), False),
        (decided(3, 0), False),
        (decided(2, 2, champion="another"), False),
        (decided(9, 30, champion=None), False),
        (decided(2, 3, max_recall_loss=0.0), False),
        (decided(3, 0, conditions=[Precondition("finite scores", False, "look")]), False),
    ],
    ids=lambda value: value.body["reason"][:30] if isinstance(value, Event) else str(value),
)
def test_it_lost_by_no_more_than_chance_explains_or_waits(event: Event, close: bool) -> None:
    assert challenger(after(event)) == (event if close else None)


def test_it_is_the_newest_candidates_alone_and_beside_the_champion_in_force() -> None:
    assert challenger(after()) is None
    assert challenger_key(after(decided(2, 2), decided(1, 2))) == "1-2"
    assert challenger_key(after(decided(2, 2), decided(0, 9))) is None
    assert challenger_key(after(decided(2, 2), Event.now("freeze", reason="holiday"))) == "2-2"
    promoted = decided(3, 0)
    assert challenger_key(after(promoted, decided(2, 2, champion="3-0"))) == "2-2"
    back = Event.now("rollback", key="first", number=1)
    assert challenger_key(after(promoted, decided(2, 2, champion="3-0"), back)) is None


# -- where it is said ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shop(s3_endpoint, tmp_path_factory) -> Iterator[Shop]:
    """A shop with a champion, and a candidate that had as many photos right."""
    with open_shop(tmp_path_factory.mktemp("challenger"), s3_endpoint, 80) as shop:
        shop.first(train=20)
        assert shop.retrain().decision == "PROMOTED"
        assert (shop.tracking.challenger(), shop.tracking.client.search_registered_models()[1:]) == (None, [])
        shop.send("second", 1)
        assert shop.retrain().decision == "REJECTED"
        yield shop


def told(shop: Shop) -> dict[str, str]:
    """Versions of the challenger's registered model: number → decision key."""
    found = shop.tracking.client.search_model_versions(f"name = '{shop.tracking.challengers}'")
    return {str(each.version): each.tags["decision_key"] for each in found}


def newest(shop: Shop) -> str:
    return str(next(reversed(shop.state.decisions)))


def status(shop: Shop, *options: str) -> str:
    done = CliRunner().invoke(cli, ["status", *options, "--workspace", str(shop.workspace.root)])
    assert done.exit_code == 0, done.output
    return done.output


# Each test goes on from where the one before it left the shop.


def test_a_candidate_that_came_close_is_registered_beside_the_champions_and_told(shop):
    key = newest(shop)
    assert told(shop) == {"1": key}
    client = shop.tracking.client
    version = client.get_model_version_by_alias("ssclass.challenger", "challenger")
    assert version.tags["decision_key"] == key
    assert MODEL in shop.tracking.models_of(shop.run(key)), "the whole model, for whoever compares"
    assert version.description.startswith("**Challenger**")
    assert list(shop.versions().values()) == shop.state.champions, "what did not win is no version of the champions'"
    body = shop.state.decisions[key].body
    line = (
        f"run/{key}: {body['candidate']['right']} of 10 held-out photos right, the champion {body['champion']['right']}"
    )
    assert line in " ".join(status(shop).split())
    assert json.loads(status(shop, "--json"))["challenger"]["key"] == key


def test_again_it_changes_nothing_and_a_hand_in_mlflow_is_put_right(shop):
    key, client = newest(shop), shop.tracking.client
    before = client.get_registered_model("ssclass.challenger").last_updated_timestamp
    assert shop.retrain().decision == "SKIPPED"
    publish.reconcile(shop.workspace)
    assert client.get_registered_model("ssclass.challenger").last_updated_timestamp == before
    for harm in (
        lambda: client.delete_registered_model_alias("ssclass.challenger", CHALLENGER),
        lambda: client.delete_model_version("ssclass.challenger", "1"),
        lambda: client.delete_registered_model("ssclass.challenger"),
    ):
        harm()
        assert glance(shop.workspace, shop.state) is None, "SKIPPED must not be said before it is right"
        (finding,) = verify(shop.workspace)
        assert finding.thing == "alias challenger"
        shop.retrain()
        assert shop.tracking.challenger() == key
        assert glance(shop.workspace, shop.state) is not None
        assert list(verify(shop.workspace)) == []


def test_gc_keeps_what_it_is_made_of(shop):
    later = datetime.now(UTC) + timedelta(days=100)
    assert not [
        each
        for each in collect(shop.workspace, 30, keep_champions=True, dry_run=True, now=later)
        if each.kind in ("DVC objects", "model artifacts")
    ], "of two decisions one is the champion's, the other the challenger's"


def test_it_moves_to_the_candidate_that_a_freeze_keeps_waiting_and_leaves_when_that_is_promoted(shop):
    close = newest(shop)
    decisions.freeze(shop.workspace, "holiday")
    shop.send("third", 20)
    assert "frozen" in shop.retrain().reason
    assert newest(shop) != close
    assert list(told(shop).values()) == [newest(shop)], "the one before is no version any more"
    assert shop.run(close).info.lifecycle_stage == "active", "its run stays"
    assert set(shop.tracking.models_of(shop.run(close))) == {CANDIDATE}, "and what was trained"
    assert shop.tracking.challenger() == newest(shop)

    decisions.append(shop.workspace, "unfreeze", "Unfreeze")
    assert shop.tracking.challenger() is not None, "until the question was asked again"
    assert shop.retrain().decision == "PROMOTED"
    assert told(shop) == {}
    assert shop.tracking.challenger() is None
    assert "challenger" not in status(shop)
    assert json.loads(status(shop, "--json"))["challenger"] is None


def test_rebuild_makes_it_anew_and_a_rollback_takes_it_away(shop, tmp_path):
    shop.send("fourth", 1)
    assert shop.retrain().decision == "REJECTED"
    assert shop.tracking.challenger() == newest(shop)
    shutil.copy(shop.folder.parent / "empty.db", tmp_path / "mlflow.db")
    settings = shop.workspace.settings.model_copy(update={"mlflow_uri": f"sqlite:///{tmp_path / 'mlflow.db'}"})
    anew = Workspace(settings)
    rebuild(anew)
    assert Tracking.of(anew).challenger() == newest(shop)
    assert list(verify(anew)) == []
    decisions.roll_back(shop.workspace, 1)
    assert shop.tracking.challenger() is None, "it was compared with another champion"
    assert [finding.thing for finding in verify(shop.workspace)] == []


def test_a_challenger_that_cannot_be_had_stops_no_retrain(shop, monkeypatch, caplog):
    decisions.append(shop.workspace, "unfreeze", "Unfreeze")
    shop.send("fifth", 1)
    from ssclass.errors import StoreError

    def gone(*_: object) -> None:
        raise StoreError("its candidate is gone")

    with monkeypatch.context() as patch:
        patch.setattr(publish, "set_challenger", gone)
        assert shop.retrain().decision in ("REJECTED", "PROMOTED")
    assert "its candidate is gone" in caplog.text
    shop.retrain()
    assert shop.tracking.challenger() == challenger_key(shop.state)
