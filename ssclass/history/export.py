"""The data set for people: class folders of a data version, and what differs between two."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from ssclass import progress
from ssclass.data.shards import Row
from ssclass.errors import NotFoundError, WorkspaceError
from ssclass.workspace.version import photos_of
from ssclass.workspace.workspace import Workspace


def check_version(workspace: Workspace, rev: str) -> str:
    """A data version, run tag or commit of the workspace; NotFoundError lists what there is."""
    if not workspace.git("rev-parse", "--verify", "--quiet", f"{rev}^{{commit}}", check=False):
        tags = (
            ", ".join(workspace.git("tag", "--list", "data/*", "--sort=version:refname").splitlines()[-5:])
            or "none yet"
        )
        raise NotFoundError(f"{rev}: no such data version in {workspace.root} (newest: {tags}); name a tag or a commit")
    return rev


def export(workspace: Workspace, folder: Path, rev: str = "HEAD", *, without_metadata: bool = False) -> tuple[int, int]:
    """Write ``folder/<split>/<class>/<first 16 of sha256>-<name>`` for every photo of a data version.

    Returns how many, and how many of them say more than their pixels (place, camera, author). The bytes are the ones
    that were received; `without_metadata`: those photos without it. WorkspaceError when the folder is not empty.
    """
    from ssclass.data.metadata import personal, strip

    if folder.exists() and any(folder.iterdir()):
        raise WorkspaceError(f"{folder}: not empty; name a new folder")
    version = workspace.at(check_version(workspace, rev))
    rows = version.dataset.by_sha256
    done = telling = 0
    for sha256, data in photos_of(version, set(rows)):
        row = rows[sha256]
        name = PurePosixPath(row.key).name.removeprefix(f"{sha256[:16]}-")  # of an export that was imported
        path = folder / row.split / row.label / f"{sha256[:16]}-{name}"
        path.parent.mkdir(parents=True, exist_ok=True)
        tells = personal(data)
        telling += tells
        path.write_bytes(strip(data) if tells and without_metadata else data)
        done += 1
        progress.report("export", done, len(rows))
    return done, telling


@dataclass(frozen=True)
class Difference:
    """What two data versions differ in; `relabelled` is (before, after)."""

    added: tuple[Row, ...]
    removed: tuple[Row, ...]
    relabelled: tuple[tuple[Row, Row], ...]

    def as_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return {
            "added": [_brief(row) for row in self.added],
            "removed": [_brief(row) for row in self.removed],
            "relabelled": [{**_brief(after), "was": before.label} for before, after in self.relabelled],
        }


def difference(workspace: Workspace, before: str, after: str) -> Difference:
    """Compare two data versions, photo by photo."""
    old = workspace.at(check_version(workspace, before)).dataset.by_sha256
    new = workspace.at(check_version(workspace, after)).dataset.by_sha256
    return Difference(
        tuple(row for sha256, row in new.items() if sha256 not in old),
        tuple(row for sha256, row in old.items() if sha256 not in new),
        tuple((old[sha256], row) for sha256, row in new.items() if sha256 in old and old[sha256].label != row.label),
    )


def _brief(row: Row) -> dict[str, str]:
    return {"sha256": row.sha256, "label": row.label, "split": row.split, "key": row.key}
