"""The connection to MLflow: its client, the experiment, and its errors, which become TrackingError here alone."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from ssclass.errors import TrackingError, WorkspaceError
from ssclass.settings import Settings
from ssclass.started import away, supervised
from ssclass.tracking.places import settle
from ssclass.workspace.git import Git

VIEW = "decisions"
OWNER = "ssclass.workspace"
"""The experiment's tag with the first commit of the workspace that it belongs to."""
COLUMNS: tuple[str, ...] = (
    "tags.`decision`",
    "tags.`reason`",
    "tags.`candidate`",
    "tags.`champion`",
    "tags.`gain`",
    "tags.`data_version`",
    "tags.`batches`",
    "tags.`head`",
)
"""No metric: MLflow shows those before every tag, and at 1280 pixels there is no room for both."""

_one_at_a_time = threading.RLock()


class Connection:
    """One experiment of one MLflow server; `settings.model_name` names it."""

    columns = COLUMNS

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.name = settings.model_name

    @cached_property
    def client(self) -> Any:
        """MLflow's client at the workspace's tracking URI; nobody's default is used."""
        import logging
        import warnings

        uri = self.settings.tracking_uri
        if not self.settings.mlflow_uri:
            (self.settings.private / "mlflow").mkdir(parents=True, exist_ok=True)
            settle(self.settings)
        with self._errors():
            if urlparse(uri).scheme in ("http", "https"):
                self._answers(uri)
            logging.getLogger("alembic").setLevel(logging.ERROR)
            logging.getLogger("mlflow").setLevel(logging.ERROR)
            warnings.filterwarnings("ignore", module="mlflow")
            import mlflow

            return mlflow.MlflowClient(uri, uri)

    def _answers(self, uri: str) -> None:
        """Ask whether the server is there first: MLflow's own client tries for minutes before it gives up.

        An answer that wants a login is one; MLflow's client has it.
        """
        import requests
        from tenacity import Retrying, stop_after_delay, wait_fixed

        if (said := away(self.settings, "mlflow_uri")) and not supervised(self.settings):
            raise TrackingError(f"MLflow: {said}")
        for attempt in Retrying(stop=stop_after_delay(self.settings.patience), wait=wait_fixed(2), reraise=True):
            with attempt:
                answer = requests.get(f"{uri.rstrip('/')}/health", timeout=5)
                if answer.status_code not in (401, 403):
                    answer.raise_for_status()

    @cached_property
    def experiment_id(self) -> str:
        """The experiment, made on first use."""
        with self.named():
            found = self.client.get_experiment_by_name(self.name)
            if found is not None:
                self._check_owner(found)
                self._set_view(str(found.experiment_id), found.tags)
                return str(found.experiment_id)
            made = str(self.client.create_experiment(self.name, artifact_location=self._artifacts()))
            self._set_view(made, {})
            if owner := Git(self.settings.workspace).first_commit():
                self.client.set_experiment_tag(made, OWNER, owner)
            return made

    def _set_view(self, experiment_id: str, tags: Mapping[str, str]) -> None:
        """Have the experiment show the columns of this version."""
        tag, view = f"mlflow.sharedViewState.{VIEW}", json.dumps(_view(self.columns))
        if tags.get(tag) != view:
            self.client.set_experiment_tag(experiment_id, tag, view)

    def _check_owner(self, experiment: Any) -> None:
        """WorkspaceError where an experiment is another workspace's; one that is nobody's becomes ours."""
        owner, theirs = Git(self.settings.workspace).first_commit(), experiment.tags.get(OWNER)
        if owner is None or owner == theirs:
            return
        if theirs is not None:
            raise WorkspaceError(
                f"MLflow at {self.settings.tracking_uri}: the experiment {self.name!r} belongs to another workspace, "
                f"the one that begins with commit {theirs}; give this one a name of its own: "
                f'model_name = "…" in {self.settings.workspace / "ssclass.toml"}'
            )
        self.client.set_experiment_tag(experiment.experiment_id, OWNER, owner)

    def restore_experiment(self) -> None:
        """Take back that somebody deleted the experiment, as far as MLflow still has it."""
        with self.named():
            found = self.client.get_experiment_by_name(self.name)
            if found is not None and found.lifecycle_stage == "deleted":
                self.client.restore_experiment(found.experiment_id)

    def _artifacts(self) -> str | None:
        """Where artifacts go: beside a database in a file; None where a server decides it."""
        uri = self.settings.tracking_uri
        if not uri.startswith("sqlite:///"):
            return None
        return (Path(uri.removeprefix("sqlite:///")).absolute().parent / "artifacts").as_uri()

    def page(self, server: str) -> str:
        """The address of the run table on an MLflow server, with the columns that matter."""
        return page(server, self.experiment_id)

    def run_page(self, run_id: str) -> str | None:
        """The address of a run on the settings' MLflow server; None where they name none."""
        server = self.settings.mlflow_uri
        if server is None or not server.startswith("http"):
            return None
        return f"{server.rstrip('/')}/#/experiments/{self.experiment_id}/runs/{run_id}"

    @contextmanager
    def named(self) -> Iterator[None]:
        """Use MLflow: its errors become TrackingError, and its fluent functions use the workspace's server.

        Those, and addresses like ``models:/…``, go by a setting of the whole process: it is ours while the block runs,
        one thread at a time, and afterwards as it was.
        """
        with _one_at_a_time, self._errors(), _server(self.settings.tracking_uri):
            yield

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """Turn MLflow's errors, and those of the way there, into TrackingError."""
        import requests
        from sqlalchemy.exc import SQLAlchemyError

        try:
            yield
        except (requests.RequestException, SQLAlchemyError, OSError) as error:
            if said := away(self.settings, "mlflow_uri"):
                raise TrackingError(f"MLflow: {said}") from error
            raise TrackingError(
                f"MLflow at {self.settings.tracking_uri} cannot be used ({type(error).__name__}: "
                f"{str(error).splitlines()[0]}); start it, or correct mlflow_uri in ssclass.toml or "
                "SSCLASS_MLFLOW_URI"
            ) from error
        except Exception as error:
            if type(error).__module__.startswith("mlflow"):
                if "Invalid Host header" in str(error):
                    name = urlparse(self.settings.tracking_uri).netloc.rpartition("@")[2]
                    raise TrackingError(
                        f"MLflow at {self.settings.tracking_uri} does not answer to that name; start its server with "
                        f"`--allowed-hosts {name}`, beside the names that it has"
                    ) from error
                raise TrackingError(
                    f"MLflow at {self.settings.tracking_uri}: {str(error).splitlines()[0]}; `ssclass doctor` probes it"
                ) from error
            raise


def page(server: str, experiment_id: str) -> str:
    """The address of an experiment's run table, with the columns that matter."""
    return f"{server.rstrip('/')}/#/experiments/{experiment_id}/runs?viewStateShareKey={VIEW}"


@contextmanager
def _server(uri: str) -> Iterator[None]:
    """Make an MLflow server the one of the whole process while the block runs; nothing of that is left afterwards."""
    import mlflow
    from mlflow.tracking._tracking_service import utils

    names = ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI")
    before, environment = utils._tracking_uri, {name: os.environ.get(name) for name in names}
    if before == uri:  # within another block
        yield
        return
    mlflow.set_tracking_uri(uri)
    os.environ["MLFLOW_REGISTRY_URI"] = uri
    try:
        yield
    finally:
        mlflow.set_tracking_uri(before)
        for name, value in environment.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _view(columns: Sequence[str]) -> dict[str, Any]:
    """A shared view of the run table, as MLflow's own "share" button keeps it in a tag of the experiment."""
    return {
        "searchFilter": "",
        "orderByKey": "attributes.start_time",
        "orderByAsc": False,
        "startTime": "ALL",
        "lifecycleFilter": "Active",
        "datasetsFilter": [],
        "modelVersionFilter": "All Runs",
        "selectedColumns": list(columns),
        "runsExpanded": {},
        "runsPinned": [],
        "runsHidden": [],
        "viewMaximized": False,
        "runListHidden": False,
        "isAccordionReordered": False,
    }
