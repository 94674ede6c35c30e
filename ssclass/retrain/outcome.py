"""What a retrain came to, as the command line prints it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from ssclass.retrain.ingest import Ingested
from ssclass.workspace.ledger import SKIPPED


@dataclass(frozen=True)
class Outcome:
    """A decision with its reason, what became of each batch, the ledger's line, and the champion's MLflow version."""

    decision: str
    reason: str
    batches: tuple[Ingested, ...] = ()
    event: dict[str, Any] | None = None
    version: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """JSON-able; what ``ssclass retrain --json`` prints."""
        return asdict(self)

    @classmethod
    def skipped(cls, batches: tuple[Ingested, ...] = (), version: str | None = None) -> Outcome:
        """Nothing was new: no batch brought anything, and no question is open."""
        return cls(SKIPPED, "nothing new to learn from", batches, version=version)
