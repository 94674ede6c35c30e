"""Which heads a retrain tries: all of them after growth, else the last winner; how often features are read for it."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest

from ssclass.code import code_digest
from ssclass.params import DatasetParams, ModelParams, Params
from ssclass.retrain.race import last_winner
from ssclass.workspace.ledger import Event, State, fold
from tests.support.fake_head import patch_model, retrain_flow
from tests.support.shops import Shop, empty_mlflow, pictures

PARAMS = Params(dataset=DatasetParams(classes=("a", "b")))


def decided(number: int, train_size: int, head: str, decision: str = "REJECTED", **more: Any) -> Event:
    body = {
        "decision": decision,
        "key": f"{number:016x}",
        "data_version": f"data/{number}",
        "train_size": train_size,
        "head": head,
        "batches": [],
        "code": code_digest(),
        "params": PARAMS.result_digest[:16],
    }
    return Event("decision", "2026-01-01T00:00:00+00:00", body | more)


def winner(events: list[Event], data: int, train_size: int, params: Params = PARAMS) -> str | None:
    version: Any = SimpleNamespace(params=params, state=fold(events), data_version=f"data/{data}")
    return last_winner(version, train_size)


def test_with_nothing_decided_all_heads_are_tried():
    assert winner([], 1, 600) is None


def test_the_last_winner_is_tried_alone_until_a_tenth_has_come_since_the_last_full_race():
    told = [decided(1, 600, "bilinear", "PROMOTED")]
    for number, size in enumerate((620, 640, 659), 2):
        assert winner(told, number, size) == "bilinear"
        told.append(decided(number, size, "bilinear"))
    assert winner(told, 5, 660) is None, "counted from 600, which was the last full race, not from 659"
    told.append(decided(5, 660, "rbf", "PROMOTED"))
    assert winner(told, 6, 725) == "rbf"
    assert winner(told, 6, 726) is None
    assert winner(told, 6, 600) is None, "so much was taken out"


def test_a_training_that_is_done_again_at_its_own_commit_tries_what_it_tried():
    told = [decided(1, 600, "bilinear"), decided(2, 620, "bilinear")]
    assert winner(told, 1, 600) is None
    assert winner(told, 2, 620) == "bilinear"
    grown = [*told, decided(3, 700, "rbf"), decided(4, 710, "rbf")]
    assert winner(grown, 3, 700) is None
    assert winner(grown, 2, 620) == "bilinear", "what was decided later is not known then"


@pytest.mark.parametrize(
    "more", [{"code": "0" * 16}, {"params": "0" * 16}, {"adopted": {"sha256": "0"}}, {"code": None}, {"head": None}]
)
def test_what_was_won_by_other_code_or_params_or_adopted_says_nothing(more):
    def told(number: int) -> Event:
        event = decided(number, 600, "bilinear")
        return Event(event.kind, event.at, event.body | more)

    assert winner([told(1)], 2, 600) is None
    assert winner([decided(1, 600, "rbf"), told(2)], 3, 600) == "rbf"


@pytest.mark.parametrize("model", [{"head": "T1"}, {"members": ("mobilenet/T1", "mobilenet/rbf")}])
def test_where_params_name_the_head_there_is_no_race(model):
    params = PARAMS.model_copy(update={"model": ModelParams(**model)})
    told = [decided(1, 600, "T1", params=params.result_digest[:16])]
    assert winner(told, 2, 600, params) is None


def test_the_flow_tries_the_winner_alone_and_reads_each_shard_once(s3_endpoint, tmp_path, monkeypatch):
    from ssclass.model import training
    from ssclass.model.features import FeatureMemo

    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    patch_model(monkeypatch.setattr)
    empty_mlflow(tmp_path / "empty.db")
    drawn = pictures(tmp_path / "pictures", 70)
    shop = Shop.make(tmp_path / "shop", s3_endpoint, drawn, retrain_flow(), tmp_path / "empty.db")
    tried, read = [], Counter[str]()
    train, get = training.train_planned, FeatureMemo.get

    def recorded(features_of: Any, labels: Any, groups: Any, planned: Any, params: Params, progress: Any) -> Any:
        tried.append((len(labels), params.model.head))
        return train(features_of, labels, groups, planned, params, progress)

    def counted(memo: Any, spec: Any, digest: str, sha256s: Any, names: Any = None) -> Any:
        read[digest] += 1
        return get(memo, spec, digest, sha256s, names)

    monkeypatch.setattr(training, "train_planned", recorded)
    monkeypatch.setattr(FeatureMemo, "get", counted)
    shop.first(train=40)
    shop.retrain()
    shop.send("second", 2)
    shop.retrain()
    read.clear()
    shop.send("third", 3)
    shop.retrain()
    state: State = shop.state
    assert tried == [(40, "auto"), (42, "fake"), (45, "auto")], "45 is a tenth more than 40, though not than 42"
    assert [event.body["head"] for event in state.decisions.values()] == ["fake"] * 3
    digests = [shard.photos_digest for shard in shop.workspace.at().dataset.shards]
    assert [read[digest] for digest in digests] == [1, 1, 2], "the new shard also for the champion's test"
