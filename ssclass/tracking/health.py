"""The health of the loop over time, in MLflow: one run in an experiment of its own, a step a line of the ledger.

What is written follows from the ledger and the data set, with the ledger's own times, so that it can be written again:
the run's tag says up to which event it was. How many batches wait is not in the ledger: it is noted with the last one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from ssclass.errors import StoreError
from ssclass.retrain.health import Health, health
from ssclass.retrain.ingest import waiting
from ssclass.text import metric_word
from ssclass.tracking.client import Tracking
from ssclass.workspace.ledger import Event, fold
from ssclass.workspace.version import Version
from ssclass.workspace.workspace import Workspace

UNTIL, OURS = "ledger_lines", "loop"
"""The tag with the number of events that are told, and the tag of the run itself."""
MOST = 50
"""Events, the newest, that are told at once: of a ledger that was long before this was there, no more."""
ABOUT = """A step is a line of the ledger (`ssclass history`), its time is that line's.

- `running_accuracy`, `running_usual_accuracy`: what champions had right of the last ten batches before they learnt from
  them, and by their records. After the `/` comes the source
- `batch_accuracy`, `batch_loss`, `batch_confidence`, `batch_calibration_error`: on that batch alone;
  `usual_…`: the champion's own, in cross-validation
- `label_distance`, `colour_distance`: how far the batch is from what its source sent before
- `champion_days`, `decision_days`, `batch_days`: how old each was then
- `held`, `waiting`: batches; `alarms`: what `ssclass status` calls so
"""


@dataclass(frozen=True)
class Point:
    """Metrics at a line of the ledger; `at`: milliseconds since 1970."""

    step: int
    at: int
    metrics: dict[str, float]


class HealthRuns(Tracking):
    """The experiment of the loop's health, with its one run."""

    columns = ()

    def __init__(self, workspace: Workspace) -> None:
        super().__init__(workspace.settings)
        self.name = f"{workspace.settings.model_name}-health"

    def run(self) -> Any:
        """The run, made on first use; of several that were made at once the oldest."""
        with self.named():
            asked = [self.experiment_id], f"tags.{OURS} = 'health'"
            found = self.client.search_runs(*asked, order_by=["attributes.start_time ASC", "attributes.run_id ASC"])
            if not found:
                tags = {OURS: "health", "mlflow.note.content": ABOUT}
                made = self.client.create_run(self.experiment_id, run_name="health of the loop", tags=tags)
                self.client.set_terminated(made.info.run_id, "FINISHED")  # nothing is under way
                found = self.client.search_runs(*asked, order_by=["attributes.start_time ASC"])
            return found[0]

    def write(self, run_id: str, points: Sequence[Point]) -> None:
        """Write points, and then up to where that is: what is written twice is there once."""
        from mlflow.entities import Metric

        with self.named():
            for point in points:
                made = [Metric(name, value, point.at, point.step) for name, value in point.metrics.items()]
                self.client.log_batch(run_id, metrics=made)
            self.client.set_tag(run_id, UNTIL, str(points[-1].step))


def tell_health(workspace: Workspace) -> int:
    """Write what the ledger has since it was written last; how many points. TrackingError when MLflow is away."""
    version = workspace.at()
    if not version.events:
        return 0
    told = HealthRuns(workspace)
    run = told.run()
    said = run.data.tags.get(UNTIL, "0")
    done = int(said) if said.isdecimal() else 0
    points = list(history(version, max(done, len(version.events) - MOST)))
    if points:
        with suppress(StoreError):  # the bucket is away: the rest is told
            points[-1].metrics["waiting"] = float(len(waiting(workspace.store, version.state)))
        told.write(run.info.run_id, points)
    return len(points)


def history(version: Version, after: int) -> Iterator[Point]:
    """A point for each event of the ledger after so many of them, with the state as it was then."""
    events = version.events
    for number in range(after + 1, len(events) + 1):
        event = events[number - 1]
        state, then = fold(events[:number]), datetime.fromisoformat(event.at)
        batch = str(event.body["batch"]) if event.kind == "ingest" else ""  # no batch is called so: no drift then
        now = health(state, version.dataset, then, batch)
        yield Point(number, int(then.timestamp() * 1000), {**_loop(now), **_batch(event)})


def _loop(now: Health) -> dict[str, float]:
    days = {"champion_days": now.champion_days, "decision_days": now.decision_days, "batch_days": now.batch_days}
    found = {name: value for name, value in days.items() if value is not None}
    found |= {"held": float(now.held), "alarms": float(len(now.alarms))}
    for source, each in now.running.items():
        word = metric_word(source)
        found |= {f"running_accuracy/{word}": each.accuracy, f"running_usual_accuracy/{word}": each.expected / each.n}
    if now.drift is not None:
        found |= {"label_distance": now.drift.labels, "colour_distance": now.drift.colours}
    return found


def _batch(event: Event) -> dict[str, float]:
    """What the champion did on a batch before it learnt from it."""
    test = event.body.get("champion_test") if event.kind == "ingest" else None
    if not test or not test["n"]:
        return {}
    found = {"batch_accuracy": test["right"] / test["n"]}
    names = ("loss", "confidence", "calibration_error")
    found |= {f"batch_{name}": float(test[name]) for name in names if name in test}
    return found | {f"usual_{name}": float(test[f"usual_{name}"]) for name in names if f"usual_{name}" in test}
