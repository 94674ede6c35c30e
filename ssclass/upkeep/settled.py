"""Whether a retrain has anything to do, asked before Prefect, TensorFlow, MLflow and DVC are imported.

A retrain with nothing new changes nothing, and a person waits for it: what it would look at is looked at here in the
same order, with what costs no seconds to import. Where anything is not as it should be (a batch waits, a question is
open, a decision is not on its run, the alias differs, the champion is
not exported yet, a `forget` is under way, a service is away) the answer is None,
and the retrain finds it again and does it, or says what is wrong.
"""

from __future__ import annotations

from ssclass.errors import SsclassError
from ssclass.retrain.ingest import sent_again, waiting
from ssclass.retrain.key import pending_key
from ssclass.retrain.outcome import Outcome
from ssclass.settings import Settings
from ssclass.tracking.exports import pending
from ssclass.tracking.glance import glance
from ssclass.upkeep.finish import unfinished
from ssclass.workspace.workspace import Workspace


def look(settings: Settings) -> Outcome | None:
    """SKIPPED where a retrain in this workspace would say so and change nothing; None where it may have to do more.

    A retrain that is under way in this folder is waited for, as another retrain would.
    """
    workspace = Workspace(settings.model_copy(update={"patience": 0.0}))  # who is away is waited for by the retrain
    try:
        with workspace.retraining():
            return _look(workspace)
    except SsclassError:
        return None


def _look(workspace: Workspace) -> Outcome | None:
    version = workspace.newest()
    if waiting(workspace.store, version.state) or sent_again(workspace.store, version.state):
        return None
    if pending_key(version) is not None or unfinished(workspace, version.events):
        return None
    seen = glance(workspace, version.state)
    if seen is not None and seen.version is not None and pending(workspace.settings, seen.tags):
        return None
    return None if seen is None else Outcome.skipped(version=seen.version)
