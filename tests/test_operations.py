"""What people decide: a held batch let in or kept out, a rollback, a freeze, a hand in MLflow. Three classes.

The champion of the first batch has never seen the third class, so a batch that is full of it cannot look right to
it: HELD; and once it is in, a candidate that knows the class has more right: PROMOTED. Neither depends on luck.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from ssclass.demo.drawings import draw
from ssclass.tracking.client import Tracking
from ssclass.workspace.workspace import Workspace
from tests.support.pipelines import Command, Pipeline

THREE = ("sandwich", "sushi", "pizza")


@pytest.fixture(scope="module")
def sources(tmp_path_factory) -> Path:
    """Class folders: two classes; three classes; a few more of all; the same few with every label wrong."""
    folder = tmp_path_factory.mktemp("deliveries")
    draw(folder / "drawn", THREE, 60)
    for at, label in enumerate(THREE):
        for place, path in enumerate(sorted((folder / "drawn" / label).iterdir())):
            batch = (
                "three"
                if label == "pizza" and place < 50
                else "two"
                if place < 30
                else "three"
                if place < 45
                else "few"
            )
            (folder / batch / label).mkdir(parents=True, exist_ok=True)
            shutil.copy(path, folder / batch / label)
            if batch == "few":
                wrong = folder / "wrong" / THREE[(at + 1) % 3]
                wrong.mkdir(parents=True, exist_ok=True)
                shutil.copy(path, wrong)
    return folder


class People:
    """A workspace, and the commands that people give it; what each said."""

    def __init__(self, pipeline: Pipeline, command: Command, workspace: Workspace) -> None:
        self.pipeline, self.command, self.workspace = pipeline, command, workspace
        self.client = Tracking.of(workspace).client

    def run(self, *args: str) -> str:
        done = self.command(*args, "--workspace", self.workspace.root)
        assert done.returncode == 0, done.stderr
        self.workspace.newest()
        return done.stdout

    def alias(self) -> str:
        return str(self.client.get_registered_model("ssclass").aliases["champion"])


@pytest.fixture(scope="module")
def people(pipeline: Pipeline, ssclass: Command, tmp_path_factory) -> People:
    workspace = pipeline.workspace(tmp_path_factory.mktemp("people") / "workspace", THREE, head="linear")
    return People(pipeline, ssclass, workspace)


# Each test goes on from where the one before it left the workspace.


def test_two_of_three_classes_make_a_first_champion(people, sources):
    outcome = people.pipeline.deliver(people.workspace, sources / "two", "two")
    assert outcome.decision == "PROMOTED", outcome.reason
    assert people.alias() == "1"


def test_a_batch_full_of_a_class_never_seen_is_held(people, sources):
    before = people.workspace.at().dataset.digest
    outcome = people.pipeline.deliver(people.workspace, sources / "three", "three")
    assert outcome.decision == "HELD"
    assert people.workspace.at().dataset.digest == before
    told = json.loads(people.run("status", "--json"))
    assert [item["batch"] for item in told["held"]] == ["three"]
    assert told["waiting"] == []


def test_admit_lets_the_held_batch_in(people):
    assert "joins with the next `ssclass retrain`" in people.run("batch", "admit", "three")
    outcome = people.pipeline.retrain(people.workspace)
    assert [(taken.batch, taken.outcome) for taken in outcome.batches] == [("three", "INGESTED")]
    assert outcome.decision == "PROMOTED", outcome.reason
    assert not people.workspace.at().state.held
    assert people.workspace.at().dataset.counts()["pizza"]["train"] > 0
    assert people.alias() == "2"


def test_rollback_moves_the_alias_and_freezes_promotion(people):
    first, second = people.workspace.at().state.champions
    assert "promotion is frozen until `ssclass unfreeze`" in people.run("rollback")
    assert people.workspace.at().state.champion == first
    assert people.alias() == "1"
    told = json.loads(people.run("status", "--json"))
    assert told["champion"]["key"] == first
    assert told["frozen"] == "rolled back to version 1"
    people.run("rollback", "2")
    assert people.workspace.at().state.champion == second
    assert people.alias() == "2"
    people.run("rollback", "1")
    assert people.alias() == "1"


def test_while_frozen_a_retrain_records_and_promotes_nothing(people, sources):
    outcome = people.pipeline.deliver(people.workspace, sources / "few", "few")
    if outcome.decision == "HELD":  # the champion in force knows two of the three classes
        people.run("batch", "admit", "few")
        outcome = people.pipeline.retrain(people.workspace)
    assert outcome.decision == "REJECTED"
    assert "frozen" in outcome.reason
    assert outcome.event["candidate"]["right"] > outcome.event["champion"]["right"]
    assert people.alias() == "1"
    assert len(people.client.search_model_versions("name = 'ssclass'")) == 2
    told = json.loads(people.run("evaluate", str(sources / "few"), "--models", "champion,challenger", "--json"))
    champion, waits = told["models"]["champion"], told["models"]["challenger"]
    assert waits["right"] > champion["right"], "what waits for the end of the freeze can be compared"


def test_after_unfreeze_a_better_candidate_is_promoted(people):
    assert "goes on" in people.run("unfreeze")
    assert people.workspace.at().state.frozen is None
    outcome = people.pipeline.retrain(people.workspace)
    assert outcome.decision == "PROMOTED", "the question is asked again, now that promotion may go on"
    assert people.alias() == "3"
    assert people.pipeline.retrain(people.workspace).decision == "SKIPPED", "and the same question only once"
    people.run("rollback", "2")
    people.run("unfreeze")
    assert people.alias() == "2"


def test_drop_keeps_a_held_batch_out(people, sources):
    outcome = people.pipeline.deliver(people.workspace, sources / "wrong", "wrong")
    # The photos are in the data set under their right labels, so each is a conflict, and none is left to hold.
    assert outcome.decision == "SKIPPED"
    before = people.workspace.at().dataset.digest
    flipped = sources / "flipped"
    draw(sources / "other", THREE, 12, seed=7)
    for at, label in enumerate(THREE):
        shutil.copytree(sources / "other" / label, flipped / THREE[(at + 1) % 3])
    assert people.pipeline.deliver(people.workspace, flipped, "flipped").decision == "HELD"
    assert "stays out" in people.run("batch", "drop", "flipped")
    assert people.pipeline.retrain(people.workspace).decision == "SKIPPED"
    told = json.loads(people.run("status", "--json"))
    assert (told["held"], told["waiting"]) == ([], [])
    assert people.workspace.at().dataset.digest == before


def test_an_alias_moved_by_hand_is_put_back_by_the_next_retrain(people):
    people.client.set_registered_model_alias("ssclass", "champion", "1")
    assert people.pipeline.retrain(people.workspace).version == "2"
    assert people.alias() == "2"
    people.client.delete_registered_model_alias("ssclass", "champion")
    people.pipeline.retrain(people.workspace)
    assert people.alias() == "2"


def test_freeze_says_why(people):
    people.run("freeze", "--reason", "summer holiday")
    assert "summer holiday" in people.run("status")
    assert "summer holiday" in people.run("history")
    people.run("unfreeze")


def test_history_tells_every_event_in_order(people):
    told = json.loads(people.run("history", "--json"))
    kinds = [item.get("decision", item["event"]) for item in told]
    assert kinds[:7] == ["ingest", "PROMOTED", "HELD", "admit", "ingest", "PROMOTED", "rollback"]
    assert kinds[-2:] == ["freeze", "unfreeze"]
    assert [json.loads(event.line()) for event in people.workspace.at().events] == told
