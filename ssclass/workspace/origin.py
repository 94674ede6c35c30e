"""The ledger as origin has it, for those who only watch: in a bare clone of its own, so that no writer is disturbed."""

from __future__ import annotations

import hashlib

from ssclass.settings import Settings
from ssclass.workspace import ledger
from ssclass.workspace.git import Git, check_url


class Origin:
    """`settings.git`, or the origin of the workspace."""

    def __init__(self, settings: Settings) -> None:
        self.url = check_url(settings.git or Git(settings.workspace)("remote", "get-url", "origin"))
        self.folder = settings.private / "origin" / hashlib.sha256(self.url.encode()).hexdigest()[:16]
        self._known: tuple[str, ledger.State] | None = None

    def state(self) -> ledger.State:
        """The ledger of origin's newest commit, folded; FailedError when origin is away."""
        from filelock import FileLock

        self.folder.mkdir(parents=True, exist_ok=True)
        git = Git(self.folder)
        with FileLock(f"{self.folder}.lock"):
            if not (self.folder / "HEAD").exists():
                git("init", "--quiet", "--bare")
            git.remote("fetch", "--quiet", "--no-tags", "--depth", "1", "--", self.url, "+main:refs/heads/main")
            commit = git("rev-parse", "refs/heads/main")
            if self._known is None or self._known[0] != commit:
                text = git("show", f"{commit}:ledger.jsonl")
                self._known = commit, ledger.fold(ledger.parse(text, self.url))
        return self._known[1]
