"""A class that comes later: refused until the params name it; then the old champion has its photos wrong, and loses."""

from __future__ import annotations

import json
import shutil
import unicodedata
from pathlib import Path

import numpy as np
import pytest

from ssclass.data.images import decode
from ssclass.demo.drawings import draw
from ssclass.history.export import export
from ssclass.history.lineage import lineage
from ssclass.serving.model import open_model
from ssclass.text import metric_word
from ssclass.tracking.client import Tracking
from ssclass.workspace.workspace import Workspace
from tests.support.pipelines import CLASSES, Command, Pipeline, set_params

THREE = (*CLASSES, "pizza")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def sources(tmp_path_factory) -> Path:
    """Class folders: two classes; three; the same three with the first two changed about, other pictures."""
    folder = tmp_path_factory.mktemp("deliveries")
    draw(folder / "two", CLASSES, 30, 1)
    draw(folder / "three", THREE, 24, 2)
    draw(folder / "other", THREE, 12, 3)
    for label, called in (("sandwich", "sushi"), ("sushi", "sandwich"), ("pizza", "pizza")):
        shutil.copytree(folder / "other" / label, folder / "flipped" / called)
    return folder


@pytest.fixture(scope="module")
def workspace(pipeline: Pipeline, tmp_path_factory, sources) -> Workspace:
    made = pipeline.workspace(tmp_path_factory.mktemp("classes") / "workspace", head="linear", crops="none")
    outcome = pipeline.deliver(made, sources / "two", "two")
    assert outcome.decision == "PROMOTED", outcome.reason
    return made


def right(workspace: Workspace, model: str, folder: Path, classes: tuple[str, ...]) -> tuple[int, int]:
    """Photos that a registered model has right, of all in class folders: by its own classes, computed here."""
    opened = open_model(model, workspace.settings)
    files = [path for label in classes for path in sorted((folder / label).rglob("*.jpg"))]
    answers = opened.predict(np.stack([decode(path.read_bytes(), opened.size) for path in files]))
    called = [opened.classes[place] for place in answers.argmax(axis=1)]
    labels = [path.relative_to(folder).parts[0] for path in files]
    return sum(said == is_ for said, is_ in zip(called, labels, strict=True)), len(files)


# Each test goes on from where the one before it left the workspace.


def test_before_the_params_name_it_its_photos_are_refused_and_nothing_else(workspace, pipeline: Pipeline, sources):
    outcome = pipeline.deliver(workspace, sources / "flipped", "early")  # implausible as well, so nothing joins
    assert outcome.decision == "HELD"
    receipt = (
        workspace.at().state.held["early", next(etag for batch, etag in workspace.at().state.held)].body["receipt"]
    )
    assert receipt["refused"] == {"unknown label": 12}
    assert receipt["accepted"] == 24


def test_the_old_champion_is_tested_on_what_it_knows_and_loses_on_what_it_does_not(
    workspace, pipeline: Pipeline, sources, tmp_path
):
    set_params(workspace, classes=f"[{', '.join(THREE)}]")
    outcome = pipeline.deliver(workspace, sources / "three", "three")
    assert outcome.decision == "PROMOTED", outcome.reason
    test = workspace.at().state.ingested["three"].body["champion_test"]
    assert (test["right"], test["n"]) == right(workspace, "1", sources / "three", CLASSES), "48 of 72: no pizza"
    export(workspace, tmp_path / "out")
    event = outcome.event
    held = tmp_path / "out" / "test"
    assert sorted(path.name for path in held.iterdir()) == sorted(THREE)
    assert (event["champion"]["right"], event["holdout"]["size"]) == right(workspace, "1", held, THREE)
    assert event["candidate"]["right"] == right(workspace, "2", held, THREE)[0]
    pizzas = len(list((held / "pizza").iterdir()))
    assert event["champion"]["right"] <= event["holdout"]["size"] - pizzas


def test_evaluate_scores_both_on_the_three_classes(workspace, sources, ssclass: Command):
    done = ssclass("evaluate", sources / "other", "--models", "champion,1", "--json", "--workspace", workspace.root)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)["models"]
    assert told["champion"]["right"] == right(workspace, "2", sources / "other", THREE)[0]
    assert told["1"]["right"] == right(workspace, "1", sources / "other", THREE)[0]
    assert told["1"]["per_class"]["pizza"]["recall"] == 0
    done = ssclass("evaluate", sources / "other", "--models", "1", "--workspace", workspace.root)
    assert done.returncode == 2
    assert "'pizza' is no class of the model" in done.stderr


def test_lineage_of_a_photo_of_the_new_class(workspace):
    pizza = next(row for row in workspace.at().dataset.rows if row.label == "pizza" and row.split == "train")
    told = lineage(workspace, pizza.sha256)
    assert [(each["champion"], each["use"]) for each in told["models"]] == [(2, "trained on")]
    counts = {each["batch"]: each["counts"] for each in lineage(workspace, "2")["batches"]}
    assert set(counts["three"]) == set(THREE)
    assert "pizza" not in counts["two"]


def test_the_guard_works_with_a_champion_that_lacks_the_class(workspace, pipeline: Pipeline, sources, ssclass: Command):
    assert ssclass("rollback", "1", "--workspace", workspace.root).returncode == 0
    workspace.newest()
    shutil.copytree(sources / "flipped", sources / "again")
    outcome = pipeline.deliver(workspace, sources / "again", "flipped")
    assert outcome.decision == "HELD"
    assert "of 24 right, implausible" in outcome.reason, "the pizzas are not held against it"


def test_names_that_others_refuse_and_names_from_macos_go_through_a_whole_retrain(
    pipeline: Pipeline, tmp_path, ssclass: Command
):
    """MLflow takes neither & nor $ in a metric, macOS stores é as e and an accent, charts read $…$ as a formula."""
    names = ("fish & chips", "café $x^$")
    made = pipeline.workspace(tmp_path / "workspace", head="linear", crops="none")
    set_params(made, classes=f"[{', '.join(repr(name) for name in names)}]")
    draw(tmp_path / "drawn", CLASSES, 30, 5)
    for drawn, name in zip(CLASSES, names, strict=True):
        apart = unicodedata.normalize("NFD", name)
        (tmp_path / "photos").mkdir(exist_ok=True)
        (tmp_path / "drawn" / drawn).rename(tmp_path / "photos" / apart)
    outcome = pipeline.deliver(made, tmp_path / "photos", "first")
    assert outcome.decision == "PROMOTED", outcome.reason
    assert set(made.newest().dataset.counts()) == set(names)
    client = Tracking.of(made).client
    metrics = client.get_run(outcome.event["run_id"]).data.metrics
    for name in names:
        assert f"recall_{metric_word(name)}" in metrics
    done = ssclass("evaluate", tmp_path / "photos", "--json", "--workspace", made.root)
    assert done.returncode == 0, done.stderr
