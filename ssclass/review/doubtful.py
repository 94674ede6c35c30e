"""Photos that `ssclass serve` kept as the champion doubted them: labelled by a person, and sent as a new batch.

They are shown for as long as the settings keep them (`collect_days`), whoever has deleted them by then or has not.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from ssclass.data.batches import INCOMING, MANIFEST
from ssclass.data.folders import LabelledFile
from ssclass.data.manifest import MANIFEST_LIMIT, parse_manifest
from ssclass.data.submit import upload
from ssclass.environment import temporary_folder
from ssclass.errors import BatchError, StoreError
from ssclass.history.batches import stories
from ssclass.review.steps import Step
from ssclass.serving.collected import COLLECT, Collected, collected, read, today
from ssclass.workspace.ledger import DROPPED, REVOKED
from ssclass.workspace.workspace import Workspace

PREFIX = "review-photos-"
"""How the ids of batches begin that bring photos which were labelled in the review."""


def place_of(photo: Collected) -> str:
    """The folder that a step names as the place of such a photo; the id of no batch has a slash."""
    return f"{COLLECT}/{photo.day.isoformat()}"


def is_place(name: str) -> bool:
    """Whether a step's place is one of theirs."""
    return name.startswith(f"{COLLECT}/")


def doubtful(workspace: Workspace) -> list[Collected]:
    """Photos that wait for a label, the oldest first; none while S3 is away.

    Left out are those of the data set, those that were sent from here and not taken back, and those whose days are
    over.
    """
    since = today() - timedelta(days=workspace.settings.collect_days)
    try:
        kept = [photo for photo in collected(workspace.store) if photo.day >= since]
        known = {*workspace.at().dataset.by_sha256, *_sent(workspace)} if kept else set()
    except StoreError:
        return []
    unique = {photo.sha256: photo for photo in reversed(kept)}
    return [photo for photo in reversed(unique.values()) if photo.sha256 not in known]


def _sent(workspace: Workspace) -> Iterable[str]:
    """sha256s of the photos of such batches, whatever became of them; those that were taken back are left out."""
    for story in stories(workspace):
        if story.batch.startswith(PREFIX) and story.status not in (DROPPED, REVOKED):
            body = workspace.store.get(f"{INCOMING}/{story.batch}/{MANIFEST}", limit=MANIFEST_LIMIT)
            try:
                photos = parse_manifest(body or b"", story.batch, "it is passed over").photos
            except BatchError:  # anybody who may send batches may call one so
                continue
            yield from (entry.sha256 for entry in photos if entry.sha256)


def send_labelled(workspace: Workspace, steps: Sequence[Step]) -> list[str]:
    """Send photos with the labels that a person gave them, as one batch; what was done, a sentence each. StoreError.

    They are all to be trained on: held out, photos that a champion found hard would bend the ruler.
    """
    waiting = {photo.sha256: photo for photo in doubtful(workspace)}
    files, gone = [], 0
    with temporary_folder(workspace.settings) as folder:
        for step in steps:
            photo = waiting.get(step.target)
            data = None if photo is None else read(workspace.store, photo)
            if data is None:
                gone += 1
                continue
            path = Path(folder) / step.target
            path.write_bytes(data)
            files.append(LabelledFile(path, f"{step.label}/{step.target[:16]}.jpg", step.label, "train"))
        done = [f"No longer kept, so not sent: {gone} of the photos."] if gone else []
        if files:
            batch = f"{PREFIX}{datetime.now(UTC):%Y%m%d-%H%M%S-%f}"
            upload(workspace.store, files, batch)
            done.append(f"{len(files)} photos with their labels are batch {batch}; the next retrain takes it in.")
    return done


def throw_away(workspace: Workspace, steps: Sequence[Step]) -> list[str]:
    """Delete photos that a person wants nobody to keep; what was done. StoreError."""
    targets = {step.target for step in steps}
    found = [photo for photo in collected(workspace.store) if photo.sha256 in targets]
    for photo in found:
        workspace.store.erase(photo.key)
    return [f"{len(found)} doubtful photos are deleted."] if found else []
