"""A stand-in for TensorFlow where training is not the point, and for Prefect where its server is not.

Everything else is real: git, DVC, S3, MLflow on SQLite, and the product's own flow and tasks. A photo says in a JPEG
comment what it truly shows and how hard it is; a fake head gets right what is easy enough for the number of photos that
it has learnt from, and calls a dish what most of its training labels called it. So more data makes better models, and
flipped labels bad ones.

    patch_model(monkeypatch.setattr)     the model, for as long as the patches last
    flow = retrain_flow()                the module flows.retrain on tasks that run at once, without Prefect
"""

from __future__ import annotations

import hashlib
import importlib
import json
import logging
import sys
import types
import zipfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

ABOUT = "classifier.json"
HARDNESS = 5
"""Training photos with which a fake head gets half of the photos right (those of difficulty below 0.5)."""


# -- photos -----------------------------------------------------------------------------------------------


def photo(picture: bytes, truth: int, difficulty: float) -> bytes:
    """A JPEG with a comment that says what it shows (0 or 1), and how hard that is to see (0 to 1)."""
    said = b"fake %d %.4f" % (truth, difficulty)
    return picture[:2] + b"\xff\xfe" + (len(said) + 2).to_bytes(2, "big") + said + picture[2:]


def _read(data: bytes) -> tuple[float, float]:
    at = data.find(b"fake ")
    said = data[at : at + 13].split() if 0 <= at < 64 else []
    return (float(said[1]), float(said[2])) if said else (data[-1] % 2, 0.5)


# -- the model ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class FakeSpec:
    """Features that are read off the photo: what it shows, and how hard that is; float32 [photos, 2]."""

    version: int = 1
    name: ClassVar[str] = ""

    @property
    def fingerprint(self) -> str:
        return hashlib.sha256(f"fake {self.version}".encode()).hexdigest()

    @property
    def network(self) -> FakeSpec:
        return self

    @property
    def frozen_part(self) -> FakeSpec:
        return self

    def photos(self, rows: Iterable[Any]) -> tuple[str, ...]:
        return tuple(row.sha256 for row in rows)


SPEC = FakeSpec()


@dataclass(frozen=True, eq=False)
class FakeClassifier:
    """`calls`: what it calls each of the two dishes, an index of `classes`; `skill`: what is easier it has right."""

    classes: tuple[str, ...]
    calls: tuple[int, int]
    skill: float
    size: ClassVar[int] = 32
    members: ClassVar[tuple[Any, ...]] = ()

    @property
    def specs(self) -> tuple[FakeSpec, ...]:
        return (SPEC,)

    @property
    def fingerprint(self) -> str:
        return SPEC.fingerprint

    def predict(self, features_of: Callable[[Any], Any]) -> np.ndarray:
        found = features_of(SPEC)
        seen = found.arrays["fake"] if len(found) else np.empty((0, 2))
        probabilities = np.full((len(seen), len(self.classes)), 0.1 / max(1, len(self.classes) - 1))
        for row, (truth, difficulty) in enumerate(seen):
            called = self.calls[int(truth)]
            probabilities[row, called if difficulty < self.skill else (called + 1) % len(self.classes)] = 0.9
        return probabilities

    def save(self, folder: Path) -> None:
        body = {"format": 2, "fingerprint": self.fingerprint, "classes": self.classes}
        (folder / ABOUT).write_text(json.dumps(body | {"calls": self.calls, "skill": self.skill}) + "\n")

    @classmethod
    def load(cls, folder: Path, *, quick: bool = False) -> FakeClassifier:
        from ssclass.errors import NotFoundError

        try:
            body = json.loads((folder / ABOUT).read_text())
            return cls(tuple(body["classes"]), tuple(body["calls"]), body["skill"])
        except (OSError, ValueError, KeyError) as error:
            raise NotFoundError(f"{folder / ABOUT}: not a classifier ({error})") from error

    def whole(self) -> Any:
        return self

    def export(self, path: Path) -> None:
        self.whole().save(path)


def train_planned(
    features_of: Callable[[Any], Any],
    labels: np.ndarray,
    groups: Sequence[str],
    planned: Sequence[Any],
    params: Any,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Any:
    """Learn from training photos: how many there are, and what each dish is mostly called."""
    from ssclass.model.heads.base import CrossValidation
    from ssclass.model.training import Trained

    truth = features_of(SPEC).arrays["fake"][:, 0].astype(int)
    calls = []
    for dish in (0, 1):
        named = np.bincount(labels[truth == dish], minlength=len(params.dataset.classes))
        calls.append(int(named.argmax()) if named.sum() else dish)
    right = float((np.array(calls)[truth] == labels).mean())  # wrong labels make it worse
    skill = right * len(labels) / (len(labels) + HARDNESS)
    classifier: Any = FakeClassifier(params.dataset.classes, (calls[0], calls[1]), round(skill, 6))
    cv = {"fake": CrossValidation((skill, skill), np.empty((0, 2)))}
    progress(1, 1)
    return Trained(classifier, "fake", cv, {})


def _extract(
    spec: FakeSpec, photos: Iterable[tuple[str, bytes]], extractor: Any, progress: Callable[[int], None]
) -> tuple[tuple[str, ...], dict[str, np.ndarray]]:
    read = [(sha256, _read(data)) for sha256, data in photos]
    progress(len(read))
    return tuple(sha256 for sha256, _ in read), {"fake": np.array([seen for _, seen in read], np.float32)}


def _wrap(path: Path, folder: Path, classes: Sequence[str], *_: Any, **__: Any) -> FakeClassifier:
    """Adopt a model: a file that holds its calls and its skill."""
    body = json.loads(path.read_text())
    made = FakeClassifier(tuple(classes), tuple(body["calls"]), body["skill"])
    made.save(folder)
    return made


def _write_model(folder: Path, key: str, classifier: FakeClassifier) -> None:
    """Write what MLflow's Keras flavour would: MLmodel, which names the key, and a .keras file, which is a zip."""
    classifier.save(folder)
    (folder / "MLmodel").write_text(json.dumps({"metadata": {"decision_key": key}}))
    (folder / "data").mkdir()
    with zipfile.ZipFile(folder / "data" / "model.keras", "w") as file:
        file.write(folder / ABOUT, ABOUT)


def _restore_model(tracking: Any, model: Any, key: str, data_version: str, classifier: Any) -> None:
    """Write the files of a logged model anew."""
    from tempfile import TemporaryDirectory

    with tracking.named(), TemporaryDirectory() as folder:
        _write_model(Path(folder), key, classifier)
        tracking.client.log_model_artifacts(model.model_id, folder)


def _log_model(tracking: Any, run_id: str, key: str, data_version: str, classifier: Any) -> None:
    """Log the whole model as the product does, in the classifier's own small form."""
    from tempfile import TemporaryDirectory

    from mlflow.entities import LoggedModelOutput

    from ssclass.tracking.client import MODEL

    with tracking.named(), TemporaryDirectory() as folder:
        _write_model(Path(folder), key, classifier)
        made = tracking.client.create_logged_model(tracking.experiment_id, MODEL, run_id)
        tracking.client.log_model_artifacts(made.model_id, folder)
        tracking.client.log_outputs(run_id, [LoggedModelOutput(made.model_id, 0)])
        tracking.client.finalize_logged_model(made.model_id, "READY")


@lru_cache
def _loader(paths: str | None = None) -> Any:
    """One loader of AWS's descriptions for all clients: DVC makes one a push, and reads megabytes of JSON for each."""
    from botocore.loaders import Loader

    return Loader()


def patch_model(patch: Callable[[Any, str, Any], None]) -> None:
    """Put the fake in the place of everything that would import TensorFlow; `patch` is `setattr`, or monkeypatch's."""
    from functools import partial

    from botocore import session

    from ssclass.model import classifier, compute, extraction, features, pooled, training
    from ssclass.pages.page import Page
    from ssclass.tracking import client, publish, report
    from ssclass.upkeep import adopt

    patch(session, "create_loader", _loader)
    for module in (extraction, features):
        patch(module, "extract", _extract)
    patch(extraction, "make_extractor", lambda network, engine="auto": None)
    patch(features, "shard_features", partial(features.shard_features, extractor=lambda network: None))
    patch(pooled, "lean_arrays", lambda spec, heads: None)
    patch(training, "plan", lambda params: [(SPEC, "fake")])
    patch(training, "train_planned", train_planned)
    patch(classifier.Classifier, "load", FakeClassifier.load)
    patch(adopt, "wrap", _wrap)
    patch(client.Tracking, "log_model", _log_model)
    patch(client.Tracking, "restore_model", _restore_model)
    patch(compute, "described", lambda: "none")
    patch(report, "figures", lambda result: {})
    patch(report, "over_time", lambda decided: None)
    patch(publish, "report", lambda version, event, result: Page(event.body["reason"]))


# -- Prefect -------------------------------------------------------------------------------------------------


class _Task:
    """A task that runs at once: tried again as often as it says, where its condition allows it, without a pause."""

    def __init__(self, function: Callable[..., Any], condition: Callable[..., bool] | None, retries: int = 0) -> None:
        self.function, self.condition, self.retries = function, condition, retries

    def with_options(self, *, retries: int) -> _Task:
        return _Task(self.function, self.condition, retries)

    def __call__(self, *args: Any) -> Any:
        for tries in range(self.retries + 1):
            try:
                return self.function(*args)
            except Exception as error:
                state = types.SimpleNamespace(result=lambda raise_on_failure, error=error: error)
                if tries == self.retries or self.condition is None or not self.condition(self, None, state):
                    raise
        raise AssertionError


def _task(function: Any = None, *, retry_condition_fn: Any = None, **_: Any) -> Any:
    return _Task(function, None) if function else lambda made: _Task(made, retry_condition_fn)


def _flow(*, on_failure: Sequence[Callable[..., None]] = (), **_: Any) -> Any:
    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        def run(workspace: str, *args: Any) -> Any:
            try:
                return function(workspace, *args)
            except Exception as error:
                about = types.SimpleNamespace(parameters={"workspace": workspace}, name="fake")
                for tell in on_failure:
                    tell(None, about, types.SimpleNamespace(message=str(error), name="Failed"))
                raise

        return run

    return decorate


def retrain_flow() -> Any:
    """The module flows.retrain, loaded anew upon tasks that run at once; the real one, if there is one, stays."""
    shim = types.ModuleType("prefect")
    shim.task, shim.flow = _task, _flow  # type: ignore[attr-defined]
    shim.get_run_logger = lambda: logging.getLogger("fake")  # type: ignore[attr-defined]
    artifacts, states = types.ModuleType("prefect.artifacts"), types.ModuleType("prefect.states")
    for made in ("create_markdown_artifact", "create_table_artifact"):
        setattr(artifacts, made, lambda *_, **__: None)
    states.Completed = lambda *, data, **_: data  # type: ignore[attr-defined]
    runtime = types.ModuleType("prefect.runtime")
    runtime.flow_run = types.SimpleNamespace(id=None)  # type: ignore[attr-defined]
    shims = {"prefect.artifacts": artifacts, "prefect.states": states, "prefect.runtime": runtime}
    tasks = types.ModuleType("prefect.tasks")
    tasks.exponential_backoff = lambda **_: 0  # type: ignore[attr-defined]
    ours = ("prefect", "flows", "tasks")
    kept = {name: module for name, module in sys.modules.items() if name.split(".")[0] in ours}
    for name in kept:
        del sys.modules[name]
    try:
        sys.modules |= {"prefect": shim, "prefect.tasks": tasks, **shims}
        return importlib.import_module("flows.retrain")
    finally:
        for name in [name for name in sys.modules if name.split(".")[0] in ours]:
            del sys.modules[name]
        sys.modules.update(kept)
