"""The workspace: the git repository that a pipeline writes to. Truth is git, and the push decides.

A writer works in a *turn*: alone in this folder, clean, and at origin's newest commit. What it leaves is one
commit, pushed; a push that is not a fast-forward means that another writer was first (LostRaceError): nothing
of ours has happened, and the caller starts over from the new head.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property, lru_cache
from pathlib import Path

from filelock import FileLock

from ssclass.data.dataset import Dataset
from ssclass.data.manifest import MAIN
from ssclass.data.shards import Shard, read_shard
from ssclass.errors import FailedError, LostRaceError, WorkspaceError
from ssclass.params import Params, load_params
from ssclass.settings import Settings
from ssclass.workspace import ledger
from ssclass.workspace.dvc import DATA, Snapshot, Tracked, bootstrap, configure, repository

WRITTEN = ("data.dvc", "dvc.lock", "metrics.json", "code.json", "ledger.jsonl")
"""The files that the pipeline writes; the others (params.yaml, dvc.yaml, ssclass.toml) are a person's."""

AUTHOR = "pipeline@ssclass.invalid"

FETCHED = tuple(
    f"+refs/{each}"
    for each in ("heads/main:refs/remotes/origin/main", "tags/data/*:refs/tags/data/*", "tags/run/*:refs/tags/run/*")
)


class Workspace:
    """One clone. `settings.workspace` is its folder."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.root = settings.workspace
        self.private = settings.private

    # -- git ------------------------------------------------------------------------------------------

    def git(self, *args: str, check: bool = True) -> str:
        """Run git here and return what it prints; FailedError with its last line when it fails."""
        done = self._run(args)
        if check and done.returncode:
            said = (done.stderr.strip() or done.stdout.strip()).splitlines() or ["no message"]
            raise FailedError(f"git {args[0]} in {self.root}: {said[-1]}")
        return done.stdout.strip()

    def _run(self, args: Sequence[str]) -> subprocess.CompletedProcess[str]:
        identity = {
            f"GIT_{role}_{part}": value
            for role in ("AUTHOR", "COMMITTER")
            for part, value in (("NAME", "ssclass"), ("EMAIL", AUTHOR))
        }
        environment = {
            name: value
            for name, value in os.environ.items()
            if name not in ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE")
        }
        return subprocess.run(
            [
                "git",
                "-c",
                "commit.gpgsign=false",
                "-c",
                "core.hooksPath=/dev/null",
                "-c",
                "core.quotePath=false",
                *args,
            ],
            cwd=self.root,
            env={**environment, **identity, "GIT_TERMINAL_PROMPT": "0", "LC_ALL": "C"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
        )

    def _remote(self, *args: str) -> subprocess.CompletedProcess[str]:
        """Run git against origin; while origin is away, again for `settings.patience` seconds. Pushing twice is one "
        "push."""
        from tenacity import Retrying, retry_if_result, stop_after_delay, wait_exponential

        def is_away(done: subprocess.CompletedProcess[str]) -> bool:
            return done.returncode != 0 and not _was_refused(done.stderr)

        again = Retrying(
            retry=retry_if_result(is_away),
            stop=stop_after_delay(self.settings.patience),
            wait=wait_exponential(max=10),
            retry_error_callback=lambda state: state.outcome and state.outcome.result(),
        )
        return again(self._run, args)

    @property
    def head(self) -> str:
        """The commit of main that this clone is at."""
        return self.git("rev-parse", "HEAD")

    def has_ancestor(self, rev: str) -> bool:
        """Whether this commit descends from a revision; False when there is no such revision."""
        return self._run(["merge-base", "--is-ancestor", rev, "HEAD"]).returncode == 0

    # -- reading --------------------------------------------------------------------------------------

    @property
    def params(self) -> Params:
        """params.yaml, checked."""
        return load_params(self.root / "params.yaml")

    def events(self) -> list[ledger.Event]:
        """Every event of the ledger, oldest first."""
        path = self.root / "ledger.jsonl"
        return ledger.parse(path.read_text(encoding="utf-8") if path.exists() else "", str(path))

    def state(self) -> ledger.State:
        """What the ledger adds up to."""
        return ledger.fold(self.events())

    def dataset(self, rev: str | None = None) -> Dataset:
        """The data set of this commit, or of a git revision; photos stay where they are.

        Which of its photos train and judge is up to `dataset.sources` of this commit's params.yaml.
        """
        with self.snapshot(rev) as snapshot:
            shards = [self._shard(snapshot, each) for each in snapshot.files(DATA)]
        named = any(shard.receipt.source != MAIN for shard in shards)
        return Dataset.of(shards, self.params.dataset.sources if named else "all")

    @contextmanager
    def snapshot(self, rev: str | None = None) -> Iterator[Snapshot]:
        """The tracked files of this commit, or of a git revision."""
        configure(self.settings)
        with repository(self.root, rev) as repo:
            yield Snapshot(repo)

    def _shard(self, snapshot: Snapshot, tracked: Tracked) -> Shard:
        memo = self.private / "shards" / f"{tracked.md5}.parquet"
        if not memo.exists():
            from ssclass.data.shards import copy_metadata

            memo.parent.mkdir(parents=True, exist_ok=True)
            with snapshot.open(tracked.path) as source:
                copy_metadata(source, memo)
        return _remembered(memo)

    @property
    def data_version(self) -> str:
        """The newest ``data/<n>`` tag that this commit contains; ``data/0`` for the empty set."""
        tags = self.git("tag", "--list", "data/*", "--merged", "HEAD", "--sort=-version:refname").splitlines()
        return tags[0] if tags else "data/0"

    # -- writing --------------------------------------------------------------------------------------

    @cached_property
    def _lock(self) -> FileLock:
        self.private.mkdir(exist_ok=True)
        return FileLock(self.private / "lock")

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Be the only writer in this folder, at origin's newest commit, with nothing left over.

        WorkspaceError when a person's changes are in the way; FailedError when origin cannot be reached.
        """
        with self._lock:
            unfinished = self.private / "unfinished"
            if unfinished.exists():
                self._clear_leftovers()
            self.refresh()
            unfinished.touch()
            try:
                yield
            except BaseException:
                self._clear_leftovers()
                raise
            finally:
                shutil.rmtree(self.private / "scratch", ignore_errors=True)
                unfinished.unlink(missing_ok=True)

    def refresh(self) -> None:
        """Go to origin's newest commit; WorkspaceError when that would lose a person's work."""
        changed = self.git("status", "--porcelain", "--untracked-files=no").splitlines()
        if changed:
            name = changed[0].split(maxsplit=1)[1]
            raise WorkspaceError(
                f"{self.root}: {name} has uncommitted changes; commit and push them, or undo them with `git -C "
                f"{self.root} checkout {name}`"
            )
        fetched = self._remote("fetch", "--quiet", "--prune", "origin", *FETCHED)
        if fetched.returncode:
            url = self.git("remote", "get-url", "origin", check=False) or "none"
            raise FailedError(
                f"{self.root}: origin ({url}) cannot be fetched: {fetched.stderr.strip().splitlines()[-1]}; check "
                "the URL with `git remote -v` and the access to it"
            )
        ours = self.git("log", "--format=%ae %h %s", "origin/main..HEAD").splitlines()
        if any(not line.startswith(AUTHOR) for line in ours):
            raise WorkspaceError(
                f"{self.root}: main has a commit that origin has not ({ours[0].split(maxsplit=1)[1]}); run `git -C "
                f"{self.root} pull --rebase origin main` and `git -C {self.root} push origin main`"
            )
        self.git("reset", "--quiet", "--hard", "origin/main")
        configure(self.settings)
        bootstrap(self.root)

    def _clear_leftovers(self) -> None:
        """Undo what a killed or failed turn left: its files, its unpushed commits, its locks. Nothing of a person's."""
        for lock in (".git/index.lock", ".git/HEAD.lock", ".git/refs/heads/main.lock", ".dvc/tmp/rwlock"):
            (self.root / lock).unlink(missing_ok=True)
        shutil.rmtree(self.private / "scratch", ignore_errors=True)
        ours = self.git("log", "--format=%ae", "origin/main..HEAD", check=False).splitlines()
        if ours and set(ours) == {AUTHOR}:
            self.git("reset", "--quiet", "--soft", "origin/main")
        self.git("reset", "--quiet")
        present = self.git("ls-files", *WRITTEN).splitlines()
        if present:
            self.git("checkout", "--quiet", "HEAD", "--", *present)

    @property
    def scratch(self) -> Path:
        """A folder for this turn's temporary files."""
        folder = self.private / "scratch"
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def publish(self, message: str, events: Sequence[ledger.Event], *, tags: Sequence[str] = ()) -> str:
        """Append events, commit the written files, tag, and push it all at once; returns the commit.

        LostRaceError when another writer pushed first: this clone then stands where it stood before.
        """
        with (self.root / "ledger.jsonl").open("a", encoding="utf-8") as file:
            file.writelines(event.line() for event in events)
        self.git("add", "--force", *(name for name in WRITTEN if (self.root / name).exists()))
        self.git("commit", "--quiet", "--message", message)
        for tag in tags:
            self.git("tag", "--force", tag)
        pushed = self._remote(
            "push", "--quiet", "--atomic", "origin", "HEAD:refs/heads/main", *(f"refs/tags/{tag}" for tag in tags)
        )
        if pushed.returncode == 0:
            return self.head
        said = pushed.stderr
        self.git("reset", "--quiet", "--hard", "HEAD~1")
        for tag in tags:
            self.git("tag", "--delete", tag, check=False)
        if _was_refused(said):
            raise LostRaceError(f"{self.root}: another writer pushed first")
        raise FailedError(
            f"{self.root}: git push to origin failed: {said.strip().splitlines()[-1]}; check the access to it and "
            "run this again"
        )


@lru_cache(4096)
def _remembered(memo: Path) -> Shard:
    """A shard from its memo, which is named after its content: a retrain asks for all of them several times."""
    return read_shard(memo)


def _was_refused(stderr: str) -> bool:
    """Whether git says that origin has moved, rather than that origin is away."""
    return any(
        words in stderr
        for words in ("non-fast-forward", "fetch first", "already exists", "cannot lock ref", "failed to update ref")
    )
