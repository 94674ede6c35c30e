"""A shop with two champions that are small networks, told apart by their answers, and `ssclass serve` for them."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import requests

from ssclass.data.images import decode
from ssclass.environment import free_port
from ssclass.serving import following
from ssclass.serving.service import Service, application
from ssclass.serving.start import start
from ssclass.stack.serving import server
from ssclass.tracking.client import CANDIDATE, MODEL, Tracking
from ssclass.upkeep.decisions import impatient, roll_back
from ssclass.workspace.workspace import Workspace
from tests.support import fake_head
from tests.support.pipelines import CLASSES
from tests.support.running import clean_environment, eventually
from tests.support.shops import Shop, empty_mlflow, pictures

SIZE = fake_head.FakeClassifier.size


def network(skill: float) -> Any:
    """A network whose answers depend on the photo, and on the skill: no two champions answer alike."""
    from ssclass.model.backbones import import_keras

    keras = import_keras()
    images = keras.Input((None, None, 3), dtype="uint8", name="images")
    photo = keras.layers.Resizing(SIZE, SIZE, antialias=True)(images)
    mean = keras.layers.GlobalAveragePooling2D()(keras.layers.Rescaling(1 / 255)(photo))
    dense = keras.layers.Dense(2, activation="softmax")
    model = keras.Model(images, dense(mean))
    dense.set_weights([np.array([[1, -1], [2, 0], [0, 1]], np.float32), np.array([10 * (skill - 0.7), 0], np.float32)])
    model.trainable = False
    return model


class Served:
    """A shop with two champions, photos, and what each champion says of them."""

    def __init__(self, shop: Shop) -> None:
        self.shop = shop
        self.photos = shop.pictures[-4:]
        self.images = np.stack([decode(data, SIZE) for data in self.photos])
        self.expected: dict[str, np.ndarray] = {}
        for version, key in shop.versions().items():
            skill = self.skill(key)
            self.expected[version] = np.asarray(network(skill)(self.images))

    def skill(self, key: str) -> float:
        about = self.shop.workspace.private / "results" / key / "candidate" / "classifier.json"
        return float(json.loads(about.read_text())["skill"])

    def models(self, version: str) -> dict[str, Any]:
        """The logged models of a version's run."""
        key = self.shop.versions()[version]
        tracking = self.shop.tracking
        with tracking.named():
            found: dict[str, Any] = tracking.models_of(tracking.run_of(self.shop.state.decisions[key]))
        return found

    def folder(self, version: str, name: str = MODEL) -> Path:
        return Path(self.models(version)[name].artifact_location.removeprefix("file://"))

    def note_sure(self, threshold: float = 0.9) -> None:
        """Note a threshold with the second champion: its fake training has no probabilities to take one from."""
        path = self.folder("2", CANDIDATE) / "training.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "sure": {"threshold": threshold}}))

    def check(self, answer: dict[str, Any], which: list[int]) -> None:
        """All predictions are those of the version that the answer names."""
        expected = self.expected[answer["model"]["version"]][which]
        for row, odds in zip(answer["predictions"], expected, strict=True):
            assert list(row["probabilities"]) == list(CLASSES)
            np.testing.assert_allclose(list(row["probabilities"].values()), odds, atol=1e-4)
            assert row["label"] == CLASSES[odds.argmax()]


@contextmanager
def two_champions(s3_endpoint: str, folder: Path, second: int = 20) -> Iterator[Served]:
    """A shop with two champions, whose models are small networks that MLflow really has; `FakeClassifier` trains.

    `second`: photos of the second batch, 20 or 10; after 10 there is room for one better.
    """
    database = folder / "empty" / "mlflow.db"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
        patch.setenv("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")  # it writes to what pytest has closed
        real = Tracking.log_model, Tracking.restore_model
        fake_head.patch_model(patch.setattr)
        patch.setattr(Tracking, "log_model", real[0])
        patch.setattr(Tracking, "restore_model", real[1])
        patch.setattr(fake_head.FakeClassifier, "whole", lambda self: network(self.skill))
        patch.setattr(following, "POLL", 0.05)
        patch.setattr(following, "AGAIN", 0.2)
        empty_mlflow(database)
        drawn = pictures(folder / "pictures", 80)
        shop = Shop.make(folder / "shop", s3_endpoint, drawn, fake_head.retrain_flow(), database)
        shop.first()
        assert shop.retrain().decision == "PROMOTED"
        shop.send("second", second)
        assert shop.retrain().decision == "PROMOTED"
        made = Served(shop)
        made.note_sure()
        yield made


@contextmanager
def running(served: Served, key: str | None = None, **more: Any) -> Iterator[tuple[str, Service]]:
    """The service on a port, in this process; `more` settings."""
    settings = served.shop.clone().settings.model_copy(update=more)
    made = start(Workspace(settings), impatient(settings), key)
    port = free_port()
    web = server(application(made, local=True), "127.0.0.1", port)
    thread = threading.Thread(target=web.run, daemon=True)
    thread.start()
    try:
        eventually("a champion answers", lambda: made.following.current)
        eventually("the port is open", lambda: web.started)
        yield f"http://127.0.0.1:{port}", made
    finally:
        web.should_exit = True
        thread.join(60)
        assert not thread.is_alive()


def raw(url: str, data: bytes | Iterator[bytes], kind: str = "image/jpeg", **headers: str) -> requests.Response:
    return requests.post(f"{url}/predict", data=data, headers={"Content-Type": kind, **headers}, timeout=60)


@contextmanager
def served_process(served: Served) -> Iterator[tuple[str, psutil.Process]]:
    """`ssclass serve` in a process of its own, as people start it, once a champion answers; its address."""
    port = free_port()
    folder = served.shop.clone("served").root
    command = [sys.executable, "-m", "ssclass", "serve", "--workspace", str(folder), "--listen", str(port)]
    process = subprocess.Popen(command, env=clean_environment(), stderr=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{port}"
    try:
        eventually("a champion answers", lambda: process.poll() is not None or answering(url))
        assert process.poll() is None
        yield url, psutil.Process(process.pid)
        assert process.poll() is None
    finally:
        process.terminate()
        process.wait(60)


def answering(url: str) -> str | None:
    """The version that answers at an address; None where nothing answers there."""
    try:
        found: str | None = requests.get(f"{url}/ready", timeout=30).json()["version"]
        return found
    except (requests.RequestException, ValueError):
        return None


def turn_to(served: Served, url: str, version: str) -> None:
    """Make a champion of before the one in force, and wait until it answers."""
    roll_back(served.shop.workspace, int(version))
    eventually(f"version {version} answers", lambda: answering(url) == version)
