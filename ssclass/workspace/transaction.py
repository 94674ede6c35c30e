"""A transaction: the only way to write to a workspace. It ends in one pushed commit, or in nothing at all.

It begins clean and at origin's newest commit. What it changes (ledger, data.dvc, dvc.lock, metrics.json,
decisions.csv, candidate/) becomes one commit, pushed with its tags; a push that is not a fast-forward means that
another writer was first (LostRaceError). Whatever goes wrong, the work tree is afterwards as it was, so that a second
try begins from the start: nothing half done is ever built upon.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ssclass.code import code_json
from ssclass.environment import sweep
from ssclass.errors import FailedError, WorkspaceError
from ssclass.settings import Settings
from ssclass.store import Store
from ssclass.workspace import dvc, ledger, plots
from ssclass.workspace.dvc import CANDIDATE, DATA
from ssclass.workspace.git import AUTHOR, Git
from ssclass.workspace.objects import EMPTY_DIR, Objects
from ssclass.workspace.version import Version, Versions

if TYPE_CHECKING:
    from ssclass.workspace.workspace import Workspace

WRITTEN = ("data.dvc", "dvc.lock", "metrics.json", "code.json", "ledger.jsonl", plots.FILE)
"""The files that the pipeline writes; the others (params.yaml, dvc.yaml, ssclass.toml) are a person's."""

WHOLE = "refs/ssclass/whole"
"""Origin's main as of when all its tags were here, too. `origin/main` is not: git moves it before the tags are set."""
FETCHED = (
    *(f"+refs/tags/{kind}/*:refs/tags/{kind}/*" for kind in ("data", "run")),
    "+refs/heads/main:refs/remotes/origin/main",
    f"+refs/heads/main:{WHOLE}",
)
"""What a fetch brings. Main is last: where a fetch ends half done, the next one begins again."""
LOOSE_TAGS = 200
"""Tags in files of their own from which on they are packed into one: git opens each of them at every push."""
STALE_LOCK = 30.0
"""Seconds after which a lock file in .git that a killed transaction may have left is taken for one."""


class Change:
    """What a transaction has in hand: the version that it began at, and the means to write the next one.

    `version` is origin's newest commit. After `publish` the change is over, and `commit` names what it made.
    """

    def __init__(self, workspace: Workspace, version: Version) -> None:
        self.workspace = workspace
        self.version = version
        self.commit: str | None = None
        self._settings: Settings = workspace.settings
        self._git: Git = workspace.git
        self._objects: Objects = workspace.objects

    @property
    def store(self) -> Store:
        """The workspace's bucket."""
        return self.workspace.store

    @cached_property
    def scratch(self) -> Path:
        """A folder for temporary files, gone when the transaction is over."""
        folder = self._settings.private / "scratch"
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def add_shards(self, *shards: Path) -> dict[str, str]:
        """Move shards into the data set, in DVC's remote too; file name → md5. StoreError when S3 fails."""
        self._open()
        self._has_data_set()
        _note(self._settings, [f"{DATA}/{shard.name}" for shard in shards])
        return dvc.add_shards(self._settings, self._objects, shards)

    def drop_shard(self, batch: str) -> None:
        """Take a batch's shard out of the data set."""
        self._open()
        self._has_data_set()
        dvc.drop_shard(self._settings, self._objects, batch)

    def record_candidate(self, folder: Path, metrics: Path) -> None:
        """Put a trained classifier (a folder) and its metrics.json where `dvc repro` would, recorded as run."""
        self._open()
        root = self._settings.workspace
        _note(self._settings, [CANDIDATE])
        shutil.rmtree(root / CANDIDATE, ignore_errors=True)
        shutil.copytree(folder, root / CANDIDATE)
        shutil.copyfile(metrics, root / "metrics.json")
        (root / "code.json").write_text(code_json())
        dvc.commit_stages(self._settings, self._objects)

    def publish(self, message: str, events: Sequence[ledger.Event], *, tags: Iterable[str] = ()) -> Version:
        """Append events to the ledger, commit what was written, tag it and push it, all at once; the new version.

        LostRaceError when another writer pushed first, GitRefusedError when origin refuses, FailedError when it is
        away.
        """
        self._open()
        git, root, names = self._git, self._settings.workspace, list(tags)
        _append(root / "ledger.jsonl", "".join(event.line() for event in events))
        if decided := [event for event in events if event.kind == "decision" and event.body["decision"] != ledger.HELD]:
            plots.add(root / plots.FILE, self.version.state.decisions, decided)
        git("add", "--force", *(name for name in WRITTEN if _written(root / name)))
        git("commit", "--quiet", "--message", message)
        commit = git("rev-parse", "HEAD")
        leases, refs = self._tags(names, commit)
        git("update-ref", "-d", WHOLE)  # until it is there again, the next transaction fetches, whatever happens here
        git.remote("push", "--quiet", "--atomic", *leases, "origin", f"{commit}:refs/heads/main", *refs)
        self.commit = commit
        for name in names:
            git("tag", "--force", name, commit)
        git("update-ref", "refs/remotes/origin/main", commit)
        git("update-ref", WHOLE, commit)
        pack_tags(git, root)
        return self.workspace.at(commit)

    def arrived(self, tag: str) -> bool | None:
        """Whether origin has what was to be published with this tag, though `publish` failed; None: it does not say."""
        ours = self._git("rev-parse", "--verify", "--quiet", "HEAD", check=False)
        told = self._git.run("ls-remote", "origin", f"refs/tags/{tag}")
        return None if told.returncode else bool(ours) and told.stdout.split()[:1] == [ours]

    def _tags(self, names: Sequence[str], commit: str) -> tuple[list[str], list[str]]:
        """Options and refspecs that push tags.

        A tag that is at origin already, on a commit that main does not contain, was left when somebody moved main
        back: no ledger knows it, and it is replaced, unless it has moved again meanwhile. It may be on this very
        commit, where the same was published within one second: git then makes the same commit again.
        """
        leases, refs = [], []
        for name in names:
            there = self._git("rev-parse", "--verify", "--quiet", f"refs/tags/{name}", check=False)
            earlier = there not in ("", commit)
            if earlier and self._git.run("merge-base", "--is-ancestor", there, commit).returncode == 0:
                raise WorkspaceError(
                    f"{self._settings.workspace}: the tag {name} is already on main, at {there[:12]}; `ssclass "
                    "verify` tells more"
                )
            refs.append(f"{'+' if there else ''}{commit}:refs/tags/{name}")
            if there:
                leases.append(f"--force-with-lease=refs/tags/{name}:{there}")
        return leases, refs

    def _has_data_set(self) -> None:
        """WorkspaceError where the bucket lacks the data set that is to be added to: this machine's is another one."""
        for _, md5 in dvc.outs(self.version.text("data.dvc"), DATA):
            if md5 != EMPTY_DIR and self.store.head(self._objects.key(md5)) is None:
                raise WorkspaceError(
                    f"s3://{self.store.place}: lacks the data set of main (its listing, {md5}), so other machines "
                    "would not find what is put there; name the bucket that they use (ssclass.toml, SSCLASS_BUCKET), "
                    "or where the listing was lost, run `ssclass verify --repair`"
                )

    def _open(self) -> None:
        if self.commit is not None:
            raise RuntimeError("this transaction has published already; begin another")


# -- beginning and ending ---------------------------------------------------------------------------------


def begin(settings: Settings, git: Git, objects: Objects, versions: Versions) -> Version:
    """Clear what a killed transaction left, go to origin's newest commit, and return that version.

    WorkspaceError when a person's changes are in the way, FailedError when origin cannot be reached.
    """
    sweep(settings)
    if _unfinished(settings).exists():
        restore(settings, git, objects, killed=not _alive(_told(settings).get("pid")))
    root = settings.workspace
    _no_uncommitted_changes(root, git)
    fetch(git, root)
    ours = git("log", "--format=%ae %h %s", "origin/main..HEAD").splitlines()
    if any(not line.startswith(AUTHOR) for line in ours):
        raise WorkspaceError(
            f"{root}: main has a commit that origin has not ({ours[0].split(maxsplit=1)[1]}); run `git -C "
            f"{root} pull --rebase origin main` and `git -C {root} push origin main`"
        )
    if git("rev-parse", "HEAD") != git("rev-parse", "origin/main"):
        git("reset", "--quiet", "--hard", "origin/main")
    dvc.configure(settings)
    dvc.bootstrap(root)
    version = versions.at("HEAD")
    _note(settings, [])
    return version


def fetch(git: Git, root: Path) -> None:
    """Bring origin's main and tags here, where main has moved: git would compare every tag at each fetch.

    FailedError when origin cannot be reached.
    """
    # Without --heads git lets origin tell all tags, and sorts them out here.
    there = git.remote("ls-remote", "--heads", "origin", "refs/heads/main").split()
    if there and there[0] == git("rev-parse", "--verify", "--quiet", WHOLE, check=False):
        return
    git.remote("fetch", "--quiet", "--prune", "origin", *FETCHED)
    pack_tags(git, root)


def pack_tags(git: Git, root: Path) -> None:
    """Keep many tags in one file; in files of their own they make every push slower."""
    if sum(1 for _ in (root / ".git" / "refs" / "tags").glob("*/*")) > LOOSE_TAGS:
        git.run("pack-refs", "--all")  # where another git process is in the way, the next time will do


def end(settings: Settings) -> None:
    """Forget that a transaction was under way."""
    shutil.rmtree(settings.private / "scratch", ignore_errors=True)
    _unfinished(settings).unlink(missing_ok=True)


def restore(settings: Settings, git: Git, objects: Objects, *, killed: bool = False) -> None:
    """Undo what a transaction left that did not end: files, unpushed commits, shards in data/. Nothing of a person's.

    `killed`: its process is gone, so lock files that it held are nobody's. FailedError when another git process is
    in the way; the next transaction begins here again.
    """
    root = settings.workspace
    if killed:
        kept = root / ".git"
        for lock in (kept / "index.lock", kept / "HEAD.lock", kept / "packed-refs.lock", *kept.glob("refs/**/*.lock")):
            _free(lock)
        (root / ".dvc" / "tmp" / "rwlock").unlink(missing_ok=True)
    shutil.rmtree(settings.private / "scratch", ignore_errors=True)
    ours = git("log", "--format=%ae", "origin/main..HEAD", check=False).splitlines()
    if ours and set(ours) == {AUTHOR}:
        git("reset", "--quiet", "--soft", "origin/main")
    git("reset", "--quiet")
    if present := git("ls-files", *WRITTEN).splitlines():
        git("checkout", "--quiet", "HEAD", "--", *present)
    if plots.FILE not in present and plots.ours(root / plots.FILE):
        (root / plots.FILE).unlink()
    _put_back(root, objects, _noted(settings))
    _unfinished(settings).unlink(missing_ok=True)


def _written(path: Path) -> bool:
    """Whether a file is there and the pipeline's: a workspace of an older version may have a person's by that name."""
    return path.exists() and (path.name != plots.FILE or plots.ours(path))


def _append(path: Path, lines: str) -> None:
    """Add lines to a file, on lines of their own: an editor may have left its last one without an end."""
    with path.open("ab+") as file:
        if file.tell():
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                lines = f"\n{lines}"
        file.write(lines.encode())


def _no_uncommitted_changes(root: Path, git: Git) -> None:
    changed = git.run("status", "--porcelain", "--untracked-files=no")
    if changed.returncode:
        raise FailedError(f"{root}: git status fails ({changed.stderr.strip()}); see `git -C {root} status`")
    if lines := changed.stdout.splitlines():
        name = lines[0][3:]
        raise WorkspaceError(
            f"{root}: {name} has uncommitted changes; commit and push them, or undo them with `git -C {root} "
            f"checkout {name}`"
        )


def _unfinished(settings: Settings) -> Path:
    """The file that says that a transaction is under way, and which files it made."""
    return settings.private / "unfinished"


def _note(settings: Settings, made: Sequence[str]) -> None:
    told = {"pid": os.getpid(), "made": [*_noted(settings), *made]}
    _unfinished(settings).write_text(json.dumps(told))


def _told(settings: Settings) -> dict[str, Any]:
    try:
        told = json.loads(_unfinished(settings).read_text())
        return told if isinstance(told, dict) else {}
    except (OSError, ValueError):  # none, or that of an older version, which was empty
        return {}


def _noted(settings: Settings) -> list[str]:
    return [str(name) for name in _told(settings).get("made", ())]


def _alive(pid: Any) -> bool:
    """Whether a process lives. The lock is ours: it is not writing here, at most it failed to put things back."""
    import psutil

    return isinstance(pid, int) and psutil.pid_exists(pid)


def _put_back(root: Path, objects: Objects, made: Sequence[str]) -> None:
    """Make the folders that DVC tracks what this commit says again, as far as the local cache has it."""
    for name in made:
        folder = name.split("/")[0]
        tracked = {
            each.path: each.md5
            for path, md5 in dvc.outs((root / ("data.dvc" if folder == DATA else "dvc.lock")).read_text(), folder)
            if md5 == EMPTY_DIR or objects.here(md5).exists()
            for each in objects.listing(md5, path)
        }
        if folder == CANDIDATE:
            shutil.rmtree(root / CANDIDATE, ignore_errors=True)
            (root / CANDIDATE).mkdir()
        else:
            (root / name).unlink(missing_ok=True)
        for path, md5 in tracked.items():
            if (path == name or folder == CANDIDATE) and objects.here(md5).exists():
                (root / path).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(objects.here(md5), root / path)


def _free(lock: Path) -> None:
    """Remove a lock file that a killed process left; one that is young may be a person's, and is waited for."""
    for _ in range(int(STALE_LOCK / 0.5)):
        try:
            age = time.time() - lock.stat().st_mtime
        except FileNotFoundError:
            return
        if age > STALE_LOCK:
            break
        time.sleep(0.5)
    lock.unlink(missing_ok=True)
