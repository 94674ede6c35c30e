"""The ledger as origin has it, for those who only watch: in a bare clone of its own, so that no writer is disturbed."""

from __future__ import annotations

import hashlib
import os
import subprocess
from pathlib import Path

from ssclass.errors import FailedError
from ssclass.settings import Settings
from ssclass.workspace import ledger


class Origin:
    """`settings.git`, or the origin of the workspace."""

    def __init__(self, settings: Settings) -> None:
        self.url = settings.git or _git(settings.workspace, "remote", "get-url", "origin")
        self.folder = settings.private / "origin" / hashlib.sha256(self.url.encode()).hexdigest()[:16]

    def state(self) -> ledger.State:
        """The ledger of origin's newest commit, folded; FailedError when origin is away."""
        from filelock import FileLock

        self.folder.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{self.folder}.lock"):
            if not (self.folder / "HEAD").exists():
                _git(self.folder, "init", "--quiet", "--bare")
            _git(self.folder, "fetch", "--quiet", "--depth", "1", self.url, "+main:refs/heads/main")
            text = _git(self.folder, "show", "refs/heads/main:ledger.jsonl")
        return ledger.fold(ledger.parse(text, self.url))


def _git(folder: Path, *args: str) -> str:
    environment = {**os.environ, "GIT_TERMINAL_PROMPT": "0", "LC_ALL": "C"}
    done = subprocess.run(
        ["git", *args], cwd=folder, env=environment, capture_output=True, text=True, stdin=subprocess.DEVNULL
    )
    if done.returncode:
        said = (done.stderr.strip() or "no message").splitlines()[-1]
        raise FailedError(f"git {args[0]}: {said}; check the URL of origin and the access to it")
    return done.stdout.strip()
