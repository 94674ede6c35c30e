"""The main job from end to end on drawn pictures: five deliveries, and everything that a person can look at after."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import zipfile
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import requests

from ssclass.demo.drawings import draw
from ssclass.demo.run import deliveries, gather
from ssclass.model.runtimes import described
from ssclass.retrain.predict import result_folder
from ssclass.retrain.result import Result
from ssclass.serving.model import open_model, read_photo
from ssclass.tracking.client import Tracking
from ssclass.workspace.workspace import Workspace
from tests.support.pipelines import CLASSES, Command, Pipeline

PER_CLASS = 60
ALIKE = 5e-4  # probabilities of two runtimes: additions come in another order, and maps are rounded to half precision


@dataclass
class Journey:
    """A workspace after the demo's five deliveries and one more, and what each retrain said."""

    workspace: Workspace
    outcomes: dict[str, object] = field(default_factory=dict)
    rows: dict[str, str] = field(default_factory=dict)  # digest of the data set's rows after each delivery


@pytest.fixture(scope="module")
def sources(tmp_path_factory) -> dict[str, tuple[str, Path]]:
    """Folder and batch id of each delivery."""
    folder = tmp_path_factory.mktemp("deliveries")
    draw(folder / "drawings", CLASSES, PER_CLASS)
    steps = list(deliveries(gather(folder / "drawings"), folder, seed=0))
    names = ("first", "more", "again", "flipped", "junk")
    found = {name: (batch, source) for name, (_, batch, source) in zip(names, steps, strict=True)}
    return {**found, "copy": ("day-2-copy", found["more"][1])}


@pytest.fixture(scope="module")
def journey(pipeline: Pipeline, sources, tmp_path_factory) -> Journey:
    found = Journey(pipeline.workspace(tmp_path_factory.mktemp("retrain") / "workspace"))
    for name in ("first", "more", "again", "copy", "flipped", "junk"):
        batch, source = sources[name]
        found.outcomes[name] = pipeline.deliver(found.workspace, source, batch)
        found.rows[name] = found.workspace.at().dataset.digest
    return found


@pytest.fixture(scope="module")
def without_held(pipeline: Pipeline, sources, tmp_path_factory) -> Journey:
    """A workspace that never got the flipped batch, nor anything twice."""
    found = Journey(pipeline.workspace(tmp_path_factory.mktemp("without") / "workspace"))
    for name in ("first", "more", "junk"):
        batch, source = sources[name]
        found.outcomes[name] = pipeline.deliver(found.workspace, source, batch)
    return found


@pytest.fixture(scope="module")
def tracking(journey: Journey) -> Tracking:
    return Tracking.of(journey.workspace)


@pytest.fixture(scope="module")
def runs(tracking: Tracking) -> dict:
    """MLflow's runs by decision key."""
    found = tracking.client.search_runs([tracking.experiment_id])
    assert len({run.data.tags["decision_key"] for run in found}) == len(found)
    return {run.data.tags["decision_key"]: run for run in found}


def weights(root: Path) -> bytes:
    """The weights of a candidate's head, bit for bit; the file around them says when it was saved."""
    with zipfile.ZipFile(root / "candidate" / "head.keras") as file:
        return file.read("model.weights.h5")


# -- decisions --------------------------------------------------------------------------------------------


def test_the_first_batch_makes_the_first_champion(journey):
    outcome = journey.outcomes["first"]
    assert outcome.decision == "PROMOTED", outcome.reason
    assert outcome.version == "1"
    assert outcome.event["champion"] is None


@pytest.mark.parametrize("name", ["more", "junk"])
def test_a_good_batch_is_decided_on_the_same_photos(journey, name):
    event = journey.outcomes[name].event
    ours, theirs = event["candidate"]["right"], event["champion"]["right"]
    assert event["decision"] == ("PROMOTED" if ours > theirs else "REJECTED")
    result = Result.read(result_folder(journey.workspace, event["key"]) / "result.json")
    labels = result.candidate.labels
    assert (
        len(labels)
        == event["holdout"]["size"]
        == len(result.candidate.probabilities)
        == len(result.champion.probabilities)
    )
    assert ours == (result.candidate.probabilities.argmax(1) == labels).sum()
    assert theirs == (result.champion.probabilities.argmax(1) == labels).sum()
    assert event["wins"] - event["losses"] == ours - theirs


@pytest.mark.parametrize(("name", "before"), [("again", "more"), ("copy", "again")])
def test_the_same_photos_again_are_skipped_and_nothing_doubles(journey, sources, name, before):
    outcome = journey.outcomes[name]
    assert outcome.decision == "SKIPPED"
    assert outcome.reason == "nothing new to learn from"
    assert journey.rows[name] == journey.rows[before]
    if name == "copy":
        (taken,) = outcome.batches
        photos = sum(1 for path in sources["more"][1].rglob("*") if path.is_file())
        assert (taken.accepted, taken.duplicates, taken.refused) == (0, photos, 0)
    sha256s = [row.sha256 for row in journey.workspace.at().dataset.rows]
    assert len(sha256s) == len(set(sha256s))


def test_flipped_labels_are_held_and_the_data_set_stays(journey):
    outcome = journey.outcomes["flipped"]
    assert outcome.decision == "HELD"
    assert "implausible" in outcome.reason
    assert journey.rows["flipped"] == journey.rows["copy"]
    assert "day-3-flipped" not in [shard.batch_id for shard in journey.workspace.at().dataset.shards]
    assert [batch for batch, _ in journey.workspace.at().state.held] == ["day-3-flipped"]
    assert list(journey.workspace.store.list("quarantine/day-3-flipped/")) == []


def test_junk_is_quarantined_with_reasons_and_the_rest_is_in(journey, sources):
    (taken,) = (each for each in journey.outcomes["junk"].batches if each.batch == "day-3")
    folder = sources["junk"][1]
    junk = {str(path.relative_to(folder)) for path in folder.rglob("junk_*")}
    assert taken.refused == len(junk) > 0
    assert taken.accepted == sum(1 for path in folder.rglob("*.jpg")) - sum(name.endswith("jpg") for name in junk)

    store = journey.workspace.store
    kept = {item.key.removeprefix("quarantine/day-3/") for item in store.list("quarantine/day-3/")}
    assert kept == junk | {"reasons.json"}
    for name in junk:
        assert store.get(f"quarantine/day-3/{name}") == (folder / name).read_bytes()
    reasons = json.loads(store.get("quarantine/day-3/reasons.json"))
    assert {item["key"] for item in reasons} == junk
    assert all(item["reason"] and item["detail"] for item in reasons)
    shard = journey.workspace.at().dataset.shards[-1]
    assert {item.key for item in shard.receipt.refused} == junk
    assert not junk & {row.key for row in shard.rows}


def test_the_decision_after_a_held_batch_is_as_if_it_had_never_come(journey, without_held):
    ours, theirs = journey.outcomes["junk"].event, without_held.outcomes["junk"].event
    for name in ("key", "decision", "reason", "candidate", "champion", "wins", "losses", "mcnemar_p", "train_size"):
        assert ours[name] == theirs[name], name
    here, there = journey.workspace.root, without_held.workspace.root
    assert (here / "metrics.json").read_bytes() == (there / "metrics.json").read_bytes()
    assert weights(here) == weights(there)


def test_the_ledger_and_git_tell_all_of_it_once(journey):
    workspace, outcomes = journey.workspace, journey.outcomes
    told = [
        (event.kind, event.body.get("decision"), event.body.get("batch") or event.body.get("key"))
        for event in workspace.at().events
    ]
    first, more, junk = (outcomes[name].event for name in ("first", "more", "junk"))
    assert told == [
        ("ingest", None, "day-1"),
        ("decision", "PROMOTED", first["key"]),
        ("ingest", None, "day-2"),
        ("decision", more["decision"], more["key"]),
        ("ingest", None, "day-2-copy"),
        ("decision", "HELD", "day-3-flipped"),
        ("ingest", None, "day-3"),
        ("decision", junk["decision"], junk["key"]),
    ]
    tags = workspace.git("tag").splitlines()
    assert set(tags) == {f"data/{n}" for n in (1, 2, 3, 4)} | {f"run/{event['key']}" for event in (first, more, junk)}
    remote = workspace.git("ls-remote", "--tags", "origin")
    assert all(f"refs/tags/{tag}" in remote for tag in tags)
    assert [event["batches"] for event in (first, more, junk)] == [["day-1"], ["day-2"], ["day-2-copy", "day-3"]]
    assert workspace.git("rev-parse", "HEAD") == workspace.git("rev-parse", "origin/main")
    assert workspace.git("status", "--porcelain") == ""


# -- MLflow -----------------------------------------------------------------------------------------------


def test_one_run_for_each_decision(journey, runs):
    decisions = journey.workspace.at().state.decisions
    assert set(runs) == set(decisions)
    for key, event in decisions.items():
        run, body = runs[key], event.body
        assert run.info.run_id == body["run_id"]
        assert run.info.status == "FINISHED"
        assert run.data.tags["decision"] == body["decision"]
        assert run.data.tags["reason"] == body["reason"]
        assert run.data.tags["data_version"] == body["data_version"]
        assert run.data.tags["batches"] == ", ".join(body["batches"])
        assert run.data.tags["head"] == body["head"]
        assert run.info.run_name.startswith(
            f"{body['decision']} {body['candidate']['right']}/{body['holdout']['size']}"
        )
        assert run.data.params["model.head"] == "auto"
        assert run.data.params["dataset.classes"]


def test_a_run_has_metrics_figures_card_dataset_and_model(journey, runs, tracking):
    event = journey.outcomes["junk"].event
    run = runs[event["key"]]
    metrics = run.data.metrics
    assert metrics["accuracy"] == pytest.approx(event["candidate"]["accuracy"])
    assert metrics["champion_accuracy"] == pytest.approx(event["champion"]["accuracy"])
    assert metrics["accuracy_difference"] == pytest.approx(metrics["accuracy"] - metrics["champion_accuracy"])
    assert metrics["holdout_size"] == event["holdout"]["size"]
    assert metrics["wins"] - metrics["losses"] == event["candidate"]["right"] - event["champion"]["right"]
    for name in ("loss", "recall", "precision", "f_measure", "cv_accuracy", "calibration_error", "seconds"):
        assert np.isfinite(metrics[name]), name
    for label in CLASSES:
        assert {f"recall_{label}", f"precision_{label}", f"f_measure_{label}"} <= set(metrics)
    assert any(len(tracking.client.get_metric_history(run.info.run_id, name)) > 1 for name in metrics), "no curve"

    artifacts = {item.path for item in tracking.client.list_artifacts(run.info.run_id)}
    assert {"decision.md", "figures"} <= artifacts
    figures = {item.path for item in tracking.client.list_artifacts(run.info.run_id, "figures")}
    assert {"figures/confusion.png", "figures/calibration.png"} <= figures
    given = {each.tags[0].value: each.dataset for each in run.inputs.dataset_inputs}
    assert {each.name for each in given.values()} == {event["data_version"], f"{event['data_version']} held out"}
    assert journey.workspace.at().dataset.digest.startswith(given["training"].digest)
    assert event["holdout"]["digest"].startswith(given["evaluation"].digest)
    tags, size = run.data.tags, event["holdout"]["size"]
    assert tags["candidate"] == f"{event['candidate']['right']}/{size}"
    assert tags["champion"] == f"{event['champion']['right']}/{size}"
    assert "figures/over_time.png" in figures
    assert f"Trained on {event['train_size']} photos" in tags["mlflow.note.content"]
    assert f"New since the decision before: {', '.join(event['batches'])}." in tags["mlflow.note.content"]
    whole = event["decision"] == "PROMOTED" or tracking.challenger() == event["key"]
    assert set(tracking.models_of(run)) == ({"candidate", "model"} if whole else {"candidate"})
    assert f"# {event['decision']}" in run.data.tags["mlflow.note.content"]


def test_prefect_tells_each_decision_with_its_reason(journey: Journey, pipeline: Pipeline, tracking: Tracking):
    """The final state, its message, tags, artifacts, and the way to MLflow's run and back."""

    def ask(path: str, body: object) -> list[dict]:
        answer = requests.post(f"{pipeline.prefect}/{path}", json=body, timeout=30)
        answer.raise_for_status()
        return answer.json()

    runs = ask("flow_runs/filter", {"flows": {"name": {"any_": ["retrain"]}}, "sort": "START_TIME_ASC"})
    ours = [run for run in runs if run["parameters"]["workspace"] == str(journey.workspace.root)]
    for run, (name, outcome) in zip(ours, journey.outcomes.items(), strict=False):
        state = run["state"]
        assert (state["type"], state["name"], state["message"]) == ("COMPLETED", outcome.decision, outcome.reason)
        assert run["name"].startswith("retrain 20")
        assert outcome.decision in run["tags"]
        found = ask("artifacts/filter", {"artifacts": {"flow_run_id": {"any_": [run["id"]]}}})
        told = {each["key"]: each["data"] for each in found if each["key"]}
        if not outcome.batches:
            assert name == "again"
            assert told == {}, "a retrain with nothing to do says nothing more"
            continue
        assert outcome.batches[0].batch in told["ssclass-batches"]
        assert f"# {outcome.decision}" in told["ssclass-decision"]
        if outcome.event is not None:
            assert "| right |" in told["ssclass-decision"]
            tags = tracking.client.get_run(outcome.event["run_id"]).data.tags
            assert tags["prefect_run"] == f"{pipeline.prefect.removesuffix('/api')}/runs/flow-run/{run['id']}"
    assert {outcome.decision for outcome in journey.outcomes.values()} >= {"PROMOTED", "HELD", "SKIPPED"}


def test_only_champions_are_registered_and_the_alias_is_on_the_last(journey, tracking):
    client, state = tracking.client, journey.workspace.at().state
    versions = sorted(client.search_model_versions("name = 'ssclass'"), key=lambda each: int(each.version))
    assert [each.tags["decision_key"] for each in versions] == state.champions
    for each, key in zip(versions, state.champions, strict=True):
        body = state.decisions[key].body
        assert each.tags["candidate"] == f"{body['candidate']['right']}/{body['holdout']['size']}"
        assert each.tags["champion"]
    champion = client.get_model_version_by_alias("ssclass", "champion")
    assert champion.tags["decision_key"] == state.champion
    assert all("Champion" in each.description for each in versions)


def test_the_logged_model_loads_with_plain_keras_and_answers_like_predict(journey, tracking, sources, ssclass: Command):
    import mlflow
    from keras.models import load_model

    champion = tracking.client.get_model_version_by_alias("ssclass", "champion")
    with tracking.named():  # MLflow looks `models:/…` up at the address of the process
        folder = Path(mlflow.artifacts.download_artifacts(champion.source))
    (path,) = folder.rglob("*.keras")
    mine = open_model("champion", journey.workspace.settings)
    photos = sorted(sources["junk"][1].rglob("0*.jpg"))[:4]
    images = np.stack([read_photo(photo, mine.size) for photo in photos])
    answers = np.asarray(load_model(path)(images))
    np.testing.assert_allclose(answers, mine.predict(images), atol=ALIKE)
    np.testing.assert_allclose(answers.sum(axis=1), 1, atol=1e-5)

    done = ssclass("predict", *photos, "--json", "--workspace", journey.workspace.root)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert [item["file"] for item in told] == [str(photo) for photo in photos]
    spoken = [[item["probabilities"][name] for name in CLASSES] for item in told]
    np.testing.assert_allclose(spoken, answers, atol=ALIKE)
    assert [item["label"] for item in told] == [CLASSES[at] for at in answers.argmax(1)]


ASKED = """
import json, sys
from pathlib import Path
import numpy as np
from ssclass.serving.model import open_model, read_photo
from ssclass.settings import load_settings

model = open_model(sys.argv[2], load_settings(Path(sys.argv[1])))
answers = model.predict(np.stack([read_photo(Path(photo), model.size) for photo in sys.argv[3:]]))
heavy = {name.partition(".")[0] for name in sys.modules} & {"tensorflow", "keras", "mlflow", "prefect", "dvc"}
print(json.dumps({"answers": answers.tolist(), "heavy": sorted(heavy), "run": model.run_id}))
"""


def test_what_was_promoted_answers_without_keras_and_from_the_files_that_git_names(
    journey, tracking, sources, ssclass: Command
):
    if not described("openvino"):
        pytest.skip("an extra")
    settings, state = journey.workspace.settings, journey.workspace.at().state
    photos = sorted(sources["junk"][1].rglob("0*.jpg"))[:3]
    run_id = state.decisions[state.champion].body["run_id"]
    version = str(tracking.client.get_model_version_by_alias("ssclass", "champion").version)
    whole = open_model("champion", settings).keras
    size = open_model("champion", settings).size
    expected = np.asarray(whole(np.stack([read_photo(photo, size) for photo in photos])))

    def ask(name: str) -> dict:
        command = [sys.executable, "-c", ASKED, str(journey.workspace.root), name, *map(str, photos)]
        done = subprocess.run(command, env=ssclass.environment(), capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    kept = journey.workspace.private / "champions" / state.champion / "head.keras"
    for name in ("champion", version, run_id):
        found = ask(name)
        assert found["heavy"] == []
        assert found["run"] == run_id
        np.testing.assert_allclose(found["answers"], expected, atol=ALIKE)
    whole_file = kept.read_bytes()
    for damage in (b"", whole_file[:-20] + b"x" * 20, None):
        kept.unlink() if damage is None else kept.write_bytes(damage)
        np.testing.assert_allclose(ask("champion")["answers"], expected, atol=ALIKE)
        assert kept.read_bytes() == whole_file, "taken from DVC again"

    tag = ("ssclass", version, "decision_key")
    tracking.client.set_model_version_tag(*tag, "0" * 16)  # no decision of the ledger's: the registered files answer
    try:
        found = ask(version)
    finally:
        tracking.client.set_model_version_tag(*tag, state.champion)
    assert "keras" in found["heavy"]
    np.testing.assert_allclose(found["answers"], expected, atol=ALIKE)


# -- a person at a keyboard -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def clone(journey: Journey, ssclass: Command, tmp_path_factory) -> Path:
    """A fresh git clone at the last run's tag, made by a person with git and dvc only, and none of our caches."""
    store = journey.workspace.store
    for item in list(store.list("features/")):
        store.delete(item.key)
    folder = tmp_path_factory.mktemp("person") / "clone"
    origin = journey.workspace.git("remote", "get-url", "origin")
    subprocess.run(["git", "clone", "--quiet", origin, str(folder)], check=True)
    tag = f"run/{journey.outcomes['junk'].event['key']}"
    subprocess.run(["git", "-C", str(folder), "checkout", "--quiet", tag], check=True)
    return folder


def dvc(ssclass: Command, folder: Path, *args: str) -> str:
    done = subprocess.run(
        ["dvc", *args],
        cwd=folder,
        env=ssclass.environment(DVC_NO_ANALYTICS=1, SSCLASS_WORKSPACE=None),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, f"dvc {' '.join(args)}: {done.stdout}{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def reproduced(clone: Path, ssclass: Command) -> dict[str, object]:
    """What a person sees who pulls, asks for the status, and runs the steps again without a feature in any cache."""

    def made() -> dict[str, bytes]:
        files = ("metrics.json", "candidate/classifier.json", "candidate/training.json")
        return {"weights": weights(clone), **{name: (clone / name).read_bytes() for name in files}}

    dvc(ssclass, clone, "pull", "--quiet")
    status = dvc(ssclass, clone, "status")
    before = made()
    shards = {path.name: path.read_bytes() for path in (clone / "data").iterdir()}
    dvc(ssclass, clone, "repro", "--force")
    return {"status": status, "before": before, "after": made(), "shards": shards}


def test_a_clone_pulls_the_same_bytes_and_is_clean(journey, reproduced):
    assert "up to date" in reproduced["status"]
    for name, data in reproduced["shards"].items():
        assert (journey.workspace.root / "data" / name).read_bytes() == data
    assert len(reproduced["shards"]) == 4


def test_repro_without_a_cached_feature_gives_the_same_head_and_metrics(journey, reproduced, clone, ssclass):
    assert reproduced["after"] == reproduced["before"]
    assert "up to date" in dvc(ssclass, clone, "status")


def test_dvc_compares_metrics_and_params_of_two_runs(journey, reproduced, clone, ssclass):
    runs = [f"run/{journey.outcomes[name].event['key']}" for name in ("first", "junk")]
    compared = json.loads(dvc(ssclass, clone, "metrics", "diff", "--json", *runs))
    change = compared["metrics.json"]["holdout_size"]
    assert change["new"] - change["old"] == change["diff"] > 0
    path = clone / "params.yaml"
    path.write_text(path.read_text().replace("seed: 0", "seed: 1"))
    compared = json.loads(dvc(ssclass, clone, "params", "diff", "--json"))
    assert compared["params.yaml"]["train.seed"] == {"old": 0, "new": 1, "diff": 1}
    shutil.copy(journey.workspace.root / "params.yaml", path)
