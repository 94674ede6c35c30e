"""Notifications, as S3 servers really send them and as nobody should: what they make of a batch."""

import json
import os
import threading
import time
from pathlib import Path

import pytest
import requests
from hypothesis import given
from hypothesis import strategies as st

from ssclass.data.batches import submit
from ssclass.environment import free_port
from ssclass.errors import ParamsError
from ssclass.settings import Settings
from ssclass.stack import webhook
from ssclass.stack.listening import Backoff, Hints, batches_in
from ssclass.stack.queue import poll, queue_client
from ssclass.store import Store
from ssclass.upkeep.bucket import notify

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


def test_an_open_webhook_without_a_secret_is_refused():
    with pytest.raises(ParamsError, match="without a secret"):
        webhook.server("0.0.0.0:8099", None)
    with pytest.raises(ParamsError, match="give a port"):
        webhook.server("localhost", None)
    assert webhook.server("8099", None)


def test_settings_of_the_sweep_come_from_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("SSCLASS_SWEEP", "7")
    assert Settings(workspace=tmp_path).sweep == 7
