"""A look at MLflow without its client, whose import takes seconds: whether it says what the ledger says.

`glance` asks what `ssclass.tracking.publish.reconcile` would make true, `look_up` which decision a version or a run is
of; by MLflow's REST interface or, where MLflow is a SQLite file, by reading that. Nothing is written. Whatever is not
understood (another database, a way to log in that is not known, a schema of another MLflow) is None: then MLflow's own
client is the one to ask.
"""

from __future__ import annotations

import os
import re
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import quote

from ssclass.errors import TrackingError
from ssclass.retrain.challenger import challenger_key
from ssclass.settings import Settings
from ssclass.tracking.connection import OWNER
from ssclass.tracking.registry import ALIAS, CHALLENGER, challengers_of
from ssclass.tracking.runs import DECISION_TAG, KEY_TAG
from ssclass.workspace.ledger import State
from ssclass.workspace.workspace import Workspace

RUNNING, ACTIVE, GONE = "RUNNING", "active", "Deleted_Internal"
TIMEOUT = 5.0  # seconds for one answer
RUN = re.compile(r"(run:)?[0-9a-f]{32}")
"""How a person names a run."""
PLAIN = ("MLFLOW_TRACKING_URI", "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN")
"""Settings of MLflow's client that are understood here; others begin with MLFLOW_TRACKING_ too."""


class UnknownError(Exception):
    """MLflow answers something that is not understood here."""


@dataclass(frozen=True)
class Seen:
    """MLflow says what the ledger says; `version` is the champion's, None where there is no champion; `tags`: its."""

    version: str | None
    tags: Mapping[str, str] = field(default_factory=dict, compare=False)


@dataclass(frozen=True)
class Named:
    """A version of the registered model, and the decision and run that it names; of a run alone it is empty."""

    version: str
    key: str
    run_id: str


@dataclass(frozen=True)
class Run:
    """What of a run is asked for: its experiment, whether it is ``active`` or in the trash, its tags."""

    experiment: str
    stage: str
    tags: dict[str, str]


class Source(Protocol):
    """Where MLflow keeps what it knows. Each question raises UnknownError, or what the library below raises."""

    def experiment(self, name: str) -> tuple[str, dict[str, str]] | None:
        """The id and the tags of an experiment."""
        ...

    def running(self, experiment: str) -> list[str]:
        """Ids of the experiment's active runs that have not ended."""
        ...

    def run(self, run_id: str) -> Run | None:
        """A run."""
        ...

    def versions(self, name: str) -> list[tuple[str, dict[str, str]]]:
        """Number and tags of each version of a registered model."""
        ...

    def aliases(self, name: str) -> dict[str, str]:
        """Alias → version of a registered model; none where there is no such model."""
        ...

    def version(self, name: str, number: str) -> tuple[str, dict[str, str]]:
        """The run's id and the tags of a version of a registered model."""
        ...


def look_up(settings: Settings, name: str) -> Named | None:
    """What a number, an alias or a run's id names; None where there is none, or it cannot be told from here."""
    import requests

    try:
        with closing(_source(settings.tracking_uri)) as source:
            if RUN.fullmatch(name):
                run_id = name.removeprefix("run:")
                run = source.run(run_id)
                return Named("", run.tags[KEY_TAG], run_id) if run.stage == ACTIVE else None
            number = name if name.isdigit() else source.aliases(settings.model_name)[name]
            run_id, tags = source.version(settings.model_name, number)
            return Named(number, tags[KEY_TAG], run_id)
    except (UnknownError, TrackingError, requests.RequestException, sqlite3.Error, OSError):
        return None
    except (LookupError, TypeError, ValueError, AttributeError):  # no such version, or an answer of another form
        return None


def glance(workspace: Workspace, state: State) -> Seen | None:
    """What MLflow says, where that is what the ledger says; None where it is not, or cannot be told from here."""
    if not state.decisions:
        return Seen(None)
    import requests

    settings = workspace.settings
    try:
        with closing(_source(settings.tracking_uri)) as source:
            return _compare(source, settings.model_name, workspace.git.first_commit(), state)
    except (UnknownError, TrackingError, requests.RequestException, sqlite3.Error, OSError):
        return None
    except (LookupError, TypeError, ValueError, AttributeError):  # an answer of another form
        return None


def _compare(source: Source, name: str, owner: str | None, state: State) -> Seen | None:
    found = source.experiment(name)
    if found is None or found[1].get(OWNER) != owner or _challenger(source, name) != challenger_key(state):
        return None
    experiment, _ = found
    decided = {event.body["run_id"] for event in state.decisions.values()}
    if decided & set(source.running(experiment)):
        return None
    newest = source.run(state.decisions[next(reversed(state.decisions))].body["run_id"])
    if newest is None or newest.experiment != experiment or newest.stage != ACTIVE or DECISION_TAG not in newest.tags:
        return None
    if state.champion is None:
        return Seen(None)
    number: dict[str, int] = {}  # decision key → its first version
    versions = source.versions(name)
    for version, tags in versions:
        if key := tags.get(KEY_TAG):
            number[key] = min(int(version), number.get(key, int(version)))
    if not set(state.champions) <= number.keys():
        return None
    wanted = str(number[state.champion])
    return Seen(wanted, dict(versions)[wanted]) if source.aliases(name).get(ALIAS) == wanted else None


def _challenger(source: Source, name: str) -> str | None:
    """The decision key of the version that the alias `challenger` points at."""
    model = challengers_of(name)
    number = source.aliases(model).get(CHALLENGER)
    return None if number is None else dict(source.versions(model))[number].get(KEY_TAG)


def _source(uri: str) -> Any:
    if uri.startswith("sqlite:///"):
        return File(Path(uri.removeprefix("sqlite:///")))
    if uri.startswith(("http://", "https://")):
        return Server(uri)
    raise UnknownError


class File:
    """MLflow's database in a SQLite file, opened to read."""

    def __init__(self, path: Path) -> None:
        if not path.is_file():
            raise UnknownError
        self._database = sqlite3.connect(f"file:{quote(str(path.absolute()))}?mode=ro", uri=True, timeout=TIMEOUT)

    def close(self) -> None:
        """Close the file."""
        self._database.close()

    def experiment(self, name: str) -> tuple[str, dict[str, str]] | None:
        """The id and the tags of an experiment that is not in the trash."""
        rows = self._ask("SELECT experiment_id FROM experiments WHERE name = ? AND lifecycle_stage = ?", name, ACTIVE)
        if len(rows) != 1:
            return None
        tags = self._ask("SELECT key, value FROM experiment_tags WHERE experiment_id = ?", rows[0][0])
        return str(rows[0][0]), dict(tags)

    def running(self, experiment: str) -> list[str]:
        """Ids of the experiment's active runs that have not ended."""
        asked = "SELECT run_uuid FROM runs WHERE experiment_id = ? AND status = ? AND lifecycle_stage = ?"
        return [run_id for (run_id,) in self._ask(asked, int(experiment), RUNNING, ACTIVE)]

    def run(self, run_id: str) -> Run | None:
        """A run."""
        rows = self._ask("SELECT experiment_id, lifecycle_stage FROM runs WHERE run_uuid = ?", run_id)
        tags = dict(self._ask("SELECT key, value FROM tags WHERE run_uuid = ?", run_id))
        return Run(str(rows[0][0]), rows[0][1], tags) if rows else None

    def versions(self, name: str) -> list[tuple[str, dict[str, str]]]:
        """Number and tags of each version of a registered model."""
        if len(self._ask("SELECT name FROM registered_models WHERE name = ?", name)) != 1:
            raise UnknownError  # none, or one of each of several MLflow workspaces
        there = self._ask("SELECT version FROM model_versions WHERE name = ? AND current_stage != ?", name, GONE)
        tags: dict[str, dict[str, str]] = {str(version): {} for (version,) in there}
        for version, key, value in self._ask("SELECT version, key, value FROM model_version_tags WHERE name = ?", name):
            if str(version) in tags:
                tags[str(version)][key] = value
        return list(tags.items())

    def aliases(self, name: str) -> dict[str, str]:
        """Alias → version of a registered model; none where there is no such model."""
        rows = self._ask("SELECT alias, version FROM registered_model_aliases WHERE name = ?", name)
        return {alias: str(version) for alias, version in rows}

    def version(self, name: str, number: str) -> tuple[str, dict[str, str]]:
        """The run's id and the tags of a version of a registered model."""
        tags = dict(self.versions(name))[number]
        asked = "SELECT run_id FROM model_versions WHERE name = ? AND version = ?"
        ((run_id,),) = self._ask(asked, name, int(number))
        return str(run_id), tags

    def _ask(self, statement: str, *values: Any) -> list[Any]:
        return self._database.execute(statement, values).fetchall()


class Server:
    """MLflow's REST interface, with the login that MLflow's client takes from the environment."""

    def __init__(self, uri: str) -> None:
        import requests

        unknown = [name for name in os.environ if name.startswith("MLFLOW_TRACKING_") and name not in PLAIN]
        if any(os.environ[name] for name in unknown):
            raise UnknownError
        self._root = f"{uri.rstrip('/')}/api/2.0/mlflow"
        self._session = requests.Session()
        if token := os.environ.get("MLFLOW_TRACKING_TOKEN"):
            self._session.headers["Authorization"] = f"Bearer {token}"
        elif user := os.environ.get("MLFLOW_TRACKING_USERNAME"):
            self._session.auth = (user, os.environ.get("MLFLOW_TRACKING_PASSWORD", ""))

    def close(self) -> None:
        """Close the connection."""
        self._session.close()

    def experiment(self, name: str) -> tuple[str, dict[str, str]] | None:
        """The id and the tags of an experiment that is not in the trash."""
        found = self._get("experiments/get-by-name", experiment_name=name)["experiment"]
        return (str(found["experiment_id"]), _tags(found)) if found["lifecycle_stage"] == ACTIVE else None

    def running(self, experiment: str) -> list[str]:
        """Ids of the experiment's active runs that have not ended."""
        body: dict[str, Any] = {
            "experiment_ids": [experiment],
            "filter": f"attributes.status = '{RUNNING}'",
            "max_results": 1000,
        }
        found = self._answer(self._session.post(f"{self._root}/runs/search", json=body, timeout=TIMEOUT))
        if found.get("next_page_token"):
            raise UnknownError
        return [str(run["info"]["run_id"]) for run in found.get("runs", ())]

    def run(self, run_id: str) -> Run | None:
        """A run."""
        found = self._get("runs/get", run_id=run_id)["run"]
        return Run(str(found["info"]["experiment_id"]), found["info"]["lifecycle_stage"], _tags(found["data"]))

    def versions(self, name: str) -> list[tuple[str, dict[str, str]]]:
        """Number and tags of each version of a registered model."""
        return [(str(version["version"]), _tags(version)) for version in self._pages(name)]

    def aliases(self, name: str) -> dict[str, str]:
        """Alias → version of a registered model; none where there is no such model."""
        found = self._get("registered-models/search", filter=f"name='{name}'").get("registered_models", ())
        return {item["alias"]: str(item["version"]) for each in found for item in each.get("aliases", ())}

    def version(self, name: str, number: str) -> tuple[str, dict[str, str]]:
        """The run's id and the tags of a version of a registered model."""
        found = self._get("model-versions/get", name=name, version=number)["model_version"]
        return str(found["run_id"]), _tags(found)

    def _pages(self, name: str) -> Iterator[dict[str, Any]]:
        token: str | None = None
        while True:
            more: dict[str, str] = {"page_token": token} if token else {}
            found = self._get("model-versions/search", filter=f"name='{name}'", max_results="200", **more)
            yield from found.get("model_versions", ())
            if not (token := found.get("next_page_token")):
                return

    def _get(self, what: str, **values: str) -> dict[str, Any]:
        return self._answer(self._session.get(f"{self._root}/{what}", params=values, timeout=TIMEOUT))

    @staticmethod
    def _answer(answer: Any) -> dict[str, Any]:
        if answer.status_code != 200:
            raise UnknownError
        found = answer.json()
        if not isinstance(found, dict):
            raise UnknownError
        return found


def _tags(found: dict[str, Any]) -> dict[str, str]:
    return {str(tag["key"]): str(tag["value"]) for tag in found.get("tags", ())}
