"""The parts of the stack on one machine: what each runs, with which environment, and how to tell that it is well."""

from __future__ import annotations

import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ssclass.environment import prefect_login
from ssclass.errors import FailedError
from ssclass.names import GPU, pool_of
from ssclass.settings import DEFAULT_NAME, Settings
from ssclass.stack.plan import HOST, PROFILE, USER, Plan, brought, credentials
from ssclass.stack.serving import parse_address
from ssclass.tracking.places import settle

NOTIFY_ARN = "arn:minio:sqs:us-east-1:BATCH:webhook"
PYTHON = (sys.executable, "-P", "-m")
"""How our own programs are run: the current folder, where a person's tasks.py may lie, is not on Python's path."""
WORKERS = {"retrain-worker": DEFAULT_NAME, "gpu-worker": GPU}
"""The workers, by the pool that deployments.yaml names."""


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
        found.append(s3_part(plan, folder))
    if "prefect" not in theirs:
        found.append(_prefect(plan, folder))
    if "mlflow" not in theirs:
        found.append(_mlflow(settings, plan))
    client = _client_environment(settings, plan, folder)
    listener: tuple[str, ...] = (*PYTHON, "ssclass", "listen", "--workspace", str(settings.workspace))
    listener += ("--webhook", f"{HOST}:{plan.ports['listener']}")
    secret = {"SSCLASS_WEBHOOK_SECRET": plan.webhook_secret}
    found.append(
        Part(
            "listener",
            listener,
            client | _identity(settings, folder, "pipeline") | secret,
            f"{plan.url('listener')}/health",
            first=False,
        )
    )
    for name, called in WORKERS.items():
        pool = pool_of(settings, called)
        command = (program("prefect"), "worker", "start", "--pool", pool, "--name", name, "--type", "process")
        role = "worker" if called == GPU else "pipeline"
        environment = client | _worker_environment(settings, called) | _identity(settings, folder, role)
        environment["PREFECT_LOGGING_LEVEL"] = "INFO"  # of a command it is CRITICAL, and would be inherited
        place = (settings.prefect_url or "", pool)
        found.append(Part(name, command, environment, pool=place, signal="INT", first=False))
    if settings.serve_listen is not None:
        found.append(_serve(settings, settings.serve_listen, client | _identity(settings, folder, "pipeline")))
    return found


def _serve(settings: Settings, listen: str, environment: dict[str, str]) -> Part:
    """The champion over HTTP; it takes its key from the environment of `ssclass up`, where there is one."""
    host, port = parse_address(listen)
    command = (*PYTHON, "ssclass", "serve", "--listen", listen, "--workspace", str(settings.workspace))
    asked = {"0.0.0.0": HOST, "::": "::1"}.get(host, host)
    address = f"[{asked}]" if ":" in asked else asked
    return Part("serve", command, environment, f"http://{address}:{port}/health", first=False)


def s3_part(plan: Plan, folder: Path) -> Part:
    """JuiceFS's S3 gateway on the data in `folder`."""
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
        "HOME": str(folder),  # the gateway makes a .minio/ there
        "MINIO_ROOT_USER": plan.s3_user,
        "MINIO_ROOT_PASSWORD": plan.s3_password,
        "MINIO_API_CORS_ALLOW_ORIGIN": plan.url("s3"),
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
        "PREFECT_SERVER_API_AUTH_STRING": plan.prefect_login,
        "PREFECT_API_AUTH_STRING": plan.prefect_login,  # of its own services, which are its clients
        "PREFECT_SERVER_CORS_ALLOWED_ORIGINS": ",".join(f"http://{name}" for name in plan.names("prefect")),
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
    settle(settings)
    names = ",".join(plan.names("mlflow"))
    guard = (*PYTHON, "ssclass.stack.guard", f"{HOST}:{plan.ports['mlflow']}", names)
    command: tuple[str, ...] = (*guard, *PYTHON, "mlflow", "server", "--uvicorn-opts", "--uds {socket}")
    command += ("--backend-store-uri", f"sqlite:///{home / 'mlflow.db'}", "--workers", "1", "--allowed-hosts", names)
    command += ("--serve-artifacts", "--artifacts-destination", (home / "artifacts").as_uri())
    environment = {
        "GUARD_LOGIN": f"{USER}:{plan.mlflow_password}",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "PYTHONSAFEPATH": "1",
    }
    return Part("mlflow", command, environment, f"{plan.url('mlflow')}/health")


def _client_environment(settings: Settings, plan: Plan, folder: Path) -> dict[str, str]:
    """What the listener and the workers need: Prefect and MLflow with their logins, and a path that is ours."""
    theirs = brought(settings)
    logins = {}
    if "prefect" not in theirs:
        logins["PREFECT_API_AUTH_STRING"] = plan.prefect_login
    if "mlflow" not in theirs:
        logins |= {"MLFLOW_TRACKING_USERNAME": USER, "MLFLOW_TRACKING_PASSWORD": plan.mlflow_password}
    return logins | {
        "PYTHONSAFEPATH": "1",
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
        "PREFECT_API_URL": settings.prefect_url or "",
        "PREFECT_HOME": str(folder / "prefect-client"),
        "PREFECT_PROFILES_PATH": str(folder / "prefect-client" / "profiles.toml"),
        "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30",
        "PREFECT_WORKER_QUERY_SECONDS": "1",
        "PREFECT_SERVER_ALLOW_EPHEMERAL_MODE": "false",
        "DO_NOT_TRACK": "1",
    }


def _identity(settings: Settings, folder: Path, role: str) -> dict[str, str]:
    """Where a role finds its S3 identity, on a server of ours."""
    if "s3" in brought(settings):
        return {}
    return {"SSCLASS_S3_PROFILE": PROFILE, "SSCLASS_S3_CREDENTIALS": str(credentials(folder, role))}


def _worker_environment(settings: Settings, called: str) -> dict[str, str]:
    """For the training's worker: only what a machine without this disk would be told, by its environment."""
    if called != GPU:
        return {}
    from ssclass.workspace.origin import Origin

    given: dict[str, Any] = {
        "NAME": settings.name,
        "BUCKET": settings.bucket,
        "S3_PREFIX": settings.s3_prefix,
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
