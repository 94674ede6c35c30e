"""The data set for people: class folders of a data version, and what differs between two."""

from __future__ import annotations

import re
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from ssclass import progress
from ssclass.data.shards import Row
from ssclass.errors import NotFoundError, WorkspaceError
from ssclass.history.forms import form
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


def export(
    workspace: Workspace, folder: Path, rev: str = "HEAD", *, without_metadata: bool = False, kind: str = "folders"
) -> tuple[int, int]:
    """Write every photo of a data version as the data set is in force: corrected labels, no removed photos.

    `kind`: one of `forms.FORMS`; ``folders`` writes ``folder/<train or test>/<class>/<first 16 of sha256>-<name>``.
    Returns how many, and how many of them say more than their pixels (place, camera, author). The bytes are the ones
    that were received; `without_metadata`: every photo's file is written anew without it. WorkspaceError when the
    folder is not empty or cannot be written to.
    """
    from ssclass.data.metadata import personal, strip
    from ssclass.data.refusals import Refused

    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise WorkspaceError(f"{folder}: not an empty folder; name a new one")
    version = workspace.at(check_version(workspace, rev))
    rows = version.dataset.by_sha256
    done = telling = 0
    left_out: list[str] = []
    classes = version.params.dataset.classes
    known = [*classes, *sorted({row.label for row in rows.values()} - set(classes))]  # of an older version's params
    with closing(form(kind, folder, known)) as out:
        for sha256, data in photos_of(version, set(rows)):
            row = rows[sha256]
            telling += personal(data)
            try:
                written = strip(data) if without_metadata else data
            except Refused:
                left_out.append(sha256)
                continue
            out.add(row, file_name(row, png=written[:4] == _PNG and data[:4] != _PNG), written)
            done += 1
            progress.report("export", done, len(rows))
    if left_out:
        raise WorkspaceError(
            f"{folder}: {done} photos written, {len(left_out)} left out as no copy without metadata can be made of "
            f"them ({left_out[0][:16]}…); take them out of the data set (`remove` in a manifest), or export without "
            "--strip"
        )
    return done, telling


_PNG = b"\x89PNG"
_LONGEST = 255  # bytes of a file name, on every file system in use
_AWKWARD = re.compile(r"[\x00-\x1f\x7f/\\:*?\"<>|]")  # what Windows or a terminal cannot take


def file_name(row: Row, *, png: bool = False) -> str:
    """What a photo's file is called: 16 digits of its sha256, and its own name as far as file systems take it.

    `png`: of a photo that became one.
    """
    head = f"{row.sha256[:16]}-"
    name = _AWKWARD.sub("_", PurePosixPath(row.key).name).removeprefix(head)  # of an export that was imported
    end = ".png" if png else PurePosixPath(name).suffix
    end = end if len(end) <= 16 else ""
    stem = name if png else name.removesuffix(end)
    room = _LONGEST - len(head) - len(end.encode("utf-8", "replace"))
    short = stem.encode("utf-8", "replace")[:room].decode("utf-8", "ignore")
    return head + (short + end).encode("utf-8", "replace").decode().rstrip(". ")


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
