"""A version: one commit of the workspace, read only. Whoever only reads takes one: a signature says who writes."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cached_property, lru_cache
from pathlib import Path
from typing import BinaryIO, Literal

from ssclass.data.dataset import Dataset
from ssclass.data.manifest import MAIN
from ssclass.data.shards import Shard, iter_photos, read_memo, read_shard, write_memo
from ssclass.errors import ParamsError, WorkspaceError
from ssclass.params import Params, load_params, parse_params
from ssclass.workspace import ledger
from ssclass.workspace.dvc import DATA, outs
from ssclass.workspace.git import Git, failure
from ssclass.workspace.objects import Objects, Tracked

REQUESTS = 16
"""Shards that are fetched at a time."""


def memo_path(folder: Path, md5: str) -> Path:
    """The memo of a shard, all of it but its image bytes, in the folder of a workspace that has them."""
    return folder / f"{md5}.json"


class Version:
    """What one commit says: params, ledger, data set, candidate. Each is read once, when it is first asked for.

    `commit` names it; None stands for the files of the work tree as they are now (:class:`WorkTree`).
    """

    def __init__(self, root: Path, memo: Path, git: Git, objects: Objects, commit: str | None) -> None:
        self.root = root
        self.commit = commit
        self._memo = memo
        self._git = git
        self._objects = objects

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.root}, {self.commit})"

    def text(self, name: str) -> str:
        """A file of this commit, as text; empty when it has none. FailedError when git cannot say."""
        done = self._git.run("show", f"{self.commit}:{name}")
        if done.returncode == 0:
            return done.stdout
        if "does not exist in" in done.stderr or "exists on disk, but not in" in done.stderr:
            return ""
        raise failure(f"git show in {self.root}", done)

    def texts(self) -> dict[str, str]:
        """The files of this commit that all else here is found by, as text by their names."""
        return {name: self.text(name) for name in ("params.yaml", "ledger.jsonl", "data.dvc", "dvc.lock")}

    @cached_property
    def params(self) -> Params:
        """params.yaml, checked; ParamsError when it is not usable."""
        return parse_params(self.text("params.yaml"), f"{self.root / 'params.yaml'} at {(self.commit or '')[:12]}")

    @cached_property
    def events(self) -> tuple[ledger.Event, ...]:
        """Every event of the ledger, oldest first."""
        return tuple(ledger.parse(self.text("ledger.jsonl"), str(self.root / "ledger.jsonl")))

    @cached_property
    def state(self) -> ledger.State:
        """What the ledger adds up to. Do not change it: it is shared."""
        return ledger.fold(self.events)

    @cached_property
    def data_version(self) -> str:
        """The name of the newest data version in this commit, ``data/<n>``; ``data/0`` for the empty set."""
        return f"data/{self.state.next_version - 1}"

    @cached_property
    def dataset(self) -> Dataset:
        """The data set; photos stay where they are. Which of them train and are held out, this commit's params say."""
        files = self.files(DATA)
        here = {path.stem for path in self._memo.glob("*.json")}
        missing = [each for each in files if each.md5 not in here]
        with ThreadPoolExecutor(REQUESTS, thread_name_prefix="shards") as pool:
            list(pool.map(self.shard, missing))  # a fresh clone: each of them is a few requests to S3
        shards = [self.shard(each) for each in files]
        return Dataset.of(shards, self._sources(any(shard.receipt.source != MAIN for shard in shards)))

    def _sources(self, named: bool) -> Literal["all"] | tuple[str, ...]:
        """The sources that train and judge. `named`: whether a batch names one; else unusable params choose none."""
        try:
            return self.params.dataset.sources
        except ParamsError:
            if named:
                raise
            return "all"

    def files(self, folder: str) -> tuple[Tracked, ...]:
        """The files that DVC tracks in ``data`` or ``candidate``, by name; StoreError when the list cannot be had."""
        name = "data.dvc" if folder == DATA else "dvc.lock"
        for path, md5 in outs(self.text(name), folder):
            return self._objects.listing(md5, path)
        return ()

    @contextmanager
    def open(self, path: str) -> Iterator[BinaryIO]:
        """Open a tracked file for reading and seeking; of a remote one only the ranges that are read travel."""
        (found,) = (each for each in self.files(path.split("/")[0]) if each.path == path)
        with self._objects.open(found.md5) as file:
            yield file

    def photos(self, batch: str, wanted: set[str] | None = None) -> Iterator[tuple[str, bytes]]:
        """(sha256, bytes as received) of a batch's photos, or of the wanted ones among them, in order."""
        with self.open(f"{DATA}/{batch}.parquet") as source:
            yield from iter_photos(source, wanted)

    def copy(self, folder: str, to: Path) -> None:
        """Write what DVC tracks in a folder to an empty folder, each file checked."""
        for each in self.files(folder):
            self._objects.copy(each.md5, to / each.path.removeprefix(f"{folder}/"))

    def shard(self, tracked: Tracked) -> Shard:
        """One shard of this version, without its image bytes; StoreError when it cannot be had."""
        try:
            return _remembered(self._memo, tracked.md5)
        except FileNotFoundError:
            memo = memo_path(self._memo, tracked.md5)
            memo.parent.mkdir(parents=True, exist_ok=True)
            with self._objects.open(tracked.md5) as source:
                write_memo(read_shard(source), memo)
            return _remembered(self._memo, tracked.md5)


class WorkTree(Version):
    """The files of the work tree as they are: for `dvc repro` and `dvc exp`, which change them before they commit."""

    @cached_property
    def params(self) -> Params:
        """params.yaml, checked; ParamsError when it is not usable."""
        return load_params(self.root / "params.yaml")

    def text(self, name: str) -> str:
        """A file of the work tree, as text; empty when there is none."""
        path = self.root / name
        return path.read_text(encoding="utf-8") if path.exists() else ""


class CarriedVersion(Version):
    """A version on a machine that has no git of it: its `texts` have travelled, all else is read by content.

    `memo`: a folder for what is read of shards.
    """

    def __init__(self, texts: dict[str, str], memo: Path, objects: Objects, commit: str | None) -> None:
        self.root, self.commit = objects.root, commit
        self._memo, self._objects = memo, objects
        self._texts = texts

    def text(self, name: str) -> str:
        """A file of this commit, as text; empty when it has none."""
        return self._texts[name]


class Versions:
    """The versions of a workspace, each kept by its commit."""

    def __init__(self, root: Path, memo: Path, git: Git, objects: Objects) -> None:
        self._make: Callable[[str], Version] = lru_cache(32)(lambda commit: Version(root, memo, git, objects, commit))
        self._git = git

    def at(self, rev: str) -> Version:
        """The version at a revision (a tag, a branch, a commit); WorkspaceError when there is no such revision."""
        commit = self._git("rev-parse", "--verify", "--quiet", "--end-of-options", f"{rev}^{{commit}}", check=False)
        if not commit:
            raise WorkspaceError(f"{rev}: no such revision of {self._git.folder}; `git log --all` shows what there is")
        return self._make(commit)


@lru_cache(4096)
def _remembered(folder: Path, md5: str) -> Shard:
    """A shard from its memo, which is named after its content. FileNotFoundError where there is none."""
    return read_memo(memo_path(folder, md5))


def photos_of(version: Version, wanted: Collection[str]) -> Iterator[tuple[str, bytes]]:
    """(sha256, bytes as received) of these photos of the data set, shard by shard; each once."""
    left = set(wanted)
    for shard in version.dataset.shards:
        here = left & {row.sha256 for row in shard.rows}
        if here:
            yield from version.photos(shard.batch_id, here)
            left -= here
