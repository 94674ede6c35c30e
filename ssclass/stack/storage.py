"""The S3 server of a workspace's stack by itself, for as long as a block lasts; `ssclass up` goes on with its data."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager

from ssclass.errors import FailedError
from ssclass.settings import Settings, load_settings
from ssclass.stack.identities import make_identities
from ssclass.stack.manager import MARK, PATIENCE, STOPPING, Manager, last_line
from ssclass.stack.parts import Part, format_s3, is_well, s3_part
from ssclass.stack.plan import Plan, storage_started
from ssclass.store import Store


@contextmanager
def storage(settings: Settings) -> Iterator[Settings]:
    """Run a workspace's own S3, with its bucket made; the settings with which it is reached.

    It is the one that `ssclass up` runs: same data, users and secrets. Another command that starts or stops the
    workspace's stack waits meanwhile. FailedError where it does not come up.
    """
    manager = Manager(settings)
    with manager.alone():
        manager.end_leftovers(lambda said: None)
        plan = Plan.of(manager.folder)
        format_s3(manager.folder)
        storage_started(settings, plan, manager.folder)
        part = s3_part(plan, manager.folder)
        (manager.folder / "logs").mkdir(exist_ok=True)
        with (manager.folder / "logs" / "s3.log").open("ab") as log:
            process = subprocess.Popen(
                part.command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, **part.environment, MARK: str(manager.folder)},
                start_new_session=True,  # Ctrl-C is ours to handle
            )
        try:
            _wait(manager, process, part)
            make_identities(plan.url("s3"), (plan.s3_user, plan.s3_password), settings.place, plan.s3_passwords)
            reached = load_settings(settings.workspace)
            Store(reached).make_bucket()
            yield reached
        finally:
            process.terminate()
            try:
                process.wait(STOPPING)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _wait(manager: Manager, process: subprocess.Popen[bytes], part: Part) -> None:
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end and process.poll() is None:
        if is_well(part):
            return
        time.sleep(0.05)
    raise FailedError(f"{part.name} did not come up ({last_line(manager.log(part.name))})")
