"""DVC in process, for writing: track a shard, take one out, record the stages. Reading is `workspace.objects`.

Every function here works on the files of the work tree; only a transaction (`workspace.transaction`) calls them.
"""

from __future__ import annotations

import logging
import os
import shutil
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from ssclass.errors import StoreError, WorkspaceError
from ssclass.settings import Settings
from ssclass.started import away
from ssclass.workspace.objects import EMPTY_DIR, Objects

DATA, CANDIDATE = "data", "candidate"
_CREDENTIALS = "AWS_SHARED_CREDENTIALS_FILE"
_one_at_a_time = threading.RLock()


@contextmanager
def repository(settings: Settings) -> Iterator[Any]:
    """DVC's Repo of a workspace's work tree; its errors become StoreError.

    DVC takes the credentials file from the environment alone: it is named there while the block runs, by one thread
    of the process at a time, and what was there before comes back.
    """
    from botocore.exceptions import BotoCoreError, ClientError
    from dvc.exceptions import DvcException
    from dvc.repo import Repo
    from dvc_data.index import DataIndexDirError

    root = settings.workspace
    logging.getLogger("dvc").setLevel(logging.ERROR)
    with _one_at_a_time, _environment(settings):
        try:
            with Repo(str(root)) as repo:
                yield repo
        except (DvcException, DataIndexDirError) as error:
            raise StoreError(
                f"DVC in {root}: {error or type(error).__name__}; `ssclass doctor` finds which part is away"
            ) from error
        except (OSError, BotoCoreError, ClientError) as error:
            if said := away(settings, "s3_endpoint"):
                raise StoreError(f"DVC remote of {root}: {said}") from error
            raise StoreError(
                f"DVC remote of {root}: {error}; check the bucket, the endpoint and the credentials"
            ) from error


@contextmanager
def _environment(settings: Settings) -> Iterator[None]:
    wanted = {"DVC_NO_ANALYTICS": "1"}
    if settings.s3_credentials:
        wanted[_CREDENTIALS] = str(settings.s3_credentials)
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def outs(text: str, only: str | None = None) -> Iterator[tuple[str, str]]:
    """(path, md5) of what a .dvc file or a dvc.lock tracks; `only` of this path. Nothing for text that is neither."""
    body = yaml.safe_load(text) or {}
    for stage in (body, *body.get("stages", {}).values()):
        for out in stage.get("outs", ()):
            if out.get("md5") and only in (None, out["path"]):
                yield out["path"], out["md5"]


def bootstrap(root: Path) -> None:
    """Make the folders of the empty data set and put its listing in DVC's cache, where nothing else would."""
    (root / CANDIDATE).mkdir(exist_ok=True)
    (root / DATA).mkdir(exist_ok=True)
    listing = root / ".dvc" / "cache" / "files" / "md5" / EMPTY_DIR[:2] / EMPTY_DIR[2:]
    if not listing.exists():
        listing.parent.mkdir(parents=True, exist_ok=True)
        listing.write_text("[]")


def add_shards(settings: Settings, objects: Objects, shards: Iterable[Path]) -> dict[str, str]:
    """Move shards into data/, track them and push them; the md5 of each by its file name.

    WorkspaceError unless data.dvc then lists what it listed before, and these.
    """
    root = settings.workspace
    before = tracked_shards(root, objects)
    (root / DATA).mkdir(exist_ok=True)
    names = []
    for shard in shards:
        shutil.move(shard, root / DATA / shard.name)
        names.append(shard.name)
    paths = [str(root / DATA / name) for name in names]
    with repository(settings) as repo:
        for path in paths:
            repo.add(path)
        after = tracked_shards(root, objects)
        md5s = [after[name] for name in names] + [md5 for _, md5 in outs((root / "data.dvc").read_text(), DATA)]
        if EMPTY_DIR in (root / "dvc.lock").read_text():  # nothing trained yet: the empty candidate/ must be pullable
            md5s.append(EMPTY_DIR)
        push(repo, objects, md5s)
    if set(after) != set(before) | set(names) or any(after[name] != before[name] for name in set(before) - set(names)):
        raise WorkspaceError(f"{root / 'data.dvc'}: adding {', '.join(names)} changed other entries; try again")
    return {name: after[name] for name in names}


def tracked_shards(root: Path, objects: Objects) -> dict[str, str]:
    """File name → md5 of the shards that the work tree's data.dvc lists."""
    ((_, md5),) = outs((root / "data.dvc").read_text(), DATA)
    return {each.name: each.md5 for each in objects.listing(md5, DATA)}


def drop_shard(settings: Settings, objects: Objects, batch: str) -> None:
    """Take a shard out of data.dvc, and push the new listing; the other shards need not be here."""
    from dvc_data.hashfile.meta import Meta
    from dvc_data.hashfile.tree import Tree

    root, name = settings.workspace, f"{batch}.parquet"
    with repository(settings) as repo:
        stage, out = next((each, out) for each in repo.index.stages for out in each.outs if out.def_path == DATA)
        listing: Any = Tree()  # type: ignore[no-untyped-call]
        size = 0
        for key, meta, oid in out.get_dir_cache():
            if key != (name,):
                listing.add(key, meta, oid)
                size += meta.size or 0 if meta else 0
        listing.digest()
        out.cache.add(listing.path, listing.fs, listing.oid)
        push(repo, objects, [listing.oid])
        out.obj, out.hash_info = listing, listing.hash_info
        out.meta = Meta(size=size, nfiles=len(listing), isdir=True)
        stage.md5 = stage.compute_md5() if stage.md5 else None
        stage.dump()
    (root / DATA / name).unlink(missing_ok=True)


def commit_stages(settings: Settings, objects: Objects) -> None:
    """Record the stages of dvc.yaml as run, from the files as they are now, and push their outputs.

    The hash of data/ is taken from data.dvc, not from the disk: shards that are not here count as they should.
    """
    with repository(settings) as repo:
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
        wanted = [md5 for stage in stages for out in stage.outs if out.use_cache for md5 in _objects_of(out)]
        push(repo, objects, wanted)


def _objects_of(out: Any) -> Iterator[str]:
    """Names of the objects that DVC keeps an output as: of a folder, its files and their listing."""
    if out.hash_info.isdir:
        yield from (entry.value for _, _, entry in out.obj)
    yield out.hash_info.value


def push(repo: Any, objects: Objects, md5s: Sequence[str]) -> None:
    """Copy objects of the local cache to the remote where it lacks them, a listing after its files.

    DVC's UploadError where an upload fails, StoreError unless all are there in the end. The remote gets no folder for
    DVC's index of what it ever pushed: with one, DVC asks the bucket for each listing in it, and a push would cost more
    from batch to batch.
    """
    from dvc.exceptions import UploadError
    from dvc_data.hashfile.hash_info import HashInfo

    remote = repo.cloud.get_remote_odb("store", "push", hash_name="md5")
    remote.tmp_dir = None
    done = repo.cloud.push([HashInfo("md5", md5) for md5 in md5s], odb=remote)
    if done.failed:
        raise UploadError(len(done.failed))
    sent = {each.value for each in done.transferred}
    for md5 in md5s:  # what is nowhere, or damaged in the cache, DVC only writes to its log
        if md5 not in sent and objects.store.head(objects.key(md5)) is None:
            raise StoreError(
                f"s3://{objects.store.place}/{objects.key(md5)}: neither there nor whole in DVC's cache; `ssclass "
                "doctor` finds what is away"
            )


def configure(settings: Settings) -> None:
    """Point DVC at the bucket in force; kept out of git (.dvc/config.local), as the environment may differ."""
    lines = ["['remote \"store\"']", f"    url = s3://{settings.place}/dvc"]
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
