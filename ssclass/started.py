"""Whether a server that does not answer is one of the workspace's own stack, and the command that then helps."""

from __future__ import annotations

import os
import shlex
import socket
import tomllib
from pathlib import Path
from urllib.parse import urlsplit

from ssclass.errors import FailedError, WorkspaceError
from ssclass.settings import STARTED_FILE, Settings, find_workspace

SERVERS = {"s3_endpoint": "S3", "mlflow_uri": "MLflow", "prefect_url": "Prefect"}
"""The settings that name servers of the stack, and what people call these."""


def command(settings: Settings, arguments: str) -> str:
    """A command of ours as it is typed here: with ``--workspace`` where this folder is not in that workspace."""
    try:
        here = find_workspace() == settings.workspace.resolve()
    except WorkspaceError:
        here = False
    if here:
        return f"ssclass {arguments}"
    around = Path.cwd()
    where = settings.workspace.resolve()
    where = where.relative_to(around) if where.is_relative_to(around) else where
    return f"ssclass {arguments} --workspace {shlex.quote(str(where))}"


def ours(settings: Settings, field: str) -> str | None:
    """The address of a server of the workspace's own stack, as `ssclass up` wrote it down; None of another's."""
    try:
        written = tomllib.loads((settings.workspace / STARTED_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    found = written.get(field)
    return str(found) if found is not None and found == getattr(settings, field) else None


def away(settings: Settings, field: str) -> str | None:
    """What is wrong and what helps, where a server of the workspace's own stack does not answer; else None.

    `field` is the setting that names it. Servers of others are not asked.
    """
    address = ours(settings, field)
    if address is None or _listens(address):
        return None
    part = SERVERS[field].lower()
    if supervised(settings):
        return (
            f"{SERVERS[field]} of this workspace's stack does not answer at {address}; see "
            f"{settings.private / 'stack' / 'logs' / part}.log, or start the stack anew with "
            f"`{command(settings, 'down')}` and `{command(settings, 'up')}`"
        )
    return (
        f"the stack is not running ({SERVERS[field]} does not answer at {address}); "
        f"start it with `{command(settings, 'up')}`"
    )


def check_started(settings: Settings) -> None:
    """Stop where a server that `ssclass up` wrote down is away and the stack is not up; FailedError names the command.

    While the stack is up nothing is said: a part that died is started again within seconds.
    """
    if supervised(settings):
        return
    for field in SERVERS:
        if said := away(settings, field):
            raise FailedError(f"{settings.workspace}: {said}")


def _listens(address: str) -> bool:
    at = urlsplit(address)
    try:
        with socket.create_connection((at.hostname or "", at.port or 80), timeout=3):
            return True
    except OSError:
        return False


def supervised(settings: Settings) -> bool:
    """Whether the stack's supervisor runs: what died is then started again."""
    try:
        os.kill(int((settings.private / "stack" / "supervisord.pid").read_text()), 0)
    except (OSError, ValueError):
        return False
    return True
