"""Sending what was decided: batches admitted and dropped, corrections as a batch of their own; and taking that back."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, datetime

from ssclass.data.submit import send_corrections
from ssclass.errors import InputError, WorkspaceError
from ssclass.history.batches import Story, stories
from ssclass.review.doubtful import is_place, send_labelled, throw_away
from ssclass.review.steps import Step, Steps
from ssclass.upkeep import decisions
from ssclass.workspace.ledger import DROPPED, INGESTED, REVOKED
from ssclass.workspace.workspace import Workspace

PREFIX = "review-"
"""How the ids of batches begin that the review sends."""


@dataclass(frozen=True)
class Outbox:
    """What would be sent: decisions on batches, corrections; `waits`: corrections of photos whose batch stays held.

    `labelled` and `discarded`: photos that `ssclass serve` kept, with a label, and those to be deleted.
    """

    batches: tuple[Step, ...]
    corrections: tuple[Step, ...]
    waits: tuple[Step, ...]
    kept: tuple[Step, ...]
    labelled: tuple[Step, ...]
    discarded: tuple[Step, ...]

    @classmethod
    def of(cls, steps: Steps, workspace: Workspace) -> Outbox:
        """What stands of the steps, sorted by what becomes of it."""
        standing, state = steps.standing(), workspace.at().state
        batches = tuple(step for step in standing.values() if step.kind in ("admit", "drop"))
        admitted = {step.target for step in batches if step.kind == "admit"} | {name for name, _ in state.admitted}
        admitted |= state.ingested.keys()
        wanted = [step for step in standing.values() if step.kind in ("relabel", "remove")]
        changes = [step for step in wanted if not is_place(step.batch)]
        return cls(
            batches,
            tuple(step for step in changes if not step.batch or step.batch in admitted),
            tuple(step for step in changes if step.batch and step.batch not in admitted),
            tuple(step for step in standing.values() if step.kind == "keep"),
            tuple(step for step in wanted if is_place(step.batch) and step.kind == "relabel"),
            tuple(step for step in wanted if is_place(step.batch) and step.kind == "remove"),
        )

    def manifest(self) -> bytes:
        """The manifest of the corrections, as a batch has it (docs/formats.md)."""
        relabel = [{"sha256": step.target, "label": step.label} for step in self.corrections if step.kind == "relabel"]
        remove = [{"sha256": step.target} for step in self.corrections if step.kind == "remove"]
        return json.dumps({"schema": 1, "relabel": relabel, "remove": remove}, ensure_ascii=False, indent=1).encode()


def send(workspace: Workspace, steps: Steps) -> list[str]:
    """Send what was decided, and clear it; what was done, a sentence each. InputError when there is nothing to send.

    Decisions on batches go first: a batch of corrections would be held while they are open. Where something fails, what
    was not sent stays, and sending again does what is left.
    """
    workspace.newest()
    outbox, done = Outbox.of(steps, workspace), []
    if not (outbox.batches or outbox.corrections or outbox.kept or outbox.labelled or outbox.discarded):
        raise InputError("nothing is decided, so there is nothing to send; decide on a photo or a batch first")
    for step in outbox.batches:
        try:
            done.append(_decide(workspace, step))
        except InputError as error:
            if not isinstance(error, WorkspaceError):  # sent again, or decided elsewhere: this step fits nothing now
                steps.forget({step.target})
            raise
        if step.kind == "drop":
            steps.forget({other.target for other in outbox.waits if other.batch == step.target})
        steps.forget({step.target})
    if outbox.corrections:
        batch = f"{PREFIX}{datetime.now(UTC):%Y%m%d-%H%M%S-%f}"
        count = send_corrections(workspace.store, outbox.manifest(), batch, "the corrections")
        done.append(f"{count} corrections are batch {batch}; the next retrain takes them in.")
    steps.forget({step.target for step in (*outbox.corrections, *outbox.kept)})
    for chosen, carry_out in ((outbox.labelled, send_labelled), (outbox.discarded, throw_away)):
        if chosen:
            done += carry_out(workspace, chosen)
            steps.forget({step.target for step in chosen})
    return done or ["What was found to be right is settled; there was nothing to correct."]


def _decide(workspace: Workspace, step: Step) -> str:
    """Admit or drop a batch as it was looked at; what was done, in a sentence."""
    if step.kind == "admit":
        decisions.admit(workspace, step.target, step.batch or None)
        return f"{step.target} joins with the next retrain."
    decisions.drop(workspace, step.target, step.batch or None)
    return f"{step.target} stays out."


def sent(workspace: Workspace) -> list[Story]:
    """Batches that a review sent, corrections and labelled photos, newest first, but for those that were taken back."""
    found = [each for each in stories(workspace) if each.batch.startswith(PREFIX)]
    return [each for each in reversed(found) if each.status not in (DROPPED, REVOKED)]


def take_back(workspace: Workspace, batch: str) -> str:
    """Take back what a review sent: labels are as they were, removed photos are there again, new ones are out.

    InputError for a batch that is none of those.
    """
    found = {each.batch: each for each in sent(workspace)}.get(batch)
    if found is None:
        raise InputError(f"{batch}: no corrections that a review sent, or taken back already; see the list of those")
    if found.status == INGESTED:
        event = decisions.revoke(workspace, batch, "taken back in the review")
        return f"{batch} is out since data/{event.body['sequence']}; the next retrain learns without it."
    decisions.drop(workspace, batch)
    return f"{batch} was not taken in yet, and stays out."
