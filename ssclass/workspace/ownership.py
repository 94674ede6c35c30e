"""Whose a folder in S3 is: two workspaces in one would take each other's batches, and delete each other's objects."""

from __future__ import annotations

import json

from ssclass.errors import WorkspaceError
from ssclass.store import Store
from ssclass.text import shown
from ssclass.workspace.git import Git

OWNER = "dvc/owner.json"
"""Says which workspace everything beside it belongs to: its name, and the commit that it begins with."""


def claim(store: Store, git: Git) -> None:
    """Make a workspace's place in S3 its own; WorkspaceError where it is another's already, naming that one.

    Every clone of a workspace is the same one. A place that nobody claimed yet is the first one's who comes.
    """
    mine = git.first_commit()
    if mine is None:
        return
    if (found := store.get(OWNER, limit=10_000)) is None:
        told = {"schema": 1, "workspace": mine, "name": store.settings.name}
        store.put(OWNER, json.dumps(told).encode())
        found = store.get(OWNER, limit=10_000) or b""  # of two who came at once, the later one's counts for both
    at = f"s3://{store.place}"
    try:
        owner = json.loads(found)
        theirs, name = str(owner["workspace"]), shown(str(owner["name"]), 40)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise WorkspaceError(
            f"{at}/{OWNER}: it does not say whose {at} is; delete it, the next retrain writes it anew"
        ) from error
    if theirs != mine:
        raise WorkspaceError(
            f"{at} belongs to another workspace, {name!r}, which begins with commit {shown(theirs, 16)}; give this one "
            f'a folder of its own: s3_prefix = "…" in {store.settings.workspace / "ssclass.toml"}. Where that one is '
            f"no more, delete {at}/{OWNER}"
        )
