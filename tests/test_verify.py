"""`ssclass verify` finds what is not as the ledger says, and `--repair` makes it so; of what nobody can, it tells."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from ssclass.data.submit import submit
from ssclass.demo.drawings import draw
from ssclass.errors import WorkspaceError
from ssclass.store import Store
from ssclass.tracking.client import ALIAS, CANDIDATE, DECISION_TAG, KEY_TAG, MODEL, Tracking
from ssclass.upkeep.rebuild import rebuild
from ssclass.upkeep.verify import Finding, verify
from ssclass.workspace import version as versions
from ssclass.workspace.create import create
from ssclass.workspace.workspace import Workspace
from tests.support.pipelines import CLASSES, Command, Pipeline, ingest_all

Break = Callable[[Workspace], object]


def found(workspace: Workspace, *, repair: bool = False) -> list[Finding]:
    return list(verify(Workspace(workspace.settings), repair=repair))


def as_a_person(workspace: Workspace, *args: str) -> None:
    name = ["-c", "user.name=p", "-c", "user.email=p@example.org"]
    subprocess.run(["git", "-C", str(workspace.root), *name, *args], check=True, capture_output=True)


# -- without a model: what is told, and what is mended --------------------------------------------------------


@pytest.fixture
def workspace(s3: Store, tmp_path: Path) -> Workspace:
    """Two batches, taken in; nothing was decided."""
    at = {"bucket": s3.bucket, "s3_endpoint": s3.settings.s3_endpoint or "", "s3_region": "us-east-1"}
    made = create(tmp_path / "workspace", at)
    for number in (1, 2):
        draw(tmp_path / str(number), CLASSES, 3, number)
        submit(s3, tmp_path / str(number), f"day-{number}", CLASSES)
        ingest_all(made)
    return made


def test_where_all_is_well_nothing_is_found(workspace, ssclass: Command) -> None:
    assert found(workspace) == []
    done = ssclass("verify", "--workspace", workspace.root)
    assert (done.returncode, done.stdout.strip()) == (0, "all is well"), done.stderr
    workspace.git("push", "--quiet", "origin", ":refs/tags/data/1")
    done = ssclass("verify", "--json", "--workspace", workspace.root)
    assert (done.returncode, [each["thing"] for each in json.loads(done.stdout)]) == (1, ["data/1"])
    done = ssclass("verify", "--repair", "--workspace", workspace.root)
    assert (done.returncode, done.stdout.strip().endswith("; mended")) == (0, True)


def test_what_cannot_be_made_again_is_told_and_left(workspace) -> None:
    first, second = (f"data/{number}" for number in (1, 2))
    (tracked, _) = workspace.at().files("data")
    workspace.store.delete(workspace.objects.key(tracked.md5))
    workspace.objects.here(tracked.md5).unlink()
    lost = found(workspace, repair=True)
    assert [each for each in lost if each.mended] == []
    assert "gone" in next(each.wrong for each in lost if "day-1.parquet" in each.thing)

    git = workspace.git
    git("push", "--quiet", "--force", "origin", f"{first}^{{}}:refs/heads/main")
    (back,) = [each for each in found(workspace, repair=True) if each.thing == "main"]
    assert second in back.wrong
    command = re.search(r"`(git .*?)`", back.remedy)
    assert command, back.remedy
    subprocess.run(command[1].split(), check=True, capture_output=True)
    assert [each for each in found(workspace) if each.thing == "main"] == [], "the remedy helps"


def test_a_ledger_that_somebody_rewrote_is_told(workspace) -> None:
    path = workspace.root / "ledger.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines + lines[-1:]))
    as_a_person(workspace, "commit", "-qam", "twice")
    as_a_person(workspace, "push", "-q", "origin", "main")
    assert {"batch day-2", "data/2"} <= {each.thing for each in found(workspace)}
    path.write_text("".join(lines).replace("day-1", "day-0"))
    as_a_person(workspace, "commit", "-qam", "rewritten")
    as_a_person(workspace, "push", "-q", "origin", "main")
    told = {each.thing: each.wrong for each in found(workspace)}
    assert "changed or removed" in told["ledger.jsonl"]
    assert {"batch day-0", "batch day-1"} <= set(told), "data.dvc has another batch than the ledger"
    path.write_text("no JSON\n")
    as_a_person(workspace, "commit", "-qam", "broken")
    as_a_person(workspace, "push", "-q", "origin", "main")
    (only,) = found(workspace)
    assert "line 1" in only.line()


def test_of_two_clones_the_one_that_has_the_bytes_brings_them_back(workspace, tmp_path) -> None:
    (tracked, _) = workspace.at().files("data")
    other = create(tmp_path / "other", {}, git=workspace.origin)
    workspace.store.put(workspace.objects.key(tracked.md5), b"other bytes")
    assert not any(each.mended for each in found(other, repair=True))
    assert [each.mended for each in found(workspace, repair=True)] == [True]
    assert found(other) == []


def test_it_does_not_begin_over_a_persons_changes(workspace) -> None:
    (workspace.root / "params.yaml").write_text("schema: 1\n")
    with pytest.raises(WorkspaceError, match="uncommitted"):
        found(workspace)


# -- with a champion: each thing broken once, found, mended ----------------------------------------------------


@pytest.fixture(scope="module")
def champion(pipeline: Pipeline, tmp_path_factory) -> Workspace:
    """A workspace whose first batch made a champion. Each test leaves it well."""
    folder = tmp_path_factory.mktemp("verify")
    draw(folder / "first", CLASSES, 16, 1)
    made = pipeline.workspace(folder / "workspace", head="linear", crops="none", sizes="[96]")
    assert pipeline.deliver(made, folder / "first", "first").decision == "PROMOTED"
    return made


def key_of(workspace: Workspace) -> str:
    return str(workspace.at().state.champion)


def run_of(workspace: Workspace) -> str:
    return str(workspace.at().state.decisions[key_of(workspace)].body["run_id"])


def client_of(workspace: Workspace):
    return Tracking.of(workspace).client


def lose_the_champions_tag(workspace: Workspace) -> None:
    workspace.git("push", "--quiet", "origin", f":refs/tags/run/{key_of(workspace)}")


def move_a_tag(workspace: Workspace) -> None:
    workspace.git("push", "--quiet", "--force", "origin", "HEAD:refs/tags/data/1")


def throw_the_run_away(workspace: Workspace) -> None:
    client_of(workspace).delete_run(run_of(workspace))


def leave_the_run_open(workspace: Workspace) -> None:
    client_of(workspace).delete_tag(run_of(workspace), DECISION_TAG)
    client_of(workspace).update_run(run_of(workspace), status="RUNNING")


def decide_twice(workspace: Workspace) -> None:
    tracking = Tracking.of(workspace)
    tags = {KEY_TAG: key_of(workspace), DECISION_TAG: "PROMOTED"}
    tracking.client.create_run(tracking.experiment_id, tags=tags)


def delete_the_experiment(workspace: Workspace) -> None:
    client_of(workspace).delete_experiment(Tracking.of(workspace).experiment_id)


def unregister(workspace: Workspace) -> None:
    tracking = Tracking.of(workspace)
    tracking.client.delete_model_version(tracking.name, tracking.version_of(key_of(workspace)).version)


def register_twice(workspace: Workspace) -> None:
    tracking = Tracking.of(workspace)
    was = tracking.version_of(key_of(workspace))
    with tracking.named():
        made = tracking.client.create_model_version(tracking.name, was.source, was.run_id, tags=was.tags)
    tracking.client.set_registered_model_alias(tracking.name, ALIAS, made.version)


def lose_the_alias(workspace: Workspace) -> None:
    tracking = Tracking.of(workspace)
    tracking.client.delete_registered_model_alias(tracking.name, ALIAS)


def artifact(workspace: Workspace, model: str, pattern: str) -> Path:
    tracking = Tracking.of(workspace)
    logged = tracking.models_of(tracking.client.get_run(run_of(workspace)))[model]
    (path,) = Path(logged.artifact_location.removeprefix("file://")).rglob(pattern)
    return path


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def damage_the_model(workspace: Workspace) -> None:
    flip(artifact(workspace, MODEL, "*.keras"))


def lose_the_model(workspace: Workspace) -> None:
    shutil.rmtree(artifact(workspace, MODEL, "MLmodel").parent)


def damage_the_candidate(workspace: Workspace) -> None:
    flip(artifact(workspace, CANDIDATE, "head.keras"))


def damage_features_here(workspace: Workspace) -> None:
    flip(next((workspace.private / "features").rglob("*.npz")))


def damage_features_there(workspace: Workspace) -> None:
    (item,) = workspace.store.list("features/")
    workspace.store.put(item.key, (workspace.store.get(item.key) or b"")[:-9])


def lose_an_object(workspace: Workspace) -> None:
    workspace.store.delete(workspace.objects.key(workspace.at().files("candidate")[0].md5))


def damage_the_cache(workspace: Workspace) -> None:
    path = workspace.objects.here(workspace.at().files("data")[0].md5)
    path.chmod(0o644)
    flip(path)


def damage_a_memo(workspace: Workspace) -> None:
    (path,) = (workspace.private / "shards").glob("*.json")
    path.write_bytes(path.read_bytes()[:-20])
    versions._remembered.cache_clear()


BREAKAGES: dict[str, tuple[Break, str]] = {
    "the champion's tag is lost": (lose_the_champions_tag, r"run/\w+"),
    "a tag was moved": (move_a_tag, "data/1"),
    "the run is in the trash": (throw_the_run_away, r"run/\w+"),
    "the run was not concluded": (leave_the_run_open, r"run/\w+"),
    "two runs have the decision": (decide_twice, r"run/\w+"),
    "the experiment was deleted": (delete_the_experiment, "MLflow experiment ssclass"),
    "the version was deleted": (unregister, r"run/\w+"),
    "the champion is registered twice": (register_twice, r"version \d+"),
    "the alias is lost": (lose_the_alias, "alias champion"),
    "the served model is damaged": (damage_the_model, r"version \d+, model model"),
    "the served model is gone": (lose_the_model, r"version \d+, model model"),
    "the candidate in MLflow is another": (damage_the_candidate, r"version \d+, model candidate"),
    "features here are damaged": (damage_features_here, "features .*npz"),
    "features in the bucket are damaged": (damage_features_there, "s3://.*/features/.*npz"),
    "an object of the champion is lost": (lose_an_object, "candidate/.* of main, s3://.*"),
    "an object in the cache is damaged": (damage_the_cache, "data/first.parquet of data/1, in DVC's cache"),
    "the memo of a shard is damaged": (damage_a_memo, "memo of data/first.parquet"),
}


@pytest.mark.parametrize("name", BREAKAGES)
def test_what_is_broken_is_found_and_mended(champion: Workspace, name: str) -> None:
    break_it, thing = BREAKAGES[name]
    assert [each.line() for each in found(champion)] == []
    break_it(champion)
    told = found(champion)
    assert any(re.fullmatch(thing, each.thing) for each in told), [each.line() for each in told]
    mended = found(champion, repair=True)
    assert mended != []
    assert [each.line() for each in mended if not each.mended] == []
    assert [each.line() for each in found(champion)] == []


def test_what_was_mended_is_the_same_model(champion: Workspace) -> None:
    import numpy as np

    from ssclass.retrain.predict import decided_classifier
    from ssclass.serving.model import open_model

    lose_the_model(champion)
    assert [each.note for each in rebuild(champion)] == ["model of its run written anew"], "rebuild looks at bytes, too"
    model = open_model("champion", champion.settings)
    images = np.random.default_rng(0).integers(0, 256, (2, model.size, model.size, 3), dtype=np.uint8)
    whole = decided_classifier(champion, key_of(champion)).whole()
    np.testing.assert_allclose(model.keras(images).numpy(), whole(images).numpy(), atol=1e-6)


def test_the_pipeline_goes_on_without_the_champions_tag(champion: Workspace, pipeline: Pipeline, tmp_path) -> None:
    lose_the_champions_tag(champion)
    assert pipeline.retrain(champion).decision == "SKIPPED"
    draw(tmp_path / "second", CLASSES, 6, 2)
    assert pipeline.deliver(champion, tmp_path / "second", "second").decision in ("PROMOTED", "REJECTED")
    assert [each.mended for each in found(champion, repair=True)] == [True], "the tag alone was wrong"
    assert found(champion) == []
