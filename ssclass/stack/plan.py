"""Where the parts of a workspace's stack listen, and the secrets that it made: kept from one start to the next."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from ssclass.environment import LOGINS_FILE, free_port, private_folder, write_private
from ssclass.errors import FailedError
from ssclass.names import train_deployment
from ssclass.secrets import hide
from ssclass.settings import SETTINGS_FILE, STARTED_FILE, Settings, load_settings
from ssclass.stack.identities import user_of
from ssclass.upkeep.bucket import ROLES

HOST = "127.0.0.1"
USER = "ssclass"
"""The name that goes with the passwords of Prefect and MLflow."""
PROFILE = "ssclass-stack"
"""The profile in each of the stack's AWS credentials files; DVC's configuration names it."""
SECRETS = ("s3_password", "webhook_secret", "prefect_password", "mlflow_password")


@dataclass
class Plan:
    """Ports and secrets of a workspace's stack, in a file only its user reads.

    `s3_user` and `s3_password` are the S3 server's root account; `s3_passwords` are those of the roles.
    """

    ports: dict[str, int] = field(default_factory=dict)
    s3_user: str = "ssclass"
    s3_password: str = ""
    webhook_secret: str = ""
    prefect_password: str = ""
    mlflow_password: str = ""
    s3_passwords: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, folder: Path) -> Plan:
        """The plan in a folder, made on first use; a port that somebody else has taken meanwhile is replaced."""
        path = folder / "plan.json"
        try:
            plan = cls(**json.loads(path.read_text())) if path.exists() else cls()
        except (ValueError, TypeError) as error:
            raise FailedError(f"{path}: damaged ({error}); move it away: `ssclass up` makes another") from error
        for name in SECRETS:
            setattr(plan, name, getattr(plan, name) or secrets.token_hex(20))
        plan.s3_passwords = {role: plan.s3_passwords.get(role) or secrets.token_hex(20) for role in ROLES}
        for name in ("s3", "prefect", "mlflow", "listener"):
            while not _is_free(plan.ports.get(name)) or list(plan.ports.values()).count(plan.ports[name]) > 1:
                plan.ports[name] = free_port()
        write_private(path, json.dumps(asdict(plan)))
        hide(*plan.secrets())
        return plan

    def secrets(self) -> list[str]:
        """Every secret of the stack."""
        return [*(getattr(self, name) for name in SECRETS), *self.s3_passwords.values()]

    def url(self, name: str) -> str:
        """Where a part listens."""
        return f"http://{HOST}:{self.ports[name]}"

    def names(self, name: str) -> list[str]:
        """The host names, with ports, under which a part is known."""
        return [f"{host}:{self.ports[name]}" for host in (HOST, "localhost")]

    @property
    def prefect_login(self) -> str:
        """Prefect's authentication string."""
        return f"{USER}:{self.prefect_password}"


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


def credentials(folder: Path, role: str) -> Path:
    """The AWS credentials file of a role."""
    return folder / ("aws" if role == "owner" else f"aws-{role}")


def started(settings: Settings, plan: Plan, folder: Path) -> Settings:
    """Write down where the parts will be, for every command in this workspace; the settings with that in them."""
    theirs = brought(settings)
    lines = {} if "s3" in theirs else _storage(plan, folder)
    logins: dict[str, dict[str, str]] = {}
    if "prefect" not in theirs:
        lines["prefect_url"] = f"{plan.url('prefect')}/api"
        logins["prefect"] = {"url": lines["prefect_url"], "user": USER, "password": plan.prefect_password}
    if "mlflow" not in theirs:
        lines["mlflow_uri"] = plan.url("mlflow")
        logins["mlflow"] = {"url": lines["mlflow_uri"], "user": USER, "password": plan.mlflow_password}
    lines["train_deployment"] = train_deployment(settings)
    _write_started(settings, lines)
    tables = "".join(f"\n[{part}]\n{_toml(login)}" for part, login in logins.items())
    write_private(private_folder(settings) / LOGINS_FILE, "# Written by `ssclass up`: its servers' logins.\n" + tables)
    return load_settings(settings.workspace)


def storage_started(settings: Settings, plan: Plan, folder: Path) -> None:
    """Write down where the S3 server will be, and nothing else of the stack."""
    _write_started(settings, _storage(plan, folder))


def _storage(plan: Plan, folder: Path) -> dict[str, str]:
    """Write the roles' credentials; the settings by which the workspace reaches its own S3."""
    for role, password in plan.s3_passwords.items():
        write_private(
            credentials(folder, role),
            f"[{PROFILE}]\naws_access_key_id = {user_of(role)}\naws_secret_access_key = {password}\n",
        )
    return {
        "s3_endpoint": plan.url("s3"),
        "s3_region": "us-east-1",
        "s3_profile": PROFILE,
        "s3_credentials": str(credentials(folder, "owner")),
    }


def _write_started(settings: Settings, lines: Mapping[str, str]) -> None:
    write_private(settings.workspace / STARTED_FILE, "# Written by `ssclass up`.\n" + _toml(lines))


def _toml(values: Mapping[str, str]) -> str:
    return "".join(f"{name} = {json.dumps(value)}\n" for name, value in values.items())


def stopped(settings: Settings) -> None:
    """Forget the servers that are down; S3 stays named, as what the workspace refers to lies there."""
    path = settings.workspace / STARTED_FILE
    if path.exists():
        kept = [line for line in path.read_text().splitlines(True) if line.startswith(("#", "s3_"))]
        write_private(path, "".join(kept))
