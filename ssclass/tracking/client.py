"""MLflow as the pipeline uses it: one run a retrain, the registry's versions, and the alias.

The ledger is the truth; what is here is told by it. A run is open (no decision) until its decision is pushed;
a registered version exists only for a PROMOTED decision; the alias `champion` is set from the ledger by
`ssclass.tracking.publish.reconcile`, which can be repeated at any time.
"""

from __future__ import annotations

from typing import Any, Self
from weakref import WeakKeyDictionary

from ssclass.tracking.registry import ALIAS, CHALLENGER, Registry
from ssclass.tracking.runs import CANDIDATE, DECISION_TAG, KEY_TAG, MODEL, OWNER_TAG
from ssclass.workspace.workspace import Workspace

__all__ = ["ALIAS", "CANDIDATE", "CHALLENGER", "DECISION_TAG", "KEY_TAG", "MODEL", "OWNER_TAG", "Tracking"]

_made: WeakKeyDictionary[Workspace, dict[type, Any]] = WeakKeyDictionary()


class Tracking(Registry):
    """One experiment and one registered model, both named `settings.model_name`."""

    @classmethod
    def of(cls, workspace: Workspace) -> Self:
        """Give the tracking of a workspace, made on first use, so that a process has one MLflow client for it."""
        made = _made.setdefault(workspace, {})
        if cls not in made:
            made[cls] = cls(workspace.settings)
        found: Self = made[cls]
        return found
