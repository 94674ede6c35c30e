"""Fixtures that every test may use: real parts, in temporary folders and on free loopback ports."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from ssclass.drawings import draw
from ssclass.params import DatasetParams, Params
from ssclass.settings import CHECKOUT, Settings
from ssclass.store import Store

CLASSES = ("sandwich", "sushi")
REAL = Path(os.environ.get("SSCLASS_PHOTOS") or CHECKOUT.parent / "shared" / "photos")


def pytest_report_header() -> str:
    if real_photos():
        return f"photos: {REAL}"
    return "photos: none (SSCLASS_PHOTOS, or ../shared/photos); drawings take their place"


def real_photos() -> bool:
    return all((REAL / name).is_dir() for name in CLASSES)


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The user's AWS configuration and workspace neither leak in nor are touched."""
    for name in list(os.environ):
        if name.startswith("AWS_") or (name.startswith("SSCLASS_") and name not in ("SSCLASS_HOME", "SSCLASS_PHOTOS")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "testing")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "no-such-file"))


@pytest.fixture(scope="session")
def s3_endpoint() -> Iterator[str]:
    """A moto server of this test session, as a URL."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


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
