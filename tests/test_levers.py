"""Retrains with everything that can be turned on: altered copies, a schedule, early stopping, tuned blocks."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import numpy as np
import pytest

from ssclass.demo.drawings import draw
from ssclass.retrain.predict import decided_classifier, memo_of, probabilities, result_folder
from ssclass.retrain.result import Result
from ssclass.serving.model import open_model, read_photo
from ssclass.tracking.client import Tracking
from ssclass.workspace.workspace import Workspace
from tests.support.pipelines import CLASSES, Command, Pipeline


@pytest.fixture(scope="module")
def decided(pipeline: Pipeline, tmp_path_factory: pytest.TempPathFactory) -> tuple[Workspace, list[dict], Path]:
    """A workspace after two deliveries, their decisions, and the photos of the first."""
    folder = tmp_path_factory.mktemp("levers")
    workspace = pipeline.workspace(
        folder / "workspace",
        sizes="[64]",
        crops="none",
        copies=1,
        head="T1",
        epochs=12,
        schedule="cosine",
        early_stopping=3,
        folds=2,
        unfreeze_blocks=1,
        tune_epochs=2,
    )
    events = []
    for number, name in enumerate(("first", "second")):
        draw(folder / name, CLASSES, per_class=16, seed=number)
        events.append(pipeline.deliver(workspace, folder / name, name).event)
    return workspace, events, folder / "first"


def test_the_run_shows_copies_and_curves(decided: tuple[Workspace, list[dict], Path]) -> None:
    workspace, (event, _), _ = decided
    tracking = Tracking.of(workspace)
    figures = {item.path for item in tracking.client.list_artifacts(event["run_id"], "figures")}
    assert "figures/augmentation.png" in figures
    rates, losses, tuned = (
        [each.value for each in tracking.client.get_metric_history(event["run_id"], f"T1_{name}")]
        for name in ("learning_rate", "val_loss", "tune_loss")
    )
    assert rates == sorted(rates, reverse=True)
    assert 4 <= len(rates) == len(losses) <= 12
    assert len(tuned) == 2


def test_everything_of_a_shard_is_remembered_under_one_name(decided: tuple[Workspace, list[dict], Path]) -> None:
    """Activations at the cut, those of the copies, features of each tuned network: who forgets a photo finds them."""
    workspace, _, _ = decided
    files = list((workspace.private / "features").rglob("*.npz"))
    names = {f"{shard.photos_digest}.npz" for shard in workspace.at().dataset.shards}
    assert {path.name for path in files} == names
    first = [path for path in files if path.name == f"{workspace.at().dataset.shards[0].photos_digest}.npz"]
    assert len(first) == 4  # the cut of photos and of copies, the first champion's features, the second candidate's


def test_a_tuned_champion_scores_what_comes_after_it(decided: tuple[Workspace, list[dict], Path]) -> None:
    workspace, (first, second), _ = decided
    assert first["decision"] == "PROMOTED"
    assert second["champion"]["key"] == first["key"]
    champion = decided_classifier(workspace, first["key"])
    assert champion.specs[0].tuned_blocks is not None
    result = Result.read(result_folder(workspace, second["key"]) / "result.json")
    assert result.saved_alike
    found = probabilities(workspace.at(), memo_of(workspace), champion, workspace.at().dataset.holdout)
    np.testing.assert_allclose(found, result.champion.probabilities, atol=1e-6)


def test_the_exported_model_answers_as_the_gate_was_told(decided: tuple[Workspace, list[dict], Path]) -> None:
    workspace, _, photos = decided
    model = open_model("champion", workspace.settings)
    champion = decided_classifier(workspace, workspace.at().state.champion or "")
    by_key = {row.key: row for row in workspace.at().dataset.rows}
    rows = [by_key[path.relative_to(photos).as_posix()] for path in sorted(photos.rglob("*.jpg"))[:4]]
    images = [read_photo(photos / row.key, model.size) for row in rows]
    np.testing.assert_allclose(
        model.predict(np.stack(images)), probabilities(workspace.at(), memo_of(workspace), champion, rows), atol=1e-5
    )


def test_dvc_repro_gives_the_same_candidate(decided: tuple[Workspace, list[dict], Path], ssclass: Command) -> None:
    workspace, _, _ = decided
    before = {path.name: path.read_bytes() for path in (workspace.root / "candidate").iterdir()}
    assert {"head.keras", "tail.npz"} <= set(before)
    done = subprocess.run(
        ["dvc", "repro", "-f", "train"],
        cwd=workspace.root,
        env=ssclass.environment(),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    after = {path.name: path.read_bytes() for path in (workspace.root / "candidate").iterdir()}
    assert after == before
    assert json.loads(after["classifier.json"])["members"][0]["spec"]["tail"]["blocks"] == 1
