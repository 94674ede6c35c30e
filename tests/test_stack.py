"""The stack by `ssclass up`: real servers, listener and workers. Nobody steps in between delivery and decision."""

import json
import os
import re
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import pytest
import requests

from ssclass.environment import LOGINS_FILE, free_port, quiet_libraries
from ssclass.settings import CHECKOUT, Settings
from ssclass.stack.automations import NOTICES
from ssclass.stack.plan import credentials
from ssclass.stack.queue import queue_client
from ssclass.store import Store
from ssclass.tracking.client import Tracking
from ssclass.upkeep.bucket import ROLES, notify
from tests.support.running import Running, dump, eventually

pytestmark = pytest.mark.timeout(900)


@pytest.fixture(scope="module")
def delivered(stack: Running) -> Running:
    """The stack, with one batch decided on."""
    stack.submit("day-1", per_class=15)
    eventually("day-1 is decided", lambda: "day-1" in stack.decided())
    stack.idle()
    return stack


def test_a_batch_becomes_a_decision_by_itself(delivered: Running):
    state = delivered.state()
    (event,) = state.decisions.values()
    assert event.body["decision"] == "PROMOTED", event.body
    assert [run["parameters"]["batch"] for run in delivered.runs("retrain")] == ["day-1"]
    (arrived,) = delivered.events("ssclass.batch.arrived")
    assert "webhook: day-1" in delivered.log("listener"), "S3 told of it"
    assert arrived["payload"]["count"] == 1

    quiet_libraries(delivered.settings)
    tracking = Tracking(delivered.settings)
    assert tracking.alias() == "1"
    (run,) = tracking.runs(event.body["key"])
    assert run.data.tags["decision"] == "PROMOTED"
    assert run.data.tags["device"] == "CPU", "or the name of the GPU that a worker has"
    assert run.info.run_id == event.body["run_id"]


def test_the_training_was_the_gpu_pools(delivered: Running):
    (run,) = delivered.runs("train")
    assert run["work_pool_name"] == "gpu"
    assert run["state"]["type"] == "COMPLETED"
    assert run["parameters"]["workspace"].endswith(".git"), "a worker is told a git URL, no folder of this machine"


def test_typed_parameters_come_from_the_event(delivered: Running):
    (run,) = delivered.runs("retrain")
    assert run["parameters"]["count"] == 1, dump(run["parameters"])


def test_promoted_is_told_once_the_alias_moved(delivered: Running):
    (event,) = eventually("the notice", lambda: delivered.events("ssclass.model.promoted"))
    assert event["payload"]["version"] == "1"
    assert event["payload"]["candidate"]["right"] > 0
    assert delivered.events("ssclass.model.rejected") == []


def test_nothing_new_is_skipped_without_ado(delivered: Running):
    before = len(delivered.state().decisions)
    run = delivered.retrain_now()
    assert run["state"]["type"] == "COMPLETED", run["state"]
    assert len(delivered.state().decisions) == before
    assert len(delivered.runs("train")) == 1


def test_a_queue_tells_of_a_batch_as_well(delivered: Running, s3_endpoint: str, tmp_path: Path):
    """S3 → SQS → `ssclass listen` → Prefect: the notification is moto's, of a bucket that has our bucket's name."""
    settings = Settings(workspace=tmp_path, bucket=delivered.settings.bucket, s3_endpoint=s3_endpoint)
    bucket, url = Store(settings), f"{s3_endpoint}/123456789012/arrivals"
    client = queue_client(settings, url)
    client.create_queue(QueueName="arrivals")
    arn = client.get_queue_attributes(QueueUrl=url, AttributeNames=["QueueArn"])["Attributes"]["QueueArn"]
    bucket.make_bucket()
    notify(bucket, arn)
    command = [sys.executable, "-m", "ssclass", "listen", "--sqs", url]
    listener = subprocess.Popen(command, cwd=delivered.folder, env=delivered.environment, stderr=subprocess.DEVNULL)
    try:
        bucket.put("incoming/by-queue/_SUCCESS", b"")
        told = eventually(
            "Prefect is told of it",
            lambda: [e for e in delivered.events("ssclass.batch.arrived") if e["payload"]["batch"] == "by-queue"],
        )
        assert told[0]["payload"]["source"] == "sqs"
        eventually(
            "the retrain has run",
            lambda: [r for r in delivered.runs("retrain", "COMPLETED") if r["parameters"].get("batch") == "by-queue"],
        )
    finally:
        listener.terminate()
        assert listener.wait(60) == 0


def test_deploying_again_changes_nothing_and_says_what_it_does_change(delivered: Running):
    assert delivered.cli("deploy").stdout.strip().endswith("nothing to change")
    own = delivered.folder / "deployments.yaml"
    shipped = (delivered.workspace().root / "deployments.yaml").exists()
    assert not shipped
    from ssclass.workspace.create import template_file

    text = (template_file("deployments.yaml")).read_text()
    try:
        own.write_text(text.replace("30 3 * * *", "45 4 * * *"))
        said = delivered.cli("deploy").stdout
        assert "deployment retrain/retrain: changed schedules" in said
        assert "train/gpu" not in said
        assert delivered.cli("deploy").stdout.strip().endswith("nothing to change")
        deployment = delivered.api("deployments/name/retrain/retrain")
        assert [each["schedule"]["cron"] for each in deployment["schedules"]] == ["45 4 * * *"]
    finally:
        own.unlink()
        delivered.cli("deploy")


def test_every_decision_is_an_event(delivered: Running):
    """A retrain fails, a batch is held, a candidate is rejected; the promotion of day-1 was seen above."""
    params = delivered.folder / "params.yaml"
    text = params.read_text()
    params.write_text(text + "# somebody is at it\n")
    assert delivered.retrain_now()["state"]["type"] == "FAILED"
    params.write_text(text)
    delivered.submit("flipped", flipped=True)
    eventually("flipped is held", lambda: "flipped" in {batch for batch, _ in delivered.state().held})
    delivered.submit("day-2")
    decision = delivered.one_decision("day-2")
    assert decision["decision"] == "REJECTED", "drawings are easy: there is nothing to be better at"

    for event, reason in {
        "ssclass.retrain.failed": "uncommitted changes",
        "ssclass.batch.held": "the champion has",
        "ssclass.model.rejected": decision["reason"],
    }.items():
        (told, *_) = eventually(f"{event} is told", lambda event=event: delivered.events(event))
        assert reason in told["payload"]["reason"]
    moved = [each for each in delivered.events("ssclass.model.promoted") if "version" in each["payload"]]
    assert len(moved) == 1, "the alias has not moved since"


def test_notices_reach_a_webhook_and_a_mailbox(stack: Running, posted: "Inbox"):
    """The ready automations send on each kind of event; told again until all have arrived, as Prefect may lose one."""
    mailed = Mailbox()
    post_url = f"http://127.0.0.1:{posted.port}/"
    mail_url = f"mailto://127.0.0.1:{mailed.port}?from=ssclass@example.org&to=me@example.org&mode=insecure"
    said = stack.cli("deploy", "--notify", post_url, "--notify", mail_url).stdout
    assert "notices by webhook" in said
    assert "notices by mail" in said
    assert "notices" not in stack.cli("deploy", "--notify", post_url, "--notify", mail_url).stdout

    program = """
import sys; from pathlib import Path
from ssclass.cli.common import settings_at; from ssclass.notices import tell
for event in sys.argv[2:]:
    tell(settings_at(Path(sys.argv[1])), event, "ssclass.a-test.day-9", reason='a "quoted" reason')
"""

    def arrived() -> bool:
        missing = [event for event in NOTICES if event not in posted.events() or event not in mailed.text]
        if missing:
            command = [sys.executable, "-c", program, str(stack.folder), *missing]
            subprocess.run(command, env=stack.environment, check=True)
            time.sleep(5)
        return not missing

    eventually("every notice is delivered", arrived)
    body = json.loads(posted.bodies[0])
    assert body["resource"] == "ssclass.a-test.day-9"
    assert body["payload"]["reason"] == 'a "quoted" reason'
    assert "me@example.org" in mailed.text


def test_a_bad_address_for_notices_is_named(stack: Running):
    done = stack.cli("deploy", "--notify", "ftp://example.org", check=False)
    assert done.returncode == 2
    assert "mailto" in done.stderr


def test_a_bucket_is_prepared_on_a_server_without_lifecycle_rules(stack: Running):
    """JuiceFS's gateway has none, and gives folders no ETag; again changes nothing."""
    for _ in range(2):
        assert "no lifecycle rules" in stack.cli("bucket", "setup").stdout


def test_secrets_are_their_owners(stack: Running):
    private = stack.settings.private
    for path in (*(stack.manager.folder / name for name in ("plan.json", "supervisord.conf")), private / LOGINS_FILE):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path
    for role in ROLES:
        assert stat.S_IMODE(credentials(stack.manager.folder, role).stat().st_mode) == 0o600, role
    assert stat.S_IMODE(private.stat().st_mode) == 0o700
    assert stack.workspace().git("status", "--porcelain") == ""


def test_status_says_how_the_loop_is(delivered: Running):
    said = delivered.cli("status").stdout
    assert "gpu-worker running" in said
    assert re.search("retrains   last (promoted|rejected|held|skipped), 20", said), said
    assert re.search("decision   (PROMOTED|REJECTED) 20", said)
    assert "champion   1" in said
    found = json.loads(delivered.cli("status", "--json").stdout)["loop"]
    assert set(found["parts"].values()) == {"RUNNING"}
    assert found["workers"] == {"ssclass": 1, "gpu": 1}


def test_up_again_says_so(stack: Running):
    assert "up already" in stack.cli("up", "--detach").stdout
    told = json.loads(stack.cli("up", "--json").stdout)
    assert set(told["parts"].values()) == {"RUNNING"}
    assert "/#/experiments/" in told["runs"]


def test_the_runs_tell_people_what_they_did(delivered: Running):
    """The state named by the decision survives the automations, and a worker's training is in its log."""
    first = delivered.runs("retrain")[0]
    assert first["name"] == "retrain after day-1"
    assert (first["state"]["type"], first["state"]["name"]) == ("COMPLETED", "PROMOTED")
    assert "ssclass" in first["tags"]
    training = delivered.runs("train")[0]
    logs = delivered.api("logs/filter", {"logs": {"flow_run_id": {"any_": [training["id"]]}}, "limit": 200})
    said = [each["message"] for each in logs]
    assert any(line.startswith("training for ") for line in said), said
    assert any("MLflow run" in line for line in said), said


def test_the_finished_result_of_a_killed_retrain_is_adopted(stack: Running):
    name = f"parent-{uuid.uuid4().hex[:6]}"
    stack.submit(name)
    child = stack.caught("gpu-worker")
    (parent,) = stack.engines("retrain-worker")
    os.kill(parent, signal.SIGKILL)
    os.kill(child, signal.SIGCONT)
    decision = stack.one_decision(name)
    assert [run["state"]["type"] for run in stack.trainings(decision["key"])] == ["COMPLETED"], "trained again"


def test_an_event_that_prefect_lost_is_made_good_by_the_sweep(stack: Running):
    """Killed as soon as it has said 204: the bus and the queues were in its memory."""
    stack.idle()
    name = f"lost-{uuid.uuid4().hex[:6]}"
    prefect = stack.pid("prefect")
    stack.stop("listener")
    stack.submit(name)
    event = {
        "id": str(uuid.uuid4()),
        "event": "ssclass.batch.arrived",
        "occurred": datetime.now().astimezone().isoformat(),
        "resource": {"prefect.resource.id": f"ssclass.batch.{name}"},
        "payload": {"batch": name, "count": 1},
    }
    url = f"{stack.settings.prefect_url}/events"
    answer = requests.post(url, json=[event], auth=stack.login("prefect"), timeout=10)
    os.kill(prefect, signal.SIGKILL)
    assert answer.status_code == 204
    stack.start("listener")
    stack.one_decision(name)
    stack.no_slot_is_taken()


class Inbox:
    """The receiver that docs/running.md shows, run as it is written there but for its port; what it prints is kept."""

    def __init__(self) -> None:
        text = (CHECKOUT / "docs" / "running.md").read_text()
        written = re.search(r"^python3 -c '(.+?)' &$", text, re.MULTILINE | re.DOTALL)
        assert written, "the example has gone"
        self.port = free_port()
        self.bodies: list[str] = []
        command = [sys.executable, "-u", "-c", written[1].replace("8090", str(self.port))]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        for line in self.process.stdout or ():
            self.bodies.append(line)

    def events(self) -> set[str]:
        """Names of the events that were posted."""
        return {json.loads(body)["event"] for body in self.bodies}


@pytest.fixture
def posted() -> Iterator[Inbox]:
    inbox = Inbox()
    yield inbox
    inbox.process.kill()
    inbox.process.wait()


class Mailbox:
    """As much of an SMTP server as takes one mail after another."""

    def __init__(self) -> None:
        self.text = ""
        self.listening = socket.create_server(("127.0.0.1", 0))
        self.port = self.listening.getsockname()[1]
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            connection, _ = self.listening.accept()
            with connection, connection.makefile("rwb") as lines:
                self._talk(lines)

    def _talk(self, lines) -> None:
        def say(text: str) -> None:
            lines.write(text.encode() + b"\r\n")
            lines.flush()

        say("220 test")
        for line in lines:
            match line[:4].upper():
                case b"EHLO" | b"HELO":
                    say("250 test")
                case b"DATA":
                    say("354 go on")
                    mail = b""
                    for part in lines:
                        if part == b".\r\n":
                            break
                        mail += part
                    self.text += mail.decode(errors="replace")
                    say("250 taken")
                case b"QUIT":
                    say("221 bye")
                    return
                case _:
                    say("250 ok")
