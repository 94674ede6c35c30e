"""`ssclass gc`: what nothing points at any more, where it lies, how large it is; and throwing it away.

What is kept follows from git: every data version, the model of every champion, all of the newest days, whatever a
branch or a tag of a person's names. Nothing younger than those days goes, whatever it is: a retrain that runs meanwhile
has pushed what no commit names yet.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from ssclass.data.build import QUARANTINE
from ssclass.errors import WorkspaceError
from ssclass.model.augmentation import AugmentedSpec
from ssclass.model.features import SEEN
from ssclass.model.packed import has_only
from ssclass.model.spec import FeatureSpec
from ssclass.params import AugmentParams
from ssclass.retrain.challenger import challenger_key
from ssclass.store import Store
from ssclass.upkeep.finish import journal_key, open_journals
from ssclass.upkeep.garbage import KINDS, Garbage, runs_and_models
from ssclass.workspace.dvc import CANDIDATE, DATA, outs
from ssclass.workspace.objects import CACHE, EMPTY_DIR, REMOTE
from ssclass.workspace.transaction import Change
from ssclass.workspace.version import Version, memo_path
from ssclass.workspace.workspace import Workspace

DELETES = 8  # at a time
_OBJECT = re.compile(r"files/md5/([0-9a-f]{2})/([0-9a-f]{30}(?:\.dir)?)$")


def collect(
    workspace: Workspace, days: int, *, keep_champions: bool, dry_run: bool, now: datetime | None = None
) -> list[Garbage]:
    """Find what nothing points at and is older than `days`, and unless `dry_run` delete it; what it was.

    Without `keep_champions`, of the champions only the one in force is kept in DVC's store; MLflow's registry keeps
    them all. StoreError or TrackingError when a store cannot be read: nothing is deleted then.
    """
    workspace.claim()
    with workspace.transaction() as change:
        found = list(_find(change, (now or datetime.now(UTC)) - timedelta(days=days), keep_champions))
        if not dry_run:
            with ThreadPoolExecutor(DELETES) as pool:
                list(pool.map(lambda each: each.drop(), found))
    return found


def _find(change: Change, before: datetime, keep_champions: bool) -> Iterator[Garbage]:
    workspace, version = change.workspace, change.version
    state, store = version.state, workspace.store
    champions = (set(state.champions) if keep_champions else {state.champion}) | {challenger_key(state)}
    champions -= {None}
    recent = {key for key, event in state.decisions.items() if datetime.fromisoformat(event.at) >= before}
    objects = _Objects(workspace, version)
    yield from objects.garbage({str(key) for key in champions} | recent, before)
    yield from runs_and_models(workspace, version, before)
    in_use = {str(key) for key in {state.champion} - {None}} | recent
    yield from _features(workspace, version, objects.fingerprints(in_use), before)
    notes = {journal_key(name) for name in open_journals(workspace)}
    for name, kind in ((QUARANTINE, "quarantine"), ("results", "results")):
        for item in store.list(f"{name}/"):
            if item.key in notes:
                continue  # a forgetting that is not finished
            if item.modified < before and not item.key.endswith("/"):  # a folder's own marker
                yield _remote(store, kind, item.key, item.size)
    yield from _caches(workspace, version, before)


def _remote(store: Store, kind: str, key: str, size: int) -> Garbage:
    return Garbage(kind, f"s3://{store.place}/{key}", size, lambda: store.delete(key))


def _local(kind: str, path: Path) -> Garbage:
    def drop() -> None:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)

    size = sum(each.stat().st_size for each in ([path] if path.is_file() else path.rglob("*")) if each.is_file())
    return Garbage(kind, str(path), size, drop)


def _age(path: Path) -> datetime:
    return datetime.fromtimestamp(path.stat().st_mtime, UTC)


# -- DVC --------------------------------------------------------------------------------------------------


class _Objects:
    """DVC's objects, in the remote and in the local cache, and which of them git's revisions name."""

    def __init__(self, workspace: Workspace, version: Version) -> None:
        self.workspace, self.version, self.store = workspace, version, workspace.store

    def garbage(self, runs: set[str], before: datetime) -> Iterator[Garbage]:
        """Objects that no kept revision names. `runs`: decision keys whose candidates are kept."""
        needed = {EMPTY_DIR}
        for rev, only in self._revisions(runs):
            for oid in self._tracked(rev, only):
                needed |= self._with_contents(oid)
        remote = {
            f"{match[1]}{match[2]}": item for item in self.store.list(REMOTE) if (match := _OBJECT.search(item.key))
        }
        here = {
            f"{match[1]}{match[2]}": path
            for path in (self.workspace.root / CACHE).glob("*/*")
            if (match := _OBJECT.search(path.as_posix()))
        }
        # A listing that is too young to go keeps what it lists.
        young = [oid for oid, item in remote.items() if oid.endswith(".dir") and item.modified >= before]
        for oid in young:
            needed |= self._with_contents(oid)
        for oid, item in remote.items():
            if oid not in needed and item.modified < before:
                yield _remote(self.store, "DVC objects", item.key, item.size)
        for oid, path in here.items():
            if oid not in needed and _age(path) < before:
                yield _local("DVC objects", path)

    def fingerprints(self, runs: set[str]) -> set[str]:
        """Of the features that the candidates of these decisions and of this commit are made on, copies included."""
        found: set[str] = set()
        for rev in ("HEAD", *(f"run/{key}" for key in runs)):
            for oid in self._tracked(rev, CANDIDATE):
                for item in self._listing(oid):
                    if item["relpath"] == "classifier.json":
                        about = json.loads(self.workspace.objects.read(item["md5"]) or b"{}")
                        found |= set(_fingerprints(about, self.version.params.augment))
                    elif item["relpath"] == "training.json":
                        found |= set(json.loads(self.workspace.objects.read(item["md5"]) or b"{}").get("pooled", ()))
        return found

    def _tracked(self, rev: str, only: str | None) -> Iterator[str]:
        """md5s of what DVC tracks at a revision, whatever .dvc files it has; `only` of this path."""
        git = self.workspace.git
        for name in git("ls-tree", "-r", "--name-only", rev, check=False).splitlines():
            if name.endswith((".dvc", "dvc.lock")):
                yield from (md5 for _, md5 in outs(git("show", f"{rev}:{name}"), only))

    def _revisions(self, runs: set[str]) -> Iterator[tuple[str, str | None]]:
        """(revision, folder to keep of it, None for all that it tracks)."""
        git = self.workspace.git
        git.remote("fetch", "--quiet", "origin", "+refs/heads/*:refs/remotes/origin/*")
        yield "HEAD", None
        for ref in git("for-each-ref", "--format=%(refname)").splitlines():
            if ref.startswith("refs/tags/data/"):
                yield ref, DATA
            elif not ref.startswith("refs/tags/run/") or ref.removeprefix("refs/tags/run/") in runs:
                yield ref, None

    def _with_contents(self, oid: str) -> set[str]:
        return {oid} | {item["md5"] for item in self._listing(oid)}

    def _listing(self, oid: str) -> list[dict[str, str]]:
        """What a folder holds; nothing for a file, or where the listing is gone."""
        if not oid.endswith(".dir"):
            return []
        try:
            return list(json.loads(self.workspace.objects.read(oid) or b"[]"))
        except ValueError as error:
            raise WorkspaceError(
                f"DVC object {oid}: damaged ({error}); delete it in .dvc/cache, `dvc fetch`"
            ) from error


def _fingerprints(about: dict[str, Any], augment: AugmentParams) -> Iterator[str]:
    """Fingerprints that a classifier.json, of whatever format, tells of."""
    for member in about.get("members", [about]):
        if "fingerprint" in member:
            yield member["fingerprint"]
        if "spec" in member:
            spec = FeatureSpec.from_about(member["spec"])
            blocks = member["spec"].get("tail", {}).get("blocks", 0)
            for each in (
                spec,
                replace(spec, before_blocks=blocks),
            ):  # tuned blocks are trained on the activations before them
                yield each.fingerprint
                yield from (AugmentedSpec(each, augment, number).fingerprint for number in range(augment.copies))


# -- memos ------------------------------------------------------------------------------------------------


def _features(
    workspace: Workspace, version: Version, fingerprints: Iterable[str], before: datetime
) -> Iterator[Garbage]:
    """Features under fingerprints that no model in use has, and of shards that are no longer in the data set."""
    store, shards = workspace.store, {f"{shard.photos_digest}.npz" for shard in version.dataset.shards}
    in_use = set(fingerprints)
    kept = {f"{fingerprint}/{name}" for fingerprint in in_use for name in (*shards, SEEN)}
    for item in store.list("features/"):
        name = item.key.removeprefix("features/")
        if not item.key.endswith("/") and name not in kept and item.modified < before:
            yield _remote(store, "features", item.key, item.size)
    folder = workspace.private / "features"
    photos = {row.sha256 for shard in version.dataset.shards for row in shard.rows}
    for path in folder.rglob("*"):
        if not path.is_file() or path.relative_to(folder).as_posix() in kept or _age(path) >= before:
            continue
        if not (path.parent.name in in_use and has_only(path, photos)):
            yield _local("features", path)


def _caches(workspace: Workspace, version: Version, before: datetime) -> Iterator[Garbage]:
    """Champions out of force, finished results, the memo of shards that are no longer in the data set."""
    shards = {memo_path(Path(), each.md5).name for each in version.files(DATA)}
    for name, kept in (("champions", {version.state.champion}), ("results", set()), ("shards", shards)):
        for path in sorted((workspace.private / name).glob("*")):
            if path.name not in kept and _age(path) < before:
                yield _local("local caches", path)


__all__ = ["KINDS", "Garbage", "collect"]
