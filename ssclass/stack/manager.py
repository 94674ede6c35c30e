"""The stack on one machine, kept running by supervisor: start, watch, stop. Its data and logs stay in the workspace.

.ssclass/stack/            plan.json (ports, secrets), supervisord.conf, aws* (a role each), the servers' data
.ssclass/logins.toml       how this workspace's commands log in to the servers
.ssclass/stack/logs/       one file a part
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ssclass.environment import LOGINS_FILE, check_imports, logins, private_folder, quiet_libraries, write_private
from ssclass.errors import FailedError
from ssclass.secrets import without_secrets
from ssclass.settings import Settings, load_settings
from ssclass.stack.identities import make_identities
from ssclass.stack.parts import NOTIFY_ARN, Part, format_s3, is_well, parts
from ssclass.stack.plan import USER, Plan, brought, started, stopped
from ssclass.text import shown
from ssclass.tracking.connection import page
from ssclass.upkeep.bucket import notify

PATIENCE = 180.0  # seconds for a part to come up; Prefect's first start on a busy laptop takes 30
ATTEMPTS = 3  # starts of a part after which it is given up, when bringing the stack up
STOPPING = 20  # seconds that a part has to stop before it is killed
LONGEST_SOCKET = 90  # characters of a socket's path; Linux allows 107, macOS 103, and supervisor adds a process id
MARK = "SSCLASS_STACK"  # in the environment of every process of a stack: its folder
DOWN = ("STOPPED", "EXITED", "FATAL")  # states of a part that supervisor does not start again
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)

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
        self.socket = self.folder / "supervisor.sock"
        if len(os.fsencode(self.socket)) > LONGEST_SOCKET:  # not in $TMPDIR: every command must find the same
            self.socket = Path("/tmp") / f"ssclass-{os.getuid()}-{hash_of(self.folder):x}.sock"

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

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Nobody else starts or stops this stack meanwhile; waits for whoever is at it."""
        from filelock import FileLock

        private_folder(self.settings)
        self.folder.mkdir(mode=0o700, exist_ok=True)
        with FileLock(self.folder / "lock"):
            yield

    def end_leftovers(self, say: Say) -> None:
        """End the processes of this stack that no supervisor looks after: it was killed, or a worker was.

        They are known by their environment, which the runs that a worker starts inherit; process ids may be anybody's.
        """
        import psutil

        def ours(process: psutil.Process) -> bool:
            environ = Path(f"/proc/{process.pid}/environ")
            try:
                if environ.exists():  # psutil stops at a value that a program has blanked, as JuiceFS does
                    return f"{MARK}={self.folder}".encode() in environ.read_bytes().split(b"\0")
                return bool(process.environ().get(MARK) == str(self.folder))
            except (psutil.Error, OSError):  # gone, or another user's
                return False

        left = [process for process in psutil.process_iter() if process.pid != os.getpid() and ours(process)]
        if not left:
            return
        say(f"ending what was left running ({len(left)})")
        for send in (psutil.Process.terminate, psutil.Process.kill):
            for process in left:
                try:
                    send(process)
                except psutil.NoSuchProcess:
                    continue
            _, left = psutil.wait_procs(left, timeout=STOPPING / 2)

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
        for place, part in enumerate(wanted):
            given = ",".join(f'{name}="{quoted(value)}"' for name, value in part.environment.items())
            lines += [
                f"[program:{part.name}]",
                f"priority={place}",  # stopped in reverse: workers tell Prefect what became of their runs
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
        check_imports()
        self.end_leftovers(say)
        plan = Plan.of(self.folder)
        theirs = brought(self.settings)
        if "s3" not in theirs:
            format_s3(self.folder)
        self.settings = started(self.settings, plan, self.folder)
        quiet_libraries(self.settings)
        wanted = parts(self.settings, plan, self.folder)
        self.write_config(wanted)
        self.socket.unlink(missing_ok=True)
        process = subprocess.Popen(
            [sys.executable, "-m", "supervisor.supervisord", "-n", "-c", str(self.config)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={**os.environ, MARK: str(self.folder)},
            start_new_session=True,  # Ctrl-C is ours to handle
        )
        try:
            for name, url in theirs.items():
                say(f"{name:15} {url} (yours)")
            for part in (each for each in wanted if each.first):
                self._wait(process, part)
                say(f"{part.name:15} {plan.url(part.name)}")
            self._prepare(say, plan, "s3" not in theirs)
            for part in (each for each in wanted if not each.first):
                self.rpc.supervisor.startProcess(part.name, False)
            for part in (each for each in wanted if not each.first):
                self._wait(process, part)
                say(f"{part.name:15} runs")
        except BaseException:
            say("stopping")
            self.stop(say, process)
            raise
        return process

    def _prepare(self, say: Say, plan: Plan, own_s3: bool) -> None:
        """Identities, bucket, notifications, deployments."""
        from ssclass.stack.deployment import deploy
        from ssclass.store import Store

        if own_s3:
            root = (plan.s3_user, plan.s3_password)
            make_identities(plan.url("s3"), root, self.settings.place, plan.s3_passwords)
            store = Store(self.settings)
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
            if info.get("statename") == "RUNNING" and is_well(part):
                return
            time.sleep(0.3)
        log = self.log(part.name)
        raise FailedError(f"{part.name} did not come up ({last_line(log)}); its log is {log}")

    def log(self, part: str) -> Path:
        """The file with what a part prints."""
        return self.folder / "logs" / f"{part}.log"

    def stop(self, say: Say, process: subprocess.Popen[bytes] | None = None) -> None:
        """Stop every part, then supervisor; returns when all is gone."""
        with _undisturbed():
            self._stop(process)
            self.end_leftovers(say)
            stopped(self.settings)

    def _stop(self, process: subprocess.Popen[bytes] | None) -> None:
        pid_file = self.folder / "supervisord.pid"
        pid = process.pid if process else int(pid_file.read_text()) if pid_file.exists() else None
        try:
            self.rpc.supervisor.shutdown()
        except Exception:
            if process and process.poll() is None:
                process.send_signal(signal.SIGTERM)
        end = time.monotonic() + 6 * STOPPING  # the parts are stopped one by one
        while time.monotonic() < end:
            if (process.poll() is not None) if process else not (pid and _runs(pid)):
                break
            time.sleep(0.1)
        else:
            raise FailedError(f"supervisor (process {pid}) does not stop; see {self.folder / 'logs'}")


def last_line(log: Path) -> str:
    """The last line of a log, for a message."""
    last = (log.read_text(errors="replace").strip().splitlines() or ["no output"])[-1] if log.exists() else "no log"
    return shown(without_secrets(last.strip()), 200)


def hash_of(folder: Path) -> int:
    """A number that names a folder, the same in every process."""
    import zlib

    return zlib.crc32(str(folder).encode())


def _runs(pid: int) -> bool:
    import psutil

    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Ignore a second Ctrl-C: what is stopping has a time limit of its own."""
    before = {number: signal.signal(number, signal.SIG_IGN) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _interruptible() -> Iterator[None]:
    """SIGTERM and a closed terminal are what Ctrl-C is; a SIGHUP that is ignored (nohup) stays so."""

    def interrupted(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = {number: signal.getsignal(number) for number in SIGNALS}
    for number, handler in before.items():
        if handler != signal.SIG_IGN:
            signal.signal(number, interrupted)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def up(settings: Settings, say: Say, *, detach: bool) -> None:
    """Start the stack; then watch it until Ctrl-C, SIGTERM or `ssclass down`, unless detached."""
    manager = Manager(settings)
    with _interruptible():
        process = None
        try:
            with manager.alone():
                if manager.is_up():
                    still = [name for name, state in manager.states().items() if state in DOWN]
                    if not still:
                        say("up already")
                        report(manager, say)
                        return
                    say(f"up, but not {', '.join(still)}: starting anew")
                    manager.stop(say)
                process = manager.start(say)
            report(manager, say)
            if detach:
                return
            say("Ctrl-C stops it, as does `ssclass down`; data and logs stay")
            code = process.wait()
        except KeyboardInterrupt:
            if process is not None:
                say("stopping")
                manager.stop(say, process)
            say("stopped")
            return
    if code:
        with manager.alone():
            if not manager.is_up():
                manager.stop(say, process)
        raise FailedError(f"supervisor ended ({code}), and everything with it; see {manager.folder / 'logs'}")
    say("stopped")


def report(manager: Manager, say: Say) -> None:
    """Where the two UIs are, and where their password is: not on the screen, which others may see."""
    settings = load_settings(manager.settings.workspace)
    prefect = (settings.prefect_url or "").removesuffix("/api")
    say(f"Prefect UI      {prefect}")
    say(f"MLflow UI       {runs_page(settings)}")
    if logins(settings):
        say(f"logins          both ask once: {USER}, password in {settings.private / LOGINS_FILE}")
    say(f"logs            {manager.folder / 'logs'}")


def addresses(settings: Settings) -> dict[str, Any]:
    """Where the parts of a stack that is up are: the servers' addresses, the runs' page, each part's state."""
    manager, now = Manager(settings), load_settings(settings.workspace)
    return {
        "s3": now.s3_endpoint,
        "prefect": now.prefect_url,
        "mlflow": now.tracking_uri,
        "runs": runs_page(now),
        "logins": str(now.private / LOGINS_FILE) if logins(now) else None,
        "logs": str(manager.folder / "logs"),
        "parts": manager.states(),
    }


def runs_page(settings: Settings) -> str:
    """The address of the run table on the MLflow server; of the server while there is no experiment yet."""
    import requests

    address = settings.tracking_uri.rstrip("/")
    login = logins(settings).get("mlflow")
    try:
        answer = requests.get(
            f"{address}/api/2.0/mlflow/experiments/get-by-name",
            params={"experiment_name": settings.model_name},
            auth=(login["user"], login["password"]) if login and login["url"] == settings.mlflow_uri else None,
            timeout=5,
        )
        return page(address, str(answer.json()["experiment"]["experiment_id"]))
    except (requests.RequestException, ValueError, KeyError):
        return address


def down(settings: Settings, say: Say) -> None:
    """Stop the stack, or what is left of one."""
    manager = Manager(settings)
    with manager.alone():
        if manager.is_up():
            manager.stop(say)
            say("stopped; data and logs stay")
        else:
            manager.end_leftovers(say)
            stopped(settings)
            say("nothing is up")
