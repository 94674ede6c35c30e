"""S3, MLflow, Prefect and git as four programs with a login each, which ssclass is told only where to find."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from tenacity import Retrying, stop_after_delay, wait_fixed

from ssclass.demo.drawings import draw
from ssclass.environment import free_port
from ssclass.settings import home, load_settings
from ssclass.stack.parts import format_s3, program
from ssclass.upkeep.doctor import FAILED, NOTE, OK
from ssclass.workspace.workspace import Workspace
from tests.support.pipelines import CLASSES, set_params
from tests.support.running import clean_environment

pytestmark = pytest.mark.slow

SECRETS = {name: f"{name}-secret-4711" for name in ("s3", "mlflow", "prefect", "git")}
S3_PARTS = {"S3", "S3 conditional PUT", "S3 notifications", "DVC remote"}
PARTS = {"s3": S3_PARTS, "mlflow": {"MLflow runs", "MLflow registry"}, "prefect": {"Prefect"}, "git": {"git origin"}}


@dataclass
class Servers:
    """Four URLs; `person` is where this user keeps the logins, as the tools of each want it."""

    s3: str
    mlflow: str
    prefect: str
    git: str
    person: Path

    def environment(self, wrong: str = "") -> dict[str, str]:
        """References to the logins; the one of `wrong` is another than its server's."""
        said = {name: "not-it" if name == wrong else secret for name, secret in SECRETS.items()}
        (self.person / "aws").write_text(f"[shop]\naws_access_key_id = keeper\naws_secret_access_key = {said['s3']}\n")
        at = self.git.removeprefix("http://")
        (self.person / "git-logins").write_text(f"http://committer:{said['git']}@{at.split('/')[0]}\n")
        helper = f"store --file={self.person / 'git-logins'}"
        (self.person / "gitconfig").write_text(
            f"[user]\n\tname = p\n\temail = p@example.org\n[credential]\n\thelper = {helper}\n"
        )
        return clean_environment(
            SSCLASS_HOME=str(home()),
            AWS_SHARED_CREDENTIALS_FILE=str(self.person / "aws"),
            AWS_EC2_METADATA_DISABLED="true",
            MLFLOW_TRACKING_USERNAME="tracker",
            MLFLOW_TRACKING_PASSWORD=said["mlflow"],
            PREFECT_API_AUTH_STRING=f"runner:{said['prefect']}",
            GIT_CONFIG_GLOBAL=str(self.person / "gitconfig"),
            SSCLASS_PATIENCE="0",
        )


@pytest.fixture(scope="module")
def servers(tmp_path_factory) -> Iterator[Servers]:
    folder = tmp_path_factory.mktemp("servers")
    environment = clean_environment()
    started: list[subprocess.Popen[str]] = []

    def start(name: str, *command: str, **more: str) -> subprocess.Popen[str]:
        with (folder / f"{name}.log").open("w") as log:
            made = subprocess.Popen(
                command, env=environment | more, stdout=subprocess.PIPE, stderr=log, text=True, cwd=folder
            )
        started.append(made)
        return made

    def guarded(kind: str, target: str, login: str) -> str:
        script = str(Path(__file__).parent / "support" / "guarded.py")
        server = start(f"{kind}-guard", sys.executable, script, kind, target, login)
        assert server.stdout is not None
        return f"http://127.0.0.1:{server.stdout.readline().strip()}"

    def answers(url: str) -> None:
        import requests

        for attempt in Retrying(stop=stop_after_delay(180), wait=wait_fixed(0.5), reraise=True):
            with attempt:
                requests.get(url, timeout=5).raise_for_status()

    try:
        port = {name: free_port() for name in ("s3", "mlflow", "prefect")}
        format_s3(folder)
        login = {"MINIO_ROOT_USER": "keeper", "MINIO_ROOT_PASSWORD": SECRETS["s3"]}
        at = (f"sqlite3://{folder / 's3.db'}", f"127.0.0.1:{port['s3']}")
        start(
            "s3",
            program("juicefs"),
            "--no-agent",
            "gateway",
            *at,
            "--multi-buckets",
            "--keep-etag",
            "--no-banner",
            "--no-usage-report",
            **login,
        )
        tracking = (
            "--backend-store-uri",
            f"sqlite:///{folder}/mlflow.db",
            "--artifacts-destination",
            f"{folder}/artifacts",
        )
        serving = ("--host", "127.0.0.1", "--port", str(port["mlflow"]), "--workers", "1", "--serve-artifacts")
        quiet = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        start("mlflow", sys.executable, "-m", "mlflow", "server", *tracking, *serving, **quiet)
        start(
            "prefect",
            *(sys.executable, "-m", "prefect", "server", "start", "--port", str(port["prefect"]), "--no-ui"),
            PREFECT_HOME=str(folder / "prefect"),
            PREFECT_SERVER_API_AUTH_STRING=f"runner:{SECRETS['prefect']}",
            PREFECT_API_AUTH_STRING=f"runner:{SECRETS['prefect']}",
            PREFECT_SERVER_ANALYTICS_ENABLED="false",
        )
        bare = ["git", "init", "--quiet", "--bare", "--initial-branch=main", str(folder / "git" / "shop.git")]
        subprocess.run(bare, check=True)
        subprocess.run(["git", "-C", bare[-1], "config", "http.receivepack", "true"], check=True)
        answers(f"http://127.0.0.1:{port['s3']}/minio/health/live")
        answers(f"http://127.0.0.1:{port['mlflow']}/health")
        answers(f"http://127.0.0.1:{port['prefect']}/api/health")
        (folder / "person").mkdir()
        yield Servers(
            s3=f"http://127.0.0.1:{port['s3']}",
            mlflow=guarded("proxy", f"http://127.0.0.1:{port['mlflow']}", f"tracker:{SECRETS['mlflow']}"),
            prefect=f"http://127.0.0.1:{port['prefect']}/api",
            git=f"{guarded('git', str(folder / 'git'), 'committer:' + SECRETS['git'])}/shop.git",
            person=folder / "person",
        )
    finally:
        for server in reversed(started):
            server.terminate()
        for server in started:
            server.wait(60)


def run(environment: dict[str, str], *arguments: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "ssclass", *map(str, arguments)]
    return subprocess.run(command, env=environment, cwd=cwd, capture_output=True, text=True)


@pytest.fixture(scope="module")
def workspace(servers: Servers, tmp_path_factory) -> Path:
    """Made by `ssclass init` with every option."""
    folder = tmp_path_factory.mktemp("separate") / "shop"
    environment = servers.environment()
    done = run(
        environment,
        *("init", folder, "--bucket", "s3://shop", "--endpoint", servers.s3, "--region", "us-east-1"),
        *("--profile", "shop", "--mlflow", servers.mlflow, "--prefect", servers.prefect, "--git", servers.git),
    )
    assert done.returncode == 0, done.stderr
    done = run(environment, "bucket", "setup", cwd=folder)
    assert done.returncode == 0, done.stderr
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GIT_CONFIG_GLOBAL", environment["GIT_CONFIG_GLOBAL"])
        set_params(Workspace(load_settings(folder)), head="linear")
    return folder


# Each test goes on from where the one before it left the workspace.


def test_doctor_is_content(servers: Servers, workspace: Path):
    done = run(servers.environment(), "doctor", "--json", cwd=workspace)
    found = {each["part"]: each for each in json.loads(done.stdout)}
    assert done.returncode == 0, [each for each in found.values() if each["state"] == FAILED]
    wanted = {"S3", "DVC remote", *PARTS["mlflow"], *PARTS["prefect"], *PARTS["git"]}
    assert {found[part]["state"] for part in wanted} == {OK}
    assert {each["state"] for each in found.values()} <= {OK, NOTE}


def test_a_retrain_uses_all_four(servers: Servers, workspace: Path, tmp_path):
    draw(tmp_path / "photos", CLASSES, 30)
    environment = servers.environment()
    done = run(environment, "submit", tmp_path / "photos", "--id", "first", cwd=workspace)
    assert done.returncode == 0, done.stderr
    done = run(environment, "retrain", "--json", cwd=workspace)
    assert done.returncode == 0, done.stderr
    outcome = json.loads(done.stdout)
    assert (outcome["decision"], outcome["version"]) == ("PROMOTED", "1"), outcome["reason"]
    done = run(environment, "evaluate", tmp_path / "photos", "--json", cwd=workspace)
    assert json.loads(done.stdout)["models"]["champion"]["n"] == 60
    fresh = tmp_path / "fresh"
    assert run(environment, "init", fresh, "--git", servers.git).returncode == 0
    done = run(environment, "export", tmp_path / "out", cwd=fresh)
    assert "60 photos" in done.stdout, done.stderr


def test_no_login_is_written_down(servers: Servers, workspace: Path):
    origin = next(servers.person.parent.glob("git/*.git"))
    for root in (workspace, origin):
        for path in root.rglob("*"):
            if path.is_file():
                data = path.read_bytes()
                assert not [name for name, secret in SECRETS.items() if secret.encode() in data], path
        dump = ["git", "-C", str(root), "cat-file", "--batch", "--batch-all-objects"]
        data = subprocess.run(dump, capture_output=True, check=True).stdout
        assert not [name for name, secret in SECRETS.items() if secret.encode() in data]


@pytest.mark.parametrize("name", SECRETS)
def test_with_one_login_wrong_doctor_names_that_part_and_its_remedy(servers: Servers, workspace: Path, name: str):
    done = run(servers.environment(wrong=name), "doctor", "--json", cwd=workspace)
    assert done.returncode == 1, done.stderr
    found = {each["part"]: each for each in json.loads(done.stdout)}
    failed = {part for part, each in found.items() if each["state"] == FAILED}
    assert failed, "nobody noticed"
    assert failed <= PARTS[name], {part: found[part]["detail"] for part in failed}
    told = found[{"s3": "S3", "mlflow": "MLflow runs"}.get(name) or min(PARTS[name])]
    words = {"s3": "credentials", "mlflow": "MLFLOW_TRACKING_", "prefect": "PREFECT_API_AUTH_STRING", "git": "password"}
    assert words[name] in told["remedy"]
    assert not any(secret in done.stdout for secret in SECRETS.values())
