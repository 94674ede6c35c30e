"""The workspace on real git and DVC: who wins, what a crash leaves, what a person's changes do."""

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from ssclass.data.submit import submit
from ssclass.demo.drawings import draw
from ssclass.errors import FailedError, LostRaceError, WorkspaceError
from ssclass.retrain.ingest import waiting
from ssclass.settings import Settings, load_settings
from ssclass.store import Store
from ssclass.workspace import create as creating
from ssclass.workspace import ledger
from ssclass.workspace.create import BUILDING, FILES, create, template_file
from ssclass.workspace.dvc import bootstrap, repository
from ssclass.workspace.git import Git
from ssclass.workspace.workspace import Workspace
from tests.support.pipelines import ingest_all

CLASSES = ("sandwich", "sushi")


@pytest.fixture
def workspace(s3: Store, tmp_path: Path) -> Workspace:
    return create(
        tmp_path / "workspace",
        {"bucket": s3.bucket, "s3_endpoint": s3.settings.s3_endpoint or "", "s3_region": "us-east-1"},
    )


def other_clone(workspace: Workspace, tmp_path: Path, name: str = "other") -> Workspace:
    return create(tmp_path / name, {}, git=workspace.git("remote", "get-url", "origin"))


def send(workspace: Workspace, tmp_path: Path, batch: str, seed: int, per_class: int = 4) -> None:
    folder = tmp_path / f"photos-{seed}"
    if not folder.exists():
        draw(folder, CLASSES, per_class, seed)
    submit(workspace.store, folder, batch, CLASSES)


def take_all(workspace: Workspace) -> None:
    ingest_all(workspace)


def dvc_status(folder: Path, *targets: str) -> object:
    with repository(Settings(workspace=folder)) as repo:
        return repo.status(targets=[str(folder / target) for target in targets] or None)


def test_a_new_workspace_is_clean(workspace):
    assert workspace.git("status", "--porcelain") == ""
    assert dvc_status(workspace.root) == {}
    assert workspace.at().dataset.rows == ()
    assert workspace.git("rev-parse", "HEAD") == workspace.git("rev-parse", "origin/main")


class Killed(BaseException):
    """Nothing catches it: what is left is what SIGKILL would leave at that step."""


def killed() -> None:
    raise Killed


@contextmanager
def killed_after(step: int) -> Iterator[None]:
    """The step-th thing that `create` does on disk or by git is its last."""
    begun = [0]

    def dying(real: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            begun[0] += 1
            last = begun[0] == step
            made = real(*args, **kwargs)
            if last:
                raise Killed
            return made

        return call

    with pytest.MonkeyPatch.context() as patch:
        for owner, name in (
            (Git, "__call__"),
            (Git, "remote"),
            (Path, "mkdir"),
            (Path, "rename"),
            (Path, "write_text"),
            (Path, "touch"),
            (shutil, "rmtree"),
            (shutil, "copyfile"),
            (creating, "write_whole"),
        ):
            patch.setattr(owner, name, dying(getattr(owner, name)))
        yield


def folder_as_made(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.mark.parametrize("git", ["", "an empty origin", "an origin with a workspace"])
def test_init_killed_at_any_step_is_given_again(tmp_path: Path, git: str):
    """It asked for a new folder, and for another origin."""
    values = {"bucket": "shop", "s3_region": "us-east-1"}
    wanted = folder_as_made(create(tmp_path / "model", values).root)

    def fresh(number: int) -> tuple[Path, str | None]:
        folder, origin = tmp_path / f"{number}" / "shop", tmp_path / f"{number}" / "theirs.git"
        if git == "an empty origin":
            Git(tmp_path)("init", "--quiet", "--bare", "--initial-branch=main", str(origin))
        elif git:
            shutil.copytree(tmp_path / "model.git", origin)
        return folder, str(origin) if git else None

    steps = 0
    for number in range(1, 200):
        folder, origin = fresh(number)
        with killed_after(number), suppress(Killed):
            create(folder, values, origin)
            break
        steps += 1
        done = folder.exists() and BUILDING not in folder_as_made(folder) and any(folder.iterdir())
        made = Workspace(load_settings(folder)) if done else create(folder, values, origin)
        assert folder_as_made(folder) == wanted
        assert made.git("status", "--porcelain") == ""
        assert made.git("rev-parse", "HEAD") == made.git.remote("ls-remote", "origin", "refs/heads/main").split()[0]
        assert made.settings.bucket == "shop"
        assert len(made.git("rev-list", "HEAD").split()) == 1
    else:
        raise AssertionError("it never ends")
    assert steps > 10


def test_init_after_a_kill_leaves_alone_what_came_into_the_folder_since(tmp_path: Path):
    folder = tmp_path / "shop"
    with killed_after(12), suppress(Killed):
        create(folder, {"bucket": "shop"})
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(WorkspaceError, match=r"notes\.txt"):
        create(folder, {"bucket": "shop"})
    assert (folder / "notes.txt").read_text() == "mine"
    (folder / "notes.txt").unlink()
    assert create(folder, {"bucket": "other"}).settings.bucket == "other"


def test_init_that_was_killed_before_its_push_clones_what_another_pushed_meanwhile(tmp_path: Path):
    """It was said to be done, on a history that origin did not know, and with other settings."""
    origin = str(tmp_path / "theirs.git")
    Git(tmp_path)("init", "--quiet", "--bare", "--initial-branch=main", origin)
    with pytest.MonkeyPatch.context() as patch, suppress(Killed):
        patch.setattr(creating, "_put_in_place", lambda *args, real=creating._put_in_place: (real(*args), killed())[1])
        create(tmp_path / "one", {"bucket": "one"}, origin)
    theirs = create(tmp_path / "two", {"bucket": "two"}, origin)
    made = create(tmp_path / "one", {"bucket": "one"}, origin)
    assert made.git("rev-parse", "HEAD") == theirs.git("rev-parse", "HEAD")
    assert made.settings.bucket == "two"


def test_an_origin_named_by_a_relative_path_is_found_from_the_workspace(tmp_path: Path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    Git(tmp_path)("init", "--quiet", "--bare", "--initial-branch=main", "theirs.git")
    for name in ("one", "two"):  # the first makes it, the second clones it
        made = create(tmp_path / "elsewhere" / name, {"bucket": "shop"}, "../theirs.git")
        assert made.git.remote("ls-remote", "origin", "refs/heads/main").split()[0] == made.git("rev-parse", "HEAD")


def test_of_two_inits_in_one_folder_one_makes_it_and_the_other_says_so(tmp_path: Path):
    """They cleared away each other's files, and none was left with a workspace."""
    folder, said = tmp_path / "shop", []

    def start(*args, real=creating._start):
        with pytest.raises(WorkspaceError) as error:
            create(folder, {"bucket": "shop"})
        said.append(str(error.value))
        return real(*args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(creating, "_start", start)
        made = create(folder, {"bucket": "shop"})
    assert said == [f"{folder}: another process makes a workspace there; wait for it"]
    assert made.git("status", "--porcelain") == ""


def test_init_in_an_empty_folder_that_is_there_and_beside_an_origin_that_is(tmp_path: Path):
    (tmp_path / "shop").mkdir()
    with killed_after(1), suppress(Killed):
        create(tmp_path / "other", {"bucket": "shop"})
    assert create(tmp_path / "shop", {"bucket": "shop"}).settings.bucket == "shop"
    shutil.rmtree(tmp_path / "shop")
    with pytest.raises(WorkspaceError, match=r"shop\.git: there already"):
        create(tmp_path / "shop", {"bucket": "shop"})
    with pytest.raises(WorkspaceError, match="not empty"):
        create(tmp_path / "shop.git", {"bucket": "shop"})


def test_the_codes_own_checkout_is_a_clean_template(tmp_path):
    """data.dvc and dvc.lock of the checkout describe the empty set with the shipped params."""
    folder = tmp_path / "checkout"
    (folder / ".dvc").mkdir(parents=True)
    for name in FILES:
        shutil.copy(template_file(name), folder / name)
    subprocess.run(["git", "init", "-q", str(folder)], check=True)
    bootstrap(folder)
    with repository(Settings(workspace=folder)) as repo:
        assert repo.status() == {}, "params.yaml or dvc.yaml changed: run `ssclass stage bootstrap` and `dvc commit -f`"


def test_ingest_is_one_pushed_commit_that_a_fresh_clone_can_pull(workspace, tmp_path):
    send(workspace, tmp_path, "day-1", 1)
    take_all(workspace)
    assert workspace.at().data_version == "data/1"
    assert workspace.git("log", "-1", "--format=%an %s") == "ssclass Ingest day-1: 8 photos"
    assert waiting(workspace.store, workspace.at().state) == []

    clone = other_clone(workspace, tmp_path)
    assert [row.sha256 for row in clone.at().dataset.rows] == [row.sha256 for row in workspace.at().dataset.rows]
    with repository(clone.settings) as repo:
        repo.pull()
    name = "data/day-1.parquet"
    assert (clone.root / name).read_bytes() == (workspace.root / name).read_bytes()
    assert clone.git("status", "--porcelain") == ""
    assert dvc_status(clone.root, "data.dvc") == {}


def test_a_clone_without_the_old_shards_adds_only_its_own(workspace, tmp_path):
    send(workspace, tmp_path, "day-1", 1)
    take_all(workspace)
    clone = other_clone(workspace, tmp_path)
    send(workspace, tmp_path, "day-2", 2)
    take_all(clone)
    assert not (clone.root / "data" / "day-1.parquet").exists()
    take_all(workspace)
    assert [shard.batch_id for shard in workspace.at().dataset.shards] == ["day-1", "day-2"]
    assert workspace.at().dataset.digest == clone.at().dataset.digest


def test_of_two_writers_one_wins_and_the_other_starts_over(workspace, tmp_path):
    clone = other_clone(workspace, tmp_path)
    with workspace.transaction() as first, pytest.raises(LostRaceError), clone.transaction() as second:  # noqa: PT012
        first.publish("first", [ledger.Event.now("freeze", reason="one")])
        second.publish("second", [ledger.Event.now("freeze", reason="two")])
    assert clone.git("status", "--porcelain") == ""
    assert clone.at().state.frozen is None
    assert clone.newest().state.frozen == "one"


def test_what_a_killed_turn_left_is_undone(workspace, tmp_path):
    send(workspace, tmp_path, "day-1", 1)
    head = workspace.head
    workspace.private.mkdir(exist_ok=True)
    (workspace.private / "unfinished").touch()
    (workspace.root / "ledger.jsonl").write_text("half a li")
    (workspace.root / "data.dvc").write_text("outs: []\n")
    (workspace.root / ".git" / "index.lock").touch()
    take_all(workspace)
    assert workspace.git("rev-parse", "HEAD~1") == head
    assert len(workspace.at().dataset.rows) == 8


def test_an_unpushed_commit_of_a_killed_turn_is_dropped(workspace, tmp_path):
    workspace.private.mkdir(exist_ok=True)
    (workspace.private / "unfinished").touch()
    (workspace.root / "ledger.jsonl").write_text(ledger.Event.now("freeze", reason="never pushed").line())
    workspace.git("commit", "--quiet", "--all", "--message", "Freeze")
    assert workspace.newest().state.frozen is None
    assert workspace.git("rev-parse", "HEAD") == workspace.git("rev-parse", "origin/main")


def test_a_persons_changes_stop_the_pipeline_and_are_kept(workspace):
    path = workspace.root / "params.yaml"
    path.write_text(path.read_text().replace("seed: 0", "seed: 1"))
    with pytest.raises(WorkspaceError, match=r"params\.yaml has uncommitted changes"), workspace.transaction():
        pass
    assert "seed: 1" in path.read_text()
    git = ["git", "-C", str(workspace.root), "-c", "user.name=p", "-c", "user.email=p@example.org"]
    subprocess.run([*git, "commit", "-qam", "Another seed"], check=True)
    with pytest.raises(WorkspaceError, match="that origin has not"), workspace.transaction():
        pass
    subprocess.run([*git, "push", "-q", "origin", "main"], check=True)
    assert workspace.newest().params.train.seed == 1


def test_an_origin_that_is_away_is_named(workspace, monkeypatch):
    away = Workspace(Settings(workspace=workspace.root, patience=0))
    shutil.move(workspace.root.with_name("workspace.git"), workspace.root.with_name("gone.git"))
    with pytest.raises(FailedError, match="does not appear to be a git repository"), away.transaction():
        pass
