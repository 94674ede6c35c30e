"""A retrain with everything that can be turned on: altered copies, a schedule, early stopping."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import CLASSES, Pipeline

from ssclass.drawings import draw
from ssclass.tracking import Tracking
from ssclass.workspace import Workspace


@pytest.fixture(scope="module")
def decided(pipeline: Pipeline, tmp_path_factory: pytest.TempPathFactory) -> tuple[Workspace, dict]:
    folder = tmp_path_factory.mktemp("levers")
    workspace = pipeline.workspace(
        folder / "workspace",
        sizes="[64]",
        crops="none",
        copies=2,
        head="T1",
        epochs=12,
        schedule="cosine",
        early_stopping=3,
    )
    draw(folder / "photos", CLASSES, per_class=16)
    return workspace, pipeline.deliver(workspace, folder / "photos", "first").event


def test_the_run_shows_copies_and_curves(decided: tuple[Workspace, dict]) -> None:
    workspace, event = decided
    tracking = Tracking(workspace.settings)
    figures = {item.path for item in tracking.client.list_artifacts(event["run_id"], "figures")}
    assert "figures/augmentation.png" in figures
    rates, losses = (
        [each.value for each in tracking.client.get_metric_history(event["run_id"], f"T1_{name}")]
        for name in ("learning_rate", "val_loss")
    )
    assert rates == sorted(rates, reverse=True)
    assert 4 <= len(rates) == len(losses) <= 12


def test_copies_are_remembered_beside_the_photos(decided: tuple[Workspace, dict]) -> None:
    """One file a shard and kind of view, the same name in each: who forgets a photo finds them all by it."""
    workspace, _ = decided
    files = list((workspace.private / "features").rglob("*.npz"))
    assert len(files) == 3
    (name,) = {path.name for path in files}
    assert name == Path(f"{workspace.dataset().shards[0].photos_digest}.npz").name
