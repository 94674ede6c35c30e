"""The workspace: the git repository that a pipeline writes to. Truth is git, and the push decides.

workspace.at(rev)                         one commit, to read
with workspace.transaction() as change:   the next commit, to write
workspace.write(task)                     the same, again from the start while other writers are faster
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TypeVar

from ssclass.environment import private_folder
from ssclass.errors import LostRaceError
from ssclass.settings import Settings
from ssclass.store import Store
from ssclass.workspace import ownership, transaction
from ssclass.workspace.git import Git
from ssclass.workspace.lock import Lock
from ssclass.workspace.objects import Objects
from ssclass.workspace.transaction import Change
from ssclass.workspace.version import Version, Versions, WorkTree

T = TypeVar("T")

RACES = 10
"""Lost pushes in a row after which a writer gives up; each means that another writer got its work done."""


class Workspace:
    """One clone. `settings.workspace` is its folder; `private` holds its caches, untracked."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.root: Path = settings.workspace
        self.private: Path = settings.private
        self.git = Git(self.root, settings.patience)
        self._claimed = False

    @cached_property
    def store(self) -> Store:
        """The bucket."""
        return Store(self.settings)

    @cached_property
    def objects(self) -> Objects:
        """What DVC keeps, by content."""
        return Objects(self.root, self.store)

    @cached_property
    def _versions(self) -> Versions:
        return Versions(self.root, self.private / "shards", self.git, self.objects)

    # -- reading --------------------------------------------------------------------------------------

    def at(self, rev: str = "HEAD") -> Version:
        """The version at a revision: a data version, a ``run/…`` tag, a commit; default: where this clone stands."""
        return self._versions.at(rev)

    def work_tree(self) -> Version:
        """The files as they are now, uncommitted changes and all; read anew at each call."""
        return WorkTree(self.root, self.private / "shards", self.git, self.objects, None)

    def decided(self, key: str) -> Version:
        """The version that a decision made. Where its tag ``run/<key>`` was lost, the commit on main is looked for."""
        if self.git("rev-parse", "--verify", "--quiet", f"refs/tags/run/{key}", check=False):
            return self.at(f"refs/tags/run/{key}")
        found = self.git("log", "--format=%H", "--fixed-strings", f"--grep={key}", "HEAD").splitlines()
        for commit in found:
            if key in self.at(commit).state.decisions:
                first = commit
                while key in self.at(parent := f"{first}^").state.decisions:
                    first = self.at(parent).commit or parent
                return self.at(first)
        return self.at(f"refs/tags/run/{key}")  # says that there is none

    @property
    def head(self) -> str:
        """The commit of main that this clone is at."""
        return self.git("rev-parse", "HEAD")

    @property
    def origin(self) -> str:
        """The address of origin."""
        return self.git("remote", "get-url", "origin")

    def has_ancestor(self, rev: str, commit: str = "HEAD") -> bool:
        """Whether a commit descends from a revision; False when there is no such revision."""
        return self.git.run("merge-base", "--is-ancestor", rev, commit).returncode == 0

    def claim(self) -> None:
        """Stop where our place in S3 is another workspace's (WorkspaceError); asked once, then known."""
        if not self._claimed:
            ownership.claim(self.store, self.git)
            self._claimed = True

    # -- writing --------------------------------------------------------------------------------------

    @cached_property
    def _lock(self) -> Lock:
        return Lock(private_folder(self.settings) / "lock")

    @cached_property
    def _retrain_lock(self) -> Lock:
        return Lock(private_folder(self.settings) / "retrain.lock")

    @contextmanager
    def transaction(self, wait: float | None = None) -> Iterator[Change]:
        """Be the only writer in this folder, at origin's newest commit, with nothing left over.

        The block ends with `change.publish`, or leaves everything as it was. `wait`: seconds to wait for another
        process that writes here, None for as long as it takes; FailedError then says who. WorkspaceError when a
        person's changes are in the way, LostRaceError when another writer pushed first.
        """
        with self._lock.held(wait):
            change = Change(self, transaction.begin(self.settings, self.git, self.objects, self._versions))
            try:
                yield change
            finally:
                if change.commit is None:
                    transaction.restore(self.settings, self.git, self.objects)
                transaction.end(self.settings)

    def write(self, task: Callable[[Change], T], wait: float | None = None) -> T:
        """Do a task in a transaction, and again in a new one while other writers are faster; what it returns.

        The task must take all that it needs from `change.version`. LostRaceError after `RACES` lost pushes.
        """
        for _ in range(RACES):
            try:
                with self.transaction(wait) as change:
                    return task(change)
            except LostRaceError as error:
                lost = error
        raise LostRaceError(
            f"{self.root}: lost the race to push {RACES} times in a row; see who else writes to origin ({lost})"
        )

    def newest(self) -> Version:
        """Origin's newest version, after clearing what a killed transaction left; this clone then stands there."""
        with self.transaction() as change:
            return change.version

    @contextmanager
    def retraining(self, wait: float | None = None) -> Iterator[None]:
        """Be the only retrain in this folder: two would train the same candidate twice. Other writers go on.

        `wait`: seconds to wait for another one, None for as long as it takes; FailedError then says who it is.
        """
        with self._retrain_lock.held(wait):
            yield
