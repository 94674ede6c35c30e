"""A workspace for a process that has none: its own clone of origin, in a folder of its own.

Workers share no disk. What they know are URLs: of git (a parameter of the run, or ``SSCLASS_GIT``), and by the
settings those of S3, MLflow and Prefect.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ssclass.errors import WorkspaceError
from ssclass.settings import SETTINGS_FILE, Settings, home, load_settings
from ssclass.workspace.create import create
from ssclass.workspace.workspace import Workspace


def is_folder(where: str) -> bool:
    """Whether this names a workspace on this machine rather than an origin; a folder that we may not see is none."""
    try:
        return (Path(where) / SETTINGS_FILE).is_file()
    except OSError:
        return False


def workspace_at(where: str) -> Workspace:
    """The workspace in a folder; for a git URL this user's clone of it, made when there is none."""
    if is_folder(where):
        return Workspace(load_settings(Path(where)))
    from filelock import FileLock

    url = os.environ.get("SSCLASS_GIT") or where
    folder = home() / "clones" / hashlib.sha256(url.encode()).hexdigest()[:16]
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if not is_folder(str(folder)):
            return create(folder, {}, git=url)
    return Workspace(load_settings(folder))


def find_settings(given: Path | None) -> Settings:
    """Settings of the workspace given or around this folder; where there is none, of a clone of ``SSCLASS_GIT``."""
    try:
        return load_settings(given)
    except WorkspaceError:
        url = os.environ.get("SSCLASS_GIT")
        if url is None or given is not None or os.environ.get("SSCLASS_WORKSPACE"):
            raise
        return workspace_at(url).settings


@contextmanager
def at_commit(where: str, commit: str | None) -> Iterator[Path]:
    """The folder to train in: the workspace itself, or a clone that has the commit and is gone afterwards."""
    if is_folder(where):
        yield Path(where)
        return
    with tempfile.TemporaryDirectory(prefix="ssclass-") as folder:
        yield create(Path(folder) / "workspace", {}, git=os.environ.get("SSCLASS_GIT") or where).root
