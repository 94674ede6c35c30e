"""The environment of the libraries: set before they are imported, so that their defaults reach nobody's files."""

from __future__ import annotations

import getpass
import logging
import os
import shutil
import stat
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from ssclass.errors import FailedError
from ssclass.files import write_whole
from ssclass.secrets import WithoutSecrets, hide
from ssclass.settings import PACKAGE, SETTINGS_FILE, Settings, home

TEMPORARY = "tmp"
"""In the workspace's private folder: a folder for each process that needs one, named after its process id."""

LOGINS_FILE = "logins.toml"
"""In the workspace's private folder: how to log in to what `ssclass up` started. Only its owner reads it."""

_given: dict[str, str] = {}  # what this module has put into the environment, for the workspace that came last
_persons: dict[str, str] = {}  # what a person had set there


def private_folder(settings: Settings) -> Path:
    """The workspace's private folder, made where it is missing; nobody but its owner gets in."""
    folder = settings.private
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if stat.S_IMODE(folder.stat().st_mode) != 0o700 and folder.stat().st_uid == os.getuid():
        folder.chmod(0o700)
    return folder


@contextmanager
def temporary_folder(settings: Settings) -> Iterator[Path]:
    """Give a folder for what is on its way, photos for instance, inside the workspace's private folder.

    It is gone when the block ends; where the process is killed in it, the next writer sweeps it away.
    """
    parent = private_folder(settings) / TEMPORARY
    parent.mkdir(exist_ok=True)
    with TemporaryDirectory(prefix=f"{os.getpid()}-", dir=parent) as folder:
        yield Path(folder)


def sweep(settings: Settings) -> None:
    """Delete the temporary folders of processes that are no more."""
    import psutil

    for left in (settings.private / TEMPORARY).glob("*"):
        pid = left.name.partition("-")[0]
        if not (pid.isdecimal() and psutil.pid_exists(int(pid))):
            shutil.rmtree(left, ignore_errors=True)


def write_private(path: Path, text: str) -> None:
    """Write a file that only its owner reads, from its first byte on; whole or not at all."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    write_whole(path, text, mode=0o600)


def quiet_libraries(settings: Settings) -> None:
    """Keep every library's caches in the workspace, its telemetry off, and Prefect on the server that is set.

    Values that a person has put into the environment win, except Prefect's API URL: only the settings give that.
    What an earlier call gave for another workspace is replaced. Prefect hears of it even where it is imported
    already. Inside a Prefect worker's process Prefect's own values stay.
    """
    _reach_loopback()
    if (settings.workspace / SETTINGS_FILE).is_file():
        private_folder(settings)
    private = settings.private
    cache = home()
    wanted: dict[str, object] = {
        "DVC_NO_ANALYTICS": "1",
        "DVC_GLOBAL_CONFIG_DIR": private / "dvc",
        "DVC_SYSTEM_CONFIG_DIR": private / "dvc",
        "DVC_SITE_CACHE_DIR": private / "dvc" / "site",
        "DO_NOT_TRACK": "1",
        "KERAS_HOME": cache / "keras",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
        "MLFLOW_LOGGING_LEVEL": "ERROR",
        "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",  # else it tells addresses where JSON is due
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MPLBACKEND": "Agg",
        "MPLCONFIGDIR": cache / "matplotlib",
        "TF_CPP_MIN_LOG_LEVEL": "3",
    }
    for name in ("prefect.flow_runs", "prefect.task_runs"):  # what these log goes to the server, for all who read there
        logger = logging.getLogger(name)
        if not any(isinstance(each, WithoutSecrets) for each in logger.filters):
            logger.addFilter(WithoutSecrets())
    known = _mlflow_login(settings)
    in_worker = "PREFECT__FLOW_RUN_ID" in os.environ
    if not in_worker:
        wanted |= {
            "PREFECT_HOME": private / "prefect",
            "PREFECT_PROFILES_PATH": private / "prefect" / "profiles.toml",
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "PREFECT_SERVER_ALLOW_EPHEMERAL_MODE": "true",
            "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "180",
            # Prefect logs the traceback of every failed task; the command line says the same in one line, or in full.
            "PREFECT_LOGGING_LEVEL": "WARNING" if "SSCLASS_DEBUG" in os.environ else "CRITICAL",
            "PREFECT_CLI_PROMPT": "false",
        }
        known |= _prefect_login(settings)
    _give(wanted, known)
    try:
        getpass.getuser()
    except (KeyError, OSError):  # a user id without a name, as in a container: DVC wants one
        os.environ["LOGNAME"] = str(os.getuid())
    if in_worker:
        return
    os.environ.pop("PREFECT_API_URL", None)
    if settings.prefect_url:
        os.environ["PREFECT_API_URL"] = settings.prefect_url
    if "prefect.context" in sys.modules:
        from prefect.context import refresh_global_settings_context

        refresh_global_settings_context()


def _give(wanted: Mapping[str, object], known: Mapping[str, str]) -> None:
    """Put values into the environment beside those that a person has set, and `known` ones in their place.

    What was given before is taken back: a person's own value comes in its place again.
    """
    for name in [name for name, value in _given.items() if os.environ.get(name) != value]:
        del _given[name]  # somebody has set another meanwhile
    for name in _given.keys() - wanted.keys() - known.keys():
        del os.environ[name], _given[name]
        if name in _persons:
            os.environ[name] = _persons.pop(name)
    for name, value in {**wanted, **known}.items():
        if name in known and name in os.environ and name not in _given:
            _persons[name] = os.environ[name]
        if name in known or name in _given or name not in os.environ:
            os.environ[name] = _given[name] = str(value)


def logins(settings: Settings) -> dict[str, dict[str, str]]:
    """The logins to the servers that `ssclass up` started, by part; each with its `url`, `user` and `password`."""
    import tomllib

    try:
        found = tomllib.loads((settings.private / LOGINS_FILE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise FailedError(f"{settings.private / LOGINS_FILE}: {error}; `ssclass up` writes it anew") from error
    hide(*(each["password"] for each in found.values()))
    return found


def _prefect_login(settings: Settings) -> dict[str, str]:
    known = logins(settings).get("prefect")
    if known is None or known["url"] != settings.prefect_url:
        return {}
    return {"PREFECT_API_AUTH_STRING": f"{known['user']}:{known['password']}"}


def _mlflow_login(settings: Settings) -> dict[str, str]:
    known = logins(settings).get("mlflow")
    if known is None or known["url"] != settings.mlflow_uri:
        return {}
    return {"MLFLOW_TRACKING_USERNAME": known["user"], "MLFLOW_TRACKING_PASSWORD": known["password"]}


def check_imports() -> None:
    """Stop where Python would import somebody else's `flows` or `tasks` in the place of ours; FailedError names it."""
    from importlib.util import find_spec

    for name in ("flows", "tasks"):
        spec = find_spec(name)
        if spec is None:
            raise FailedError(f"{name}: not to be found beside {PACKAGE}; install ssclass again")
        places = list(spec.submodule_search_locations or ()) or [str(Path(spec.origin or "?"))]
        if Path(places[0]).resolve() != PACKAGE.parent / name:
            raise FailedError(
                f"{places[0]}: Python takes this for ssclass's own {name!r}; run in another folder, or take the folder "
                "that it lies in out of PYTHONPATH"
            )


def prefect_login() -> dict[str, str]:
    """Headers by which a Prefect server knows us, from PREFECT_API_AUTH_STRING or PREFECT_API_KEY, where one is set."""
    from base64 import b64encode

    if login := os.environ.get("PREFECT_API_AUTH_STRING"):
        return {"Authorization": f"Basic {b64encode(login.encode()).decode()}"}
    key = os.environ.get("PREFECT_API_KEY")
    return {"Authorization": f"Bearer {key}"} if key else {}


def leave_user_settings() -> None:
    """Forget the user's own AWS, MLflow, Prefect and git settings in this process and its children.

    For the demo and the tests: they bring their own servers, and must neither use nor change anybody's.
    """
    for name in list(os.environ):
        if name.startswith(
            ("AWS_", "MLFLOW_", "PREFECT_", "GIT_", "DVC_", "SSCLASS_S3", "SSCLASS_MLFLOW", "SSCLASS_PREFECT")
        ) or name in ("SSCLASS_BUCKET", "SSCLASS_WORKSPACE", "SSCLASS_MODEL_NAME"):
            del os.environ[name]
    empty = home() / "no-settings"  # not /dev/null: botocore wants a regular file
    empty.parent.mkdir(parents=True, exist_ok=True)
    empty.touch()
    os.environ.update(
        AWS_ACCESS_KEY_ID="embedded",
        AWS_SECRET_ACCESS_KEY="embedded-and-no-secret",  # no word that a message could hold
        AWS_DEFAULT_REGION="us-east-1",
        AWS_CONFIG_FILE=str(empty),
        AWS_SHARED_CREDENTIALS_FILE=str(empty),
        AWS_EC2_METADATA_DISABLED="true",
        GIT_CONFIG_GLOBAL=str(empty),
        GIT_CONFIG_NOSYSTEM="1",
    )
    _reach_loopback()


def _reach_loopback() -> None:
    """Keep a proxy out of the way to this machine's own servers; where both names are set, the lower one counts."""
    passed = os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or ""
    if passed.strip() != "*" and "127.0.0.1" not in passed.split(","):
        passed = ",".join(filter(None, [passed, "127.0.0.1", "localhost"]))
    os.environ.update(no_proxy=passed, NO_PROXY=passed)


def free_port() -> int:
    """A port of loopback that nothing listens on now."""
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
