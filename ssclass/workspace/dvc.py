"""DVC in process: which shards a data version has, reading them from anywhere, adding one.

Bytes are always read by content (local cache, else the remote), so a file altered in data/ does no harm
and a machine that holds only some shards works the same.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, cast

from ssclass.errors import StoreError, WorkspaceError
from ssclass.settings import Settings
from ssclass.store import Store

DATA, CANDIDATE = "data", "candidate"
EMPTY_DIR = "d751713988987e9331980363e24189ce.dir"
"""DVC's hash of an empty folder: the md5 of ``[]``."""


CACHE, REMOTE = ".dvc/cache/files/md5", "dvc/files/md5/"
"""Where DVC keeps an object: here, and in the bucket; under the first two digits of its md5, then the others."""


@dataclass(frozen=True)
class Tracked:
    """One file that DVC tracks: its path in the workspace and the md5 of its bytes."""

    path: str
    md5: str


@contextmanager
def repository(root: Path, rev: str | None = None) -> Iterator[Any]:
    """DVC's Repo at a workspace, at a git revision where one is given; its errors become StoreError."""
    os.environ.setdefault("DVC_NO_ANALYTICS", "1")
    from botocore.exceptions import BotoCoreError, ClientError
    from dvc.exceptions import DvcException
    from dvc.repo import Repo
    from dvc_data.index import DataIndexDirError

    logging.getLogger("dvc").setLevel(logging.ERROR)
    try:
        with Repo(str(root), rev=rev) as repo:
            yield repo
    except (DvcException, DataIndexDirError) as error:
        raise StoreError(
            f"DVC in {root}: {error or type(error).__name__}; `ssclass doctor` finds which part is away"
        ) from error
    except (OSError, BotoCoreError, ClientError) as error:
        raise StoreError(
            f"DVC remote of {root}: {error}; check the bucket, the endpoint and the credentials"
        ) from error


class Snapshot:
    """The files of one data version (or of a run's candidate), read by content."""

    def __init__(self, repo: Any) -> None:
        from dvc.fs import DataFileSystem

        self._fs = DataFileSystem(index=repo.index.data["repo"])

    def files(self, folder: str) -> list[Tracked]:
        """Every tracked file in a tracked folder, by name."""
        from dvc_objects.errors import ObjectFormatError

        try:
            found = self._fs.ls(folder, detail=True)
        except FileNotFoundError:
            return []
        except ObjectFormatError as error:
            raise WorkspaceError(f"{folder}: DVC's cache is damaged ({error}); `dvc fetch` mends it") from error
        return sorted((Tracked(item["name"], item["md5"]) for item in found), key=lambda each: each.path)

    def open(self, path: str) -> BinaryIO:
        """Open a tracked file for reading and seeking; only the ranges that are read travel."""
        return cast(BinaryIO, self._fs.open(path, "rb"))

    def download(self, path: str, to: Path) -> None:
        """Copy a tracked file to a local path."""
        with self.open(path) as source, to.open("wb") as target:
            shutil.copyfileobj(source, target, 1 << 20)


def outs(git: Callable[..., str], rev: str, only: str | None = None) -> Iterator[str]:
    """md5s of what DVC tracks at a git revision (`git` runs it), from .dvc files and dvc.lock; `only` of this path."""
    import yaml

    for name in git("ls-tree", "-r", "--name-only", rev, check=False).splitlines():
        if not name.endswith((".dvc", "dvc.lock")):
            continue
        body = yaml.safe_load(git("show", f"{rev}:{name}")) or {}
        for stage in (body, *body.get("stages", {}).values()):
            for out in stage.get("outs", ()):
                if out.get("md5") and only in (None, out["path"]):
                    yield out["md5"]


def read_object(root: Path, store: Store, md5: str) -> bytes | None:
    """A tracked file, or the listing of a folder (md5 with .dir), by its md5; None when it is nowhere."""
    path = root / CACHE / md5[:2] / md5[2:]
    return path.read_bytes() if path.exists() else store.get(f"{REMOTE}{md5[:2]}/{md5[2:]}")


def bootstrap(root: Path) -> None:
    """Make the folders of the empty data set and put its listing in DVC's cache, where nothing else would."""
    (root / CANDIDATE).mkdir(exist_ok=True)
    (root / DATA).mkdir(exist_ok=True)
    listing = root / ".dvc" / "cache" / "files" / "md5" / EMPTY_DIR[:2] / EMPTY_DIR[2:]
    if not listing.exists():
        listing.parent.mkdir(parents=True, exist_ok=True)
        listing.write_text("[]")


def add_shard(root: Path, shard: Path) -> Tracked:
    """Move a shard into data/, track it and push it; WorkspaceError if the list is not the old one plus it."""
    path = f"{DATA}/{shard.name}"
    with repository(root) as repo:
        before = {each.path for each in Snapshot(repo).files(DATA)}
    (root / DATA).mkdir(exist_ok=True)
    shutil.move(shard, root / path)
    with repository(root) as repo:
        repo.add(str(root / path))
    with repository(root) as repo:
        after = Snapshot(repo).files(DATA)
        if {each.path for each in after} != before | {path}:
            raise WorkspaceError(
                f"{root / 'data.dvc'}: adding {path} changed other entries; `git checkout data.dvc` and try again"
            )
        targets = [str(root / path)]
        if EMPTY_DIR in (root / "dvc.lock").read_text():  # nothing trained yet: the empty candidate/ must be pullable
            targets.append(f"{root / 'dvc.yaml'}:train")
        repo.push(targets=targets)
        return next(each for each in after if each.path == path)


def erase_objects(root: Path, store: Store, md5s: Iterable[str]) -> None:
    """Delete objects from DVC's cache here and from its remote, every version of them."""
    with repository(root) as repo:
        remote = repo.cloud.get_remote_odb("store", hash_name="md5")
        for md5 in md5s:
            Path(repo.cache.local.oid_to_path(md5)).unlink(missing_ok=True)
            store.erase(remote.oid_to_path(md5).removeprefix("s3://").removeprefix(f"{store.bucket}/"))


def drop_shard(root: Path, batch: str) -> None:
    """Take a shard out of data.dvc, and push the new listing; the other shards need not be here."""
    from dvc_data.hashfile.meta import Meta
    from dvc_data.hashfile.tree import Tree

    name = f"{batch}.parquet"
    with repository(root) as repo:
        stage, out = next((each, out) for each in repo.index.stages for out in each.outs if out.def_path == DATA)
        listing: Any = Tree()  # type: ignore[no-untyped-call]
        size = 0
        for key, meta, oid in out.get_dir_cache():
            if key != (name,):
                listing.add(key, meta, oid)
                size += meta.size or 0 if meta else 0
        listing.digest()
        for store in (out.cache, repo.cloud.get_remote_odb("store", hash_name="md5")):
            store.add(listing.path, listing.fs, listing.oid)
        out.obj, out.hash_info = listing, listing.hash_info
        out.meta = Meta(size=size, nfiles=len(listing), isdir=True)
        stage.md5 = stage.compute_md5() if stage.md5 else None
        stage.dump()
    (root / DATA / name).unlink(missing_ok=True)


def commit_stages(root: Path) -> None:
    """Record the stages of dvc.yaml as run, from the files as they are now, and push their outputs.

    The hash of data/ is taken from data.dvc, not from the disk: shards that are not here count as they should.
    """
    with repository(root) as repo:
        (data,) = (out for stage in repo.index.stages for out in stage.outs if out.def_path == DATA)
        stages = [stage for stage in repo.index.stages if stage.is_data_source is False]
        for stage in sorted(stages, key=lambda each: PurePosixPath(each.addressing).name, reverse=True):
            for dep in stage.deps:
                if dep.def_path == DATA:
                    dep.hash_info, dep.meta = data.hash_info, data.meta
                else:
                    dep.save()
            for out in stage.outs:
                out.save()
                out.commit()
            stage.md5 = stage.compute_md5()
            stage.dump(update_pipeline=False)
        repo.push(targets=[f"{root / 'dvc.yaml'}:train"])


def configure(settings: Settings) -> None:
    """Point DVC at the bucket in force; kept out of git (.dvc/config.local), as the environment may differ."""
    if settings.s3_credentials:  # where this variable is set, DVC's own option for it is not heard
        os.environ["AWS_SHARED_CREDENTIALS_FILE"] = str(settings.s3_credentials)
    lines = ["['remote \"store\"']", f"    url = s3://{settings.bucket}/dvc"]
    for name, value in (
        ("endpointurl", settings.s3_endpoint),
        ("region", settings.s3_region),
        ("profile", settings.s3_profile),
        ("credentialpath", settings.s3_credentials),
    ):
        if value:
            lines.append(f"    {name} = {value}")
    path = settings.workspace / ".dvc" / "config.local"
    text = "\n".join(lines) + "\n"
    if not path.exists() or path.read_text() != text:
        path.write_text(text)
