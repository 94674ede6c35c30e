"""What the service tells Prometheus of the loop that its champion comes from, and of what it is asked lately.

A thread looks once a minute at the ledger, the data set and what waits in S3. It never holds up an answer, and while
it cannot look, what it saw last stands, with its age.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter, deque
from collections.abc import Mapping

from prometheus_client import CollectorRegistry, Gauge

from ssclass.errors import SsclassError
from ssclass.retrain.health import Health, health
from ssclass.retrain.ingest import waiting
from ssclass.secrets import without_secrets
from ssclass.workspace.workspace import Workspace

EVERY = 60.0  # seconds between two looks
LATELY = 1000  # answers that shares are of
FEW = 20  # answers below which shares say nothing

log = logging.getLogger(__name__)


class Loop:
    """The gauges of the loop. `lock`: held while the clone is brought up to date, as others in this process do too."""

    def __init__(self, registry: CollectorRegistry, workspace: Workspace, lock: threading.Lock) -> None:
        self._workspace, self._lock = workspace, lock
        self._answers: deque[tuple[str, bool | None]] = deque(maxlen=LATELY)
        self._labels: Mapping[str, int] = {}
        self._seen_at: float | None = None
        self._said: str | None = None
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="loop", daemon=True)
        self._made = registry
        self._gauges: dict[str, Gauge] = {}

    def start(self) -> None:
        """Begin to look."""
        self._thread.start()

    def end(self) -> None:
        """Stop looking."""
        self._ended.set()

    def answered(self, label: str, sure: bool | None) -> None:
        """Note an answer."""
        self._answers.append((label, sure))

    def count(self, expected_unsure: float | None) -> None:
        """Set the gauges of what is asked lately, before they are read. `expected_unsure`: by cross-validation."""
        lately = list(self._answers)
        told = [sure for _, sure in lately if sure is not None]
        if len(told) >= FEW:
            share = told.count(False) / len(told)
            self._set("unsure_share", "Share of the last answers that were not sure.", share)
        if expected_unsure is not None:
            self._set("unsure_usual_share", "The same in cross-validation.", expected_unsure)
        if len(lately) >= FEW and self._labels:
            given, known = Counter(label for label, _ in lately), Counter(self._labels)
            apart = sum(
                abs(given[name] / given.total() - known[name] / known.total()) for name in given.keys() | known.keys()
            )
            self._set(
                "asked_distance", "How far the labels of the last answers are from the data set's, 0 to 1.", apart / 2
            )
        if self._seen_at is not None:
            age = time.monotonic() - self._seen_at
            self._set("loop_seen_seconds", "Seconds since the ledger and S3 were looked at.", age)

    def _run(self) -> None:
        while not self._ended.is_set():
            self.look()
            self._ended.wait(EVERY)

    def look(self) -> None:
        """Look once. Nothing is raised."""
        try:
            with self._lock:
                version = self._workspace.newest()
        except SsclassError:  # origin is away, or a person's changes are in the way: what is known here counts
            version = self._workspace.at()
        except Exception as error:
            self._note(error)
            return
        try:
            self._labels = {name: sum(sides.values()) for name, sides in version.dataset.counts().items()}
            self._tell(health(version.state, version.dataset))
            pending = waiting(self._workspace.store, version.state)
            self._set("batches_waiting", "Batches in S3 that are to be taken in.", len(pending))
        except Exception as error:
            self._note(error)
            return
        self._seen_at, self._said = time.monotonic(), None

    def _note(self, error: Exception) -> None:
        said = without_secrets(str(error))
        if said != self._said:
            log.warning("the loop's health cannot be seen: %s", said)
        self._said = said

    def _tell(self, now: Health) -> None:
        ages = {"champion": now.champion_days, "decision": now.decision_days, "batch": now.batch_days}
        for name, days in ages.items():
            if days is not None:
                self._set(f"{name}_age_seconds", f"Seconds since the {name} was recorded in the ledger.", days * 86400)
        self._set("batches_held", "Batches that wait for a person.", now.held)
        self._set("alarms", "What `ssclass status` calls an alarm: how many there are.", len(now.alarms))
        for source, each in now.running.items():
            text = "Share of the last batches' photos that champions had right before they learnt from them."
            self._set("running_accuracy", text, each.accuracy, source)
            self._set("running_usual_accuracy", "The same by the champions' records.", each.expected / each.n, source)
        for source, calibration in now.calibration.items():
            text = (
                "Mean probability of the champions' answers on those photos: their accuracy, where it can be believed."
            )
            self._set("running_confidence", text, calibration.confidence, source)
            self._set("running_loss", "Log loss of those answers, nats.", calibration.loss, source)
            if calibration.usual_loss is not None:
                self._set("running_usual_loss", "The same in cross-validation.", calibration.usual_loss, source)
        if now.drift is not None:
            text = "How far the newest batch is from those before it."
            self._set("batch_label_distance", f"{text[:-1]}, in its labels.", now.drift.labels)
            self._set("batch_colour_distance", f"{text[:-1]}, in its colours.", now.drift.colours)

    def _set(self, name: str, text: str, value: float, source: str | None = None) -> None:
        """Set a gauge, made when there is something to tell: 0 would be a lie."""
        if name not in self._gauges:
            names = [] if source is None else ["source"]
            self._gauges[name] = Gauge(f"ssclass_{name}", text, names, registry=self._made)
        gauge = self._gauges[name]
        (gauge if source is None else gauge.labels(source)).set(value)
