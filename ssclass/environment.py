"""The environment of the libraries: set before they are imported, so that their defaults reach nobody's files."""

from __future__ import annotations

import getpass
import os

from ssclass.settings import SETTINGS_FILE, Settings, home


def quiet_libraries(settings: Settings) -> None:
    """Keep every library's caches in the workspace, its telemetry off, and Prefect on the server that is set.

    Values that are already in the environment win, except Prefect's API URL: only the settings give that.
    Inside a Prefect worker's process Prefect's own values stay.
    """
    _reach_loopback()
    private = settings.private
    cache = home()
    for name, value in {
        "DVC_NO_ANALYTICS": "1",
        "DVC_GLOBAL_CONFIG_DIR": private / "dvc",
        "DVC_SYSTEM_CONFIG_DIR": private / "dvc",
        "DVC_SITE_CACHE_DIR": private / "dvc" / "site",
        "DO_NOT_TRACK": "1",
        "KERAS_HOME": cache / "keras",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_LOGGING_LEVEL": "ERROR",
        "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",  # else it tells addresses where JSON is due
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MPLBACKEND": "Agg",
        "MPLCONFIGDIR": cache / "matplotlib",
        "TF_CPP_MIN_LOG_LEVEL": "3",
    }.items():
        os.environ.setdefault(name, str(value))
    try:
        getpass.getuser()
    except (KeyError, OSError):  # a user id without a name, as in a container: DVC wants one
        os.environ["LOGNAME"] = str(os.getuid())
    if "PREFECT__FLOW_RUN_ID" in os.environ:
        return
    os.environ.pop("PREFECT_API_URL", None)
    if settings.prefect_url:
        os.environ["PREFECT_API_URL"] = settings.prefect_url
    if (settings.workspace / SETTINGS_FILE).is_file():
        private.mkdir(exist_ok=True)  # Prefect makes its home, but not the folder around it
    for name, value in {
        "PREFECT_HOME": private / "prefect",
        "PREFECT_PROFILES_PATH": private / "prefect" / "profiles.toml",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_SERVER_ALLOW_EPHEMERAL_MODE": "true",
        "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "180",
        # Prefect logs the traceback of every failed task; the command line says the same in one line, or in full.
        "PREFECT_LOGGING_LEVEL": "WARNING" if "SSCLASS_DEBUG" in os.environ else "CRITICAL",
        "PREFECT_CLI_PROMPT": "false",
    }.items():
        os.environ.setdefault(name, str(value))


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
        AWS_SECRET_ACCESS_KEY="embedded",
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
