"""A forgotten photo is in no store that ssclass writes to; everything else is as it was."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import subprocess
import zipfile
from collections.abc import Iterable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from ssclass.data.build import build_shard
from ssclass.data.shards import Row, Shard
from ssclass.demo.drawings import draw
from ssclass.errors import FailedError, InputError, NotFoundError, StoreError
from ssclass.history.lineage import lineage
from ssclass.model.features import FeatureMemo, Features
from ssclass.model.spec import FeatureSpec
from ssclass.retrain.ingest import sent_again, waiting
from ssclass.store import Store
from ssclass.tracking.client import Tracking
from ssclass.upkeep import finish
from ssclass.upkeep.decisions import drop, revoke
from ssclass.upkeep.finish import finish_forgetting, open_journals
from ssclass.upkeep.forget import forget
from ssclass.upkeep.verify.data import forgetting
from ssclass.workspace.create import create
from ssclass.workspace.dvc import repository
from ssclass.workspace.git import Git
from ssclass.workspace.ledger import Event
from ssclass.workspace.workspace import Workspace
from tests.support.pipelines import CLASSES, Command, ingest_all

SPEC = FeatureSpec("b", "w", (32,), False)
NAME, AGAIN, METADATA = "erikas-birthday.jpg", "erika-once-more.jpg", "user 71 Erika"


def send(store: Store, batch: str, photos: dict[str, bytes], **entries: dict[str, Any]) -> None:
    """A batch whose manifest tells no sha256; `entries`: more fields of an entry, by file name before the dot."""
    listed = []
    for key, data in photos.items():
        store.put(f"incoming/{batch}/{key}", data)
        more = entries.get(Path(key).stem.replace("-", "_"), {})
        listed.append({"key": key, "label": key.split("/")[0], **more})
    store.put(f"incoming/{batch}/manifest.json", json.dumps({"schema": 1, "photos": listed}).encode())


def drawn(folder: Path, seed: int, per_class: int = 3) -> dict[str, bytes]:
    draw(folder, CLASSES, per_class, seed)
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*.jpg"))}


def encoded_anew(photo: bytes, quality: int) -> bytes:
    out = io.BytesIO()
    Image.open(io.BytesIO(photo)).save(out, "JPEG", quality=quality)
    return out.getvalue()


@pytest.fixture
def photo(tmp_path: Path) -> bytes:
    draw(tmp_path / "erika", ("sushi",), 1, 99)
    (path,) = (tmp_path / "erika").rglob("*.jpg")
    return path.read_bytes()


@pytest.fixture
def workspace(s3: Store, tmp_path: Path, photo: bytes) -> Workspace:
    """Two batches in a versioned bucket, and a decision. The photo comes in the first, and again in the second under
    the other label; near-copies of it come too, one of which is refused for its side of the split."""
    versioning = {"Status": "Enabled"}
    s3.client.put_bucket_versioning(Bucket=s3.bucket, VersioningConfiguration=versioning)
    made = a_workspace(s3, tmp_path)
    entries = {"erikas_birthday": {"split": "train", "metadata": {"who": METADATA}}}
    send(s3, "day-1", {**drawn(tmp_path / "1", 1), f"sushi/{NAME}": photo}, **entries)
    ingest_all(made)
    later = {
        f"sandwich/{AGAIN}": photo,
        "sushi/near.jpg": encoded_anew(photo, 60),
        "sushi/torn.jpg": encoded_anew(photo, 50),
    }
    send(s3, "day-2", {**drawn(tmp_path / "2", 2), **later}, torn={"split": "holdout"}, near={"split": "train"})
    ingest_all(made)
    put_features(made, made.at().dataset.shards)
    decide(made, "k1")
    return made


def a_workspace(s3: Store, tmp_path: Path) -> Workspace:
    at = {"bucket": s3.bucket, "s3_endpoint": s3.settings.s3_endpoint or "", "s3_region": "us-east-1"}
    return create(tmp_path / "workspace", at)


def put_features(workspace: Workspace, shards: Iterable[Shard]) -> None:
    memo = FeatureMemo(workspace.private, workspace.store)
    for shard in shards:
        memo.put(SPEC, shard.photos_digest, Features(tuple(row.sha256 for row in shard.rows), {}))


def decide(workspace: Workspace, key: str) -> None:
    version = workspace.newest().data_version
    body = {"decision": "REJECTED", "reason": "…", "key": key, "data_version": version, "batches": []}
    with workspace.transaction() as change:
        scores = {"candidate": {"right": 0}, "holdout": {"size": 1}, "champion": None}
        event = Event.now("decision", **body, **scores, run_id="r", code="c", params="p")
        change.publish("Reject", [event], tags=[f"run/{key}"])


def put_result(workspace: Workspace, key: str, holdout: list[str]) -> None:
    text = json.dumps({"key": key, "holdout": holdout})
    workspace.store.put(f"results/{key}/result.json", text.encode())
    path = workspace.private / "results" / key / "result.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def sha256_of(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def needles_of(photo: bytes) -> list[bytes]:
    """What must not be found anywhere: the digest, twelve digits of it, names, metadata, a piece of the picture."""
    sha256 = sha256_of(photo)
    texts = (sha256, sha256[:12], NAME, AGAIN, METADATA)
    return [*(text.encode() for text in texts), photo[len(photo) // 2 :][:200]]


def unpacked(npz: bytes) -> bytes:
    """The arrays of a memo, which is compressed: a search of the file itself would see nothing."""
    with zipfile.ZipFile(io.BytesIO(npz)) as file:
        return b"".join(file.read(name) for name in file.namelist())


def found_in(workspace: Workspace, needles: list[bytes]) -> list[str]:
    """Where any of the needles is: each version in the bucket, each file of workspace and origin, git's objects."""
    store = workspace.store
    places = [(key, store.get_version(key, version)) for key, version, _ in store.versions("")]
    for root in (workspace.root, Path(f"{workspace.root}.git")):
        places += [(str(path), path.read_bytes()) for path in root.rglob("*") if path.is_file()]
        if (root / "HEAD").exists() or (root / ".git").exists():
            dump = ["git", "-C", str(root), "cat-file", "--batch", "--batch-all-objects"]
            places.append((f"git of {root}", subprocess.run(dump, capture_output=True, check=True).stdout))
    places = [(name, unpacked(data) if name.endswith(".npz") else data) for name, data in places]
    wide = [needle.decode().encode("utf-32-le") for needle in needles if len(needle) == 64]  # in .npz
    return sorted({name for name, data in places if any(needle in data for needle in [*needles, *wide])})


def rows(workspace: Workspace) -> dict[str, Row]:
    return workspace.at().dataset.by_sha256


def test_nothing_is_left_of_a_forgotten_photo_and_the_rest_is_there(
    workspace, s3, tmp_path, photo, ssclass: Command
) -> None:
    sha256, needles = sha256_of(photo), needles_of(photo)
    before = workspace.at().dataset
    assert sha256 in before.by_sha256
    near = sha256_of(encoded_anew(photo, 60))
    assert before.by_sha256[near].group == sha256
    where = "\n".join(found_in(workspace, needles))
    parts = ("incoming/day-1", "incoming/day-2", "quarantine/day-2", "dvc/files", ".dvc/cache", "features/")
    assert [part for part in parts if part not in where] == []
    assert "git of" not in where, "no line of the ledger says anything of a photo"

    tracking = Tracking.of(workspace)
    run = tracking.open_run("k1", "this clone")
    for name in ("augmentation.png", "confusion.png"):  # photos can be seen in the first
        tracking.client.log_text(run, "…", f"figures/{name}")
    put_result(workspace, "k1", [sha256, near])

    said = ssclass("forget", sha256, "--yes", "--json", "--workspace", workspace.root)
    assert said.returncode == 0, said.stderr
    done = json.loads(said.stdout)
    assert done["batches"] == ["day-1", "day-2"], "the second names the first's photo in its receipt"
    assert [model["key"] for model in done["models"]] == ["k1"]
    assert done["tags"] == ["data/1", "data/2", "run/k1"]
    assert done["ledger_lines"] == 0
    stay = [(copy["batch"], copy["key"]) for copy in done["near_copies"]]
    assert stay == [("day-2", "sushi/near.jpg"), ("day-2", "quarantine/day-2/sushi/torn.jpg")]

    workspace.newest()
    assert found_in(workspace, needles) == []
    kept = {f"{tracked.md5}.json" for tracked in workspace.at().files("data")}
    assert {path.name for path in (workspace.private / "shards").iterdir()} <= kept
    assert [item.path for item in tracking.client.list_artifacts(run, "figures")] == ["figures/confusion.png"]
    assert json.loads(s3.get("results/k1/result.json") or b"")["holdout"] == ["0" * 64, near]

    after = workspace.at().dataset
    assert [row.sha256 for row in after.rows] == [row.sha256 for row in before.rows if row.sha256 != sha256]
    assert {row.key: (row.label, row.split) for row in after.rows} == {
        row.key: (row.label, row.split) for row in before.rows if row.sha256 != sha256
    }
    assert after.by_sha256[near].group == near
    assert workspace.at().data_version == "data/3"
    state = workspace.at().state
    assert (waiting(s3, state), sent_again(s3, state)) == ([], []), "a rewritten manifest is no new delivery"
    clone = create(tmp_path / "clone", {}, git=workspace.git("remote", "get-url", "origin"))
    with repository(clone.settings) as repo:
        repo.pull(targets=[str(clone.root / "data.dvc")])
    assert clone.at().dataset.digest == after.digest
    assert lineage(workspace, "day-1")["data_version"] == "data/1"
    with pytest.raises(NotFoundError, match="nothing to forget"):
        forget(workspace, [sha256], "again")


def test_a_photo_in_a_shard_that_was_rewritten_and_then_revoked_is_found(workspace, photo) -> None:
    sha256 = sha256_of(photo)
    other = next(row.sha256 for row in rows(workspace).values() if row.group not in (sha256, rows(workspace)[sha256]))
    forget(workspace, [other], "one")
    assert sha256 in rows(workspace)
    revoke(workspace, "day-1", "another kitchen")
    assert sha256 not in rows(workspace)
    done = forget(workspace, [sha256], "two")
    assert "day-1" in done.batches
    assert found_in(workspace, needles_of(photo)) == []


def test_a_shard_that_cannot_be_looked_at_stops_it_and_one_that_is_nowhere_does_not(workspace, photo) -> None:
    (event,) = [event for event in workspace.at().events if event.body.get("batch") == "day-1"]
    revoke(workspace, "day-1", "another kitchen")
    md5 = event.body["md5"]
    shutil.rmtree(workspace.private / "shards")
    workspace.objects.here(md5).unlink()
    body = workspace.store.get(workspace.objects.key(md5))
    workspace.store.put(workspace.objects.key(md5), b"other bytes")  # what a stranger wrote, or a failing disk
    fresh = Workspace(workspace.settings)
    from ssclass.workspace import version

    version._remembered.cache_clear()
    with pytest.raises(StoreError, match="bytes are not what its name says"):
        forget(fresh, [sha256_of(photo)], "…")
    assert fresh.at().data_version == "data/3", "nothing was recorded"
    assert body is not None
    workspace.store.erase(workspace.objects.key(md5))
    done = forget(fresh, [sha256_of(photo)], "…")
    assert done.batches == ("day-2",)
    assert found_in(workspace, needles_of(photo)) == []


@pytest.mark.parametrize("where", ["erase_shards", "_carry_out", "erase_pages", "blank_results"])
def test_killed_after_the_push_the_next_retrain_finishes_it(workspace, photo, monkeypatch, where) -> None:
    class Killed(BaseException):
        pass

    def kill(*args: object, **more: object) -> None:
        raise Killed

    put_result(workspace, "k1", [sha256_of(photo)])
    with monkeypatch.context() as patch:
        patch.setattr(finish, where, kill)
        with pytest.raises(Killed):
            forget(workspace, [sha256_of(photo)], "…")
    assert workspace.newest().data_version == "data/3"
    assert found_in(workspace, needles_of(photo)) != []
    assert len(open_journals(workspace)) == (where in ("_carry_out", "erase_pages"))
    finish_forgetting(Workspace(workspace.settings))  # as every retrain does
    assert found_in(workspace, needles_of(photo)) == []
    assert open_journals(workspace) == []
    state = workspace.at().state
    assert (waiting(workspace.store, state), sent_again(workspace.store, state)) == ([], [])


def test_what_a_retrain_elsewhere_writes_back_goes_with_the_next_one(workspace, s3, photo, tmp_path) -> None:
    other = create(tmp_path / "other", {}, git=workspace.origin)
    before = other.at()
    photos = {f"sushi/{NAME}": photo, **drawn(tmp_path / "3", 3)}
    old = list(before.dataset.shards)
    # A batch that waits has the photo too; the other machine is about to take it in.
    send(s3, "day-3", photos)
    (ref,) = waiting(s3, before.state)
    out = tmp_path / "spool" / "day-3.parquet"
    (tmp_path / "spool" / "photos").mkdir(parents=True)
    from ssclass.data.batches import read_batch

    empty = replace(before.dataset, shards=())
    batch = read_batch(s3, ref, CLASSES)
    build_shard(s3, batch, before.params, empty, tmp_path / "spool" / "photos", out, sequence=3)
    forget(workspace, [sha256_of(photo)], "…")

    put_features(other, old)
    put_result(other, "k2", [sha256_of(photo)])
    data = out.read_bytes()
    s3.put(workspace.objects.key(hashlib.md5(data).hexdigest()), data)  # pushed, then the race was lost
    assert found_in(workspace, needles_of(photo)) != []
    assert found_in(other, needles_of(photo)) != []
    ingested = ingest_all(other)
    assert [(each.batch, each.outcome, each.refused) for each in ingested] == [("day-3", "INGESTED", 0)]
    finish_forgetting(other, alone=True)
    workspace.newest()
    assert found_in(workspace, needles_of(photo)) == []
    shutil.rmtree(tmp_path / "spool")
    assert [name for name in found_in(other, needles_of(photo)) if "/other" in name] == []
    assert not any(row.sha256 == sha256_of(photo) for row in rows(other).values())


def test_a_dropped_batch_stays_dropped_when_its_manifest_is_rewritten(workspace, s3, photo, tmp_path) -> None:
    send(s3, "day-3", {f"sushi/{NAME}": photo, **drawn(tmp_path / "3", 3)})
    drop(workspace, "day-3")
    send(s3, "day-4", {f"sushi/{NAME}": photo, **drawn(tmp_path / "4", 4)})
    forget(workspace, [sha256_of(photo)], "…")
    assert [ref.id for ref in waiting(s3, workspace.newest().state)] == ["day-4"]
    assert [each.outcome for each in ingest_all(workspace)] == ["INGESTED"]
    assert found_in(workspace, needles_of(photo)) == []


def test_a_photo_that_was_only_sent_is_forgotten_too_and_the_request_is_recorded(s3, tmp_path, photo) -> None:
    workspace = a_workspace(s3, tmp_path)
    send(s3, "day-1", {f"sushi/{NAME}": photo, **drawn(tmp_path / "1", 1)})
    s3.put("incoming/day-2/sushi/x.jpg", photo)
    s3.put("incoming/day-2/_SUCCESS", b"")
    done = forget(workspace, [sha256_of(photo)], "by request")
    assert done.batches == ()
    (event,) = workspace.at().events
    assert (event.kind, event.body["photos"], event.body["reason"]) == ("forget", 1, "by request")
    assert found_in(workspace, needles_of(photo)) == []
    outcomes = {each.batch: each.outcome for each in ingest_all(workspace)}
    assert outcomes == {"day-1": "INGESTED", "day-2": "HELD"}


def test_what_it_costs_follows_what_is_affected(s3, tmp_path, photo, monkeypatch) -> None:
    workspace = a_workspace(s3, tmp_path)
    counted: list[str] = []

    def count(of: str) -> tuple[int, int]:
        """Files of commits, and photos under incoming/, that were read for a forgetting."""
        counted.clear()
        forget(workspace, [of], "…")
        reads = sum(each.startswith("incoming/") and not each.endswith(".json") for each in counted)
        return sum(each == "show" for each in counted), reads

    run, read = workspace.git.run, Store.get_version
    monkeypatch.setattr(workspace.git, "run", lambda *args: (counted.append(args[0]), run(*args))[1])
    monkeypatch.setattr(Store, "get_version", lambda *args: (counted.append(args[1]), read(*args))[1])
    send(s3, "day-1", {f"sushi/{NAME}": photo, **drawn(tmp_path / "1", 1)})
    ingest_all(workspace)
    first = count(sha256_of(photo))
    for number in range(2, 6):
        send(s3, f"day-{number}", drawn(tmp_path / str(number), number, 2))
        ingest_all(workspace)
        decide(workspace, f"k{number}")
    last = count(next(row.sha256 for row in rows(workspace).values()))
    assert last[0] < first[0] + 8, "the second time looks at the first once more, and opens none of eight more tags"
    assert max(first[1], last[1]) <= 2, "of what was sent, only what has its size is read"


def test_who_may_not_delete_what_was_sent_is_told_and_its_owner_finishes_it(workspace, photo, monkeypatch) -> None:
    erase = Store.erase

    def denied(store: Store, key: str, version: str | None = None) -> None:
        if key.startswith("incoming/"):
            raise StoreError(f"s3://{store.bucket}/{key}: the server answered AccessDenied; check the bucket's policy")
        erase(store, key, version)

    with monkeypatch.context() as patch:
        patch.setattr(Store, "erase", denied)
        with pytest.raises(FailedError, match="still there"):
            forget(workspace, [sha256_of(photo)], "…")
        finish_forgetting(workspace)  # a retrain with the pipeline's rights does what it may, and does not fail
        (note,) = workspace.store.list("results/forget/")
        patch.setattr(finish, "SETTLES", timedelta(0))
        finish_forgetting(workspace)
    assert workspace.store.head(note.key).modified > note.modified, "or the bucket's rule takes it for an old result"
    left = {name.split("/")[0] for name in found_in(workspace, needles_of(photo))}
    assert left == {"incoming", "results"}, "and the note of it"

    (told,) = forgetting(workspace)
    assert told.mend is not None
    told.mend()
    assert list(forgetting(workspace)) == []
    assert found_in(workspace, needles_of(photo)) == []


def test_a_version_that_main_no_longer_contains_is_searched_too(workspace, photo) -> None:
    git = workspace.git
    git("push", "--quiet", "--force", "origin", "HEAD~3:refs/heads/main")  # before both batches
    fresh = Workspace(workspace.settings)
    assert (fresh.newest().data_version, rows(fresh)) == ("data/0", {})
    done = forget(fresh, [sha256_of(photo)], "…")
    assert set(done.batches) == {"day-1", "day-2"}
    left = [name for name in found_in(fresh, needles_of(photo)) if "/incoming/" not in name]
    assert left == []


@pytest.mark.parametrize("removed", [False, True])
def test_a_correction_that_said_again_what_was_so_names_it_no_more(workspace, photo, removed) -> None:
    sha256 = sha256_of(photo)
    body = {"remove": [{"sha256": sha256}]} if removed else {"relabel": [{"sha256": sha256, "label": "sandwich"}]}
    for batch in ("fix-1", "fix-2"):
        workspace.store.put(f"incoming/{batch}/manifest.json", json.dumps({"schema": 1, **body}).encode())
        ingest_all(workspace)
    (again,) = (shard.receipt for shard in workspace.at().dataset.shards if shard.batch_id == "fix-2")
    assert again.corrected == {sha256}
    assert not again.changes
    forget(workspace, [sha256], "asked to")
    assert found_in(workspace, needles_of(photo)) == []
    assert all(sha256 not in shard.receipt.corrected for shard in workspace.at().dataset.shards)


def test_an_old_ledger_line_that_quotes_a_photo_is_told_of(workspace, photo) -> None:
    body = {"decision": "HELD", "batch": "old", "etag": "e"}
    with workspace.transaction() as change:
        reason = f"flood: 9 of 12 photos are near-copies of one ({sha256_of(photo)[:12]})"
        change.publish("Hold old", [Event.now("decision", **body, reason=reason)])
    assert forget(workspace, [sha256_of(photo)], "…").ledger_lines == 1


def test_a_sha256_must_be_whole(s3, tmp_path) -> None:
    with pytest.raises(InputError, match="64 hex digits"):
        forget(a_workspace(s3, tmp_path), ["abc123"], "…")


def names_in(store: Store) -> str:
    """The keys of all versions of all objects, and of the markers of their deletion."""
    found = store.client.list_object_versions(Bucket=store.bucket)
    return " ".join(each["Key"] for kind in ("Versions", "DeleteMarkers") for each in found.get(kind, ()))


def test_a_push_whose_answer_was_lost_is_finished_by_the_next_retrain(workspace, photo, monkeypatch) -> None:
    """The note of what is to be deleted went with the error: the ledger said forgotten, and the photo stayed."""
    real = Git.remote

    def interrupted(git: Git, *args: str) -> str:
        done = real(git, *args)
        if args[0] == "push":
            raise KeyboardInterrupt
        return done

    with monkeypatch.context() as patch:
        patch.setattr(Git, "remote", interrupted)
        with pytest.raises(KeyboardInterrupt):
            forget(workspace, [sha256_of(photo)], "…")
    assert workspace.newest().data_version == "data/3"
    assert len(open_journals(workspace)) == 1
    finish_forgetting(workspace)
    assert found_in(workspace, needles_of(photo)) == []


def test_a_note_of_a_command_that_failed_goes_with_the_photo(workspace, photo, monkeypatch) -> None:
    real = Git.run

    def away(git: Git, *args: str) -> Any:
        if args[0] == "push" or (args[0] == "ls-remote" and "tags" in args[-1]):
            return subprocess.CompletedProcess([], 128, "", "fatal: unable to access: Could not resolve host")
        return real(git, *args)

    with monkeypatch.context() as patch:
        patch.setattr(Git, "run", away)
        patch.setattr(workspace.git, "patience", 0.0)
        with pytest.raises(FailedError):
            forget(workspace, [sha256_of(photo)], "…")
    assert len(list(workspace.store.list("results/forget/"))) == 1, "it cannot be told whether the push was applied"
    forget(workspace, [sha256_of(photo)], "…")
    assert found_in(workspace, needles_of(photo)) == []


def test_markers_of_deletion_do_not_keep_its_name(workspace, s3, photo) -> None:
    """Its sender had deleted it, and a rule of the bucket a doubtful one: both are there still, below a marker."""
    sha256 = sha256_of(photo)
    s3.put(f"collect/2026-01-01/{sha256}", photo)
    for key in (f"incoming/day-1/sushi/{NAME}", f"collect/2026-01-01/{sha256}"):
        s3.delete(key)
    forget(workspace, [sha256], "…")
    assert found_in(workspace, needles_of(photo)) == []
    assert not [word for word in (NAME, AGAIN, sha256) if word in names_in(s3)]


def test_what_was_sent_before_versioning_was_turned_on_goes_too(s3, tmp_path, photo) -> None:
    """S3 calls those versions "null", and a request without an id means the newest: the photo stayed below it."""
    made = a_workspace(s3, tmp_path)
    send(s3, "day-1", {**drawn(tmp_path / "1", 1), f"sushi/{NAME}": photo})
    ingest_all(made)
    put_result(made, "k1", [sha256_of(photo)])
    s3.client.put_bucket_versioning(Bucket=s3.bucket, VersioningConfiguration={"Status": "Enabled"})
    s3.put(f"incoming/day-1/sushi/{NAME}", b"another photo, by mistake under the same name")
    forget(made, [sha256_of(photo)], "…")
    needles = [needle for needle in needles_of(photo) if needle != NAME.encode()]
    assert found_in(made, needles) == []
    assert made.at().data_version == "data/2"
