"""The stack on one machine, kept running by supervisor: start, watch, stop. Its data and logs stay in the workspace.

.ssclass/stack/            plan.json (ports, secrets), supervisord.conf, the servers' data
.ssclass/stack/logs/       one file a part
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ssclass.errors import FailedError
from ssclass.settings import Settings, load_settings
from ssclass.stack.parts import (
    NOTIFY_ARN,
    Part,
    Plan,
    brought,
    format_s3,
    healthy,
    parts,
    started,
    stopped,
    write_private,
)

PATIENCE = 180.0  # seconds for a part to come up; Prefect's first start on a busy laptop takes 30
ATTEMPTS = 3  # starts of a part after which it is given up, when bringing the stack up
STOPPING = 20  # seconds that a part has to stop before it is killed

Say = Callable[[str], None]


def stack_folder(settings: Settings) -> Path:
    """Where a workspace's stack keeps its things."""
    return settings.private / "stack"


class Manager:
    """Supervisor of one workspace's stack."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.folder = stack_folder(settings)
        self.config = self.folder / "supervisord.conf"
        # The path of a socket may have 107 characters, a workspace's may have more.
        self.socket = Path(tempfile.gettempdir()) / f"ssclass-{os.getuid()}-{abs(hash_of(self.folder)):x}.sock"

    @property
    def rpc(self) -> Any:
        """Supervisor's XML-RPC interface."""
        from xmlrpc.client import ServerProxy

        from supervisor.xmlrpc import SupervisorTransport

        return ServerProxy("http://supervisor", transport=SupervisorTransport(None, None, f"unix://{self.socket}"))

    def is_up(self) -> bool:
        """Whether supervisor answers."""
        try:
            return bool(self.rpc.supervisor.getState()["statename"] == "RUNNING")
        except Exception:  # no socket, nobody behind it, or one that is just going
            return False

    def states(self) -> dict[str, str]:
        """State of each part, as supervisor names it (RUNNING, BACKOFF, FATAL, …); empty when nothing is up."""
        try:
            return {each["name"]: each["statename"] for each in self.rpc.supervisor.getAllProcessInfo()}
        except Exception:
            return {}

    def write_config(self, wanted: list[Part]) -> None:
        """supervisord.conf; it holds secrets, so only its owner reads it."""
        logs = self.folder / "logs"
        logs.mkdir(parents=True, exist_ok=True)

        def quoted(value: str) -> str:
            return value.replace("%", "%%").replace('"', '\\"')

        lines = [
            "[supervisord]",
            "nodaemon=true",
            f"logfile={quoted(str(logs / 'supervisor.log'))}",
            "logfile_maxbytes=5MB",
            f"pidfile={quoted(str(self.folder / 'supervisord.pid'))}",
            f"directory={quoted(str(self.folder))}",
            f"identifier={self.settings.workspace.name}",
            "[unix_http_server]",
            f"file={self.socket}",
            "chmod=0600",
            "[rpcinterface:supervisor]",
            "supervisor.rpcinterface_factory = supervisor.rpcinterface:make_main_rpcinterface",
        ]
        for part in wanted:
            given = ",".join(f'{name}="{quoted(value)}"' for name, value in part.environment.items())
            lines += [
                f"[program:{part.name}]",
                "command=" + " ".join(f'"{quoted(each)}"' for each in part.command),
                f"environment={given}",
                f"autostart={'true' if part.first else 'false'}",
                "autorestart=true",
                "startretries=20",
                f"stopsignal={part.signal}",
                f"stopwaitsecs={STOPPING}",
                "stopasgroup=true",
                "killasgroup=true",
                "redirect_stderr=true",
                f"stdout_logfile={quoted(str(logs / part.name))}.log",
                "stdout_logfile_maxbytes=10MB",
                "stdout_logfile_backups=2",
            ]
        write_private(self.config, "\n".join(lines) + "\n")

    def start(self, say: Say) -> subprocess.Popen[bytes]:
        """Bring everything up, in order; the supervisor's process. FailedError names the part that did not come up."""
        plan = Plan.of(self.folder)
        theirs = brought(self.settings)
        if "s3" not in theirs:
            format_s3(self.folder)
        self.settings = started(self.settings, plan, self.folder)
        wanted = parts(self.settings, plan, self.folder)
        self.write_config(wanted)
        self.socket.unlink(missing_ok=True)
        process = subprocess.Popen(
            [sys.executable, "-m", "supervisor.supervisord", "-n", "-c", str(self.config)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C is ours to handle
        )
        try:
            for name, url in theirs.items():
                say(f"{name:15} {url} (yours)")
            for part in (each for each in wanted if each.first):
                self._wait(process, part)
                say(f"{part.name:15} {plan.url(part.name)}")
            self._prepare(say, "s3" not in theirs)
            for part in (each for each in wanted if not each.first):
                self.rpc.supervisor.startProcess(part.name, False)
            for part in (each for each in wanted if not each.first):
                self._wait(process, part)
                say(f"{part.name:15} runs")
        except BaseException:
            self.stop(process)
            raise
        return process

    def _prepare(self, say: Say, own_s3: bool) -> None:
        """Bucket, notifications, deployments."""
        from ssclass.environment import quiet_libraries
        from ssclass.stack.deployment import deploy
        from ssclass.store import Store

        quiet_libraries(self.settings)
        store = Store(self.settings)
        if own_s3:
            store.make_bucket()
            notify(store, NOTIFY_ARN)
        for line in deploy(self.settings, str(self.settings.workspace), []):
            say(f"{'deploy':15} {line}")

    def _wait(self, process: subprocess.Popen[bytes], part: Part) -> None:
        end = time.monotonic() + PATIENCE
        starts: set[int] = set()
        while time.monotonic() < end and len(starts) <= ATTEMPTS:
            if process.poll() is not None:
                raise FailedError(f"supervisor ended ({process.returncode}); see {self.folder / 'logs'}")
            try:
                info = self.rpc.supervisor.getProcessInfo(part.name)
            except Exception:  # supervisor itself is only just starting
                info = {}
            if info.get("start"):
                starts.add(info["start"])
            if info.get("statename") == "RUNNING" and (part.health is None or healthy(part.health)):
                return
            time.sleep(0.3)
        log = self.folder / "logs" / f"{part.name}.log"
        last = (log.read_text(errors="replace").strip().splitlines() or ["no output"])[-1] if log.exists() else "no log"
        raise FailedError(f"{part.name} did not come up ({last.strip()[:200]}); its log is {log}")

    def stop(self, process: subprocess.Popen[bytes] | None = None) -> None:
        """Stop every part, then supervisor; returns when all is gone."""
        pid_file = self.folder / "supervisord.pid"
        pid = process.pid if process else int(pid_file.read_text()) if pid_file.exists() else None
        try:
            self.rpc.supervisor.shutdown()
        except Exception:
            if process and process.poll() is None:
                process.send_signal(signal.SIGTERM)
        end = time.monotonic() + 3 * STOPPING
        while time.monotonic() < end:
            if (process.poll() is not None) if process else not (pid and _runs(pid)):
                break
            time.sleep(0.1)
        else:
            raise FailedError(f"supervisor (process {pid}) does not stop; see {self.folder / 'logs'}")
        stopped(self.settings)


def hash_of(folder: Path) -> int:
    """A number that names a folder, the same in every process."""
    import zlib

    return zlib.crc32(str(folder).encode())


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def notify(store: Any, arn: str) -> None:
    """Have the bucket tell `arn` of markers."""
    rules = [
        {
            "Id": f"ssclass-{number}",
            "QueueArn": arn,
            "Events": ["s3:ObjectCreated:*"],
            "Filter": {
                "Key": {"FilterRules": [{"Name": "prefix", "Value": "incoming/"}, {"Name": "suffix", "Value": suffix}]}
            },
        }
        for number, suffix in enumerate(("/manifest.json", "/_SUCCESS"), 1)
    ]
    store.client.put_bucket_notification_configuration(
        Bucket=store.bucket, NotificationConfiguration={"QueueConfigurations": rules}
    )


def up(settings: Settings, say: Say, *, detach: bool) -> None:
    """Start the stack; then watch it until Ctrl-C, SIGTERM or `ssclass down`, unless detached."""
    manager = Manager(settings)
    if manager.is_up():
        say("up already")
        report(manager, say)
        return

    def interrupted(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    previous = signal.signal(signal.SIGTERM, interrupted)
    process = None
    try:
        process = manager.start(say)
        report(manager, say)
        if detach:
            return
        say("Ctrl-C stops it, as does `ssclass down`; data and logs stay")
        process.wait()
    except KeyboardInterrupt:
        say("stopping")
        manager.stop(process)
        say("stopped")
    finally:
        signal.signal(signal.SIGTERM, previous)


def report(manager: Manager, say: Say) -> None:
    """Where the two UIs are."""
    settings = load_settings(manager.settings.workspace)
    prefect = (settings.prefect_url or "").removesuffix("/api")
    say(f"Prefect UI      {prefect}")
    say(f"MLflow UI       {settings.tracking_uri}")
    say(f"logs            {manager.folder / 'logs'}")


def down(settings: Settings, say: Say) -> None:
    """Stop the stack."""
    manager = Manager(settings)
    if not manager.is_up():
        stopped(settings)
        say("nothing is up")
        return
    manager.stop()
    say("stopped; data and logs stay")
