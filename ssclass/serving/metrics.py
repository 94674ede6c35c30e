"""What the service counts, for Prometheus."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SECONDS = (0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
SIZES = (1, 2, 4, 8)


class Metrics:
    """The counters of one service, in a registry of its own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        made = self.registry
        self.requests = Counter("ssclass_requests", "Requests for predictions, by status.", ["status"], registry=made)
        self.photos = Counter("ssclass_photos", "Photos by outcome.", ["outcome"], registry=made)
        self.labels = Counter("ssclass_labels", "Photos by the label that they were given.", ["label"], registry=made)
        self.seconds = Histogram(
            "ssclass_request_seconds", "Seconds of a request for predictions.", registry=made, buckets=SECONDS
        )
        self.collected = Counter(
            "ssclass_collected",
            "Doubtful photos that might be kept, by what became of them.",
            ["outcome"],
            registry=made,
        )
        self.batches = Histogram("ssclass_batch_photos", "Photos in a batch.", registry=made, buckets=SIZES)
        self.waiting = Gauge("ssclass_waiting_photos", "Photos taken in and not answered yet.", registry=made)
        self.switches = Counter("ssclass_switches", "Champions that took over.", registry=made)
        self.version = Gauge("ssclass_model_version", "The version that answers; 0: none.", registry=made)
        self.away = Gauge("ssclass_registry_away", "1 while MLflow cannot be asked.", registry=made)
        self.refused = Gauge(
            "ssclass_model_refused", "1 while the version that MLflow names may not answer.", registry=made
        )

    def text(self) -> bytes:
        """All of them in Prometheus's text format."""
        return generate_latest(self.registry)
