"""The parts of the stack on one machine: what each runs, with which environment, and how to tell that it is well."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ssclass.environment import free_port, prefect_login
from ssclass.errors import FailedError
from ssclass.files import write_whole
from ssclass.settings import SETTINGS_FILE, STARTED_FILE, Settings, load_settings

HOST = "127.0.0.1"
NOTIFY_ARN = "arn:minio:sqs:us-east-1:BATCH:webhook"
TRAINING = "train/gpu"
POOLS = {"retrain-worker": "ssclass", "gpu-worker": "gpu"}


@dataclass(frozen=True)
class Part:
    """One program of the process manager, and how to tell that it is well.

    `health`: a URL that answers 200 then; `pool`: of Prefect's workers, one that has reported there.
    """

    name: str
    command: tuple[str, ...]
    environment: dict[str, str]
    health: str | None = None
    pool: tuple[str, str] | None = None  # Prefect's API, pool
    signal: str = "TERM"
    first: bool = True  # started before the others, which need it


@dataclass
class Plan:
    """Ports and secrets of a workspace's stack; the same from one start to the next, in a file only its user reads."""

    ports: dict[str, int] = field(default_factory=dict)
    s3_user: str = "ssclass"
    s3_password: str = ""
    webhook_secret: str = ""

    @classmethod
    def of(cls, folder: Path) -> Plan:
        """The plan in a folder, made on first use; a port that somebody else has taken meanwhile is replaced."""
        path = folder / "plan.json"
        plan = cls(**json.loads(path.read_text())) if path.exists() else cls()
        plan.s3_password = plan.s3_password or secrets.token_hex(20)
        plan.webhook_secret = plan.webhook_secret or secrets.token_hex(20)
        for name in ("s3", "prefect", "mlflow", "listener"):
            while not _is_free(plan.ports.get(name)) or list(plan.ports.values()).count(plan.ports[name]) > 1:
                plan.ports[name] = free_port()
        write_private(path, json.dumps(asdict(plan)))
        return plan

    def url(self, name: str) -> str:
        """Where a part listens."""
        return f"http://{HOST}:{self.ports[name]}"


def write_private(path: Path, text: str) -> None:
    """A file that only its owner reads, from its first byte on; whole or not at all."""
    write_whole(path, text, mode=0o600)


def _is_free(port: int | None) -> bool:
    import socket

    if port is None:
        return False
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
    return True


def brought(settings: Settings) -> dict[str, str]:
    """The parts that the person brings, by name, with where they are: what ssclass.toml or the environment names."""
    import tomllib

    own = tomllib.loads((settings.workspace / SETTINGS_FILE).read_text(encoding="utf-8"))
    own |= {name: value for name in Settings.model_fields if (value := os.environ.get(f"SSCLASS_{name.upper()}"))}
    found = {}
    if own.get("s3_endpoint") or own.get("s3_region") or own.get("s3_profile"):
        found["s3"] = str(own.get("s3_endpoint") or "AWS")
    for name, key in (("prefect", "prefect_url"), ("mlflow", "mlflow_uri")):
        if own.get(key):
            found[name] = str(own[key])
    return found


def started(settings: Settings, plan: Plan, folder: Path) -> Settings:
    """Write down where the parts will be, for every command in this workspace; the settings with that in them."""
    theirs = brought(settings)
    lines: dict[str, str] = {}
    if "s3" not in theirs:
        credentials = folder / "aws"
        write_private(
            credentials,
            f"[ssclass-stack]\naws_access_key_id = {plan.s3_user}\naws_secret_access_key = {plan.s3_password}\n",
        )
        lines |= {
            "s3_endpoint": plan.url("s3"),
            "s3_region": "us-east-1",
            "s3_profile": "ssclass-stack",
            "s3_credentials": str(credentials),
        }
    if "prefect" not in theirs:
        lines["prefect_url"] = f"{plan.url('prefect')}/api"
    if "mlflow" not in theirs:
        lines["mlflow_uri"] = plan.url("mlflow")
    lines["train_deployment"] = TRAINING
    write_private(
        settings.workspace / STARTED_FILE,
        "# Written by `ssclass up`.\n" + "".join(f"{name} = {json.dumps(value)}\n" for name, value in lines.items()),
    )
    return load_settings(settings.workspace)


def stopped(settings: Settings) -> None:
    """Forget the servers that are down; S3 stays named, as what the workspace refers to lies there."""
    path = settings.workspace / STARTED_FILE
    if path.exists():
        kept = [line for line in path.read_text().splitlines(True) if line.startswith(("#", "s3_"))]
        write_private(path, "".join(kept))


def program(name: str) -> str:
    """The path of a program of this Python environment."""
    beside = Path(sys.executable).with_name(name)
    found = str(beside) if beside.exists() else shutil.which(name)
    if found is None:
        raise FailedError(f"{name}: not in this Python environment; `make install` puts it there")
    return found


def parts(settings: Settings, plan: Plan, folder: Path) -> list[Part]:
    """What to start for these settings (those after :func:`started`)."""
    theirs = brought(settings)
    found = []
    if "s3" not in theirs:
        found.append(_s3(plan, folder))
    if "prefect" not in theirs:
        found.append(_prefect(plan, folder))
    if "mlflow" not in theirs:
        found.append(_mlflow(settings, plan))
    client = _client_environment(settings, folder)
    listener: tuple[str, ...] = (sys.executable, "-m", "ssclass", "listen", "--workspace", str(settings.workspace))
    listener += ("--webhook", f"{HOST}:{plan.ports['listener']}")
    secret = {"SSCLASS_WEBHOOK_SECRET": plan.webhook_secret}
    found.append(Part("listener", listener, client | secret, f"{plan.url('listener')}/health", first=False))
    for name, pool in POOLS.items():
        command = (program("prefect"), "worker", "start", "--pool", pool, "--name", name, "--type", "process")
        environment = client | _worker_environment(settings, pool)
        place = (settings.prefect_url or "", pool)
        found.append(Part(name, command, environment, pool=place, signal="INT", first=False))
    return found


def _s3(plan: Plan, folder: Path) -> Part:
    command: tuple[str, ...] = (
        program("juicefs"),
        "--no-agent",
        "gateway",
        _meta(folder),
        f"{HOST}:{plan.ports['s3']}",
    )
    command += ("--multi-buckets", "--keep-etag", "--object-tag", "--object-meta", "--no-banner", "--no-usage-report")
    command += ("--cache-dir", str(folder / "s3-cache"), "--cache-size", "1G", "--backup-meta", "0")
    environment = {
        "MINIO_ROOT_USER": plan.s3_user,
        "MINIO_ROOT_PASSWORD": plan.s3_password,
        "MINIO_NOTIFY_WEBHOOK_ENABLE_BATCH": "on",
        "MINIO_NOTIFY_WEBHOOK_ENDPOINT_BATCH": f"{plan.url('listener')}/s3",
        "MINIO_NOTIFY_WEBHOOK_AUTH_TOKEN_BATCH": plan.webhook_secret,
        "MINIO_NOTIFY_WEBHOOK_QUEUE_DIR_BATCH": str(folder / "s3-events"),  # kept until the listener has them
    }
    return Part("s3", command, environment, f"{plan.url('s3')}/minio/health/live")


def _meta(folder: Path) -> str:
    return f"sqlite3://{folder / 's3.db'}"


def format_s3(folder: Path) -> None:
    """Make the S3 server's file system, once; afterwards tell it where its data is, as the workspace may have moved."""
    import subprocess

    (folder / "s3-events").mkdir(parents=True, exist_ok=True)
    data = str(folder / "s3-data")
    if made := not (folder / "s3.db").exists():
        arguments = ["format", _meta(folder), "ssclass", "--storage", "file", "--bucket", data, "--trash-days", "0"]
    else:
        arguments = ["config", _meta(folder), "--bucket", f"{data}/", "--yes"]
    done = subprocess.run([program("juicefs"), "--no-agent", *arguments], capture_output=True, text=True)
    if done.returncode:
        if made:
            (folder / "s3.db").unlink(missing_ok=True)
        raise FailedError(f"juicefs {arguments[0]}: {(done.stderr.strip() or 'no message').splitlines()[-1]}")


def _prefect(plan: Plan, folder: Path) -> Part:
    command = (program("prefect"), "server", "start", "--host", HOST, "--port", str(plan.ports["prefect"]))
    environment = server_environment(folder) | {
        "PREFECT_HOME": str(folder / "prefect"),
        "PREFECT_PROFILES_PATH": str(folder / "prefect" / "profiles.toml"),
        "PREFECT_API_URL": f"{plan.url('prefect')}/api",
        "PREFECT_UI_API_URL": f"{plan.url('prefect')}/api",
    }
    return Part("prefect", command, environment, f"{plan.url('prefect')}/api/health")


def server_environment(folder: Path) -> dict[str, str]:
    """What any Prefect server of ours needs: a slot held by a run must outlive the server, and come back from it."""
    return {
        "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",
        "PREFECT_SERVER_DEPLOYMENTS_CONCURRENCY_SLOT_WAIT_SECONDS": "5",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "1",
    }


def _mlflow(settings: Settings, plan: Plan) -> Part:
    home = settings.private / "mlflow"
    home.mkdir(parents=True, exist_ok=True)
    command: tuple[str, ...] = (
        sys.executable,
        "-m",
        "mlflow",
        "server",
        "--host",
        HOST,
        "--port",
        str(plan.ports["mlflow"]),
    )
    command += ("--backend-store-uri", f"sqlite:///{home / 'mlflow.db'}", "--workers", "1")
    command += ("--serve-artifacts", "--artifacts-destination", (home / "artifacts").as_uri())
    environment = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    return Part("mlflow", command, environment, f"{plan.url('mlflow')}/health")


def _client_environment(settings: Settings, folder: Path) -> dict[str, str]:
    """What the listener and the workers need of Prefect."""
    return {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
        "PREFECT_API_URL": settings.prefect_url or "",
        "PREFECT_HOME": str(folder / "prefect-client"),
        "PREFECT_PROFILES_PATH": str(folder / "prefect-client" / "profiles.toml"),
        "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30",
        "PREFECT_WORKER_QUERY_SECONDS": "1",
        "PREFECT_SERVER_ALLOW_EPHEMERAL_MODE": "false",
        "DO_NOT_TRACK": "1",
    }


def _worker_environment(settings: Settings, pool: str) -> dict[str, str]:
    """For the training's worker: only what a machine without this disk would be told, by its environment."""
    if pool != "gpu":
        return {}
    from ssclass.workspace.origin import Origin

    given: dict[str, Any] = {
        "BUCKET": settings.bucket,
        "S3_ENDPOINT": settings.s3_endpoint,
        "S3_REGION": settings.s3_region,
        "S3_PROFILE": settings.s3_profile,
        "S3_CREDENTIALS": settings.s3_credentials,
        "MLFLOW_URI": settings.tracking_uri,
        "PREFECT_URL": settings.prefect_url,
        "MODEL_NAME": settings.model_name,
        "GIT": Origin(settings).url,
    }
    return {f"SSCLASS_{name}": str(value) for name, value in given.items() if value}


def is_well(part: Part) -> bool:
    """Whether a part that runs does its work."""
    import requests

    try:
        if part.pool is not None:
            return part.name in online(*part.pool)
        return part.health is None or bool(requests.get(part.health, timeout=3).status_code == 200)
    except requests.RequestException:
        return False


def online(prefect_url: str, pool: str) -> list[str]:
    """Names of the workers of a pool that Prefect has heard of lately; requests' errors when it cannot be asked."""
    import requests

    url = f"{prefect_url}/work_pools/{pool}/workers/filter"
    answer = requests.post(url, json={}, headers=prefect_login(), timeout=5)
    listed = answer.json() if answer.status_code == 200 else []
    return [each["name"] for each in listed if each["status"] == "ONLINE"]
