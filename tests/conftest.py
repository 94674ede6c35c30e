"""Fixtures that every test may use: real parts, in temporary folders and on free loopback ports."""

from __future__ import annotations

import os
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from ssclass.demo.drawings import draw
from ssclass.params import DatasetParams, Params
from ssclass.settings import CHECKOUT, Settings, home
from ssclass.store import Store
from tests.support.browsing import Browser, browser
from tests.support.models import needed_weights
from tests.support.moto import s3_server
from tests.support.pipelines import CLASSES, REAL, Command, Pipeline, real_photos
from tests.support.running import Running, clean_environment

if TYPE_CHECKING:
    pass


def pytest_report_header() -> str:
    if real_photos():
        return f"photos: {REAL}"
    return "photos: none (SSCLASS_PHOTOS, or ../shared/photos); drawings take their place"


def pytest_collection_finish() -> None:
    """Prefect reads its settings when it is imported: before a fixture has named a server, it would start its own."""
    assert "prefect" not in sys.modules, "a test module imports Prefect at its top; do it inside the test"


@pytest.fixture(scope="session", autouse=True)
def _own_environment_of_session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The same as `_own_environment`, for fixtures that outlive a test."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        isolate(monkeypatch, tmp_path_factory.getbasetemp())
        yield


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The user's AWS configuration and workspace neither leak in nor are touched."""
    isolate(monkeypatch, tmp_path)


def isolate(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Take the person's settings out of the environment, and put the tests' own in."""
    for name in list(os.environ):
        if name.startswith("AWS_") or (name.startswith("SSCLASS_") and name not in ("SSCLASS_HOME", "SSCLASS_PHOTOS")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("SSCLASS_EXPORTS", "")  # a converter takes many seconds; tests/test_attached.py asks for it
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "testing")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "no-such-file"))


@pytest.fixture(scope="session")
def s3_endpoint() -> Iterator[str]:
    """A moto server of this test session, as a URL."""
    with s3_server() as endpoint:
        yield endpoint


@pytest.fixture
def s3(s3_endpoint: str, tmp_path: Path) -> Store:
    """A Store on a new, empty bucket."""
    bucket = f"test-{uuid.uuid4().hex[:12]}"
    store = Store(Settings(workspace=tmp_path / "workspace", bucket=bucket, s3_endpoint=s3_endpoint))
    store.make_bucket()
    return store


@pytest.fixture
def params() -> Params:
    """The shipped params, two classes."""
    return Params(dataset=DatasetParams(classes=CLASSES))


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of class folders, not to be written to: the real photos where they are, else drawings."""
    if real_photos():
        return REAL
    folder = tmp_path_factory.mktemp("drawings")
    draw(folder, CLASSES, per_class=60)
    return folder


@pytest.fixture(scope="session")
def drawings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small folder of class folders, drawn: 12 pictures a class."""
    folder = tmp_path_factory.mktemp("small")
    draw(folder, CLASSES, per_class=12)
    return folder


@pytest.fixture(scope="session")
def prefect_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The API of a Prefect server of this test session: one start for all flows, whatever process they run in."""
    import requests
    from tenacity import Retrying, stop_after_delay, wait_fixed

    from ssclass.environment import free_port

    home, port = tmp_path_factory.mktemp("prefect"), free_port()
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    environment |= {"PREFECT_HOME": str(home), "PREFECT_SERVER_ANALYTICS_ENABLED": "false", "DO_NOT_TRACK": "1"}
    with (home / "server.log").open("w") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", "prefect", "server", "start", "--port", str(port), "--no-services", "--no-ui"],
            env=environment,
            stdout=log,
            stderr=log,
        )
    try:
        url = f"http://127.0.0.1:{port}/api"
        for attempt in Retrying(stop=stop_after_delay(120), wait=wait_fixed(0.5), reraise=True):
            with attempt:
                assert server.poll() is None, (home / "server.log").read_text()
                requests.get(f"{url}/health", timeout=5).raise_for_status()
        yield url
    finally:
        server.terminate()
        server.wait(30)


@pytest.fixture(scope="session")
def ssclass(tmp_path_factory: pytest.TempPathFactory) -> Command:
    """Runs the installed command."""
    beside = Path(sys.executable).parent
    if (beside / "ssclass").exists():
        return Command(beside)
    folder = tmp_path_factory.mktemp("bin")
    script = folder / "ssclass"
    script.write_text(f'#!/bin/sh\nPYTHONPATH="{CHECKOUT}" exec "{sys.executable}" -m ssclass "$@"\n')
    script.chmod(0o755)
    return Command(folder)


@pytest.fixture(scope="session")
def pipeline(s3_endpoint: str, prefect_url: str) -> Pipeline:
    """The parts that a retrain needs; skips where the weights cannot be had."""
    from ssclass.errors import WeightsError
    from ssclass.model.weights import load_weights

    try:
        load_weights("mobilenet")
    except WeightsError as error:
        pytest.skip(f"no retrain without weights: {error}")
    return Pipeline(s3_endpoint, prefect_url)


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """The whole stack by `ssclass up`, one for the session; but for a sweep every 20 s it is as anybody's."""
    needed_weights()
    environment = clean_environment(SSCLASS_HOME=str(home()), SSCLASS_SWEEP="20")
    running = Running(tmp_path_factory.mktemp("stack") / "workspace", environment)
    running.make()
    yield running
    running.cli("down")


@pytest.fixture(scope="module")  # no longer: while it is open, Prefect takes its event loop for ours
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """A real browser; tests that need it are skipped where there is none."""
    with browser(tmp_path_factory.mktemp("screenshots")) as opened:
        yield opened
