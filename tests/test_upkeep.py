"""`ssclass gc` and `ssclass rebuild` on real stores: what is needed stays, what is lost comes back the same."""

from __future__ import annotations

import json
import shutil
import subprocess
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ssclass.data.images import decode
from ssclass.demo.drawings import draw, junk
from ssclass.errors import NotFoundError, TrackingError
from ssclass.retrain.key import key_of
from ssclass.retrain.predict import decided_classifier
from ssclass.serving.model import open_model
from ssclass.settings import Settings
from ssclass.store import Store
from ssclass.tracking.client import Tracking
from ssclass.tracking.publish import reconcile
from ssclass.upkeep.decisions import append, revoke
from ssclass.upkeep.gc import KINDS, collect
from ssclass.upkeep.rebuild import rebuild
from ssclass.workspace.create import create
from ssclass.workspace.workspace import Workspace
from tests.support.pipelines import CLASSES, Command, Pipeline, set_params

THREE = (*CLASSES, "pizza")
pytestmark = pytest.mark.slow
LATER = datetime.now(UTC) + timedelta(days=40)
ORPHAN = "dvc/files/md5/0a/bcdef0123456789abcdef012345678"


@dataclass
class Aged:
    """A workspace with a history: two champions, a rejected candidate between them, a revoked batch, junk."""

    workspace: Workspace
    pipeline: Pipeline
    rejected: str  # decision key
    sources: Path

    @property
    def store(self) -> Store:
        return self.workspace.store

    def places(self) -> dict[str, int]:
        """Everything in S3 and on disk that gc may touch, with its size in bytes."""
        found = {f"s3://{self.store.bucket}/{item.key}": item.size for item in self.store.list("")}
        roots = [self.workspace.root / ".dvc" / "cache" / "files"]
        roots += [self.workspace.private / name for name in ("features", "results", "champions", "shards", "mlflow")]
        for root in roots:
            found |= {str(path): path.stat().st_size for path in root.rglob("*") if path.is_file()}
        others = ("mlflow.db", "registered_model_meta")  # MLflow writes the second when a model is fetched
        return {name: size for name, size in found.items() if not name.endswith(others)}

    def answers(self) -> dict[str, np.ndarray]:
        """What every champion says of some photos, from the registry."""
        photos = [path.read_bytes() for path in sorted((self.sources / "last").rglob("*.jpg"))][:6]
        found = {}
        for number, _ in enumerate(self.workspace.at().state.champions, 1):
            model = open_model(str(number), self.workspace.settings)
            found[str(number)] = model.predict_few(np.stack([decode(photo, model.size) for photo in photos]))
        return found


@pytest.fixture(scope="module")
def aged(pipeline: Pipeline, tmp_path_factory) -> Aged:
    folder = tmp_path_factory.mktemp("gc")
    for seed, (name, count) in enumerate((("first", 30), ("wrong", 8), ("second", 24), ("last", 8))):
        draw(folder / name, THREE if name == "second" else CLASSES, count, seed)
    junk(folder / "first" / "sushi")
    workspace = pipeline.workspace(folder / "workspace", head="linear", crops="none")
    assert pipeline.deliver(workspace, folder / "first", "first").decision == "PROMOTED"
    append(workspace, "freeze", "Freeze", reason="to have a candidate rejected")
    set_params(workspace, sizes="[192]")
    rejected = pipeline.deliver(workspace, folder / "wrong", "wrong")
    assert rejected.decision == "REJECTED", rejected.reason
    revoke(workspace, "wrong", "another kitchen")
    set_params(workspace, sizes="[224]")
    append(workspace, "unfreeze", "Unfreeze")
    set_params(workspace, classes=f"[{', '.join(THREE)}]")  # which the first champion does not know all of
    second = pipeline.deliver(workspace, folder / "second", "second")
    assert second.decision == "PROMOTED", second.reason
    found = Aged(workspace, pipeline, rejected.event["key"], folder)
    found.store.put(ORPHAN, b"pushed by a retrain that was killed before its commit")
    tracking = Tracking.of(workspace)
    for key in (found.rejected, "0123456789abcdef", key_of(workspace.at())):  # decided, never asked, asked now
        tracking.open_run(key, "a clone whose worker was killed")
    return found


def open_runs(workspace: Workspace) -> list[str]:
    """Decision keys of runs without a decision."""
    return sorted(run.data.tags["decision_key"] for run in Tracking.of(workspace).open_runs())


# -- rebuild: each time on an empty MLflow ------------------------------------------------------------------


def told(settings: Settings) -> dict[str, Any]:
    """Everything that people see in MLflow, without ids and with the times left out that nobody kept."""
    tracking = Tracking(settings)
    client = tracking.client
    runs = {}
    for run in client.search_runs([tracking.experiment_id], "attributes.status = 'FINISHED'"):
        tags = {name: value for name, value in run.data.tags.items() if name in ("decision", "reason", "data_version")}
        tags |= {name: run.data.tags.get(name) for name in ("batches", "head", "code", "mlflow.runName")}
        note = run.data.tags.get("mlflow.note.content", "").split("| step | seconds |")[0]
        files = {item.path for item in client.list_artifacts(run.info.run_id)}
        figures = {item.path for item in client.list_artifacts(run.info.run_id, "figures")}
        metrics = {name: value for name, value in run.data.metrics.items() if not name.startswith("seconds")}
        curves = {name: [each.value for each in client.get_metric_history(run.info.run_id, name)] for name in metrics}
        given = [(each.dataset.name, each.dataset.digest) for each in run.inputs.dataset_inputs]
        models = {name: model.status for name, model in tracking.models_of(run).items()}
        runs[run.data.tags["decision_key"]] = (tags, note, files, figures, curves, run.data.params, given, models)
    versions = {
        each.version: (each.tags, each.description)
        for each in client.search_model_versions(f"name = '{tracking.name}'")
    }
    return {"runs": runs, "versions": versions, "alias": tracking.alias()}


def elsewhere(workspace: Workspace, folder: Path) -> Workspace:
    """The workspace on an MLflow that is empty."""
    folder.mkdir()
    return Workspace(workspace.settings.model_copy(update={"mlflow_uri": f"sqlite:///{folder / 'mlflow.db'}"}))


def test_a_lost_mlflow_is_named_with_its_remedy(aged: Aged, tmp_path):
    with pytest.raises(TrackingError, match="`ssclass rebuild`"):
        reconcile(elsewhere(aged.workspace, tmp_path / "lost"))


def test_rebuilt_from_the_ledger_mlflow_tells_the_same(aged: Aged, tmp_path):
    before = told(aged.workspace.settings)
    assert len(before["runs"]) == 3
    empty = elsewhere(aged.workspace, tmp_path / "empty")
    assert [(each.decision, each.note) for each in rebuild(empty)] == [
        (event.body["decision"], "") for event in aged.workspace.at().state.decisions.values()
    ]
    assert told(empty.settings) == before
    assert rebuild(empty) == [], "again: nothing"
    assert told(empty.settings) == before
    assert reconcile(empty) == before["alias"], "and the next retrain finds what it needs"


def test_without_any_result_kept_the_answers_are_computed_again(aged: Aged, tmp_path, ssclass: Command):
    before = told(aged.workspace.settings)
    for item in list(aged.store.list("results/")):
        aged.store.delete(item.key)
    shutil.move(aged.workspace.private / "results", tmp_path / "results")
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    done = ssclass("rebuild", "--json", "--workspace", aged.workspace.root, SSCLASS_MLFLOW_URI=uri)
    assert done.returncode == 0, done.stderr
    assert [each["note"] for each in json.loads(done.stdout)] == ["", "", ""]
    assert told(aged.workspace.settings.model_copy(update={"mlflow_uri": uri})) == before
    shutil.move(tmp_path / "results", aged.workspace.private / "results")
    key = aged.workspace.at().state.champion
    aged.store.put(f"results/{key}/result.json", b"{}")  # something for gc


def test_a_version_that_somebody_deleted_comes_back(aged: Aged, tmp_path):
    empty = elsewhere(aged.workspace, tmp_path / "empty")
    rebuild(empty)
    before = told(empty.settings)
    Tracking(empty.settings).client.delete_registered_model("ssclass")
    assert rebuild(empty) == []
    assert told(empty.settings) == before


def test_a_rejected_candidate_is_kept_without_the_backbone_and_answers_all_the_same(aged: Aged):
    tracking, key = Tracking.of(aged.workspace), aged.workspace.at().state.champion
    (rejected,) = [run for run in tracking.runs(aged.rejected) if "decision" in run.data.tags]
    (champion,) = tracking.runs(key)
    assert set(tracking.models_of(rejected)) == {"candidate"}
    assert set(tracking.models_of(champion)) == {"candidate", "model"}
    photos = [path.read_bytes() for path in sorted((aged.sources / "last").rglob("*.jpg"))][:6]
    for run in (rejected, champion):
        model = open_model(run.info.run_id, aged.workspace.settings)
        images = np.stack([decode(photo, model.size) for photo in photos])
        whole = decided_classifier(aged.workspace, run.data.tags["decision_key"]).whole()
        expected = whole(images).numpy().astype(float)
        if model.quick is None:
            np.testing.assert_array_equal(model.predict_few(images), expected)
        # Its engine adds in another order; a champion's is not TensorFlow where another runtime is installed.
        alike = 1e-6 if model.quick is None else 5e-4
        np.testing.assert_allclose(model.predict_few(images), expected, atol=alike)
        np.testing.assert_allclose(model.predict(images), expected, atol=alike)
    assert open_model(rejected.info.run_id, aged.workspace.settings).quick is None


# -- gc: each test goes on from where the one before it left the workspace ----------------------------------


def test_what_is_young_stays(aged: Aged):
    before = aged.places()
    assert collect(aged.workspace, 1, keep_champions=True, dry_run=False) == []
    assert aged.places() == before


def test_a_dry_run_says_what_would_go_and_deletes_nothing(aged: Aged, ssclass: Command):
    before = aged.places()
    found = collect(aged.workspace, 30, keep_champions=True, dry_run=True, now=LATER)
    assert aged.places() == before
    assert {each.kind for each in found} == set(KINDS)
    where = {each.where: each for each in found}
    assert where[f"s3://{aged.store.bucket}/{ORPHAN}"].size == before[f"s3://{aged.store.bucket}/{ORPHAN}"]
    done = ssclass("gc", "--keep-champions", "--days", 30, "--dry-run", "--json", "--workspace", aged.workspace.root)
    assert (done.returncode, json.loads(done.stdout)) == (0, []), "all of it is from today"
    assert "in all" in ssclass("gc", "--dry-run", "--workspace", aged.workspace.root).stdout


def test_what_it_said_goes_and_nothing_else(aged: Aged):
    before, answers = aged.places(), aged.answers()
    said = collect(aged.workspace, 30, keep_champions=True, dry_run=True, now=LATER)
    done = collect(aged.workspace, 30, keep_champions=True, dry_run=False, now=LATER)
    assert [each.as_dict() for each in done] == [each.as_dict() for each in said]
    after = aged.places()
    gone = {name: size for name, size in before.items() if name not in after}
    assert {name: size for name, size in after.items() if name not in before} == {}
    assert sum(gone.values()) == sum(each.size for each in done), "every byte that it told of"
    named = {each.where for each in done if each.kind != "model artifacts"}
    for name in gone:
        assert "/mlflow/" in name or any(name == each or name.startswith(f"{each}/") for each in named), name
    for prefix in ("quarantine/", "results/"):
        assert list(aged.store.list(prefix)) == []
    assert open_runs(aged.workspace) == [key_of(aged.workspace.at())], "which may be under way"
    assert aged.store.get(ORPHAN) is None
    again = collect(aged.workspace, 30, keep_champions=True, dry_run=True, now=LATER)
    assert again == [], "and once is enough"
    for number, said_now in aged.answers().items():
        np.testing.assert_array_equal(said_now, answers[number])


def test_features_in_use_stay(aged: Aged):
    workspace = aged.workspace
    about = json.loads((workspace.root / "candidate" / "classifier.json").read_text())
    used = {member["fingerprint"] for member in about["members"]}
    assert {item.key.split("/")[1] for item in aged.store.list("features/")} == used
    digests = {item.key.rsplit("/", 1)[1] for item in aged.store.list("features/")}
    assert digests == {f"{shard.photos_digest}.npz" for shard in workspace.at().dataset.shards}


def test_of_a_rejected_run_everything_stays_but_the_model(aged: Aged):
    tracking = Tracking.of(aged.workspace)
    (run,) = tracking.runs(aged.rejected)
    assert run.data.tags["decision"] == "REJECTED"
    assert run.data.metrics["accuracy"] > 0
    files = {item.path for item in tracking.client.list_artifacts(run.info.run_id)}
    assert {"decision.md", "figures"} <= files
    with pytest.raises(NotFoundError, match="`ssclass gc` took it"):
        open_model(run.info.run_id, aged.workspace.settings)


def test_every_champion_and_every_data_version_can_still_be_pulled(aged: Aged, ssclass: Command, tmp_path):
    workspace = aged.workspace
    clone = create(tmp_path / "clone", {}, git=workspace.git("remote", "get-url", "origin"))

    def pull(rev: str, *targets: str) -> subprocess.CompletedProcess[str]:
        clone.git("checkout", "--quiet", "--force", rev)
        environment = ssclass.environment(DVC_NO_ANALYTICS=1)
        return subprocess.run(
            ["dvc", "pull", "--force", *targets], cwd=clone.root, env=environment, capture_output=True, text=True
        )

    for rev in ("main", *(f"run/{key}" for key in workspace.at().state.champions)):
        done = pull(rev)
        assert done.returncode == 0, f"{rev}: {done.stderr}"
        assert (clone.root / "candidate" / "head.keras").exists()
    tags = workspace.git("tag", "--list", "data/*").splitlines()
    assert len(tags) == 4
    for tag in tags:
        done = pull(tag, "data")
        assert done.returncode == 0, f"{tag}: {done.stderr}"
        assert len(list((clone.root / "data").iterdir())) == len(workspace.at(tag).dataset.shards)
    assert pull(f"run/{aged.rejected}").returncode != 0, "its candidate is what gc is for"


def test_rebuilt_after_gc_the_champions_are_there_and_the_others_numbers(aged: Aged, tmp_path):
    before = told(aged.workspace.settings)
    empty = elsewhere(aged.workspace, tmp_path / "empty")
    notes = {each.key: each.note for each in rebuild(empty)}
    assert notes[aged.rejected].startswith("no model")
    after = told(empty.settings)
    assert after["versions"] == before["versions"]
    assert after["runs"][aged.rejected][4] == {
        name: values[:1] if len(values) == 1 else values
        for name, values in before["runs"][aged.rejected][4].items()
        if name in after["runs"][aged.rejected][4]
    }
    assert {"accuracy", "champion_accuracy", "recall_sushi"} <= set(after["runs"][aged.rejected][4])


def test_the_pipeline_goes_on(aged: Aged):
    assert aged.pipeline.retrain(aged.workspace).decision == "SKIPPED"
    outcome = aged.pipeline.deliver(aged.workspace, aged.sources / "last", "last")
    assert outcome.decision in ("PROMOTED", "REJECTED", "HELD")
    assert [each.batch for each in outcome.batches] == ["last"]


def test_a_branch_or_a_tag_of_a_persons_is_kept(aged: Aged):
    append(aged.workspace, "freeze", "Freeze", reason="to have a candidate rejected")
    set_params(aged.workspace, sizes="[192]")
    rejected = aged.pipeline.retrain(aged.workspace)
    assert rejected.decision == "REJECTED"
    append(aged.workspace, "unfreeze", "Unfreeze")
    set_params(aged.workspace, sizes="[224]", epochs=58)  # so that the newest candidate is another one
    aged.pipeline.retrain(aged.workspace)
    workspace = aged.workspace

    def objects() -> set[str]:
        found = collect(workspace, 30, keep_champions=True, dry_run=True, now=LATER)
        return {each.where for each in found if each.kind == "DVC objects" and each.where.startswith("s3://")}

    without = objects()
    workspace.git("push", "--quiet", "origin", f"run/{rejected.event['key']}^{{}}:refs/heads/mine")
    assert objects() < without


def test_without_keep_champions_only_the_one_in_force_can_be_rolled_back_to(aged: Aged, tmp_path, ssclass: Command):
    workspace = aged.workspace
    former = workspace.at().state.number_of(workspace.at().state.champion) - 1
    gone = collect(workspace, 30, keep_champions=False, dry_run=False, now=LATER)
    assert any(each.kind == "DVC objects" and each.where.startswith("s3://") for each in gone)
    done = ssclass("rollback", former, "--workspace", workspace.root)
    assert done.returncode == 2
    assert "`ssclass gc`" in done.stderr
    assert len(aged.answers()) == len(workspace.at().state.champions), "the registry keeps them all"
