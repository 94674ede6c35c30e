"""The frame that everything stands on: versions to read, transactions to write, one lock, one runner of git."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from aiobotocore.client import AioBaseClient
from botocore.client import BaseClient

from ssclass.data.submit import submit
from ssclass.demo.drawings import draw
from ssclass.errors import FailedError, InputError, LostRaceError, StoreError, WorkspaceError
from ssclass.retrain.ingest import ingest, waiting
from ssclass.settings import CHECKOUT, Settings, load_settings
from ssclass.store import Store
from ssclass.upkeep.decisions import append
from ssclass.workspace import dvc, ledger, transaction
from ssclass.workspace.create import create
from ssclass.workspace.git import Git, GitRefusedError, check_url, message
from ssclass.workspace.lock import Lock
from ssclass.workspace.objects import Objects
from ssclass.workspace.workspace import Workspace
from tests.support.pipelines import CLASSES, Command, Pipeline, ingest_all, set_params


@pytest.fixture
def workspace(s3: Store, tmp_path: Path) -> Workspace:
    at = {"bucket": s3.bucket, "s3_endpoint": s3.settings.s3_endpoint or "", "s3_region": "us-east-1"}
    return create(tmp_path / "workspace", at)


def send(workspace: Workspace, folder: Path, batch: str, seed: int = 0) -> None:
    draw(folder / batch, CLASSES, 4, seed)
    submit(workspace.store, folder / batch, batch, CLASSES)


def everything(workspace: Workspace) -> dict[str, bytes]:
    """What a transaction may touch: tracked files, DVC's folders, the commit."""
    root = workspace.root
    found = {"HEAD": workspace.head.encode(), "tags": workspace.git("tag", "--list").encode()}
    for name in ("data.dvc", "dvc.lock", "metrics.json", "code.json", "ledger.jsonl", "params.yaml"):
        found[name] = (root / name).read_bytes()
    for folder in ("data", "candidate"):
        found |= {str(path.relative_to(root)): path.read_bytes() for path in sorted((root / folder).rglob("*"))}
    return found


# -- transactions -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "at", ["before it writes", "with a shard in data/", "with a candidate", "with the push refused"]
)
def test_a_transaction_that_ends_without_a_push_leaves_nothing(workspace: Workspace, tmp_path: Path, at: str) -> None:
    send(workspace, tmp_path, "day-1")
    ingest_all(workspace)
    before = everything(workspace)
    shard = tmp_path / "more.parquet"
    shutil.copyfile(workspace.root / "data" / "day-1.parquet", shard)
    candidate = tmp_path / "candidate"
    candidate.mkdir()
    (candidate / "training.json").write_text("{}")
    (tmp_path / "metrics.json").write_text('{"accuracy": 1}')
    hook = workspace.root.with_name("workspace.git") / "hooks" / "pre-receive"

    def write() -> None:
        with workspace.transaction() as change:
            if at != "before it writes":
                change.add_shards(shard)
            if at == "with a candidate":
                change.record_candidate(candidate, tmp_path / "metrics.json")
            if at == "with the push refused":
                hook.write_text("#!/bin/sh\necho 'main is protected: open a pull request'\nexit 1\n")
                hook.chmod(0o755)
                change.publish("More", [ledger.Event.now("freeze", reason="…")], tags=["data/2"])
            raise StoreError("the bucket is away")

    with pytest.raises(GitRefusedError if at == "with the push refused" else StoreError) as caught:
        write()
    assert everything(workspace) == before
    assert workspace.git("status", "--porcelain") == ""
    assert not (workspace.private / "unfinished").exists()
    if at == "with the push refused":
        assert "main is protected: open a pull request" in str(caught.value), "all that origin said"
        hook.unlink()
    assert append(workspace, "freeze", "Freeze", reason="it goes on").body["reason"] == "it goes on"


def test_publishing_needs_a_transaction_and_ends_it(workspace: Workspace) -> None:
    assert not hasattr(workspace, "publish")
    with workspace.transaction() as change:
        change.publish("Freeze", [ledger.Event.now("freeze", reason="…")])
        with pytest.raises(RuntimeError, match="published already"):
            change.publish("Again", [])


def test_a_lost_race_is_repeated_from_the_new_head_in_one_place(workspace: Workspace, tmp_path: Path) -> None:
    other = create(tmp_path / "other", {}, git=workspace.origin)
    seen: list[str | None] = []

    def task(change: Any) -> None:
        seen.append(change.version.state.frozen)
        if len(seen) < 3:
            append(other, "freeze", "Freeze", reason=f"by another, {len(seen)}")
        change.publish("Mine", [ledger.Event.now("unfreeze")])

    workspace.write(task)
    assert seen == [None, "by another, 1", "by another, 2"], "each try reads what the other wrote"
    assert workspace.at().state.frozen is None
    assert len(workspace.at().events) == 3, "and nothing is written twice"


def test_who_always_loses_gives_up_and_says_so(workspace: Workspace, tmp_path: Path) -> None:
    other = create(tmp_path / "other", {}, git=workspace.origin)

    def task(change: Any) -> None:
        append(other, "freeze", "Freeze", reason="first")
        change.publish("Mine", [ledger.Event.now("unfreeze")])

    with pytest.raises(LostRaceError, match="10 times in a row"):
        workspace.write(task)


def test_a_lock_of_an_editor_is_waited_for_and_left_alone(workspace: Workspace) -> None:
    impatient = Workspace(workspace.settings.model_copy(update={"patience": 0.0}))
    held = workspace.root / ".git" / "index.lock"

    def with_a_lock() -> None:
        with impatient.transaction() as change:
            held.touch()
            change.publish("Freeze", [ledger.Event.now("freeze", reason="…")])

    with pytest.raises(FailedError, match="end the other git process"):
        with_a_lock()
    assert held.exists(), "it is nobody's of ours"
    with pytest.raises(FailedError, match="end the other git process"), impatient.transaction():
        pass
    held.unlink()
    assert workspace.newest().events == ()
    assert workspace.git("status", "--porcelain") == ""


def test_while_one_process_writes_another_is_told_who(workspace: Workspace, tmp_path: Path) -> None:
    script = (
        "import sys, time\nfrom pathlib import Path\nfrom ssclass.settings import load_settings\n"
        "from ssclass.workspace.workspace import Workspace\n"
        "with Workspace(load_settings(Path(sys.argv[1]))).transaction():\n"
        "    print('in', flush=True)\n    sys.stdin.read()\n"
    )
    path = tmp_path / "writer.py"
    path.write_text(script)
    writer = subprocess.Popen(
        [sys.executable, str(path), str(workspace.root)],
        env={**os.environ, "PYTHONPATH": str(CHECKOUT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "in\n"
        with pytest.raises(FailedError, match=rf"busy with process {writer.pid} \(writer\.py") as caught:
            workspace.write(lambda change: None, wait=0.2)
        assert "since" in str(caught.value)
    finally:
        writer.communicate("")
    workspace.write(lambda change: None, wait=0.2)


def test_a_retrain_under_way_does_not_keep_a_person_from_writing(workspace: Workspace) -> None:
    with workspace.retraining():
        append(workspace, "freeze", "Freeze", reason="at once")
    assert workspace.at().state.frozen == "at once"


def test_a_lock_without_a_readable_holder_still_holds(tmp_path: Path) -> None:
    lock, taken, leave = Lock(tmp_path / "a" / "lock"), threading.Event(), threading.Event()
    (tmp_path / "a").mkdir()

    def hold() -> None:
        with Lock(tmp_path / "a" / "lock").held():
            (tmp_path / "a" / "lock.holder").write_text("not JSON")
            taken.set()
            leave.wait(30)

    thread = threading.Thread(target=hold)
    thread.start()
    taken.wait(30)
    with pytest.raises(FailedError, match="another process that writes here"), lock.held(0):
        pass
    leave.set()
    thread.join(30)


# -- versions ---------------------------------------------------------------------------------------------


def test_a_version_reads_each_thing_once_and_is_kept_by_its_commit(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    send(workspace, tmp_path, "day-1")
    ingest_all(workspace)
    version = workspace.at()
    assert workspace.at("data/1") is version is workspace.at(version.commit or "")
    assert version.dataset is version.dataset
    assert version.state.ingested
    monkeypatch.setattr(ledger, "parse", lambda *given: pytest.fail("read again"))
    assert version.events
    assert workspace.at("data/1").state.ingested
    monkeypatch.undo()
    older = workspace.at("data/1~1")
    assert older.dataset.rows == ()
    assert (older.data_version, version.data_version) == ("data/0", "data/1")
    with pytest.raises(WorkspaceError, match="no such revision"):
        workspace.at("data/7")


def test_the_work_tree_is_read_anew_and_with_its_changes(workspace: Workspace) -> None:
    path = workspace.root / "params.yaml"
    path.write_text(path.read_text().replace("seed: 0", "seed: 7"))
    assert workspace.work_tree().params.train.seed == 7
    assert workspace.at().params.train.seed == 0
    path.write_text(path.read_text().replace("seed: 7", "seed: 8"))
    assert workspace.work_tree().params.train.seed == 8


def test_one_retrain_opens_each_thing_once(pipeline: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three shards: the ledger and the params once a commit, S3's client once, DVC's repository a handful of times."""
    import boto3.session
    import dvc.repo

    from ssclass.workspace import version

    workspace = pipeline.workspace(tmp_path / "workspace", head="linear")
    for number in range(3):
        draw(tmp_path / str(number), CLASSES, 12, number)
        submit(workspace.store, tmp_path / str(number), f"day-{number}", CLASSES)
    opened: Counter[str] = Counter()

    def counted(name: str, call: Any) -> Any:
        def count(*args: Any, **named: Any) -> Any:
            opened[name] += 1
            return call(*args, **named)

        return count

    monkeypatch.setattr(ledger, "parse", counted("ledger", ledger.parse))
    monkeypatch.setattr(version, "parse_params", counted("params", version.parse_params))
    monkeypatch.setattr(version.Dataset, "of", counted("data set", version.Dataset.of))
    monkeypatch.setattr(dvc.repo.Repo, "__init__", counted("DVC", dvc.repo.Repo.__init__))
    monkeypatch.setattr(boto3.session.Session, "client", counted("S3", boto3.session.Session.client))
    assert pipeline.retrain(workspace).decision == "PROMOTED"
    commits = 1 + 3 + 1  # where it began, three batches, the decision
    assert opened["ledger"] <= commits
    assert opened["params"] <= commits
    assert opened["data set"] <= commits
    assert opened["S3"] <= 1
    assert opened["DVC"] <= 3 + 1, "one a shard, one for the stages"

    opened.clear()
    assert pipeline.retrain(workspace).decision == "SKIPPED"
    assert opened["data set"] <= 1, "that of the decision's commit"
    opened.clear()
    assert pipeline.retrain(workspace).decision == "SKIPPED"
    assert not +opened


def test_tags_are_fetched_where_main_has_moved_and_where_a_push_met_one(workspace: Workspace, monkeypatch: Any) -> None:
    """To compare every tag at each transaction costs more with every batch."""
    asked: list[str] = []
    remote = Git.remote
    workspace.newest()
    monkeypatch.setattr(Git, "remote", lambda git, *args: (asked.append(args[0]), remote(git, *args))[1])
    with workspace.transaction() as change:
        change.publish("a version", [ledger.Event.now("freeze", reason="a test")], tags=["data/1"])
    workspace.newest()
    assert asked == ["ls-remote", "push", "ls-remote"]
    workspace.git("push", "--quiet", "origin", f"{workspace.head}:refs/tags/data/2")  # a person's, of another clone
    workspace.git("tag", "--delete", "data/2", check=False)
    with pytest.raises(LostRaceError), workspace.transaction() as change:
        change.publish("another", [ledger.Event.now("unfreeze")], tags=["data/2"])
    workspace.newest()
    assert workspace.git("rev-parse", "data/2"), "the next transaction knows of it"
    with pytest.raises(WorkspaceError, match="data/2 is already on main"), workspace.transaction() as change:
        change.publish("another", [ledger.Event.now("unfreeze")], tags=["data/2"])


@pytest.mark.parametrize("at", ["git push", "git tag", "git update-ref"])
def test_tags_of_a_push_that_was_applied_get_here_by_the_next_transaction(
    workspace: Workspace, monkeypatch: Any, at: str
) -> None:
    """Killed, or failed, between the push and the last tag: git has moved origin/main by then."""
    called, remote, done = Git.__call__, Git.remote, []

    def ends(git: Git, *args: str, **more: Any) -> str:
        done.append(args[0])
        if "push" in done and at == f"git {args[0]}":
            raise KeyboardInterrupt(args)
        return called(git, *args, **more)

    def pushes(git: Git, *args: str) -> str:
        told = remote(git, *args)
        done.append(args[0])
        if at == f"git {args[0]}":
            raise KeyboardInterrupt(args)
        return told

    monkeypatch.setattr(Git, "__call__", ends)
    monkeypatch.setattr(Git, "remote", pushes)
    with pytest.raises(KeyboardInterrupt), workspace.transaction() as change:
        change.publish("a version", [ledger.Event.now("freeze", reason="a test")], tags=["data/1", "run/1"])
    monkeypatch.undo()
    assert workspace.newest().state.frozen
    assert workspace.git("tag", "--list", "data/1", "run/1").split() == ["data/1", "run/1"]


def test_many_tags_are_packed_into_one_file(workspace: Workspace, monkeypatch: Any) -> None:
    monkeypatch.setattr(transaction, "LOOSE_TAGS", 2)
    for number in range(3):
        workspace.git("push", "--quiet", "origin", f"{workspace.head}:refs/tags/data/{number}")
    other = Path(f"{workspace.root}-2")
    Git(workspace.root.parent)("clone", "--quiet", workspace.origin, str(other))
    (other / "README").write_text("theirs")
    Git(other)("add", "README")
    Git(other)("commit", "--quiet", "--message", "theirs")
    Git(other)("push", "--quiet", "origin", "main")
    workspace.newest()
    assert "data/2" in (workspace.root / ".git" / "packed-refs").read_text()
    assert workspace.git("tag", "--list", "data/*").split() == ["data/0", "data/1", "data/2"]


# -- git --------------------------------------------------------------------------------------------------


def test_another_repositorys_variables_do_not_reach_ours(
    s3: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ssclass: Command
) -> None:
    """As in a git hook, or in `git rebase --exec`: GIT_DIR and its like name the repository that they run in."""
    theirs = tmp_path / "theirs"
    subprocess.run(["git", "init", "--quiet", str(theirs)], check=True)
    before = {path: path.read_bytes() for path in (theirs / ".git").rglob("*") if path.is_file()}
    git = str(theirs / ".git")
    foreign = {
        "GIT_DIR": git,
        "GIT_WORK_TREE": str(theirs),
        "GIT_INDEX_FILE": f"{git}/index",
        "GIT_COMMON_DIR": git,
        "GIT_OBJECT_DIRECTORY": f"{git}/objects",
        "GIT_PREFIX": "sub/",
    }
    endpoint = s3.settings.s3_endpoint
    made = ssclass("init", tmp_path / "ours", "--bucket", s3.bucket, "--endpoint", endpoint, **foreign)
    assert made.returncode == 0, made.stderr
    frozen = ssclass("freeze", "--workspace", tmp_path / "ours", **foreign)
    assert frozen.returncode == 0, frozen.stderr
    assert {path: path.read_bytes() for path in (theirs / ".git").rglob("*") if path.is_file()} == before
    assert Workspace(Settings(workspace=tmp_path / "ours")).at().state.frozen == "by hand"


@pytest.mark.parametrize(
    "url",
    [
        "--upload-pack=touch pwned",
        "-oProxyCommand=touch pwned",
        "ext::sh -c 'touch pwned'",
        "fd::17/x",
        "ftp://example.org/x.git",
        "https://me:secret-token@example.org/x.git",
        "ssh://me:secret-token@example.org/x.git",
        "x.git\n--upload-pack=touch pwned",
    ],
)
def test_a_git_url_that_is_none_is_refused_before_git_sees_it(
    url: str, tmp_path: Path, ssclass: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InputError) as caught:
        check_url(url)
    assert "secret-token" not in str(caught.value)
    made = ssclass("init", tmp_path / "workspace", "--git", url, cwd=tmp_path)
    assert made.returncode == 2, made.stderr
    assert "secret-token" not in made.stdout + made.stderr
    assert not (tmp_path / "pwned").exists()
    assert not (tmp_path / "workspace").exists()
    monkeypatch.setenv("SSCLASS_HOME", str(tmp_path / "home"))
    from ssclass.workspace import clones

    with pytest.raises(InputError):
        clones.workspace_at(url)  # what a flow's parameter `workspace` comes to
    assert not (tmp_path / "pwned").exists()


@pytest.mark.parametrize(
    "url",
    ["/srv/git/x.git", "../x.git", "git@example.org:x.git", "https://example.org/x.git", "ssh://me@example.org/x"],
)
def test_the_usual_addresses_of_an_origin_pass(url: str) -> None:
    assert check_url(url) == url


def test_what_git_says_is_told_whole_and_without_passwords() -> None:
    said = (
        "remote: error: GH006: Protected branch update failed for refs/heads/main.\n"
        "remote: error: Changes must be made through a pull request.\n"
        "To https://me:hunter22@example.org/x.git\n"
        " ! [remote rejected] main -> main (protected branch hook declined)\n"
        "error: failed to push some refs to 'https://me:hunter22@example.org/x.git'\n"
        "hint: see the documentation\n"
    )
    told = message(said)
    assert "Changes must be made through a pull request" in told
    assert "protected branch hook declined" in told
    assert "hunter22" not in told
    assert "hint" not in told


def test_a_refusal_for_good_is_told_at_once(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    patient = Workspace(workspace.settings.model_copy(update={"patience": 600.0}))
    hook = workspace.root.with_name("workspace.git") / "hooks" / "update"
    hook.write_text("#!/bin/sh\necho 'not on Fridays' >&2\nexit 1\n")
    hook.chmod(0o755)
    tries = []
    run = patient.git.run
    monkeypatch.setattr(patient.git, "run", lambda *args: tries.append(args[0]) or run(*args))
    with pytest.raises(GitRefusedError, match="not on Fridays"):
        append(patient, "freeze", "Freeze", reason="…")
    assert tries.count("push") == 1


def test_main_moved_back_with_its_tags_left_does_not_stop_the_pipeline(workspace: Workspace, tmp_path: Path) -> None:
    for number in (1, 2):
        send(workspace, tmp_path, f"day-{number}", number)
    ingest_all(workspace)
    origin = workspace.root.with_name("workspace.git")
    subprocess.run(["git", "-C", str(origin), "update-ref", "refs/heads/main", "main~1"], check=True)
    fresh = create(tmp_path / "fresh", {}, git=str(origin))
    assert fresh.at().data_version == "data/1"
    (again,) = waiting(fresh.store, fresh.newest().state)
    assert ingest(fresh, again).accepted == 8
    assert fresh.at("data/2").commit == fresh.head
    pushed = subprocess.run(
        ["git", "-C", str(origin), "rev-parse", "data/2"], capture_output=True, text=True, check=True
    )
    assert pushed.stdout.strip() == fresh.head


def test_the_same_commit_made_again_after_main_moved_back_keeps_its_tag(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Within one second git makes the same commit of the same: its tag, left at origin, was taken for another's."""
    for name in ("GIT_AUTHOR_DATE", "GIT_COMMITTER_DATE"):
        monkeypatch.setenv(name, "2026-01-01T00:00:00Z")
    event = ledger.Event("freeze", "2026-01-01T00:00:00+00:00", {"reason": "holiday"})

    def publish() -> str:
        with workspace.transaction() as change:
            change.publish("Freeze", [event], tags=["data/1"])
        return workspace.head

    first = publish()
    origin = workspace.root.with_name("workspace.git")
    subprocess.run(["git", "-C", str(origin), "update-ref", "refs/heads/main", "main~1"], check=True)
    assert publish() == first
    told = subprocess.run(["git", "-C", str(origin), "rev-parse", "main", "data/1"], capture_output=True, text=True)
    assert told.stdout.split() == [first, first]
    with pytest.raises(WorkspaceError, match="already on main"), workspace.transaction() as change:
        change.publish("Again", [event], tags=["data/1"])


# -- what DVC keeps ---------------------------------------------------------------------------------------


def test_an_object_whose_bytes_are_others_is_never_read(workspace: Workspace, tmp_path: Path) -> None:
    send(workspace, tmp_path, "day-1")
    ingest_all(workspace)
    (tracked,) = workspace.at().files("data")
    elsewhere = create(tmp_path / "elsewhere", {}, git=workspace.origin)
    key = elsewhere.objects.key(tracked.md5)
    whole = elsewhere.store.get(key) or b""
    elsewhere.store.put(key, whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(StoreError, match="its bytes are not what its name says"):
        _ = elsewhere.at().dataset
    with pytest.raises(StoreError, match="its bytes are not what its name says"):
        elsewhere.objects.read(tracked.md5)
    elsewhere.store.put(key, whole)
    assert len(elsewhere.at().dataset.rows) == 8
    elsewhere.store.delete(key)
    shutil.rmtree(elsewhere.private / "shards")
    with pytest.raises(StoreError, match="gone"):
        _ = create(tmp_path / "third", {}, git=workspace.origin).at().dataset


def test_objects_are_pushed_where_the_bucket_lacks_them_and_their_listing_last(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    objects = workspace.objects

    def cached(data: bytes, suffix: str = "") -> str:
        name = hashlib.md5(data, usedforsecurity=False).hexdigest() + suffix
        objects.here(name).parent.mkdir(parents=True, exist_ok=True)
        objects.here(name).write_bytes(data)
        return name

    names = [cached(f"shard {number}".encode()) for number in range(3)]
    files = [{"md5": name, "relpath": f"{number}.parquet"} for number, name in enumerate(names)]
    listing = cached(json.dumps(files).encode(), ".dir")
    workspace.store.put(objects.key(names[0]), b"there already")
    sent: list[str] = []
    real = AioBaseClient._make_api_call  # DVC's

    def noting(client: Any, operation: str, params: dict[str, Any]) -> Any:
        if operation == "PutObject":
            sent.append(params["Key"])
        return real(client, operation, params)

    monkeypatch.setattr(AioBaseClient, "_make_api_call", noting)
    with dvc.repository(workspace.settings) as repo:
        dvc.push(repo, objects, [listing, *names])
        assert sent[-1] == objects.key(listing)
        assert set(sent) == {objects.key(name) for name in (*names[1:], listing)}
        assert workspace.store.get(objects.key(names[2])) == b"shard 2"
        damaged = cached(b"shard 3")
        objects.here(damaged).write_bytes(b"others")
        for lost in (damaged, f"{5:032x}"):
            with pytest.raises(StoreError, match="neither there nor whole in DVC's cache"):
                dvc.push(repo, objects, [lost])


def test_what_a_push_asks_the_bucket_for_does_not_grow_with_what_was_pushed(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DVC's own push asks for each listing that the machine ever pushed."""
    asked: list[str] = []

    def noting(real: Any) -> Any:
        def call(client: Any, operation: str, params: dict[str, Any]) -> Any:
            asked.append(str(params.get("Key") or params.get("Prefix")))
            return real(client, operation, params)

        return call

    for kind in (BaseClient, AioBaseClient):
        monkeypatch.setattr(kind, "_make_api_call", noting(kind._make_api_call))

    def of_a_batch(number: int) -> int:
        send(workspace, tmp_path, f"day-{number}", number)
        found = waiting(workspace.store, workspace.newest().state)
        asked.clear()
        for ref in found:
            ingest(workspace, ref)
        return sum(key.startswith("dvc/files/") for key in asked)

    counts = [of_a_batch(number) for number in range(1, 6)]
    assert counts[1] > 0
    assert len(set(counts[1:])) == 1, counts


def test_a_remote_object_is_read_by_ranges(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    send(workspace, tmp_path, "day-1")
    ingest_all(workspace)
    (tracked,) = workspace.at().files("data")
    whole = (workspace.root / "data" / "day-1.parquet").read_bytes()
    far = Objects(tmp_path / "nowhere", workspace.store)
    monkeypatch.setattr(workspace.store, "get", lambda *args, **named: pytest.fail("fetched whole"))
    with far.open(tracked.md5) as file:
        file.seek(-100, os.SEEK_END)
        assert file.read() == whole[-100:]
        file.seek(10)
        assert file.read(20) == whole[10:30]
        assert file.read(0) == b""


# -- two workspaces in one process ------------------------------------------------------------------------


def test_two_workspaces_in_one_process_share_no_setting(
    s3: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mlflow

    from ssclass.tracking.client import Tracking

    keys = tmp_path / "keys"
    keys.write_text("[stack]\naws_access_key_id = a\naws_secret_access_key = b\n")
    first = create(
        tmp_path / "one",
        {
            "bucket": s3.bucket,
            "s3_endpoint": s3.settings.s3_endpoint or "",
            "s3_profile": "stack",
            "s3_credentials": str(keys),
        },
    )
    second = create(tmp_path / "two", {"bucket": s3.bucket, "s3_endpoint": s3.settings.s3_endpoint or ""})
    before, address = dict(os.environ), mlflow.get_tracking_uri()
    send(first, tmp_path / "a", "day-1")
    ingest_all(first)
    for workspace in (first, second):
        Tracking.of(workspace).open_run("a-key", "a-clone")
    assert dict(os.environ) == before
    assert mlflow.get_tracking_uri() == address
    assert [len(Tracking.of(workspace).runs("a-key")) for workspace in (first, second)] == [1, 1]
    assert Tracking.of(first).settings.tracking_uri != Tracking.of(second).settings.tracking_uri


def test_an_experiment_of_another_workspace_is_refused_by_name(s3: Store, tmp_path: Path) -> None:
    from ssclass.tracking.client import Tracking

    at = {"bucket": s3.bucket, "s3_endpoint": s3.settings.s3_endpoint or "", "mlflow_uri": f"sqlite:///{tmp_path}/m.db"}
    first, second = create(tmp_path / "one", at), create(tmp_path / "two", at)
    run = Tracking.of(first).open_run("a-key", "a-clone")
    with pytest.raises(WorkspaceError, match=r"'ssclass' belongs to another workspace.*model_name"):
        Tracking.of(second).open_run("a-key", "a-clone")
    clone = create(tmp_path / "clone", {}, git=first.origin)
    assert [str(found.info.run_id) for found in Tracking.of(clone).runs("a-key")] == [run], "a clone is the same one"
    with (second.root / "ssclass.toml").open("a") as file:
        file.write('model_name = "two"\n')
    assert Tracking(load_settings(second.root)).open_run("a-key", "a-clone"), "the remedy works"


def test_patience_is_the_workspaces_own(pipeline: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`patience = 0` in ssclass.toml: what is away is asked once, not five times."""
    from ssclass.environment import quiet_libraries

    workspace = pipeline.workspace(tmp_path / "workspace")
    with (workspace.root / "ssclass.toml").open("a") as file:
        file.write("patience = 0\n")
    set_params(workspace)  # which commits and pushes it
    quiet_libraries(workspace.settings)
    from tasks import retraining

    asked = []

    def away(*args: object) -> None:
        asked.append(args)
        raise StoreError("the bucket is away")

    monkeypatch.setattr(retraining.batches, "waiting", away)
    with pytest.raises(StoreError, match="away"):
        pipeline.retrain(workspace)
    assert len(asked) == 1


def test_dvc_is_given_its_credentials_only_while_it_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/a/persons/own")
    settings = Settings(workspace=tmp_path, s3_credentials=tmp_path / "keys")
    with dvc._environment(settings):
        assert os.environ["AWS_SHARED_CREDENTIALS_FILE"] == str(tmp_path / "keys")
    assert os.environ["AWS_SHARED_CREDENTIALS_FILE"] == "/a/persons/own"
