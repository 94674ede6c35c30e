"""Where things are: S3, MLflow, Prefect, the workspace. Nothing here changes a result.

Precedence: a call's own arguments, then ``SSCLASS_*`` in the environment, then the workspace's
``ssclass.toml``, then what `ssclass up` started. Credentials are never kept: name a profile, or let the environment
or a role give them.
"""

from __future__ import annotations

import os
import re
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from platformdirs import user_cache_path
from pydantic import AfterValidator, Field, ValidationError
from pydantic_settings import BaseSettings, InitSettingsSource, PydanticBaseSettingsSource, SettingsConfigDict

from ssclass.errors import ParamsError, WorkspaceError
from ssclass.files import read_text
from ssclass.text import quoted, shown

SETTINGS_FILE = "ssclass.toml"
STARTED_FILE = ".ssclass/started.toml"
"""Where `ssclass up` writes what it started; untracked."""
DEFAULT_NAME = "ssclass"
EXPORT = "(litert-(float32|float16|int8)|tfjs-(float32|float16|int8)|onnx-float32|savedmodel-float32)"
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


def _web_address(value: str) -> str:
    """ValueError unless this is http:// or https:// and a host, as the clients of S3, SQS and Prefect need it."""
    try:
        at = urlsplit(value)
        whole = at.scheme in ("http", "https") and bool(at.hostname) and (at.port or 1) > 0
    except ValueError:
        whole = False
    if not whole or value != value.strip():
        raise ValueError(f"{quoted(value)} is no address like http://host:port")
    return value


Address = Annotated[str, AfterValidator(_web_address)]


class Settings(BaseSettings):
    """One workspace and the services it uses."""

    model_config = SettingsConfigDict(env_prefix="SSCLASS_", extra="forbid", frozen=True, allow_inf_nan=False)

    workspace: Path
    name: str = Field(
        default=DEFAULT_NAME,
        pattern=NAME,
        description="what deployments, pools, events and automations on a shared Prefect server are called by",
    )
    bucket: str = Field(default="ssclass", min_length=1)
    s3_prefix: str = Field(
        default="",
        pattern=r"^([A-Za-z0-9_-][A-Za-z0-9_.-]*(/[A-Za-z0-9_-][A-Za-z0-9_.-]*)*)?$",
        description="folder in the bucket that holds all of this workspace; none: the bucket's top",
    )
    s3_endpoint: Address | None = Field(default=None, description="S3-compatible server; none: AWS")
    s3_region: str | None = None
    s3_profile: str | None = Field(default=None, description="name of a profile in the AWS configuration")
    s3_credentials: Path | None = Field(default=None, description="AWS credentials file; none: AWS's own places")
    mlflow_uri: str | None = Field(default=None, description="tracking URI; none: SQLite in the workspace")
    prefect_url: Address | None = Field(default=None, description="Prefect API URL; none: a temporary one")
    git: str | None = Field(default=None, description="URL of origin, for a machine without a workspace")
    train_deployment: str | None = Field(
        default=None, description="Prefect deployment that trains, as in train/gpu; none: in the retrain's own process"
    )
    model_name: str = Field(default="ssclass", min_length=1, description="registered model and experiment in MLflow")
    compute: Literal["local", "ray"] = Field(
        default="local", description="where much is computed (photos, features, rows of the study): here, or on Ray"
    )
    ray_address: str | None = Field(
        default=None,
        pattern=r"^(ray://)?(\[[0-9A-Fa-f:]+\]|[A-Za-z0-9.-]+):[0-9]{1,5}$",
        description="Ray cluster, as in ray://head:10001; none: one of this machine alone, while a command runs",
    )

    sqs: Address | None = Field(default=None, description="URL of the SQS queue that S3 notifies")
    sweep: float = Field(default=300.0, gt=0, description="seconds between two sweeps of S3")
    serve_listen: str | None = Field(
        default=None,
        pattern=r"^(\[[0-9A-Fa-f:]+\]:|[A-Za-z0-9.-]+:)?[0-9]{1,5}$",
        description="[HOST:]PORT on which `ssclass up` has `ssclass serve` listen; none: it starts none",
    )
    exports: str = Field(
        default="litert-float16",
        pattern=rf"^({EXPORT}(\s*,\s*{EXPORT})*)?$",
        description="what champions are exported to once promoted, as in litert-float16, onnx-float32; none: ''",
    )
    collect_photos: int = Field(
        default=0, ge=0, le=100_000, description="doubtful photos that `ssclass serve` keeps in S3, at most; 0: none"
    )
    collect_megabytes: float = Field(default=500.0, gt=0, description="that those take at most")
    collect_days: float = Field(default=30.0, ge=1, le=90, description="for how long each of them is kept")
    patience: float = Field(default=60.0, ge=0, description="seconds to wait for a service that is away")

    @property
    def private(self) -> Path:
        """The workspace's own untracked folder: caches, scratch, local MLflow."""
        return self.workspace / ".ssclass"

    @property
    def place(self) -> str:
        """Where everything of this workspace is in S3: the bucket, or bucket/prefix."""
        return f"{self.bucket}/{self.s3_prefix}" if self.s3_prefix else self.bucket

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
        files = [Path(workspace) / name for name in (SETTINGS_FILE, STARTED_FILE)] if workspace else []
        return (init_settings, env_settings, *(InitSettingsSource(settings_cls, _from_file(file)) for file in files))


def _from_file(path: Path) -> dict[str, Any]:
    """What a TOML file says, nothing where there is none; ParamsError names the file that cannot be read."""
    text = read_text(path, ParamsError, "`ssclass init` writes one")
    try:
        return tomllib.loads(text or "")
    except (ValueError, RecursionError) as error:
        raise ParamsError(f"{path}: not readable as TOML ({error}); mend it there") from error


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
        first = error.errors(include_url=False)[0]
        field = ".".join(shown(part) for part in first["loc"])
        known = first["type"] != "extra_forbidden"
        said = first["msg"].removeprefix("Value error, ")
        variable = f"SSCLASS_{field.upper()}"
        where = f"{variable} in the environment" if known and variable in os.environ else _naming(folder, field)
        remedy = f"correct it there or in {variable}" if known else "remove it there"
        raise ParamsError(f"{where}: {field}: {said}; {remedy}") from error


def _naming(folder: Path, field: str) -> Path:
    """The file of a workspace that a setting's value comes from: the first one that has it."""
    files = [folder / name for name in (SETTINGS_FILE, STARTED_FILE)]
    return next((file for file in files if field in _from_file(file)), files[0])
