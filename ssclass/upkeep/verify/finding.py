"""What `ssclass verify` finds: one thing, what is wrong with it, what helps, and where there is one, the mending."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Finding:
    """One line. `mend` puts it right from what the ledger says; None where a person has to."""

    thing: str
    wrong: str
    remedy: str
    mend: Callable[[], object] | None = field(default=None, compare=False, repr=False)
    mended: bool = False

    def line(self) -> str:
        """The finding as it is printed."""
        return f"{self.thing}: {self.wrong}; {'mended' if self.mended else self.remedy}"

    def as_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return {"thing": self.thing, "wrong": self.wrong, "remedy": self.remedy, "mended": self.mended}


REPAIR = "`ssclass verify --repair` puts it right"
