"""What the pages of a review show, gathered from the workspace; no HTTP here."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ssclass.data.shards import Refusal
from ssclass.errors import InputError, NotFoundError, StoreError, WorkspaceError
from ssclass.history.shards import shards_ever
from ssclass.review.doubtful import doubtful, is_place, place_of
from ssclass.review.held import HeldBatch, read_held
from ssclass.review.jobs import Jobs
from ssclass.review.pictures import Pictures
from ssclass.review.queues import QUEUES, Item, of_suspects
from ssclass.review.send import Outbox, send, sent, take_back
from ssclass.review.steps import Kind, Step, Steps
from ssclass.workspace.workspace import Workspace

SUSPICIOUS = "suspicious"
PAGE = 48
"""Photos on a page."""


@dataclass(frozen=True)
class Shown:
    """Photos on a page: those of `page` (from 1) of `pages`, each with its thumbnail and what is decided of it."""

    items: tuple[tuple[Item, str, Step | None], ...]
    page: int
    pages: int
    total: int


class Desk:
    """One person's review of one workspace. `folder`: for photos of held batches; it is gone when the review ends."""

    def __init__(self, workspace: Workspace, folder: Path) -> None:
        self.workspace = workspace
        self.folder = folder
        self.steps = Steps(workspace)
        self.jobs = Jobs()
        self.pictures = Pictures(workspace)
        self.said = ""

    def heard(self) -> str:
        """What the last form did, in a sentence; it is said once."""
        said, self.said = self.said, ""
        return said

    def refresh(self) -> None:
        """Read what is new in origin; where a person's changes are in the folder's way, what is here counts."""
        with suppress(WorkspaceError):
            self.workspace.newest()

    @property
    def classes(self) -> tuple[str, ...]:
        """The classes of params.yaml."""
        return self.workspace.at().params.dataset.classes

    def held(self) -> list[tuple[str, str, Step | None]]:
        """(batch, why it is held, what is decided of it) of each held batch."""
        standing = self.steps.standing()
        return [
            (name, str(event.body["reason"]), standing.get(name))
            for (name, _), event in self.workspace.at().state.held.items()
        ]

    def refused(self) -> list[tuple[str, tuple[Refusal, ...]]]:
        """(batch, refused files) of the batches of the data set that have some, newest first; none while S3 is away."""
        try:
            found = [(shard.batch_id, shard.receipt.refused) for shard in shards_ever(self.workspace)]
        except StoreError:
            return []
        unique = dict(found)
        return [(batch, refused) for batch, refused in reversed(unique.items()) if refused]

    def begin_held(self, batch: str) -> str:
        """Begin to read a held batch, unless it is read; the name of the job."""
        job = self._job(batch)
        self.jobs.begin(job, lambda progress: read_held(self.workspace, batch, self.folder, progress))
        return job

    def held_batch(self, batch: str) -> HeldBatch | None:
        """A held batch that has been read; None before that."""
        job = self._job(batch)
        found = self.jobs.result(job) if self.jobs.state(job) == "done" else None
        return found if isinstance(found, HeldBatch) else None

    def _job(self, batch: str) -> str:
        """The name of the job that reads a batch: under another marker it is another batch."""
        etags = [etag for name, etag in self.workspace.at().state.held if name == batch]
        return f"held {batch} {etags[0] if etags else 'no longer'}"

    def begin_suspicious(self) -> None:
        """Begin to look for suspicious labels among the training photos, by a cross-validation."""
        from ssclass.study.suspects import suspects

        self.jobs.begin(SUSPICIOUS, lambda progress: of_suspects(suspects(self.workspace, progress)))

    def queue(self, name: str) -> list[Item]:
        """The photos of a queue that are still as they were found; NotFoundError for a queue that there is not."""
        if name == SUSPICIOUS:
            here = self.workspace.at().dataset.by_sha256
            found: list[Item] = self.jobs.result(SUSPICIOUS) or []
            return [item for item in found if item.sha256 in here and here[item.sha256].label == item.label]
        if name not in QUEUES:
            raise NotFoundError(f"{name}: no queue of the review; the first page lists them")
        return QUEUES[name].find(self.workspace)

    def show(self, items: Sequence[Item], page: int, held: HeldBatch | None = None) -> Shown:
        """One page of photos, with their thumbnails."""
        pages = max(1, -(-len(items) // PAGE))
        page = min(max(1, page), pages)
        part = items[(page - 1) * PAGE : page * PAGE]
        wanted = [item.sha256 for item in part]
        if held:
            pictures = self.pictures.of_held(held, wanted)
        elif any(is_place(item.held) for item in part):
            pictures = self.pictures.of_collected(wanted)
        else:
            pictures = self.pictures.of_dataset(wanted)
        standing = self.steps.standing()
        shown = tuple((item, pictures.get(item.sha256, ""), standing.get(item.sha256)) for item in part)
        return Shown(shown, page, pages, len(items))

    def decide(self, kind: Kind, target: str, label: str = "", held: str = "") -> Step:
        """Take a step; InputError where it fits nothing that there is: a class, a photo, a held batch."""
        state = self.workspace.at().state
        names = {name for name, _ in state.held}
        if kind in ("admit", "drop"):
            etags = [etag for name, etag in state.held if name == target]
            if not etags:
                raise InputError(f"{target}: not a held batch; the first page lists those that are")
            if held and held not in etags:
                raise InputError(f"{target}: sent again since it was looked at; load the page again")
            step = Step(kind, target, batch=held or etags[0])
        else:
            batch = self.held_batch(held) if held in names else None
            if is_place(held):
                known = {photo.sha256 for photo in doubtful(self.workspace) if place_of(photo) == held}
            else:
                known = {item.sha256 for item in batch.items} if batch else {*self.workspace.at().dataset.by_sha256}
            if target not in known:
                raise InputError(f"{target[:16]}: no such photo, or it is gone; load the page again")
            if kind == "relabel" and label not in self.classes:
                raise InputError(f"{label}: no class of params.yaml; choose one of {', '.join(self.classes)}")
            if kind == "keep" and is_place(held):
                raise InputError(f"{target[:16]}: it has no label yet that could be right; choose one")
            step = Step(kind, target, label if kind == "relabel" else "", held if batch or is_place(held) else "")
        self.steps.add(step)
        return step

    def outbox(self) -> Outbox:
        """What would be sent."""
        return Outbox.of(self.steps, self.workspace)

    def send(self) -> list[str]:
        """Send what is decided; see `ssclass.review.send.send`."""
        return send(self.workspace, self.steps)

    def sent(self) -> list[Any]:
        """The corrections that were sent, newest first."""
        return sent(self.workspace)

    def take_back(self, batch: str) -> str:
        """Take back corrections that were sent."""
        return take_back(self.workspace, batch)
