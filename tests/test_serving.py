"""`ssclass serve`: the champion's answers over HTTP, within limits, and always those of one champion that may answer.

Real git, DVC, S3, MLflow and HTTP; the champions are small networks whose answers tell them apart.
"""

from __future__ import annotations

import base64
import json
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests

from ssclass.data.decoders import Decoders
from ssclass.data.images import Refused, decode
from ssclass.environment import free_port
from ssclass.errors import FailedError, InputError
from ssclass.params import IngestParams
from ssclass.retrain.statistics import sure_above
from ssclass.serving import bodies, service
from ssclass.serving.collected import collected, read
from ssclass.serving.service import Service
from ssclass.settings import load_settings
from ssclass.stack.parts import is_well, parts
from ssclass.stack.plan import Plan
from ssclass.tracking.client import CANDIDATE, MODEL
from ssclass.upkeep.artifacts import mend_models
from ssclass.upkeep.decisions import roll_back
from tests.support.load import BAD, asked_by, meanwhile, says_nothing, sends, streams
from tests.support.pipelines import CLASSES
from tests.support.running import clean_environment, eventually
from tests.support.serving import SIZE, Served, network, raw, running, served_process, turn_to, two_champions


@pytest.fixture(scope="module")
def served(s3_endpoint: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with two_champions(s3_endpoint, tmp_path_factory.mktemp("served")) as made:
        yield made


@pytest.fixture(scope="module")
def running_service(served: Served) -> Iterator[tuple[str, Service]]:
    with running(served) as found:
        yield found


@pytest.fixture
def url(running_service: tuple[str, Service]) -> str:
    return running_service[0]


# -- what it answers ---------------------------------------------------------------------------------------------


def test_it_answers_on_photos_sent_in_each_way(served: Served, url: str) -> None:
    photos = served.photos
    one = raw(url, photos[0])
    assert one.status_code == 200, one.text
    served.check(one.json(), [0])
    assert one.headers["X-Model-Version"] == one.json()["model"]["version"] == "2"
    assert one.json()["model"]["decision"] == served.shop.versions()["2"]
    files = [("photo", (f"{number}.jpg", data, "image/jpeg")) for number, data in enumerate(photos)]
    many = requests.post(f"{url}/predict", files=files, timeout=60)
    served.check(many.json(), [0, 1, 2, 3])
    assert [each["name"] for each in many.json()["predictions"]] == ["0.jpg", "1.jpg", "2.jpg", "3.jpg"]
    encoded = [base64.b64encode(data).decode() for data in photos]
    served.check(requests.post(f"{url}/predict", json={"photos": encoded}, timeout=60).json(), [0, 1, 2, 3])
    served.check(requests.post(f"{url}/predict", json={"photo": encoded[1]}, timeout=60).json(), [1])
    url_form = {"photos": [f"data:image/jpeg;base64,{encoded[2]}", {"name": "x", "b64": encoded[3]}]}
    served.check(requests.post(f"{url}/predict", json=url_form, timeout=60).json(), [2, 3])
    half = f'{{"photos": [{{"name": "\\ud800.jpg", "b64": "{encoded[0]}"}}]}}'  # of a character, which UTF-8 has not
    halved = raw(url, half.encode(), "application/json")
    served.check(halved.json(), [0])
    assert halved.json()["predictions"][0]["name"] == "?.jpg"


def test_it_says_of_what_it_is_not_sure(served: Served, url: str) -> None:
    told = [raw(url, data).json()["predictions"][0] for data in served.photos]
    assert [each["sure"] for each in told] == [each["probability"] >= 0.9 for each in told]


def test_of_many_photos_the_bad_ones_are_named_and_the_others_answered(served: Served, url: str) -> None:
    files = [("photo", ("a.jpg", served.photos[0])), ("photo", ("b.jpg", b"no photo")), ("photo", ("c.jpg", b""))]
    done = requests.post(f"{url}/predict", files=files, timeout=60)
    assert done.status_code == 200
    good, text, empty = done.json()["predictions"]
    assert good["label"] in CLASSES
    assert text["error"].startswith("not an image")
    assert text["label"] is None
    assert empty["error"].startswith("empty")


def test_it_describes_and_counts_itself(served: Served, url: str) -> None:
    raw(url, served.photos[0])
    paths = requests.get(f"{url}/openapi.json", timeout=60).json()["paths"]
    assert {"/predict", "/health", "/ready", "/metrics"} <= set(paths)
    body = paths["/predict"]["post"]["requestBody"]["content"]
    assert set(body) == {"multipart/form-data", "image/*", "application/json"}
    assert requests.get(f"{url}/docs", timeout=60).status_code == 200
    assert requests.get(f"{url}/health", timeout=60).json() == {"status": "ok"}
    ready = requests.get(f"{url}/ready", timeout=60)
    assert (ready.status_code, ready.json()["version"], ready.json()["away"]) == (200, "2", None)
    counts = requests.get(f"{url}/metrics", timeout=60).text
    assert 'ssclass_requests_total{status="200"}' in counts
    assert "ssclass_model_version 2.0" in counts
    assert 'ssclass_photos_total{outcome="sure"}' in counts or 'outcome="unsure"' in counts


# -- what it does not take -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "body", "status"), BAD)
def test_what_is_no_photo_is_refused_in_words(served: Served, url: str, kind: str, body: bytes, status: int) -> None:
    done = raw(url, body, kind)
    assert (done.status_code, list(done.json())) == (status, ["error"]), done.text
    assert done.json()["error"]
    served.check(raw(url, served.photos[0]).json(), [0])


def test_too_much_is_refused(served: Served, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bodies, "MOST_BYTES", 300_000)
    assert raw(url, bytes(400_000)).status_code == 413
    assert raw(url, iter([bytes(100_000)] * 5)).status_code == 413, "of unknown length"
    assert requests.post(f"{url}/predict", json={"photos": ["QUFB"] * 65}, timeout=60).status_code == 413
    files = [("photo", (f"{number}.jpg", b"x")) for number in range(65)]
    assert requests.post(f"{url}/predict", files=files, timeout=60).status_code == 413
    monkeypatch.setattr(bodies, "ALL_BYTES", 1000)
    busy = raw(url, served.photos[0])
    assert (busy.status_code, busy.headers["Retry-After"]) == (503, "1")
    monkeypatch.undo()
    monkeypatch.setattr(service, "MOST_WAITING", 0)
    assert raw(url, served.photos[0]).status_code == 503
    monkeypatch.undo()
    served.check(raw(url, served.photos[0]).json(), [0])


def test_a_slow_body_ends_while_others_are_served(
    served: Served, url: str, running_service: tuple[str, Service], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bodies, "SECONDS", 1.0)
    port = int(url.rpartition(":")[2])
    slow = [socket.create_connection(("127.0.0.1", port), timeout=60) for _ in range(20)]
    head = (
        f"POST /predict HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: image/jpeg\r\nContent-Length: 99\r\n\r\nx"
    )
    for each in slow:
        each.sendall(head.encode())
    served.check(raw(url, served.photos[1]).json(), [1])
    for each in slow:
        assert each.recv(1000).startswith(b"HTTP/1.1 408")
        each.close()
    gone = socket.create_connection(("127.0.0.1", port), timeout=60)
    gone.sendall(head.encode())
    gone.close()
    served.check(raw(url, served.photos[1]).json(), [1])
    made = running_service[1]
    eventually("nothing is held for who is gone", lambda: made.bodies._bytes == 0 and made.waiting == 0)


def test_only_who_has_the_key_is_answered_and_no_other_sites_page(served: Served) -> None:
    with running(served, key="a-secret") as (url, _):
        data = served.photos[0]
        assert raw(url, data).status_code == 401
        assert raw(url, data, Authorization="Bearer wrong").status_code == 401
        assert requests.get(f"{url}/metrics", timeout=60).status_code == 401
        assert requests.get(f"{url}/ready", timeout=60).status_code == 200
        served.check(raw(url, data, Authorization="Bearer a-secret").json(), [0])
        served.check(raw(url, data, **{"X-API-Key": "a-secret"}).json(), [0])
        other = {"Authorization": "Bearer a-secret", "Origin": "http://evil.example"}
        assert raw(url, data, **other).status_code == 403
        assert raw(url, data, **{**other, "Origin": "http://[::1"}).status_code == 403
        assert raw(url, data, Authorization="Bearer a-secret", Host="evil.example").status_code == 403


def test_it_keeps_what_it_doubts_where_that_is_wanted_and_allowed(served: Served) -> None:
    store, asked = served.shop.workspace.store, {"X-Collect-Consent": "yes"}
    best = served.expected["2"].max(axis=1)
    unsure = [served.photos[best.argmin()]]
    sure = [data for data in served.photos if data not in unsure]
    lowest, next_lowest = sorted(best)[:2]
    served.note_sure(float(lowest + next_lowest) / 2)
    with running(served) as (url, _):
        raw(url, unsure[0], **asked)
        assert list(collected(store)) == [], "off unless somebody sets it"
    with running(served, collect_photos=10) as (url, made):
        raw(url, unsure[0])
        raw(url, unsure[0], **{"X-Collect-Consent": "no"})
        files = [("photo", (f"{number}.jpg", data)) for number, data in enumerate([*sure, unsure[0], b"no photo"])]
        done = requests.post(f"{url}/predict", files=files, headers=asked, timeout=60)
        assert done.status_code == 200
        assert made.collector is not None
        eventually("it is kept", lambda: list(collected(store)), 60)
        (photo,) = collected(store)
        assert read(store, photo) == unsure[0]
        assert 'ssclass_collected_total{outcome="kept"} 1.0' in requests.get(f"{url}/metrics", timeout=60).text
        described = requests.get(f"{url}/openapi.json", timeout=60).json()["paths"]["/predict"]["post"]
        assert [each["name"] for each in described["parameters"]] == ["X-Collect-Consent"]
    served.note_sure()


# -- which champion answers ------------------------------------------------------------------------------------------


def test_it_follows_rollbacks_and_promotions_under_load(
    served: Served, url: str, running_service: tuple[str, Service]
) -> None:
    """No request fails, and each is answered by one champion, the one that it names."""
    made, ended = running_service[1], threading.Event()

    def client(number: int) -> list[tuple[int, Any, list[int]]]:
        found = []
        with requests.Session() as session:
            while not ended.is_set():
                which = [(number + len(found) + each) % 4 for each in range(1 + len(found) % 3)]
                files = [("photo", (str(each), served.photos[each])) for each in which]
                done = session.post(f"{url}/predict", files=files, timeout=60)
                found.append((done.status_code, done.json(), which))
        return found

    with ThreadPoolExecutor(4) as pool:
        clients = [pool.submit(client, number) for number in range(4)]
        try:
            for turn in range(20):
                wanted = str(1 + turn % 2)
                roll_back(served.shop.workspace, int(wanted))
                eventually(
                    f"version {wanted} answers",
                    lambda wanted=wanted: made.following.current and made.following.current.named.version == wanted,
                )
        finally:
            ended.set()
        found = [each for one in clients for each in one.result()]
    assert {status for status, _, _ in found} == {200}
    for _, answer, which in found:
        served.check(answer, which)
    assert {answer["model"]["version"] for _, answer, _ in found} == {"1", "2"}
    assert made.following.current is not None
    assert made.following.current.named.version == "2"


def test_while_mlflow_is_away_the_last_one_goes_on(
    served: Served, url: str, running_service: tuple[str, Service], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = running_service[1]

    def away() -> Any:
        raise OSError("MLflow is stopped")

    real = made.following._ask
    monkeypatch.setattr(made.following, "_ask", away)
    eventually("it notices", lambda: made.following.away)
    served.check(raw(url, served.photos[0]).json(), [0])
    state = requests.get(f"{url}/ready", timeout=60)
    assert state.status_code == 200
    assert "MLflow is stopped" in state.json()["away"]
    assert "ssclass_registry_away 1.0" in requests.get(f"{url}/metrics", timeout=60).text
    monkeypatch.setattr(made.following, "_ask", real)
    eventually("it notices", lambda: made.following.away is None)


def test_a_champion_whose_files_were_changed_may_not_answer_until_it_is_mended(served: Served) -> None:
    """The one before goes on; once the files are those of the ledger again, it takes over."""
    roll_back(served.shop.workspace, 1)
    with running(served) as (url, made):
        script = served.folder("2") / "photo_model.py"
        script.write_text(script.read_text() + "# changed\n")
        roll_back(served.shop.workspace, 2)
        eventually("it is refused", lambda: made.following.refused)
        state = requests.get(f"{url}/ready", timeout=60).json()
        assert (state["version"], state["refused"]["version"]) == ("1", "2")
        assert "others than those that were logged" in state["refused"]["why"]
        answer = raw(url, served.photos[0]).json()
        assert answer["model"]["version"] == "1"
        served.check(answer, [0])
        event = served.shop.state.decisions[served.shop.versions()["2"]]
        assert MODEL in mend_models(served.shop.workspace, served.shop.tracking, event)
        served.note_sure()
        eventually("it takes over", lambda: made.following.current and made.following.current.named.version == "2")
        assert made.following.refused is None


def test_a_version_that_no_decision_promoted_may_not_answer(served: Served) -> None:
    tracking = served.shop.tracking
    with running(served) as (url, made):
        before = tracking.alias()
        with tracking.named():
            source = tracking.client.get_model_version(tracking.name, "1")
            foreign = tracking.client.create_model_version(
                tracking.name, source.source, tags={"decision_key": "f" * 16}, model_id=source.model_id
            )
        try:
            tracking.set_alias(foreign.version)
            eventually("it is refused", lambda: made.following.refused)
            assert "no decision " + "f" * 16 in requests.get(f"{url}/ready", timeout=60).json()["refused"]["why"]
            assert raw(url, served.photos[0]).json()["model"]["version"] == before
        finally:
            tracking.set_alias(before)
            with tracking.named():
                tracking.client.delete_model_version(tracking.name, foreign.version)


def test_a_damaged_candidate_costs_the_threshold_only(served: Served) -> None:
    path = served.folder("2", CANDIDATE) / "training.json"
    kept = path.read_bytes()
    assert b"sure" in kept
    path.write_bytes(b"{")
    try:
        with running(served) as (url, _):
            assert raw(url, served.photos[0]).json()["predictions"][0]["sure"] is None
    finally:
        path.write_bytes(kept)


def test_mlflow_itself_opens_the_champion_by_its_alias(served: Served, tmp_path: Path) -> None:
    import mlflow

    tracking = served.shop.tracking
    with tracking.named():
        model = mlflow.pyfunc.load_model(f"models:/{tracking.name}@champion")
    found = model.predict(list(served.photos)).to_dict("records")
    served.check({"model": {"version": tracking.alias()}, "predictions": found}, [0, 1, 2, 3])


def test_as_a_process_it_answers_through_switches_and_nonsense(served: Served) -> None:
    """The short form of tests/test_load.py."""
    with served_process(served) as (url, process), asked_by(served, url, 4) as seen:
        with meanwhile(*[(says_nothing, url)] * 5) as silent:
            for wanted in ("1", "2", "1", "2"):
                turn_to(served, url, wanted)
            for kind, body, status in BAD:
                assert sends(url, body, kind) == status
            assert streams(url, 70) == 413
            before, answered = process.memory_info().rss, seen.count
            eventually("some hundred more are answered", lambda: seen.count > answered + 300)
            grown = process.memory_info().rss - before
        assert [each.result() for each in silent] == [0] * 5
    assert (seen.failed, set(seen.statuses)) == ([], {200})
    assert set(seen.versions) == {"1", "2"}
    assert grown < 40_000_000, f"{grown / 1e6:.0f} MB more after 300 requests"


# -- exports -----------------------------------------------------------------------------------------------------


def test_an_export_is_checked_on_the_held_out_photos_and_opens_elsewhere(served: Served, tmp_path: Path) -> None:
    from ssclass.serving.checked import check, export_model
    from ssclass.serving.exporting import open_export
    from ssclass.serving.model import open_model

    workspace = served.shop.workspace
    model = open_model("1", workspace.settings)
    made = export_model(workspace, model, "litert", "float32", tmp_path / "e", lambda *_: None)
    assert json.loads((tmp_path / "e" / "model.json").read_text()) == made
    assert (made["classes"], made["size"], made["check"]["photos"]) == (list(CLASSES), SIZE, 10)
    assert made["check"]["right"] == made["check"]["model_right"]
    run = open_export(tmp_path / "e" / made["file"], "litert")
    found = np.stack([run(image) for image in served.images])
    np.testing.assert_allclose(found, served.expected["1"], atol=1e-5)
    with pytest.raises(InputError, match="is there already"):
        export_model(workspace, model, "litert", "float32", tmp_path / "e", lambda *_: None)
    opposite = replace(model, classes=tuple(reversed(model.classes)))
    told = check(workspace.decided(str(model.key)), opposite, tmp_path / "e" / made["file"], "litert", lambda *_: None)
    assert told.right == 10 - made["check"]["right"]


def test_an_export_that_answers_otherwise_is_refused_and_not_there(
    served: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A network that answers no numbers stands for a conversion that went wrong."""
    from ssclass.serving import checked
    from ssclass.serving.model import open_model

    model, real = open_model("1", served.shop.workspace.settings), checked.convert
    monkeypatch.setattr(checked, "convert", lambda keras, *rest: real(network(float("nan")), *rest))
    with pytest.raises(FailedError, match="held-out photos right, the model"):
        checked.export_model(served.shop.workspace, model, "litert", "float32", tmp_path / "wrong", lambda *_: None)
    assert list(tmp_path.iterdir()) == []


# -- the command ---------------------------------------------------------------------------------------------------


def test_the_command_serves_a_workspace_without_a_champion_and_ends_on_request(
    s3_endpoint: str, tmp_path: Path
) -> None:
    from ssclass.workspace.create import create

    create(tmp_path / "w", {"bucket": "b", "s3_endpoint": s3_endpoint, "s3_region": "us-east-1"})
    command = [sys.executable, "-m", "ssclass", "serve", "--workspace", str(tmp_path / "w"), "--listen"]
    environment = clean_environment()
    for address, told in (("0.0.0.0:1", "SSCLASS_SERVE_KEY"), ("port", "give [HOST:]PORT")):
        done = subprocess.run([*command, address], env=environment, capture_output=True, text=True)
        assert done.returncode == 2
        assert told in done.stderr
    with socket.create_server(("127.0.0.1", 0)) as taken:
        done = subprocess.run([*command, str(taken.getsockname()[1])], env=environment, capture_output=True, text=True)
        assert done.returncode == 2
        assert "choose another port" in done.stderr
    port = free_port()
    settings = load_settings(tmp_path / "w").model_copy(update={"serve_listen": f"127.0.0.1:{port}"})
    folder = settings.private / "stack"
    (part,) = (each for each in parts(settings, Plan.of(folder), folder) if each.name == "serve")
    assert not is_well(part)
    process = subprocess.Popen(part.command, env=environment | part.environment)
    statuses: list[int] = []

    def answers() -> bool:
        assert process.poll() is None
        try:
            statuses[:] = [
                requests.get(f"http://127.0.0.1:{port}/ready", timeout=5).status_code,
                requests.post(f"http://127.0.0.1:{port}/predict", data=b"x", timeout=5).status_code,
                requests.get(f"http://127.0.0.1:{port}/health", timeout=5).status_code,
            ]
        except requests.ConnectionError:
            return False
        return True

    try:
        eventually("it answers", answers)
        assert statuses == [503, 503, 200]
        assert is_well(part), "as the supervisor of `ssclass up` asks it"
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)
    assert process.returncode in (0, 128 + signal.SIGTERM, -signal.SIGTERM)


# -- parts ---------------------------------------------------------------------------------------------------------


def test_pixels_from_the_guarded_decode_are_those_of_training(served: Served, photos: Path) -> None:
    some = [path.read_bytes() for path in sorted(photos.rglob("*.jpg"))[:5]] + list(served.photos)
    guarded = Decoders(1)
    try:
        for data in some:
            np.testing.assert_array_equal(guarded.decode(data, 96, IngestParams(min_side=1)), decode(data, 96))
        for data in (b"", b"junk", some[0][:100]):
            with pytest.raises(Refused):
                guarded.decode(data, 96, IngestParams(min_side=1))
    finally:
        guarded.close()


def test_sure_is_what_halves_the_errors() -> None:
    draw = np.random.default_rng(0)
    labels = draw.integers(0, 2, 1000)
    best = draw.uniform(0.5, 1, 1000)
    right = draw.uniform(0, 1, 1000) < best
    answers = np.where(right, labels, 1 - labels)
    odds = np.where((answers == 0)[:, None], np.c_[best, 1 - best], np.c_[1 - best, best])
    found = sure_above(odds, labels)
    assert found is not None
    sure = best >= found["threshold"]
    assert 0 < sure.mean() < 1
    assert found["share"] == pytest.approx(sure.mean())
    assert (~right)[sure].mean() <= (~right).mean() / 2
    assert found["accuracy"] == pytest.approx(right[sure].mean())
    below = best >= np.sort(best)[::-1][sure.sum()]
    assert (~right)[below].mean() > (~right).mean() / 2, "it is the lowest such probability"


def test_sure_where_all_is_right_or_wrong_or_nothing_is_known() -> None:
    odds = np.array([[0.9, 0.1], [0.6, 0.4]])
    assert sure_above(odds, np.array([0, 0])) == {"threshold": 0.0, "share": 1.0, "accuracy": 1.0}
    assert sure_above(odds, np.array([1, 1])) == {"threshold": 1.0, "share": 0.0, "accuracy": 0.0}
    assert sure_above(np.full((4, 2), 0.5), np.array([0, 0, 1, 1])) == {"threshold": 1.0, "share": 0.0, "accuracy": 0.0}
    assert sure_above(np.empty((0, 2)), np.array([0, 1])) is None
    assert sure_above(np.array([[np.nan, np.nan]]), np.array([0])) is None


def test_models_of_older_versions_are_verified_by_what_they_have(served: Served, tmp_path: Path) -> None:
    """Those are Keras's flavour alone: data/model.keras, and no sum."""
    from ssclass.serving.model import open_folder
    from ssclass.tracking.packaged import broken

    new = served.folder("1")
    (tmp_path / "data").mkdir()
    shutil.copy(new / "artifacts" / "model.keras", tmp_path / "data" / "model.keras")
    key = served.shop.versions()["1"]
    (tmp_path / "MLmodel").write_text(
        json.dumps({"metadata": {"classes": list(CLASSES), "size": SIZE, "decision_key": key}})
    )
    assert broken(tmp_path, key, {}) is None
    np.testing.assert_allclose(open_folder("old", tmp_path).predict(served.images), served.expected["1"], atol=1e-4)
