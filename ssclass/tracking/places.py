"""Where the workspace's own MLflow keeps its artifacts: named anew where its folder moved, or a server wrote of it."""

from __future__ import annotations

import sqlite3

from ssclass.errors import TrackingError
from ssclass.settings import Settings

HOME = "/.ssclass/mlflow/artifacts"
"""The end of the address of every workspace's artifact folder, wherever the workspace lies."""
PROXIED = "mlflow-artifacts:/"
"""What the server of `ssclass up` calls that folder; nobody but a client of that server can follow it."""
COLUMNS = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
)
"""Where MLflow's database has addresses of artifacts."""


def settle(settings: Settings) -> None:
    """Make the workspace's own MLflow database name its artifacts by where they are now.

    MLflow writes down whole addresses: of a folder that may have been moved or copied since, or of a server that may
    be down. Nothing happens where every address is right, or where MLflow is somebody else's. Call it before the
    database is opened.
    """
    home = settings.private / "mlflow"
    database = home / "mlflow.db"
    if not database.is_file():
        return
    root = (home / "artifacts").resolve().as_uri()
    opened = sqlite3.connect(database, timeout=30)
    try:
        opened.create_function("settled", 1, lambda address: settled(address, root), deterministic=True)
        for table, column in COLUMNS:
            if not opened.execute("select 1 from pragma_table_info(?) where name = ?", (table, column)).fetchone():
                continue  # an older MLflow's database
            differs = f"{table} where {column} is not null and {column} <> settled({column})"
            if opened.execute(f"select 1 from {differs} limit 1").fetchone():  # reading disturbs no writer
                opened.execute(f"update {table} set {column} = settled({column}) where {column} is not null")
        opened.commit()
    except sqlite3.Error as error:
        raise TrackingError(
            f"{database}: cannot be used ({error}); `ssclass doctor` probes it, and `ssclass rebuild` makes it anew"
        ) from error
    finally:
        opened.close()


def settled(address: str, root: str) -> str:
    """An address of an artifact under `root`, the artifact folder's address now; one of another place stays as it is.

    >>> settled("file:///old/.ssclass/mlflow/artifacts/12/artifacts", "file:///new/.ssclass/mlflow/artifacts")
    'file:///new/.ssclass/mlflow/artifacts/12/artifacts'
    """
    if address.startswith(PROXIED):
        return f"{root}/{address.removeprefix(PROXIED)}".rstrip("/")
    before, home, inside = address.rpartition(HOME)
    if home and before.startswith("file:") and inside[:1] in ("", "/"):
        return root + inside
    return address
