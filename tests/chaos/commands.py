"""What a forked process can be asked to do: the commands of `ssclass` as they are, and a look at what they left."""

from __future__ import annotations

import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from tests.chaos.invariants import check as check
from tests.chaos.invariants import told as told


def ssclass(*arguments: str) -> None:
    """A command line; ends with its exit code."""
    from ssclass.cli import main

    sys.argv = ["ssclass", *arguments]
    main()


def workspace_at(folder: str) -> Any:
    from ssclass.cli.common import workspace_at as at

    return at(Path(folder))


def gc(folder: str, keep_champions: bool = True) -> None:
    """`ssclass gc` as it will be in forty days."""
    from ssclass.errors import SsclassError
    from ssclass.upkeep.gc import collect

    later = datetime.now(UTC) + timedelta(days=40)
    try:
        collect(workspace_at(folder), 30, keep_champions=keep_champions, dry_run=False, now=later)
    except SsclassError as error:
        print(f"ssclass: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


def alias_by_hand(folder: str, number: str) -> None:
    """A person moves the alias in MLflow's UI, if there is that version."""
    from ssclass.tracking.client import Tracking

    tracking = Tracking.of(workspace_at(folder))
    if number in {str(each.version) for each in tracking.client.search_model_versions(f"name = '{tracking.name}'")}:
        tracking.set_alias(number)


def clone(folder: str, origin: str) -> None:
    from ssclass.workspace.create import create

    create(Path(folder), {}, git=origin)


def edit(folder: str, folds: int) -> None:
    """A person changes params.yaml at origin's newest commit, and pushes."""
    import subprocess

    workspace = workspace_at(folder)
    workspace.newest()
    path = workspace.root / "params.yaml"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(f"  folds: {folds}\n" if line.startswith("  folds:") else line for line in lines))
    git = ["git", "-C", str(workspace.root), "-c", "user.name=p", "-c", "user.email=p@example.org"]
    if workspace.git("status", "--porcelain"):
        subprocess.run([*git, "commit", "-qam", "Params"], check=True)
        subprocess.run([*git, "push", "-q", "origin", "main"], check=True)
