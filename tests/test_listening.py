"""Notifications, as S3 servers really send them and as nobody should: what they make of a batch."""

import io
import json
import logging
import os
import socket
import threading
import time
from pathlib import Path

import pytest
import requests
from botocore.stub import Stubber
from hypothesis import given
from hypothesis import strategies as st

from ssclass.data.submit import submit
from ssclass.environment import free_port
from ssclass.errors import ParamsError, StoreError
from ssclass.secrets import LineFormatter, hide
from ssclass.settings import Settings
from ssclass.stack import serving, webhook
from ssclass.stack.listening import Backoff, Hints, batches_in, tell
from ssclass.stack.queue import poll, queue_client
from ssclass.store import Store
from ssclass.upkeep.bucket import notify
from ssclass.workspace.create import create

CLASSES = ("sandwich", "sushi")


def s3_event(*keys: str, bucket: str = "photos") -> dict:
    return {"Records": [{"s3": {"bucket": {"name": bucket}, "object": {"key": key}}} for key in keys]}


def test_only_markers_of_our_bucket_name_a_batch():
    event = s3_event(
        "incoming/day-1/manifest.json",
        "incoming%2Fday+2%2F_SUCCESS",
        "incoming/day-3/sushi/1.jpg",
        "incoming/day-4/sushi/manifest.json",
        "quarantine/day-5/manifest.json",
    )
    assert batches_in(json.dumps(event), "photos") == {"day-1", "day 2"}
    assert batches_in(json.dumps(event), "another") == set()
    assert batches_in(json.dumps(event), "photos/shop") == set(), "a workspace with a folder of its own in the bucket"
    inside = json.dumps(event).replace('"incoming', '"shop/incoming')
    assert batches_in(inside, "photos/shop") == {"day-1", "day 2"}
    assert batches_in(inside, "photos") == set()


def test_envelopes_of_aws_are_opened():
    inner = json.dumps(s3_event("incoming/day-1/manifest.json"))
    assert batches_in(json.dumps({"Type": "Notification", "Message": inner}), "photos") == {"day-1"}
    bridge = {"detail": {"bucket": {"name": "photos"}, "object": {"key": "incoming/day+1/manifest.json"}}}
    assert batches_in(json.dumps(bridge), "photos") == {"day+1"}, "EventBridge does not encode keys"


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(),
        lambda inner: (
            st.lists(inner)
            | st.dictionaries(st.sampled_from(["Records", "s3", "bucket", "object", "key", "detail", "Message"]), inner)
        ),
    )
)
def test_nothing_else_is_a_batch_or_an_error(message):
    assert batches_in(json.dumps(message), "photos") == set()


@pytest.mark.parametrize("depth", [900, 5_000, 100_000])
@pytest.mark.parametrize("opened", ["[", '{"Records":', '{"detail":{"object":{"key":'])
def test_brackets_without_end_are_nothing(depth, opened):
    depth = depth // len(opened) + 1
    whole = opened * depth + "0" + "".join({"[": "]", "{": "}"}.get(each, "") for each in reversed(opened)) * depth
    assert batches_in(opened * depth, "photos") == set()
    assert batches_in(whole, "photos") == set()
    assert batches_in(json.dumps({"Message": whole}), "photos") == set()
    deep = f'{{"detail": {{"bucket": {{"name": "photos"}}, "object": {{"key": {whole}}}}}}}'
    assert batches_in(deep, "photos") == set()


@pytest.mark.parametrize("junk", [b"", b"{", b"\xff\xfe\x00", b'{"Message": "{"}', b'{"Event": "s3:TestEvent"}'])
def test_junk_is_not_an_error(junk):
    assert batches_in(junk, "photos") == set()


def test_a_burst_becomes_two_events():
    now = [0.0]
    hints = Hints(quiet=15, clock=lambda: now[0])
    told = []
    for second in range(60):
        now[0] = float(second)
        if second < 10:
            hints.add([f"day-{second}"], "webhook")
            hints.add([f"day-{second}"], "sqs")
        if due := hints.due():
            told.append(sorted(due))
            hints.done(due)
    assert told == [["day-0"], [f"day-{n}" for n in range(1, 10)]]


def test_a_notification_of_what_was_just_told_adds_nothing():
    now = [100.0]
    hints = Hints(clock=lambda: now[0])
    hints.add(["day-1"], "sweep")
    hints.done(hints.due())
    hints.add(["day-1"], "webhook")
    now[0] += 30
    assert hints.due() == {}
    hints.add(["day-1"], "sweep")
    assert hints.due() == {"day-1": "sweep"}, "a sweep knows that nobody has taken it in"


def test_what_could_not_be_told_is_kept():
    hints = Hints(clock=lambda: 0.0)
    hints.add(["day-1"], "sweep")
    assert hints.due() == {"day-1": "sweep"}
    assert hints.due() == {"day-1": "sweep"}
    hints.done(["day-1"])
    assert hints.due() == {}


def test_a_sweep_repeats_itself_ever_more_rarely_until_something_changes():
    now = [0.0]
    backoff = Backoff(300, clock=lambda: now[0])
    told = []
    for sweep in range(24):
        now[0] = sweep * 300.0
        if backoff.lets(("day-1",)):
            told.append(sweep)
    assert told == [0, 1, 3, 7, 15]
    assert backoff.lets(("day-1", "day-2"))
    assert not backoff.lets(())
    assert backoff.lets(("day-1",))


def test_sqs_delivers_real_notifications_and_survives_the_rest(s3: Store, drawings: Path):
    """moto sends a TestEvent first, then one message an object; every message is taken off the queue."""
    settings = s3.settings
    url = f"{settings.s3_endpoint}/123456789012/{s3.bucket}"
    client = queue_client(settings, url)
    client.create_queue(QueueName=s3.bucket)
    arn = client.get_queue_attributes(QueueUrl=url, AttributeNames=["QueueArn"])["Attributes"]["QueueArn"]
    notify(s3, arn)
    client.send_message(QueueUrl=url, MessageBody="junk")

    heard: list[bytes] = []
    named = threading.Event()
    stop = threading.Event()

    def hear(body: bytes, source: str) -> None:
        heard.append(body)
        if "day-1" in batches_in(body, s3.bucket):
            named.set()

    thread = threading.Thread(target=poll, args=(settings, url, hear, stop))
    thread.start()
    try:
        submit(s3, drawings, "day-1", CLASSES)
        assert named.wait(30)
        assert any(b"TestEvent" in body for body in heard)
        while int(
            client.get_queue_attributes(QueueUrl=url, AttributeNames=["All"])["Attributes"][
                "ApproximateNumberOfMessages"
            ]
        ):
            time.sleep(0.1)
    finally:
        stop.set()
        client.send_message(QueueUrl=url, MessageBody="wakes the long poll")
        thread.join(15)
    assert sum("day-1" in batches_in(body, s3.bucket) for body in heard) == 1


def test_a_message_that_cannot_be_heard_does_not_come_back(s3: Store):
    settings = s3.settings
    url = f"{settings.s3_endpoint}/123456789012/{s3.bucket}"
    client = queue_client(settings, url)
    client.create_queue(QueueName=s3.bucket, Attributes={"VisibilityTimeout": "0"})
    for body in ("first", "second", "[" * 100_000):
        client.send_message(QueueUrl=url, MessageBody=body)
    heard: list[bytes] = []
    done, stop = threading.Event(), threading.Event()

    def hear(body: bytes, source: str) -> None:
        heard.append(body)
        if len(heard) >= 3:
            done.set()
        raise RecursionError("too deep")

    thread = threading.Thread(target=poll, args=(settings, url, hear, stop))
    thread.start()
    try:
        assert done.wait(30)
    finally:
        stop.set()
        client.send_message(QueueUrl=url, MessageBody="wakes the long poll")
        thread.join(15)
    assert sorted(heard)[:3] == sorted(set(heard))[:3], "one came back"


def test_a_notification_writes_no_line_of_its_own_into_the_log(caplog):
    """Neither by the name of a batch, nor by what is quoted of a server's answer; nor does a secret get there."""
    hide("s3cret-of-the-webhook")
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(LineFormatter("%(asctime)s %(message)s"))
    logger = logging.getLogger("tests.lines")
    logger.addHandler(handler)
    logger.propagate = False
    event = s3_event("incoming/x%0A2026-01-01 sweep: all is well%1b[2J%E2%80%AE/manifest.json")
    (name,) = batches_in(json.dumps(event), "photos")
    logger.warning("webhook: %s", name)
    try:
        raise RuntimeError(f"first\n2026-01-01 forged {name} s3cret-of-the-webhook")
    except RuntimeError:
        logger.exception("it said %s", "http://user:pa@ss/wo:rd@host/x")
    lines = stream.getvalue().splitlines()
    assert [line for line in lines if line.startswith("2026-01-01")] == []
    assert "\\n2026-01-01 sweep" in lines[0]
    assert all(each.isprintable() for line in lines for each in line)
    assert "s3cret" not in stream.getvalue()
    assert "wo:rd" not in stream.getvalue()
    assert all(line.startswith("    ") for line in lines[2:]), "a traceback is indented"


def test_what_a_batch_is_called_is_told_on_one_line(monkeypatch, tmp_path):
    posted = []
    monkeypatch.setattr("ssclass.stack.listening.post", lambda *event: posted.append(event))
    tell(Settings(workspace=tmp_path), {"day\r\nBcc: all@example.org": "sqs"})
    assert all(str(part).isprintable() for part in posted[0])


@pytest.fixture
def endpoint():
    heard: list[bytes] = []
    port = free_port()
    webhook.server(str(port), "a secret")(heard.append)
    url = f"http://127.0.0.1:{port}"
    for _ in range(100):
        try:
            requests.get(f"{url}/health", timeout=1)
            break
        except requests.ConnectionError:
            time.sleep(0.05)
    return url, heard


def test_the_webhook_wants_its_secret(endpoint):
    url, heard = endpoint
    assert requests.post(f"{url}/s3", data=b"{}", timeout=5).status_code == 401
    wrong = {"Authorization": "Bearer another secret"}
    assert requests.post(f"{url}/s3", data=b"{}", headers=wrong, timeout=5).status_code == 401
    assert heard == []
    right = {"Authorization": "Bearer a secret"}
    assert requests.post(f"{url}/s3", data=b"{}", headers=right, timeout=5).status_code == 200
    assert heard == [b"{}"]


def test_the_webhook_takes_no_more_than_its_limit(endpoint):
    url, heard = endpoint
    right = {"Authorization": "Bearer a secret"}
    answer = requests.post(f"{url}/s3", data=os.urandom(webhook.LIMIT + 1), headers=right, timeout=5)
    assert answer.status_code == 413
    parts = iter([os.urandom(webhook.LIMIT), os.urandom(100)])  # chunked: no length is announced
    assert requests.post(f"{url}/s3", data=parts, headers=right, timeout=5).status_code == 413
    assert heard == []


@pytest.mark.parametrize("sent", [b"", b"POST /s3 HTTP/1.1\r\nHost: x\r\n", b"POST /s3 HTTP/1.1\r\nX: " + b"y" * 500])
def test_silent_connections_keep_nobody_out(endpoint, sent):
    """More of them than may wait at a time, and none knows the secret; the notification gets through at once."""
    url, heard = endpoint
    port = int(url.rpartition(":")[2])
    opened = []
    try:
        for _ in range(3 * serving.SILENT):
            opened.append(socket.create_connection(("127.0.0.1", port)))
            opened[-1].sendall(sent)
        for _ in range(5):
            right = {"Authorization": "Bearer a secret"}
            assert requests.post(f"{url}/s3", data=b"{}", headers=right, timeout=5).status_code == 200
    finally:
        for each in opened:
            each.close()
    assert heard == [b"{}"] * 5


def test_a_silent_client_is_cut_off(endpoint, monkeypatch):
    monkeypatch.setattr(serving, "PATIENCE", 0.3)
    monkeypatch.setattr(webhook, "PATIENCE", 0.3)
    url, heard = endpoint
    port = int(url.rpartition(":")[2])
    with socket.create_connection(("127.0.0.1", port), timeout=20) as silent:
        silent.sendall(b"POST /s3 HTTP/1.1\r\n")
        assert silent.recv(100) == b""
    with socket.create_connection(("127.0.0.1", port), timeout=20) as slow:
        slow.sendall(b"POST /s3 HTTP/1.1\r\nHost: x\r\nAuthorization: a secret\r\nContent-Length: 100\r\n\r\nslow")
        assert b" 408 " in slow.recv(100)
    assert heard == []


@pytest.mark.parametrize(
    "arn",
    ["x", "", "batches", "arn:aws:s3:::photos", "arn:aws:sqs:eu-central-1:1:a b", "arn:aws:sns:eu:1:t\n"],
)
def test_what_is_no_queue_is_named_before_anything_is_made(arn, s3_endpoint, ssclass, tmp_path):
    where = tmp_path / "workspace"
    create(where, {"bucket": "never-made", "s3_endpoint": s3_endpoint, "s3_region": "us-east-1"})
    done = ssclass("bucket", "setup", "--notify", arn, "--workspace", where, check=False)
    if arn == "":
        assert done.returncode == 0, "no queue is named"
        return
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert "--notify" in line
    assert "arn:aws:sqs:" in line


def test_a_queue_that_is_not_there_is_named(s3: Store):
    """As AWS says it; moto takes any."""
    said = "Unable to validate the following\ndestination"
    with Stubber(s3.client) as stubbed:
        stubbed.add_response("get_bucket_notification_configuration", {})
        stubbed.add_client_error("put_bucket_notification_configuration", "InvalidArgument", said)
        with pytest.raises(StoreError, match=r"batches .*Unable to validate.*policy") as raised:
            notify(s3, "arn:aws:sqs:eu-central-1:123456789012:batches")
    assert "\n" not in str(raised.value)


def test_an_open_webhook_without_a_secret_is_refused():
    with pytest.raises(ParamsError, match="without a secret"):
        webhook.server("0.0.0.0:8099", None)
    for address in ("localhost", "0", "70000", "-1", "8099x", "[::1]:"):
        with pytest.raises(ParamsError, match="give a port"):
            webhook.server(address, "a secret")
    assert webhook.server("8099", None)


def test_settings_of_the_sweep_come_from_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("SSCLASS_SWEEP", "7")
    assert Settings(workspace=tmp_path).sweep == 7
