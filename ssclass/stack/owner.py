"""Whose a deployment is: what another workspace has on a Prefect server is not taken over."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ssclass.errors import WorkspaceError
from ssclass.settings import SETTINGS_FILE, Settings, load_settings
from ssclass.workspace.workspace import Workspace

LABEL = "ssclass.workspace"
"""The deployment's label with its owner's id."""


def owner_id(settings: Settings) -> str:
    """What a workspace is known by, wherever it is moved or cloned to: the first commit of its history."""
    return Workspace(settings).git.first_commit() or ""


def check_owner(settings: Settings, full: str, deployment: Mapping[str, Any]) -> None:
    """Stop where a deployment on the server is another workspace's; WorkspaceError names that one."""
    where = str((deployment.get("parameters") or {}).get("workspace", ""))
    known = (deployment.get("labels") or {}).get(LABEL)
    if known == owner_id(settings) or (known is None and not _is_anothers(settings, where)):
        return
    raise WorkspaceError(
        f"deployment {full} at {settings.prefect_url} belongs to the workspace {where or known}; give this one a name "
        f'of its own: name = "…" in {settings.workspace / SETTINGS_FILE}'
    )


def _is_anothers(settings: Settings, where: str) -> bool:
    """Whether a deployment without a label, as older versions made them, is another's: as far as that can be seen.

    A folder that is gone may be where this workspace was before it was moved; one that is there can be asked.
    """
    if not where or where in (str(settings.workspace), Workspace(settings).git("remote", "get-url", "origin")):
        return False
    if (Path(where) / SETTINGS_FILE).is_file():
        return owner_id(load_settings(Path(where))) != owner_id(settings)
    return not Path(where).is_absolute()
