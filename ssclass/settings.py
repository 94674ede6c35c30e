"""Where things are: S3, MLflow, Prefect, the workspace. Nothing here changes a result.

Precedence: a call's own arguments, then ``SSCLASS_*`` in the environment, then the workspace's
``ssclass.toml``, then what `ssclass up` started. Credentials are never kept: name a profile, or let the environment
or a role give them.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from platformdirs import user_cache_path
from pydantic import Field, ValidationError
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from ssclass.errors import ParamsError, WorkspaceError

SETTINGS_FILE = "ssclass.toml"
STARTED_FILE = ".ssclass/started.toml"
"""Where `ssclass up` writes what it started; untracked."""
DEFAULT_NAME = "ssclass"
NAME = r"^[a-z0-9][a-z0-9-]{0,39}$"
PACKAGE = Path(__file__).resolve().parent
CHECKOUT = PACKAGE.parent


def home() -> Path:
    """Folder for what every workspace may share (the public backbone weights).

    ``SSCLASS_HOME``, else ``.cache/`` of the code's checkout, else the user's cache folder.
    """
    if given := os.environ.get("SSCLASS_HOME"):
        return Path(given)
    if (CHECKOUT / "pyproject.toml").is_file():
        return CHECKOUT / ".cache"
    return user_cache_path("ssclass")


class Settings(BaseSettings):
    """One workspace and the services it uses."""

    model_config = SettingsConfigDict(env_prefix="SSCLASS_", extra="forbid", frozen=True)

    workspace: Path
    name: str = Field(
        default=DEFAULT_NAME,
        pattern=NAME,
        description="what deployments, pools, events and automations on a shared Prefect server are called by",
    )
    bucket: str = "ssclass"
    s3_endpoint: str | None = Field(default=None, description="S3-compatible server; none: AWS")
    s3_region: str | None = None
    s3_profile: str | None = Field(default=None, description="name of a profile in the AWS configuration")
    s3_credentials: Path | None = Field(default=None, description="AWS credentials file; none: AWS's own places")
    mlflow_uri: str | None = Field(default=None, description="tracking URI; none: SQLite in the workspace")
    prefect_url: str | None = Field(default=None, description="Prefect API URL; none: a temporary one")
    git: str | None = Field(default=None, description="URL of origin, for a machine without a workspace")
    train_deployment: str | None = Field(
        default=None, description="Prefect deployment that trains, as in train/gpu; none: in the retrain's own process"
    )
    model_name: str = Field(default="ssclass", description="registered model and experiment in MLflow")

    sqs: str | None = Field(default=None, description="URL of the SQS queue that S3 notifies")
    sweep: float = Field(default=300.0, gt=0, description="seconds between two sweeps of S3")
    patience: float = Field(default=60.0, ge=0, description="seconds to wait for a service that is away")

    @property
    def private(self) -> Path:
        """The workspace's own untracked folder: caches, scratch, local MLflow."""
        return self.workspace / ".ssclass"

    @property
    def tracking_uri(self) -> str:
        """The MLflow tracking URI in force."""
        return self.mlflow_uri or f"sqlite:///{self.private / 'mlflow' / 'mlflow.db'}"

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Arguments, then the environment, then ssclass.toml, then what `ssclass up` started."""
        workspace = init_settings().get("workspace")
        file = Path(workspace) / SETTINGS_FILE if workspace else None
        started = Path(workspace) / STARTED_FILE if workspace else None
        return (
            init_settings,
            env_settings,
            TomlConfigSettingsSource(settings_cls, file),
            TomlConfigSettingsSource(settings_cls, started),
        )


def check_name(name: str) -> None:
    """Stop where a workspace cannot be called so; ParamsError says what names are like."""
    if not re.fullmatch(NAME, name):
        raise ParamsError(f"--name {name!r}: not a name; take up to 40 of a-z, 0-9 and -, as in shop or shop-2")


def find_workspace(given: Path | None = None) -> Path:
    """The workspace to use: the one given, ``SSCLASS_WORKSPACE``, or this folder or one above it."""
    named = given or (Path(env) if (env := os.environ.get("SSCLASS_WORKSPACE")) else None)
    if named is not None:
        if not (named / SETTINGS_FILE).is_file():
            raise WorkspaceError(f"{named}: not a workspace; make one with `ssclass init {named}`")
        return named.resolve()
    here = Path.cwd().resolve()
    for folder in (here, *here.parents):
        if (folder / SETTINGS_FILE).is_file():
            return folder
    raise WorkspaceError(
        f"{here}: not in a workspace; name one with --workspace DIR, or make one with `ssclass init DIR`"
    )


def load_settings(workspace: Path | None = None) -> Settings:
    """Settings of a workspace; WorkspaceError when there is none, ParamsError when its file is unusable."""
    folder = find_workspace(workspace)
    try:
        return Settings(workspace=folder)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        known = first["type"] != "extra_forbidden"
        remedy = f"correct it there or in SSCLASS_{field.upper()}" if known else "remove it there"
        raise ParamsError(f"{folder / SETTINGS_FILE}: {field}: {first['msg']}; {remedy}") from error
    except ValueError as error:
        raise ParamsError(f"{folder / SETTINGS_FILE}: not readable as TOML ({error}); mend it there") from error
