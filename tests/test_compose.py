"""compose.yaml without an engine: each service's own command, environment and health check, as a process here.

Names of services become 127.0.0.1, ports free ones, volumes folders. PostgreSQL is Debian's, where it is installed.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import requests
import yaml

from ssclass.demo.drawings import draw
from ssclass.environment import free_port
from ssclass.settings import CHECKOUT, Settings, home
from ssclass.workspace.origin import Origin
from tests.support.models import needed_weights
from tests.support.pipelines import CLASSES, Command
from tests.support.running import eventually

SERVICES = yaml.safe_load((CHECKOUT / "compose.yaml").read_text())["services"]
NAMES = sorted(set(re.findall(r"\$\{(\w+):\?", (CHECKOUT / "compose.yaml").read_text())))
PASSWORDS = {name: f"{name.lower()} @:/?#&%='\"+\\" for name in NAMES}  # whatever a person may choose
PROGRAMS = max(Path("/usr/lib/postgresql").glob("*/bin"), default=None)
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@dataclass
class Composed:
    """The services, started in the order that `depends_on` asks for."""

    folder: Path
    path: str
    ports: dict[str, int] = field(default_factory=dict)  # by the port in the file
    running: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    done: set[str] = field(default_factory=set)

    def here(self, text: str) -> str:
        """What stands in the file, as it is here."""
        text = text.replace("$$", "$").replace("0.0.0.0", "127.0.0.1")
        text = re.sub(rf"\b({'|'.join(SERVICES)}):(?=\d)", "127.0.0.1:", text)
        text = re.sub(
            r"(?<![\w.])(4200|5000|5432|8008|8081|8082|8099|8418|9000)\b", lambda found: str(self.port(found[1])), text
        )
        text = re.sub(r"(?<![\w.])/(s3-events|s3|git|home/ssclass|app)\b", self.volume, text)
        return re.sub(r"\$\{(\w+):\?[^}]*\}", lambda found: PASSWORDS[found[1]], text)

    def port(self, named: str) -> int:
        return self.ports.setdefault(named, free_port())

    def volume(self, found: re.Match[str]) -> str:
        if found[1] == "app":
            return str(CHECKOUT)
        path = self.folder / found[1].replace("/", "-")
        path.mkdir(exist_ok=True)
        return str(path)

    def environment(self, name: str) -> dict[str, str]:
        kept = {"PATH": self.path, "SSCLASS_HOME": str(home()), "HOME": str(self.folder), "NO_PROXY": "127.0.0.1"}
        kept |= {name: os.environ[name] for name in ("PYTHONPATH",) if name in os.environ}  # where this checkout is
        return kept | {key: self.here(str(value)) for key, value in SERVICES[name].get("environment", {}).items()}

    def start(self, name: str) -> None:
        """A service, after those that it waits for; returns when it is healthy, or has done what it does."""
        service = SERVICES[name]
        for other, how in service.get("depends_on", {}).items():
            if other not in self.running and other not in self.done:
                self.start(other)
            if how["condition"] == "service_completed_successfully":
                assert self.running.pop(other, None) is None or other in self.done
        if name == "volumes":  # makes folders fit for another user
            self.done.add(name)
            return
        once = service.get("restart") == "no"
        with (self.folder / f"{name}.log").open("wb") as log:
            process = subprocess.Popen(
                self.database() if name == "postgres" else self.command(name),
                env=self.environment(name),
                cwd=self.folder,
                stdout=log,
                stderr=log,
                start_new_session=True,
                user="postgres" if name == "postgres" and os.getuid() == 0 else None,
            )
        if once:
            assert process.wait(180) == 0, self.log(name)
            self.done.add(name)
            return
        self.running[name] = process
        if name == "postgres":
            self.make_databases()
        if "healthcheck" in service:
            self.healthy(name, service["healthcheck"]["test"])

    def command(self, name: str) -> list[str]:
        service = SERVICES[name]
        words = [*service.get("entrypoint", ["ssclass"]), *service.get("command", [])]
        if words[-1].endswith("setup.sh"):
            script = self.folder / "setup.sh"
            text = (CHECKOUT / "containers" / "setup.sh").read_text().replace("/tmp/", f"{self.folder}/")
            script.write_text(self.here(text))
            words[-1] = str(script)
        return [self.here(word) for word in words]

    def healthy(self, name: str, test: list[str]) -> None:
        words = ["sh", "-c", self.here(test[1])] if test[0] == "CMD-SHELL" else [self.here(word) for word in test[1:]]
        environment = self.environment(name) | {"PGHOST": "127.0.0.1", "PGPORT": str(self.port("5432"))}

        def passes() -> bool:
            assert self.running[name].poll() is None, self.log(name)
            return subprocess.run(words, env=environment, capture_output=True).returncode == 0

        eventually(f"{name} is healthy", passes, within=120)

    def log(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text(errors="replace")[-3000:]

    # What PostgreSQL's image does: a cluster, a user with a password, the scripts of its folder.

    def database(self) -> list[str]:
        data, password = self.folder / "postgres", self.folder / "password"
        password.write_text(PASSWORDS["POSTGRES_PASSWORD"])
        data.mkdir()
        as_user: dict[str, Any] = {"user": "postgres"} if os.getuid() == 0 else {}
        if as_user:
            shutil.chown(data, "postgres")
        command = ["initdb", "--username=ssclass", "--auth-host=scram-sha-256", f"--pwfile={password}", str(data)]
        subprocess.run([f"{PROGRAMS}/{command[0]}", *command[1:]], check=True, capture_output=True, cwd="/", **as_user)
        where = ["-h", "127.0.0.1", "-p", str(self.port("5432")), "-k", str(data)]
        return [f"{PROGRAMS}/postgres", "-D", str(data), *where]

    def make_databases(self) -> None:
        login = {"PGPASSWORD": PASSWORDS["POSTGRES_PASSWORD"], "PGUSER": "ssclass", "PGDATABASE": "postgres"}
        login |= {"PGHOST": "127.0.0.1", "PGPORT": str(self.port("5432")), "PATH": self.path}

        def psql(*arguments: str) -> bool:
            return subprocess.run(["psql", "--quiet", *arguments], env=login, capture_output=True).returncode == 0

        eventually("PostgreSQL answers", lambda: psql("--command", "select 1"))
        assert psql("--file", str(CHECKOUT / "containers" / "databases.sql"))

    def stop(self) -> None:
        for name, process in reversed(self.running.items()):
            stop_signal = getattr(signal, SERVICES[name].get("stop_signal", "SIGTERM"))
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGINT if name == "postgres" else stop_signal)
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


@pytest.fixture
def composed(tmp_path: Path) -> Iterator[Composed]:
    needed_weights()
    if PROGRAMS is None:
        pytest.skip("no PostgreSQL in /usr/lib/postgresql")
    above = Path("/tmp") if os.getuid() == 0 else tmp_path  # where the user postgres gets as well
    folder = above / f"ssclass-compose-{os.getpid()}"
    folder.mkdir(mode=0o755)
    made = Composed(folder, os.pathsep.join([str(Path(sys.executable).parent), str(PROGRAMS), os.environ["PATH"]]))
    try:
        yield made
    finally:
        made.stop()
        shutil.rmtree(folder, ignore_errors=True)


def test_a_batch_is_decided_by_the_services_of_compose_yaml(
    composed: Composed, ssclass: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    for name in SERVICES:
        if name not in composed.running and name not in composed.done:
            composed.start(name)
    assert set(composed.running) | composed.done == set(SERVICES)
    environment = {**composed.environment("listener"), "PATH": composed.path}
    for name in ("GIT_ASKPASS", "ORIGIN_HOST", "ORIGIN_USER", "ORIGIN_PASSWORD"):
        monkeypatch.setenv(name, environment[name])
    sender = {"AWS_ACCESS_KEY_ID": "ssclass-sender", "AWS_SECRET_ACCESS_KEY": PASSWORDS["S3_SENDER_PASSWORD"]}
    settings = Settings(
        workspace=tmp_path / "workspace",
        bucket=environment["SSCLASS_BUCKET"],
        s3_endpoint=environment["SSCLASS_S3_ENDPOINT"],
        s3_region=environment["SSCLASS_S3_REGION"],
        git=environment["SSCLASS_GIT"],
    )

    def cli(*arguments: object, **more: str) -> str:
        command = [ssclass.folder / "ssclass", *map(str, arguments)]
        done = subprocess.run(command, env=environment | more, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    cli("init", tmp_path / "workspace", "--git", environment["SSCLASS_GIT"], "--bucket", settings.bucket)
    draw(tmp_path / "one", CLASSES, 20)
    began = time.monotonic()
    cli("submit", tmp_path / "one", "--id", "one", "--workspace", tmp_path / "workspace", **sender)
    (decision,) = eventually(
        "the batch is decided",
        lambda: [event.body for event in Origin(settings).state().decisions.values() if "one" in event.body["batches"]],
        within=300,
    )
    assert decision["decision"] == "PROMOTED"
    print(f"decided {time.monotonic() - began:.0f} s after it was sent")
    in_workspace = ("--workspace", tmp_path / "workspace")
    eventually("the champion is registered", lambda: "champion" in cli("status", *in_workspace))
    assert "accuracy" in cli("evaluate", tmp_path / "one", "--model", "champion", *in_workspace)

    photo = next((tmp_path / "one" / "sushi").iterdir()).read_bytes()
    predict = f"http://127.0.0.1:{composed.port('8008')}/predict"
    head = {"Authorization": f"Bearer {PASSWORDS['SERVE_KEY']}", "Content-Type": "image/jpeg"}

    def answered() -> Any:
        answer = requests.post(predict, photo, headers=head, timeout=30)
        return answer.json() if answer.ok else None

    told = eventually("the champion answers an app", answered)
    assert told["model"]["decision"] == decision["key"]
    print(f"answered by the new champion {time.monotonic() - began:.0f} s after the batch was sent")

    assert requests.post(predict, photo, headers={"Content-Type": "image/jpeg"}, timeout=30).status_code == 401
    strangers_get_nothing(composed, environment, tmp_path)
    no_secret_lies_about(composed)


def strangers_get_nothing(composed: Composed, environment: dict[str, str], folder: Path) -> None:
    """Prefect, MLflow and S3 refuse who has no login; git, too, and lets a worker's login read but not push."""
    for method, url in (
        ("POST", f"{environment['SSCLASS_PREFECT_URL']}/deployments/filter"),
        ("GET", f"{environment['SSCLASS_MLFLOW_URI']}/api/2.0/mlflow/experiments/search?max_results=1"),
        ("GET", f"{environment['SSCLASS_GIT']}/info/refs?service=git-upload-pack"),
        ("POST", f"{environment['SSCLASS_GIT']}/git-receive-pack"),
        ("GET", f"{environment['SSCLASS_GIT']}/HEAD"),
        ("GET", f"{environment['SSCLASS_S3_ENDPOINT']}/ssclass?list-type=2"),
        ("POST", f"http://127.0.0.1:{composed.port('8099')}/s3"),
    ):
        assert requests.request(method, url, json={}, timeout=20).status_code in (401, 403), url

    worker = environment | {"ORIGIN_USER": "worker", "ORIGIN_PASSWORD": PASSWORDS["GIT_READ_PASSWORD"]}
    nobody = environment | {"ORIGIN_PASSWORD": "wrong"}
    for name, login, clones, pushes in (
        ("p", environment, True, True),
        ("w", worker, True, False),
        ("n", nobody, 0, 0),
    ):

        def git(*arguments: str, login: dict[str, str] = login) -> bool:
            command = ["git", "-c", "user.name=x", "-c", "user.email=x@example.org", *arguments]
            quiet = {**login, "GIT_TERMINAL_PROMPT": "0"}
            return subprocess.run(command, env=quiet, cwd=folder, capture_output=True).returncode == 0

        assert git("clone", environment["SSCLASS_GIT"], name) == clones, name
        if clones:
            assert git("-C", name, "commit", "--allow-empty", "-m", "tried")
            assert git("-C", name, "push", "origin", f"HEAD:refs/heads/{name}") == pushes, name


def no_secret_lies_about(composed: Composed) -> None:
    """Neither in the arguments of a process, nor in a log, nor in git, nor in what MLflow and Prefect wrote to disk."""
    arguments = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    spelt = {form for secret in PASSWORDS.values() for form in (secret, quote(secret), quote(secret, safe=""))}
    assert not [secret for secret in spelt if secret in arguments]
    logs = list(composed.folder.glob("*.log"))
    assert len(logs) > 8
    repository = composed.folder / "git" / "workspace.git"
    dump = ["git", "-C", str(repository), "cat-file", "--batch", "--batch-all-objects"]
    written = {str(path): path.read_bytes() for path in logs}
    written["git"] = subprocess.run(dump, capture_output=True, check=True).stdout
    written |= {
        str(path): path.read_bytes() for path in (composed.folder / "home-ssclass").rglob("*") if path.is_file()
    }
    for place, data in written.items():
        assert not [secret for secret in spelt if secret.encode() in data], place
