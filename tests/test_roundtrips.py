"""Relabel, remove, revoke, forget, a disk without the old shards: each ends where one would end by hand.

"By hand" is another program than the pipeline's: a dict of sha256 → label that the test keeps, scikit-learn's metrics,
and the logged model's answers on what `ssclass export` wrote.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, f1_score, log_loss, precision_score, recall_score

from ssclass.data.images import decode
from ssclass.history.lineage import lineage
from ssclass.serving.model import open_model
from ssclass.workspace.create import create
from ssclass.workspace.workspace import Workspace
from tests.support.pipelines import CLASSES, Command, Pipeline, deal

pytestmark = pytest.mark.slow


@dataclass
class Hand:
    """The data set as somebody keeps it by hand: sha256 → (label, bytes)."""

    workspace: Workspace
    pipeline: Pipeline
    command: Command
    scratch: Path
    labels: dict[str, str] = field(default_factory=dict)
    bytes: dict[str, bytes] = field(default_factory=dict)

    def folder(self, name: str, seed: int, count: int = 24) -> dict[str, str]:
        """Make a batch, of real photos where they are; sha256 → label."""
        deal(self.scratch / name, CLASSES, count, seed)
        found = {}
        for path in (self.scratch / name).rglob("*.jpg"):
            data = path.read_bytes()
            sha256 = hashlib.sha256(data).hexdigest()
            self.bytes[sha256], found[sha256] = data, path.parent.name
        return found

    def correct(self, batch: str, relabel: dict[str, str], remove: list[str]) -> None:
        body = {"schema": 1, "remove": [{"sha256": sha256} for sha256 in remove]}
        body |= {"relabel": [{"sha256": sha256, "label": label} for sha256, label in relabel.items()]}
        self.workspace.store.put(f"incoming/{batch}/manifest.json", json.dumps(body).encode())

    def check_data(self, rev: str, labels: dict[str, str]) -> Path:
        """A data version is these photos with these labels, and nothing else, byte for byte."""
        out = self.scratch / f"out-{rev.replace('/', '-')}-{len(list(self.scratch.iterdir()))}"
        done = self.command("export", out, "--version", rev, "--workspace", self.workspace.root)
        assert done.returncode == 0, done.stderr
        found = {}
        for path in out.rglob("*.jpg"):
            sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
            assert path.name.startswith(sha256[:16])
            found[sha256] = path.parent.name
        assert found == labels
        assert {sha256: self.bytes[sha256] for sha256 in found}.keys() == labels.keys()
        return out

    def check(self, event: dict[str, object], rev: str) -> None:
        """The newest data version is what is kept here, and the decision's scores are those of scikit-learn on it."""
        out = self.check_data(rev, self.labels)
        assert self.workspace.at().data_version == rev
        assert event["data_version"] == rev
        files = sorted((out / "test").rglob("*.jpg"))
        model = open_model(str(event["run_id"]), self.workspace.settings)
        odds = model.predict(np.stack([decode(path.read_bytes(), model.size) for path in files]))
        is_ = np.array([CLASSES.index(path.parent.name) for path in files])
        called = odds.argmax(axis=1)
        told = json.loads((self.workspace.root / "metrics.json").read_text())
        macro = {"average": "macro", "zero_division": 0}
        assert event["candidate"]["right"] == (called == is_).sum()
        assert (event["holdout"]["size"], told["holdout_size"]) == (len(files), len(files))
        assert told["train_size"] == event["train_size"] == len(list((out / "train").rglob("*.jpg")))
        assert told["accuracy"] == pytest.approx(accuracy_score(is_, called))
        assert told["recall"] == pytest.approx(recall_score(is_, called, **macro))
        assert told["precision"] == pytest.approx(precision_score(is_, called, **macro))
        assert told["f_measure"] == pytest.approx(f1_score(is_, called, **macro))
        assert told["loss"] == pytest.approx(log_loss(is_, odds / odds.sum(axis=1, keepdims=True)), abs=1e-4)


@pytest.fixture(scope="module")
def hand(pipeline: Pipeline, ssclass: Command, tmp_path_factory) -> Hand:
    folder = tmp_path_factory.mktemp("hand")
    workspace = pipeline.workspace(folder / "workspace", head="linear", crops="none", corrections="1.0")
    return Hand(workspace, pipeline, ssclass, folder)


# Each test goes on from where the one before it left the workspace.


def test_two_batches(hand: Hand):
    for number in (1, 2):
        hand.labels |= hand.folder(f"day-{number}", number)
        outcome = hand.pipeline.deliver(hand.workspace, hand.scratch / f"day-{number}", f"day-{number}")
        hand.check(outcome.event, f"data/{number}")


def test_relabel_and_remove(hand: Hand):
    before = dict(hand.labels)
    held = [row for row in hand.workspace.at().dataset.rows if row.split == "holdout"]
    trained = [row for row in hand.workspace.at().dataset.rows if row.split == "train"]
    other = {"sushi": "sandwich", "sandwich": "sushi"}
    relabel = {row.sha256: other[row.label] for row in (held[0], trained[0], trained[-1])}
    remove = [held[1].sha256, trained[1].sha256]
    hand.correct("fix-1", relabel, remove)
    outcome = hand.pipeline.retrain(hand.workspace)
    hand.labels = {sha256: label for sha256, label in (before | relabel).items() if sha256 not in remove}
    hand.check(outcome.event, "data/3")
    hand.check_data("data/2", before)
    hand.correct("fix-2", {trained[0].sha256: trained[0].label}, [])  # the last decision wins
    outcome = hand.pipeline.retrain(hand.workspace)
    hand.labels[trained[0].sha256] = trained[0].label
    hand.check(outcome.event, "data/4")
    history = lineage(hand.workspace, trained[0].sha256)["history"]
    assert [(each["batch"], each["label"]) for each in history] == [
        ("day-1", trained[0].label),
        ("fix-1", other[trained[0].label]),
        ("fix-2", trained[0].label),
    ]
    gone = lineage(hand.workspace, held[1].sha256)
    assert (gone["in"], [each["use"] for each in gone["models"]]) == (False, ["scored on"] * len(gone["models"]))


def test_revoke(hand: Hand):
    day_2 = {hashlib.sha256(path.read_bytes()).hexdigest() for path in (hand.scratch / "day-2").rglob("*.jpg")}
    done = hand.command("batch", "revoke", "day-2", "--workspace", hand.workspace.root)
    assert done.returncode == 0, done.stderr
    hand.workspace.newest()
    hand.labels = {sha256: label for sha256, label in hand.labels.items() if sha256 not in day_2}
    outcome = hand.pipeline.retrain(hand.workspace)
    hand.check(outcome.event, "data/5")
    decisions = list(hand.workspace.at().state.decisions)
    saw = [each["key"] for each in lineage(hand.workspace, "day-2")["decisions"]]
    assert saw == decisions[1:4], "of five, those between its coming and its going"


def test_forget(hand: Hand):
    sha256 = next(row.sha256 for row in hand.workspace.at().dataset.rows if row.split == "holdout")
    done = hand.command("forget", sha256, "--yes", "--json", "--workspace", hand.workspace.root)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert [each["key"] for each in told["models"]] == list(hand.workspace.at().state.decisions)
    assert {each["use"] for each in told["models"]} == {"scored on"}
    hand.workspace.newest()
    del hand.labels[sha256]
    outcome = hand.pipeline.retrain(hand.workspace)
    hand.check(outcome.event, "data/6")


def test_a_disk_where_only_new_shards_are_works_the_same(hand: Hand):
    clone = create(hand.scratch / "clone", {}, git=hand.workspace.git("remote", "get-url", "origin"))
    assert list((clone.root / "data").iterdir()) == []
    shutil.copytree(hand.workspace.private / "mlflow", clone.private / "mlflow")
    full = Hand(hand.workspace, hand.pipeline, hand.command, hand.scratch)
    new = full.folder("day-3", 3)
    for item in list(clone.store.list("features/")):
        clone.store.delete(item.key)
    outcome = hand.pipeline.deliver(clone, hand.scratch / "day-3", "day-3")
    assert [path.name for path in (clone.root / "data").iterdir()] == ["day-3.parquet"]
    hand.labels |= new
    hand.bytes |= full.bytes
    hand.workspace.newest()
    ours = Hand(clone, hand.pipeline, hand.command, hand.scratch, hand.labels, hand.bytes)
    ours.check(outcome.event, "data/7")
    hand.check_data("data/7", hand.labels)
    assert clone.at().dataset.digest == hand.workspace.at().dataset.digest
