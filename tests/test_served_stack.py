"""`ssclass up` with `serve_listen`: the whole way from a delivery to an app's answer, and an end with the stack."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import requests
from PIL import Image

from ssclass.environment import free_port, quiet_libraries
from ssclass.settings import home
from ssclass.tracking.client import Tracking
from tests.support.models import needed_weights
from tests.support.running import CLASSES, Running, clean_environment, eventually

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


@pytest.fixture
def address() -> str:
    return f"127.0.0.1:{free_port()}"


@pytest.fixture
def serving(tmp_path: Path, address: str) -> Iterator[Running]:
    needed_weights()
    asked = {"SSCLASS_SERVE_LISTEN": address, "SSCLASS_EXPORTS": "litert-float16"}
    running = Running(tmp_path / "workspace", clean_environment(SSCLASS_HOME=str(home()), **asked))
    running.make()
    yield running
    running.cli("down")


def photo() -> bytes:
    written = io.BytesIO()
    Image.linear_gradient("L").convert("RGB").save(written, "JPEG")
    return written.getvalue()


def test_a_delivery_becomes_an_apps_answer_and_the_service_ends_with_the_stack(serving: Running, address: str) -> None:
    url = f"http://{address}"

    def answer() -> requests.Response:
        return requests.post(f"{url}/predict", data=photo(), headers={"Content-Type": "image/jpeg"}, timeout=60)

    assert requests.get(f"{url}/health", timeout=60).status_code == 200
    assert answer().status_code == 503, "nothing was promoted yet"
    pid = serving.pid("serve")
    serving.submit("day-1", per_class=15)
    eventually("the promoted model answers", lambda: answer().status_code == 200, within=900)
    found = answer().json()
    (event,) = serving.state().decisions.values()
    assert (found["model"]["version"], found["model"]["decision"]) == ("1", event.body["key"])
    assert set(found["predictions"][0]["probabilities"]) == set(CLASSES)
    assert serving.pid("serve") == pid, "it followed, and was not started anew"

    quiet_libraries(serving.settings)
    tracking = Tracking(serving.settings)

    def exported() -> str | None:
        with tracking.named():
            tags = tracking.client.get_model_version(tracking.name, "1").tags
        return str(tags["export.litert-float16"]) if "export.litert-float16" in tags else None

    assert eventually("the export is attached", exported, within=900).startswith("attached: ")
    serving.idle()
    assert "serve running" in serving.cli("status").stdout

    serving.cli("down")
    with pytest.raises(requests.ConnectionError):
        requests.get(f"{url}/health", timeout=60)
    assert not psutil.pid_exists(pid)
    serving.cli("up", "--detach")
    eventually("it answers again, by the same model", lambda: answer().status_code == 200, within=300)
    assert answer().json()["model"]["version"] == "1"
