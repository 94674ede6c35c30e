"""After `forget`, a byte search over every store finds nothing of a photo; everything else is as it was."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import subprocess
import zipfile
from pathlib import Path

import pytest

from ssclass.data.submit import submit
from ssclass.demo.drawings import draw
from ssclass.errors import InputError, NotFoundError
from ssclass.history.lineage import lineage
from ssclass.model.features import FeatureMemo, Features
from ssclass.model.spec import FeatureSpec
from ssclass.retrain.ingest import waiting
from ssclass.store import Store
from ssclass.tracking.client import Tracking
from ssclass.upkeep.forget import forget
from ssclass.workspace.create import create
from ssclass.workspace.dvc import repository
from ssclass.workspace.ledger import Event
from ssclass.workspace.workspace import Workspace
from tests.support.pipelines import CLASSES, Command, ingest_all

SPEC = FeatureSpec("b", "w", (32,), False)


@pytest.fixture
def workspace(s3: Store, tmp_path: Path) -> Workspace:
    """Two batches of a versioned bucket; one photo of the first comes again in the second, with the other label."""
    versioning = {"Status": "Enabled"}
    s3.client.put_bucket_versioning(Bucket=s3.bucket, VersioningConfiguration=versioning)
    at = {"bucket": s3.bucket, "s3_endpoint": s3.settings.s3_endpoint or "", "s3_region": "us-east-1"}
    made = create(tmp_path / "workspace", at)
    for number in (1, 2):
        draw(tmp_path / str(number), CLASSES, 4, number)
    shutil.copy(sorted((tmp_path / "1" / "sushi").iterdir())[0], tmp_path / "2" / "sandwich" / "again.jpg")
    for number in (1, 2):
        submit(s3, tmp_path / str(number), f"day-{number}", CLASSES)
        ingest_all(made)
    memo = FeatureMemo(made.private, s3)
    for shard in made.at().dataset.shards:
        memo.put(SPEC, shard.photos_digest, Features(tuple(row.sha256 for row in shard.rows), {}))
    body = {"decision": "REJECTED", "reason": "…", "key": "k1", "data_version": "data/2", "batches": ["day-1", "day-2"]}
    with made.transaction() as change:
        change.publish("Reject", [Event.now("decision", **body, run_id="r", code="c", params="p")], tags=["run/k1"])
    return made


def unpacked(npz: bytes) -> bytes:
    """The arrays of a memo, which is compressed: a search of the file itself would see nothing."""
    with zipfile.ZipFile(io.BytesIO(npz)) as file:
        return b"".join(file.read(name) for name in file.namelist())


def found_in(workspace: Workspace, store: Store, needles: list[bytes]) -> list[str]:
    """Where any of the needles is: each version in the bucket, each file of workspace and origin, git's objects."""
    places = [(key, store.get_version(key, version)) for key, version, _ in store.versions("")]
    for root in (workspace.root, Path(f"{workspace.root}.git")):
        places += [(str(path), path.read_bytes()) for path in root.rglob("*") if path.is_file()]
        dump = ["git", "-C", str(root), "cat-file", "--batch", "--batch-all-objects"]
        places.append((f"git of {root}", subprocess.run(dump, capture_output=True, check=True).stdout))
    places = [(name, unpacked(data) if name.endswith(".npz") else data) for name, data in places]
    wide = [needle.decode().encode("utf-32-le") for needle in needles if len(needle) == 64]  # in .npz
    return sorted({name for name, data in places if any(needle in data for needle in [*needles, *wide])})


def test_nothing_is_left_of_a_forgotten_photo_and_the_rest_is_there(workspace, s3, tmp_path, ssclass: Command) -> None:
    picture = sorted((tmp_path / "1" / "sushi").iterdir())[0].read_bytes()
    sha256 = hashlib.sha256(picture).hexdigest()
    needles = [sha256.encode(), picture[len(picture) // 2 :][:200]]
    before = workspace.at().dataset
    assert sha256 in before.by_sha256
    where = "\n".join(found_in(workspace, s3, needles))
    for part in (
        "incoming/day-1",
        "incoming/day-2",
        "quarantine/day-2",
        "dvc/files",
        ".dvc/cache",
        "features/",
    ):
        assert part in where

    tracking = Tracking.of(workspace)
    run = tracking.open_run("k1", "this clone")
    for name in ("augmentation.png", "confusion.png"):  # photos can be seen in the first
        tracking.client.log_text(run, "…", f"figures/{name}")

    said = ssclass("forget", sha256, "--yes", "--json", "--workspace", workspace.root)
    assert said.returncode == 0, said.stderr
    done = json.loads(said.stdout)
    assert done["batches"] == ["day-1"]
    assert [model["key"] for model in done["models"]] == ["k1"]
    assert done["tags"] == ["data/1", "data/2", "run/k1"]
    workspace.newest()
    assert found_in(workspace, s3, needles) == []
    # The shards' own memo is compressed, so a search would see nothing.
    kept = {f"{tracked.md5}.parquet" for tracked in workspace.at().files("data")}
    assert {path.name for path in (workspace.private / "shards").iterdir()} <= kept

    assert [item.path for item in tracking.client.list_artifacts(run, "figures")] == ["figures/confusion.png"]

    after = workspace.at().dataset
    assert [row.sha256 for row in after.rows] == [row.sha256 for row in before.rows if row.sha256 != sha256]
    assert workspace.at().data_version == "data/3"
    assert waiting(s3, workspace.at().state) == []
    clone = create(tmp_path / "clone", {}, git=workspace.git("remote", "get-url", "origin"))
    with repository(clone.settings) as repo:
        repo.pull(targets=[str(clone.root / "data.dvc")])
    assert clone.at().dataset.digest == after.digest
    assert lineage(workspace, "day-1")["data_version"] == "data/1"
    with pytest.raises(NotFoundError, match="nothing to forget"):
        forget(workspace, [sha256], "again")


def test_a_sha256_must_be_whole(workspace) -> None:
    with pytest.raises(InputError, match="64 hex digits"):
        forget(workspace, ["abc123"], "…")
