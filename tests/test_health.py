"""How the loop is doing: running accuracy by source, drift of batches, alarms; told by status, notices and metrics."""

from __future__ import annotations

import json
import threading
import zlib
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from prometheus_client import CollectorRegistry, generate_latest

from ssclass.cli import cli
from ssclass.data.dataset import Dataset
from ssclass.data.shards import Receipt, Row, Shard
from ssclass.retrain.calibration import calibrations
from ssclass.retrain.health import ALARM, DRAWS, compared, drift, health, running, told_by
from ssclass.retrain.statistics import calibration
from ssclass.serving.loop import FEW, Loop
from ssclass.stack.automations import ALARMS
from ssclass.tracking.health import UNTIL, HealthRuns, tell_health
from ssclass.workspace.ledger import Event, State
from tests.support.shops import Shop, open_shop

NOW = datetime(2026, 3, 1, tzinfo=UTC)


def rows(count: int, seed: int, *, sushi: float = 0.5, hue: int = 0, groups: int | None = None) -> list[Row]:
    """Photos whose colours lie around a hue; so many groups of near-copies, or none alike."""
    chance = np.random.default_rng(seed)
    found = []
    for number in range(count):
        group = f"{seed}-{number % (groups or count)}"
        colours = np.random.default_rng(zlib.crc32(group.encode())).dirichlet(np.full(64, 0.3))
        palette = np.zeros(512)
        palette[hue : hue + 64] = np.sqrt(colours) * 255
        label = "sushi" if chance.random() < sushi else "sandwich"
        name = f"{seed}/{number}"
        found.append(Row(name, label, "train", group, "0" * 16, palette.astype(np.uint8).tobytes(), name, 9, 9))
    return found


def dataset(*batches: Sequence[Row], sources: Sequence[str] = ()) -> Dataset:
    shards = []
    for number, batch in enumerate(batches):
        source = sources[number] if sources else "main"
        receipt = Receipt(f"b{number}", "manifest.json", "etag", number + 1, len(batch), 0, source=source)
        shards.append(Shard(tuple(batch), receipt))
    return Dataset.of(shards)


def ledger_of(*tests: tuple[int, int], record: tuple[int, int] = (180, 200), source: str = "main") -> State:
    """A ledger of batches on which a champion had so many right of so many."""
    state = State()
    for number, (right, n) in enumerate(tests):
        test = {"key": "k", "right": right, "n": n, "champion_right": record[0], "champion_n": record[1]}
        body = {"batch": f"b{number}", "etag": "e", "champion_test": test, "receipt": {"source": source}}
        state.ingested[f"b{number}"] = Event("ingest", (NOW - timedelta(days=9 - number)).isoformat(), body)
    return state


# -- one number after the other --------------------------------------------------------------------------------


def test_the_running_accuracy_is_that_of_the_last_batches_of_each_source() -> None:
    state = ledger_of(*[(36, 40)] * 12)
    state.ingested["b11"].body["receipt"]["source"] = "phones"
    state.ingested["b3"].body["champion_test"]["right"] = 10
    state.revoked["b3"] = Event("revoke", NOW.isoformat(), {"batch": "b3"})
    state.ingested["b4"].body["champion_test"] = None
    found = running(state)
    assert {source: (each.batches, each.right, each.n) for source, each in found.items()} == {
        "main": (9, 324, 360),
        "phones": (1, 36, 40),
    }
    assert found["main"].expected == pytest.approx(360 * 180.5 / 201)
    assert found["main"].interval.low < 0.9 < found["main"].interval.high
    assert not found["main"].alarming
    assert running(State()) == {}


def test_batches_each_a_little_worse_are_an_alarm_together_and_the_last_straw_tells_it() -> None:
    state = ledger_of(*[(36, 40)] * 2, *[(31, 40)] * 8)
    assert running(state)["main"].alarming
    fewer = ledger_of(*[(36, 40)] * 2, *[(31, 40)] * 1)
    assert not running(fewer)["main"].alarming
    straws = [
        number
        for number in range(1, 9)
        if told_by(ledger_of((36, 40), (36, 40), *[(31, 40)] * number), Dataset(), f"b{number + 1}")
    ]
    assert len(straws) == 1, "told once, by the batch that made it so"


def test_a_batch_like_the_past_is_no_news_and_one_of_other_labels_or_colours_is() -> None:
    past = [rows(60, seed) for seed in range(5)]
    same = drift(dataset(*past, rows(60, 9)))
    assert same is not None
    assert (same.batch, same.alarms) == ("b5", [])
    labels = drift(dataset(*past, rows(60, 9, sushi=0.95)))
    assert labels is not None
    assert len(labels.alarms) == 1
    assert "labels" in labels.alarms[0]
    colours = drift(dataset(*past, rows(60, 9, hue=48)))
    assert colours is not None
    assert len(colours.alarms) == 1
    assert "colours" in colours.alarms[0]


def test_alarms_about_like_batches_are_as_rare_as_they_should_be() -> None:
    """p is uniform: of batches drawn from the same photos one in twenty is below .05, and few below .01."""
    pool = rows(400, 1)
    chance = np.random.default_rng(0)
    found = []
    for _ in range(60):
        order = chance.permutation(400)
        found.append(compared([pool[at] for at in order[:50]], [pool[at] for at in order[50:]])[3])
    assert np.mean(found) == pytest.approx(0.5, abs=0.15)
    assert sum(p < 0.01 for p in found) <= 4
    assert min(found) >= 1 / (DRAWS + 1)


def test_a_burst_of_one_dish_is_held_against_bursts() -> None:
    """Sixty photos of three dishes are unlike any sixty photos, but as any sixty of three dishes are."""
    burst = rows(60, 1, groups=3)
    *_, colours_p = compared(burst, [row for seed in range(2, 12) for row in rows(60, seed, groups=3)])
    assert colours_p > ALARM


def test_what_is_usual_for_a_source_is_no_alarm() -> None:
    one_class = [rows(60, seed, sushi=float(seed % 2)) for seed in range(6)]
    found = drift(dataset(*one_class, rows(60, 9, sushi=0.0)))
    assert found is not None
    assert found.labels_p < 0.01
    assert found.alarms == [], "each batch of this source is of one class"
    mixed = [rows(60, seed) for seed in range(3)]
    other = dataset(*one_class[:3], *mixed, rows(60, 9, sushi=0.0), sources=["a"] * 3 + ["b"] * 4)
    beside = drift(other)
    assert beside is not None
    (alarm,) = beside.alarms
    assert "labels" in alarm, "what is usual elsewhere is not usual here"


def test_too_few_photos_say_nothing() -> None:
    assert drift(Dataset()) is None
    assert drift(dataset(rows(60, 1))) is None
    assert drift(dataset(rows(60, 1), rows(5, 2))) is None
    assert drift(dataset(rows(60, 1), rows(60, 2)), "no such batch") is None
    assert drift(dataset(rows(60, 1), [])) is None


def test_ages_are_those_of_the_ledger() -> None:
    state = ledger_of((36, 40))
    made = Event("decision", (NOW - timedelta(days=2)).isoformat(), {"key": "k", "decision": "PROMOTED"})
    state.decisions["k"], state.champion = made, "k"
    state.held["x", "e"] = made
    found = health(state, Dataset(), NOW)
    assert (found.champion_days, found.decision_days, found.batch_days, found.held) == (2, 2, 9, 1)
    assert json.loads(json.dumps(found.as_dict()))["running"]["main"]["right"] == 36
    nothing = health(State(), Dataset(), NOW)
    assert (nothing.champion_days, nothing.decision_days, nothing.batch_days, nothing.alarms) == (None, None, None, [])


def test_probabilities_that_cannot_be_believed_show_beside_those_of_cross_validation() -> None:
    odds = np.array([[0.9, 0.1], [0.6, 0.4], [0.2, 0.8], [0.7, 0.3]])
    found = calibration(odds, np.array([0, 1, 1, 0]))
    assert found is not None
    assert found["confidence"] == pytest.approx(0.75)
    assert found["loss"] == pytest.approx(-np.log([0.9, 0.4, 0.8, 0.7]).mean())
    assert calibration(np.array([[np.nan, 1.0]]), np.array([0])) is None
    assert calibration(np.empty((0, 2)), np.array([], int)) is None

    state = ledger_of((36, 40), (20, 40), (30, 40))
    assert calibrations(state) == {}, "older lines tell nothing of it"
    for batch, loss in (("b1", 1.0), ("b2", 0.4)):
        state.ingested[batch].body["champion_test"] |= {"loss": loss, "confidence": 0.9, "usual_loss": 0.3}
    (told,) = calibrations(state).values()
    assert (told.batches, told.n, told.accuracy) == (2, 80, 50 / 80)
    assert (told.loss, told.usual_loss, told.confidence) == pytest.approx((0.7, 0.3, 0.9))
    assert "log loss 0.700, 0.300 in cross-validation" in told.told()
    assert json.loads(json.dumps(health(state, Dataset(), NOW).as_dict()))["calibration"]["main"]["n"] == 80


# -- where it is told ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shop(s3_endpoint: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    with open_shop(tmp_path_factory.mktemp("health"), s3_endpoint, 136) as shop:
        shop.first(train=20)
        assert shop.retrain().decision == "PROMOTED"
        yield shop


def test_an_unlike_batch_is_told_by_a_notice_status_and_the_service(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[tuple[str, dict[str, Any]]] = []
    step = shop.flow.step
    monkeypatch.setattr(step.notices, "tell", lambda settings, event, resource, **more: told.append((event, more)))
    made = shop.photos(60)
    for entry in made:
        entry["split"] = "train"
    dishes = [entry for entry in made if entry["label"] == "sushi"]
    shop.deliver("one-sided", dishes)
    shop.retrain()
    said = {event: more["reason"] for event, more in told}
    assert set(said) >= set(ALARMS)
    assert "one-sided: its labels are unlike those before it" in said["ssclass.batch.unlike"]

    status = CliRunner().invoke(cli, ["status", "--workspace", str(shop.workspace.root)])
    assert status.exit_code == 0, status.output
    assert "alarm      batch one-sided: its labels" in status.output
    assert "running    main: " in status.output
    told_json = CliRunner().invoke(cli, ["status", "--json", "--workspace", str(shop.workspace.root)])
    assert json.loads(told_json.output)["health"]["drift"]["batch"] == "one-sided"

    registry = CollectorRegistry()
    loop = Loop(registry, shop.clone(), threading.Lock())
    for number in range(FEW):
        loop.answered("sushi", number % 4 > 0)
    loop.look()
    loop.count(0.1)
    values = dict(
        line.rsplit(" ", 1) for line in generate_latest(registry).decode().splitlines() if not line.startswith("#")
    )
    assert float(values["ssclass_unsure_share"]) == 0.25
    assert float(values["ssclass_unsure_usual_share"]) == 0.1
    labels = {name: sum(sides.values()) for name, sides in shop.workspace.at().dataset.counts().items()}
    assert float(values["ssclass_asked_distance"]) == pytest.approx(labels["sandwich"] / sum(labels.values()))
    assert float(values["ssclass_alarms"]) == 1
    assert float(values["ssclass_batches_waiting"]) == 0
    assert 0 <= float(values['ssclass_running_accuracy{source="main"}']) <= 1
    assert float(values["ssclass_champion_age_seconds"]) >= 0


def test_where_s3_or_origin_is_away_the_service_goes_on_with_what_it_saw(shop: Shop) -> None:
    registry = CollectorRegistry()
    away = shop.workspace.settings.model_copy(update={"s3_endpoint": "http://127.0.0.1:9"})
    from ssclass.workspace.workspace import Workspace

    loop = Loop(registry, Workspace(away), threading.Lock())
    loop.look()
    loop.count(None)
    text = generate_latest(registry).decode()
    assert "ssclass_champion_age_seconds" in text
    assert "ssclass_batches_waiting" not in text
    assert "ssclass_loop_seen_seconds" not in text


def values(runs: HealthRuns, name: str) -> dict[int, float]:
    """The values of a metric in MLflow by their step; each is there once."""
    run_id = runs.run().info.run_id
    with runs.named():
        found = runs.client.get_metric_history(run_id, name)
    assert len({each.step for each in found}) == len(found)
    return {each.step: each.value for each in found}


def test_mlflow_tells_it_over_time_and_however_often_it_is_written_once(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop.send("usual", 12)
    shop.retrain()
    workspace, runs = shop.workspace, HealthRuns(shop.workspace)
    events = workspace.at().events
    by_batch = {event.body["batch"]: number for number, event in enumerate(events, 1) if event.kind == "ingest"}
    test = events[by_batch["usual"] - 1].body["champion_test"]
    assert values(runs, "batch_accuracy")[by_batch["usual"]] == test["right"] / test["n"]
    assert values(runs, "batch_loss")[by_batch["usual"]] == pytest.approx(test["loss"])
    assert 0 < test["confidence"] <= 1
    assert list(values(runs, "held")) == list(range(1, len(events) + 1))
    assert by_batch["usual"] in values(runs, "running_accuracy/main")
    assert values(runs, "waiting")[len(events)] == 0
    before = {name: values(runs, name) for name in runs.run().data.metrics}
    assert tell_health(workspace) == 0

    with runs.named():
        runs.client.set_tag(runs.run().info.run_id, UNTIL, "1")  # as if it had been killed before it noted how far
    assert tell_health(workspace) == len(events) - 1
    assert {name: values(runs, name) for name in runs.run().data.metrics} == before

    def away(*_: Any) -> None:
        raise OSError("MLflow is away")

    monkeypatch.setattr(HealthRuns, "write", away)
    shop.send("later", 12)
    assert shop.retrain().decision in ("PROMOTED", "REJECTED"), "no retrain fails for it"
    monkeypatch.undo()
    assert tell_health(workspace) > 0
