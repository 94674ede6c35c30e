"""The stack by `ssclass up`: real servers, listener and workers. Nobody steps in between delivery and decision."""

import json
import socket
import stat
import subprocess
import sys
import threading
from collections import Counter
from datetime import datetime, timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from itertools import pairwise
from zoneinfo import ZoneInfo

import pytest
from running import Running, dump, eventually

from ssclass.tracking import Tracking

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("stack")]


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
    deployment = delivered.api("deployments/name/retrain/retrain")
    made = delivered.api(f"deployments/{deployment['id']}/create_flow_run", {"state": {"type": "SCHEDULED"}})

    def ended():
        run = delivered.api(f"flow_runs/{made['id']}")
        return run if run["state"]["type"] in ("COMPLETED", "FAILED", "CRASHED") else None

    run = eventually("the run has ended", ended)
    assert run["state"]["type"] == "COMPLETED", run["state"]
    assert len(delivered.state().decisions) == before
    assert len(delivered.runs("train")) == 1


def test_deploying_again_changes_nothing_and_says_what_it_does_change(delivered: Running):
    assert delivered.cli("deploy").stdout.strip().endswith("nothing to change")
    own = delivered.folder / "prefect.yaml"
    shipped = (delivered.workspace().root / "prefect.yaml").exists()
    assert not shipped
    from ssclass.template import template

    text = (template() / "prefect.yaml").read_text()
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


def test_scheduled_runs_come_every_day_at_the_same_time_of_the_clock(stack: Running):
    """Made by the server's scheduler for 250 days: at least one change of the clocks is among them."""
    zone = ZoneInfo("Europe/Berlin")

    def planned() -> list[datetime]:
        deployment = stack.api("deployments/name/retrain/retrain")
        found = []
        for offset in (0, 200):
            body = {
                "deployments": {"id": {"any_": [deployment["id"]]}},
                "flow_runs": {"state": {"name": {"any_": ["Scheduled"]}}},
                "sort": "EXPECTED_START_TIME_ASC",
                "offset": offset,
                "limit": 200,
            }
            found += stack.api("flow_runs/filter", body)
        times = [datetime.fromisoformat(run["expected_start_time"].replace("Z", "+00:00")) for run in found]
        return [time.astimezone(zone) for time in times if run_is_daily(time.astimezone(zone))]

    def run_is_daily(time: datetime) -> bool:
        return time > datetime.now(zone) + timedelta(minutes=5)

    times = eventually("the scheduler has planned", lambda: (found := planned()) and len(found) >= 240 and found)
    assert {(time.hour, time.minute) for time in times} == {(3, 30)}
    assert len({time.utcoffset() for time in times}) == 2, "no change of the clocks is in it"
    days = [time.date() for time in times]
    assert set(Counter(days).values()) == {1}
    assert [after - before for before, after in pairwise(days)] == [timedelta(1)] * (len(days) - 1)
    tomorrow = datetime.now(zone).date() + timedelta(1)
    assert days[0] <= tomorrow


def test_notices_reach_a_webhook_and_a_mailbox(stack: Running):
    """The ready automations, with real deliveries to servers of this test."""
    posted, mailed = Inbox(), Mailbox()
    post_url = f"http://127.0.0.1:{posted.port}/hook"
    mail_url = f"mailto://127.0.0.1:{mailed.port}?from=ssclass@example.org&to=me@example.org&mode=insecure"
    said = stack.cli("deploy", "--notify", post_url, "--notify", mail_url).stdout
    assert "notices by webhook" in said
    assert "notices by mail" in said
    assert "notices" not in stack.cli("deploy", "--notify", post_url, "--notify", mail_url).stdout

    program = """
import sys; from pathlib import Path
from ssclass.cli.common import settings_at; from ssclass.notices import tell
tell(settings_at(Path(sys.argv[1])), "ssclass.batch.held", "ssclass.batch.day-9", reason='a "quoted" reason')
"""

    def told() -> bool:  # automations are loaded a moment after they are made
        command = [sys.executable, "-c", program, str(stack.folder)]
        subprocess.run(command, env=stack.environment, check=True)
        return bool(posted.wait(10) and mailed.wait(10))

    eventually("both notices are delivered", told)
    body = json.loads(posted.bodies[0])
    assert body["event"] == "ssclass.batch.held"
    assert body["payload"]["reason"] == 'a "quoted" reason'
    assert "me@example.org" in mailed.text
    assert "ssclass.batch.held" in mailed.text


def test_a_bad_address_for_notices_is_named(stack: Running):
    done = stack.cli("deploy", "--notify", "ftp://example.org", check=False)
    assert done.returncode == 2
    assert "mailto" in done.stderr


def test_secrets_are_their_owners(stack: Running):
    for name in ("plan.json", "supervisord.conf", "aws"):
        mode = (stack.manager.folder / name).stat().st_mode
        assert stat.S_IMODE(mode) == 0o600, name
    assert stack.workspace().git("status", "--porcelain") == ""


def test_status_says_how_the_loop_is(delivered: Running):
    said = delivered.cli("status").stdout
    assert "gpu-worker running" in said
    assert "retrains   last completed" in said
    assert "champion   1" in said
    found = json.loads(delivered.cli("status", "--json").stdout)["loop"]
    assert set(found["parts"].values()) == {"RUNNING"}
    assert found["workers"] == {"ssclass": 1, "gpu": 1}


def test_up_again_says_so(stack: Running):
    assert "up already" in stack.cli("up", "--detach").stdout


class Inbox:
    """An HTTP server that keeps what is posted."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []
        came = self.came = threading.Event()
        bodies = self.bodies

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                bodies.append(self.rfile.read(int(self.headers["Content-Length"])))
                self.send_response(200)
                self.end_headers()
                came.set()

            def log_message(self, *_: object) -> None:
                pass

        server = HTTPServer(("127.0.0.1", 0), Handler)
        self.port = server.server_port
        threading.Thread(target=server.serve_forever, daemon=True).start()

    def wait(self, seconds: float) -> bool:
        return self.came.wait(seconds)


class Mailbox:
    """As much of an SMTP server as takes one mail after another."""

    def __init__(self) -> None:
        self.text = ""
        self.came = threading.Event()
        self.listening = socket.create_server(("127.0.0.1", 0))
        self.port = self.listening.getsockname()[1]
        threading.Thread(target=self._serve, daemon=True).start()

    def wait(self, seconds: float) -> bool:
        return self.came.wait(seconds)

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
                    self.came.set()
                    say("250 taken")
                case b"QUIT":
                    say("221 bye")
                    return
                case _:
                    say("250 ok")
