"""Workspaces on real git, DVC, S3 and MLflow with a fake head, and what senders and persons do to them, in a line each.

Held-out photos come with the first batch, of difficulties .05, .15, … .95, so that what a candidate has right follows
from how many photos it has learnt from: 10 → 7 of 10, 20 → 8, 30 → 9, 100 → 10.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ssclass.workspace.workspace import Workspace
from tests.support.fake_head import patch_model, photo, retrain_flow
from tests.support.pipelines import CLASSES, set_params

EASY = 0.0


def pictures(folder: Path, count: int) -> list[bytes]:
    """So many different drawings, as JPEG."""
    from ssclass.demo.drawings import draw

    draw(folder, CLASSES, (count + 1) // 2)
    return [path.read_bytes() for path in sorted(folder.rglob("*.jpg"))][:count]


def empty_mlflow(path: Path) -> None:
    """An MLflow database without anything in it: its migrations take seconds, so it is made once, and copied."""
    import logging

    import mlflow

    logging.getLogger("mlflow").setLevel(logging.ERROR)
    logging.getLogger("alembic").setLevel(logging.ERROR)
    path.parent.mkdir(parents=True, exist_ok=True)
    mlflow.MlflowClient(f"sqlite:///{path}").search_experiments()


@dataclass
class Shop:
    """An origin, its clones on one bucket and one MLflow, and the photos that were sent."""

    folder: Path
    pictures: Sequence[bytes]
    flow: Any
    workspace: Workspace
    sent: dict[str, dict[str, str]] = field(default_factory=dict)  # batch → sha256 → label
    used: int = 0

    @classmethod
    def make(cls, folder: Path, endpoint: str, pictures: Sequence[bytes], flow: Any, mlflow: Path, **more: Any) -> Shop:
        from ssclass.workspace.create import create

        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(mlflow, folder / "mlflow.db")
        values = {"bucket": f"test-{uuid.uuid4().hex[:12]}", "s3_endpoint": endpoint, "s3_region": "us-east-1"}
        values |= {"mlflow_uri": f"sqlite:///{folder / 'mlflow.db'}", **more}
        workspace = create(folder / "a", values)
        workspace.store.make_bucket()
        return cls(folder, pictures, flow, workspace)

    def clone(self, name: str = "b") -> Workspace:
        """Another machine's clone; the one that is there by that name."""
        from ssclass.settings import load_settings
        from ssclass.workspace.create import create

        folder = self.folder / name
        if folder.exists():
            return Workspace(load_settings(folder))
        return create(folder, {}, git=self.workspace.origin)

    def retrain(self, workspace: Workspace | None = None) -> Any:
        """What `ssclass retrain` does."""
        return self.flow.retrain(str((workspace or self.workspace).root))

    # -- what senders do --------------------------------------------------------------------------------

    def photos(self, count: int, difficulties: Sequence[float] = (0.5,), flipped: bool = False) -> list[dict[str, Any]]:
        """So many new photos with their labels, classes in turn; entries of a manifest with their bytes."""
        made = []
        for number in range(count):
            truth = number % 2
            data = photo(self.pictures[self.used], truth, difficulties[number % len(difficulties)])
            self.used += 1
            label = CLASSES[1 - truth if flipped else truth]
            made.append(
                {
                    "key": f"{label}/{self.used}.jpg",
                    "label": label,
                    "sha256": hashlib.sha256(data).hexdigest(),
                    "data": data,
                }
            )
        return made

    def first(self, batch: str = "first", train: int = 10) -> list[str]:
        """Deliver the batch that brings the ten held-out photos; sha256s."""
        held_out = self.photos(10, [number / 10 + 0.05 for number in range(10)])
        for entry in held_out:
            entry["split"] = "holdout"
        learnt = self.photos(train)
        for entry in learnt:
            entry["split"] = "train"
        return self.deliver(batch, held_out + learnt)

    def two_champions_and_a_rejected(self) -> None:
        """Three batches, and the decisions on them."""
        self.first()
        assert self.retrain().decision == "PROMOTED"
        self.send("second")
        assert self.retrain().decision == "PROMOTED"
        self.send("third", 1)
        assert self.retrain().decision == "REJECTED"

    def send(self, batch: str, count: int = 10, *, easy: bool = False, flipped: bool = False) -> list[str]:
        """Deliver a batch of new photos, all to train on; sha256s. Easy and flipped: the champion has all wrong."""
        made = self.photos(count, (EASY,) if easy else (0.5,), flipped)
        for entry in made:
            entry["split"] = "train"
        return self.deliver(batch, made)

    def deliver(self, batch: str, entries: Sequence[dict[str, Any]], **corrections: Any) -> list[str]:
        """Put photos and their manifest, which also may correct earlier ones."""
        store = self.workspace.store
        for entry in entries:
            store.put(f"incoming/{batch}/{entry['key']}", entry["data"])
        listed = [{name: value for name, value in entry.items() if name != "data"} for entry in entries]
        self.mark(batch, photos=listed, **corrections)
        self.sent.setdefault(batch, {}).update({entry["sha256"]: entry["label"] for entry in entries})
        return [entry["sha256"] for entry in entries]

    def mark(self, batch: str, **body: Any) -> None:
        """Write a manifest."""
        self.workspace.store.put(f"incoming/{batch}/manifest.json", json.dumps({"schema": 1, **body}).encode())

    # -- what persons do ----------------------------------------------------------------------------------

    def set(self, **params: object) -> None:
        """Change params.yaml, from origin's newest commit, and push."""
        subprocess.run(["git", "-C", str(self.workspace.root), "pull", "-q", "origin", "main"], check=True)
        set_params(self.workspace, **params)

    # -- what is there -------------------------------------------------------------------------------------

    @property
    def state(self) -> Any:
        """What origin's ledger adds up to."""
        return self.workspace.newest().state

    @property
    def tracking(self) -> Any:
        from ssclass.tracking.client import Tracking

        return Tracking.of(self.workspace)

    def lines(self, kind: str) -> list[dict[str, Any]]:
        """Bodies of the ledger's events of a kind, oldest first."""
        return [event.body for event in self.workspace.newest().events if event.kind == kind]

    def labels(self) -> dict[str, str]:
        """sha256 → label of the data set."""
        return {row.sha256: row.label for row in self.workspace.newest().dataset.rows}

    def keys(self, batch: str, sha256: str) -> Iterator[str]:
        """The keys by which a batch's manifest names a photo."""
        body = json.loads(self.workspace.store.get(f"incoming/{batch}/manifest.json") or b"{}")
        yield from (entry["key"] for entry in body["photos"] if entry["sha256"] == sha256)

    def run(self, key: str) -> Any:
        """The MLflow run that the ledger names for a decision, in the trash or not."""
        return self.tracking.client.get_run(self.state.decisions[key].body["run_id"])

    def versions(self) -> dict[str, str]:
        """Registered versions: number → decision key."""
        found = self.tracking.client.search_model_versions(f"name = '{self.tracking.name}'")
        return {
            str(each.version): each.tags["decision_key"] for each in sorted(found, key=lambda each: int(each.version))
        }


@contextmanager
def open_shop(folder: Path, endpoint: str, count: int) -> Iterator[Shop]:
    """A shop with so many drawings, and the fake head in the model's place for as long as it is open."""
    import pytest  # benchmarks have none

    empty_mlflow(folder / "empty.db")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
        patch.setenv("SSCLASS_PATIENCE", "2")
        patch_model(patch.setattr)
        drawn = pictures(folder / "pictures", count)
        yield Shop.make(folder / "shop", endpoint, drawn, retrain_flow(), folder / "empty.db")
