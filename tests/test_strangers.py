"""Whoever knows no secret of the stack gets nothing from it, and no secret of it lies about."""

from __future__ import annotations

import base64
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
import requests
from botocore.config import Config
from botocore.exceptions import ClientError

from ssclass.environment import LOGINS_FILE
from ssclass.settings import home
from ssclass.stack.identities import user_of
from ssclass.stack.plan import Plan, credentials
from ssclass.upkeep.bucket import ROLES
from tests.support.running import Running, clean_environment, eventually

pytestmark = pytest.mark.timeout(900)
EVIL = "http://evil.example.org"


@pytest.fixture(scope="module")
def plan(stack: Running) -> Plan:
    return Plan(**json.loads((stack.manager.folder / "plan.json").read_text()))


@pytest.fixture(scope="module")
def deployment(stack: Running) -> str:
    return str(stack.api("deployments/name/retrain/retrain")["id"])


def test_prefect_does_nothing_for_a_stranger(stack: Running, deployment: str):
    url = stack.settings.prefect_url
    before = stack.api("flow_runs/count", {})
    calls: list[tuple[str, str, Any]] = [
        ("POST", f"deployments/{deployment}/create_flow_run", {"state": {"type": "SCHEDULED"}}),
        ("POST", "flow_runs/filter", {}),
        ("POST", "deployments/filter", {}),
        ("POST", "work_pools/filter", {}),
        ("POST", "block_documents/filter", {"include_secrets": True}),
        ("POST", "events", []),
        ("POST", "admin/database/clear", {"confirm": True}),
        ("GET", "admin/settings", None),
        ("DELETE", f"deployments/{deployment}", None),
    ]
    for method, path, body in calls:
        for headers in ({}, {"Origin": EVIL}, {"Authorization": "Basic " + base64.b64encode(b"ssclass:x").decode()}):
            answer = requests.request(method, f"{url}/{path}", json=body, headers=headers, timeout=20)
            assert answer.status_code == 401, (method, path, headers)
            assert "access-control-allow-origin" not in answer.headers
    assert stack.api("flow_runs/count", {}) == before


def test_prefect_hears_nobody_by_websocket(stack: Running):
    """Events start retrains, so a stranger must not be able to send any by the socket that clients use."""
    from websockets.exceptions import ConnectionClosed, InvalidStatus
    from websockets.sync.client import connect

    at = (stack.settings.prefect_url or "").replace("http", "ws")
    for protocols, first in ((None, None), (["prefect"], {"type": "auth", "token": "x"}), (["prefect"], {})):
        said = []
        try:
            with connect(f"{at}/events/in", subprotocols=protocols) as socket:  # type: ignore[arg-type]
                socket.send(json.dumps(first))
                said.append(socket.recv(10))
        except (ConnectionClosed, InvalidStatus):
            continue
        pytest.fail(f"{protocols}: {said}")


def test_prefect_lets_pages_of_its_own_only(stack: Running):
    url = stack.settings.prefect_url or ""
    asked = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}
    own = url.removesuffix("/api")
    assert requests.options(f"{url}/flows/", headers={"Origin": own, **asked}, timeout=20).status_code == 200
    for origin in (EVIL, "null", own.replace("127.0.0.1", "127.0.0.2"), f"{own}0"):
        answer = requests.options(f"{url}/flows/", headers={"Origin": origin, **asked}, timeout=20)
        assert answer.status_code == 400
        assert "access-control-allow-origin" not in answer.headers


def test_no_run_changes_its_command(stack: Running, deployment: str):
    """Even with the login: starting runs is less than running programs."""
    login = stack.login("prefect")
    url = f"{stack.settings.prefect_url}/deployments/{deployment}/create_flow_run"
    for name, value in {"command": "touch pwned", "env": {"LD_PRELOAD": "x"}, "working_dir": "/"}.items():
        body = {"state": {"type": "SCHEDULED"}, "job_variables": {name: value}}
        answer = requests.post(url, json=body, auth=login, timeout=20)
        assert answer.status_code == 422, answer.text
        assert name in answer.text


def test_mlflow_does_nothing_for_a_stranger(stack: Running):
    uri = stack.settings.tracking_uri
    api = f"{uri}/api/2.0/mlflow"
    login = stack.login("mlflow")
    assert requests.get(f"{uri}/health", timeout=20).status_code == 200
    for method, url, body in (
        ("GET", f"{uri}/", None),
        ("POST", f"{uri}/health", None),
        ("GET", f"{uri}/health/../api/2.0/mlflow/experiments/search?max_results=1", None),
        ("GET", f"{api}/experiments/search?max_results=1", None),
        ("POST", f"{api}/experiments/create", {"name": "strange"}),
        ("GET", f"{uri}/api/2.0/mlflow-artifacts/artifacts", None),
        ("PUT", f"{uri}/api/2.0/mlflow-artifacts/artifacts/strange", {}),
        ("POST", f"{uri}/graphql", {}),
    ):
        for headers in ({}, {"Authorization": "Basic " + base64.b64encode(b"ssclass:x").decode()}):
            answer = requests.request(method, url, json=body, headers=headers, timeout=20)
            assert answer.status_code == 401, (method, url)
    # A page of another origin, in the browser of somebody who has logged in; and a name that an attacker's DNS made.
    for headers in ({"Origin": EVIL}, {"Origin": "null"}, {"Host": "evil.example.org"}):
        body = {"name": "strange"}
        answer = requests.post(f"{api}/experiments/create", json=body, headers=headers, auth=login, timeout=20)
        assert answer.status_code == 403, headers
    found = requests.get(f"{api}/experiments/search?max_results=100", auth=login, timeout=20).json()
    assert "strange" not in [each["name"] for each in found["experiments"]]
    assert requests.get(uri, headers={"Origin": uri}, auth=login, timeout=20).status_code == 200, "the UI is for us"


def test_the_ui_of_a_workspace_without_a_server_asks_as_well(tmp_path: Path):
    environment = clean_environment(SSCLASS_HOME=str(home()))
    command = [sys.executable, "-m", "ssclass"]
    subprocess.run([*command, "init", str(tmp_path / "x")], env=environment, check=True, capture_output=True)
    starting = [*command, "ui", "--workspace", str(tmp_path / "x")]
    with subprocess.Popen(starting, env=environment, stdout=subprocess.PIPE, text=True, start_new_session=True) as ui:
        assert ui.stdout is not None
        address = re.search(r"http://127\.0\.0\.1:\d+", ui.stdout.readline())
        login = re.search(r"user (\w+), password (\w+)", ui.stdout.readline())
        assert address
        assert login

        def well() -> bool:
            try:
                return requests.get(f"{address[0]}/health", timeout=5).status_code == 200
            except requests.RequestException:
                return False

        try:
            eventually("the UI answers", well)
            assert requests.get(address[0], timeout=20).status_code == 401
            assert requests.get(address[0], auth=(login[1], login[2]), timeout=20).status_code == 200
            arguments = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
            assert login[2] not in arguments
        finally:
            os.killpg(ui.pid, signal.SIGINT)


def client(stack: Running, user: str, password: str) -> Any:
    return boto3.client(
        "s3",
        endpoint_url=stack.settings.s3_endpoint,
        region_name="us-east-1",
        aws_access_key_id=user,
        aws_secret_access_key=password,
        config=Config(s3={"addressing_style": "path"}, retries={"total_max_attempts": 1}),
    )


FOLDERS = ("incoming", "quarantine", "features", "results", "dvc")
MAY_PUT = {
    "sender": {"incoming"},
    "pipeline": set(FOLDERS) - {"incoming"},
    "worker": {"features", "results"},
    "tracking": set(),
    "reader": set(),
    "owner": set(FOLDERS),
}
MAY_GET = MAY_PUT | {
    "pipeline": set(FOLDERS),
    "worker": {"features", "results", "dvc"},
    "reader": {"dvc"},
}


def test_each_role_writes_and_reads_its_own_folders(stack: Running, plan: Plan):
    bucket = stack.settings.bucket
    owner = client(stack, user_of("owner"), plan.s3_passwords["owner"])
    assert set(MAY_PUT) == set(ROLES)
    for folder in FOLDERS:
        owner.put_object(Bucket=bucket, Key=f"{folder}/by-owner", Body=b"1")
    try:
        for role in ROLES:
            told = client(stack, user_of(role), plan.s3_passwords[role])
            for folder in FOLDERS:
                put = allowed(told.put_object, Bucket=bucket, Key=f"{folder}/by-role", Body=b"1")
                got = allowed(told.get_object, Bucket=bucket, Key=f"{folder}/by-owner")
                assert (put, got) == (folder in MAY_PUT[role], folder in MAY_GET[role]), (role, folder)
            assert allowed(told.list_objects_v2, Bucket=bucket) == (role == "owner"), role
            assert not allowed(told.create_bucket, Bucket=f"{role}s"), role
            rules: dict[str, Any] = {"Bucket": bucket, "NotificationConfiguration": {}}
            if role != "owner":
                assert not allowed(told.put_bucket_notification_configuration, **rules), role
    finally:
        for folder in FOLDERS:
            for name in ("by-owner", "by-role"):
                owner.delete_object(Bucket=bucket, Key=f"{folder}/{name}")


def test_s3_does_nothing_for_a_stranger(stack: Running):
    url, bucket = stack.settings.s3_endpoint, stack.settings.bucket
    for method, path in (("GET", ""), ("GET", f"{bucket}?list-type=2"), ("PUT", f"{bucket}/incoming/strange/_SUCCESS")):
        answer = requests.request(method, f"{url}/{path}", headers={"Origin": EVIL}, timeout=20)
        assert answer.status_code == 403, (method, path)
        assert answer.headers.get("access-control-allow-origin") in (None, url)
    for user, password in ((user_of("owner"), "wrong-password"), ("ssclass", "ssclass-ssclass")):
        assert not allowed(client(stack, user, password).list_objects_v2, Bucket=bucket)


def allowed(call: Any, **arguments: Any) -> bool:
    try:
        call(**arguments)
    except ClientError as error:
        if error.response["ResponseMetadata"]["HTTPStatusCode"] != 403:
            raise
        return False
    return True


def test_the_parts_hold_the_identity_of_their_role(stack: Running):
    for part, role in {"listener": "pipeline", "retrain-worker": "pipeline", "gpu-worker": "worker"}.items():
        environment = Path(f"/proc/{stack.pid(part)}/environ").read_bytes().decode().split("\0")
        assert f"SSCLASS_S3_CREDENTIALS={credentials(stack.manager.folder, role)}" in environment
        assert not any(each.startswith("MINIO_ROOT") for each in environment)
    root = f"aws_access_key_id = {json.loads((stack.manager.folder / 'plan.json').read_text())['s3_user']}\n"
    assert not [role for role in ROLES if root in credentials(stack.manager.folder, role).read_text()]


# -- no secret lies about ------------------------------------------------------------------------------------------


def spelt(plan: Plan) -> dict[bytes, str]:
    """Every secret as it may be written, with the secret's first characters to name it by."""
    found = {}
    for secret in plan.secrets():
        for text in (secret, f"ssclass:{secret}"):
            found[text.encode()] = secret[:4]
            found[base64.b64encode(text.encode()).rstrip(b"=")[:-1]] = secret[:4]
    return found


def test_no_secret_is_written_where_others_read(stack: Running, plan: Plan):
    """Logs, git, MLflow's database and artifacts, every object in S3, Prefect's database, arguments of processes."""
    stack.submit("scanned", per_class=12)
    eventually("scanned is decided", lambda: "scanned" in stack.decided())
    stack.idle()
    secrets = spelt(plan)
    assert len(secrets) >= 20
    folder = stack.manager.folder
    kept = {folder / "plan.json", folder / "supervisord.conf", stack.settings.private / LOGINS_FILE}
    kept |= {credentials(folder, role) for role in ROLES}
    seen = 0
    for place, data in written(stack, plan):
        if place not in kept:
            seen += 1
            assert not [name for secret, name in secrets.items() if secret in data], place
    assert seen > 50
    for path in kept:
        assert path.stat().st_mode & 0o077 == 0


def written(stack: Running, plan: Plan) -> Iterator[tuple[Path, bytes]]:
    """Everything that the stack has written, by place.

    The S3 server's own files are seen through its API: it must keep its users' keys somewhere to know them by, and
    does so there, in a folder that only its owner enters.
    """
    folder = stack.manager.folder
    server = {folder / "s3-data", folder / "s3-cache", folder / "s3.db", folder / "s3.db-wal", folder / "s3.db-shm"}
    origin = stack.folder.with_name(f"{stack.folder.name}.git")
    for root in (stack.folder, origin):
        for path in root.rglob("*"):
            if path.is_file() and not path.is_symlink() and not server & {path, *path.parents}:
                yield path, path.read_bytes()
        dump = ["git", "-C", str(root), "cat-file", "--batch", "--batch-all-objects"]
        yield root / "objects", subprocess.run(dump, capture_output=True, check=True).stdout
    owner = client(stack, user_of("owner"), plan.s3_passwords["owner"])
    for page in owner.get_paginator("list_objects_v2").paginate(Bucket=stack.settings.bucket):
        for each in page["Contents"]:
            body = owner.get_object(Bucket=stack.settings.bucket, Key=each["Key"])["Body"].read()
            yield Path("s3") / each["Key"], body
    yield Path("processes"), subprocess.run(["ps", "-eo", "args"], capture_output=True, check=True).stdout
