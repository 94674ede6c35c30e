"""Finished results in S3, ``results/<decision key>/``: one machine trains, another decides, nobody trains twice.

``result.json`` is written after the files it speaks of, ``run.json`` (the MLflow run) after the run is complete;
each says by being there that what it stands for is done. What comes from there is not believed: names are checked
before anything is written, photos and labels are the data set's, and `confirm` asks the model again on this machine.
"""

from __future__ import annotations

import json
import re
import secrets
import shutil
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ssclass.errors import BatchError, DistrustedError, FailedError, NotFoundError
from ssclass.retrain.predict import (
    Progress,
    answer,
    decided_classifier,
    features_of,
    memo_of,
    result_folder,
    silent,
)
from ssclass.retrain.result import RESULT, Result, label_index
from ssclass.workspace.dvc import CANDIDATE
from ssclass.workspace.version import Version, photos_of
from ssclass.workspace.workspace import Workspace

if TYPE_CHECKING:
    from ssclass.model.classifier import Classifier
    from ssclass.model.features import FeatureMemo

RUN, METRICS = "run.json", "metrics.json"
ELSEWHERE = "made-elsewhere"
"""The file that says that a result came from S3 and was not confirmed here yet."""
SAMPLE = 4
"""Held-out photos whose features are computed again from the photos themselves, drawn by lot."""
ALIKE = 0.99
"""The cosine that remembered features must have with those computed again; CPU and GPU differ by less than 1e-3."""
_FILE = re.compile(rf"{METRICS}|{CANDIDATE}/[A-Za-z0-9_][A-Za-z0-9_.-]{{0,99}}")

LIMIT = 2_000_000_000  # bytes of a file of a result


def keep(workspace: Workspace, key: str) -> None:
    """Put this machine's result into S3. Doing it again changes nothing."""
    store, folder = workspace.store, result_folder(workspace, key)
    candidate = sorted(path.relative_to(folder) for path in (folder / CANDIDATE).rglob("*") if path.is_file())
    for name in (*candidate, Path(METRICS), Path(RESULT)):
        store.put(f"results/{key}/{name.as_posix()}", (folder / name).read_bytes())


def fetch(workspace: Workspace, key: str) -> bool:
    """Bring a result from S3 to this machine unless it is here; whether it is here now.

    DistrustedError names an object that has no business there: nothing is written then.
    """
    store, folder, prefix = workspace.store, result_folder(workspace, key), f"results/{key}/"
    if (folder / RESULT).exists():
        return True
    last = store.get(prefix + RESULT, limit=LIMIT)
    if last is None:
        return False
    names = [listed.key.removeprefix(prefix) for listed in store.list(prefix)]
    files = [name for name in names if name not in (RESULT, RUN) and not (name or "/").endswith("/")]
    for name in files:
        if not _FILE.fullmatch(name):
            raise DistrustedError(
                f"s3://{store.place}/{prefix}{name!a}: no file of a result has this name; find out who writes to "
                "results/, and delete it"
            )
    partial = folder.with_name(f"{key}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    for name in files:
        path = partial / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(store.get(prefix + name, limit=LIMIT) or b"")
    (partial / RESULT).write_bytes(last)
    (partial / ELSEWHERE).touch()
    shutil.rmtree(folder, ignore_errors=True)
    partial.replace(folder)
    return True


def kept(workspace: Workspace, key: str) -> Result | None:
    """A result as it was told, where this machine or S3 still has it whole; for who only shows it.

    StoreError when S3 fails, DistrustedError as `fetch`.
    """
    if not fetch(workspace, key):
        return None
    try:
        return Result.read(result_folder(workspace, key) / RESULT)
    except BatchError:  # damaged
        return None


def confirm(workspace: Workspace, version: Version, key: str, progress: Progress = silent) -> None:
    """Ask a candidate that another machine trained, and the champion, on this machine; their answers are what counts.

    Nothing happens for a result that was made here, or was confirmed before. DistrustedError where remembered features
    are not those of the photos, or where the candidate does not answer as the result says: it is thrown away then.
    """
    folder = result_folder(workspace, key)
    if not (folder / ELSEWHERE).exists():
        return
    from ssclass.model.classifier import Classifier

    told = read(workspace, version, key)
    memo, rows = memo_of(workspace), version.dataset.holdout
    try:
        model = Classifier.load(folder / CANDIDATE)
    except NotFoundError as error:
        raise _thrown_away(workspace, key, str(error)) from error
    _same_features(workspace, version, memo, model)
    candidate = answer(version, memo, model, rows, progress)
    if not np.array_equal(candidate.predicted, told.candidate.predicted):
        differ = int((candidate.predicted != told.candidate.predicted).sum())
        wrong = f"asked here, the candidate answers otherwise on {differ} of {len(rows)} held-out photos"
        raise _thrown_away(workspace, key, wrong)
    champion = told.champion
    if told.champion_key is not None:
        champion = answer(version, memo, decided_classifier(workspace, told.champion_key), rows, progress)
    replace(told, candidate=candidate, champion=champion).write(folder / RESULT)
    (folder / ELSEWHERE).unlink()


def _same_features(workspace: Workspace, version: Version, memo: FeatureMemo, model: Classifier) -> None:
    """DistrustedError unless a few held-out photos have the features that are remembered of them."""
    from ssclass.model.extraction import extract, make_extractor
    from ssclass.model.pooled import asked_of
    from ssclass.model.spec import DerivedSpec

    holdout = [row.sha256 for row in version.dataset.holdout]
    drawn = secrets.SystemRandom().sample(holdout, min(SAMPLE, len(holdout)))
    pooled = [asked_of(member, ())[0] for member in model.members]
    for spec in dict.fromkeys((*model.specs, *pooled)):
        frozen = spec if isinstance(spec, DerivedSpec) else spec.frozen_part
        (remembered,) = features_of(version, memo, frozen, drawn)
        photos = photos_of(version, drawn)
        network = make_extractor(frozen.network, version.params.features.engine)
        names, arrays = extract(frozen, photos, network, lambda done: None)
        if isinstance(frozen, DerivedSpec):
            arrays = frozen.derived(arrays)
        for name, values in arrays.items():
            ours = values.reshape(len(names), -1).astype(np.float64)
            theirs = remembered.arrays[name][[drawn.index(sha256) for sha256 in names]].reshape(len(names), -1)
            lengths = np.linalg.norm(ours, axis=1) * np.linalg.norm(theirs.astype(np.float64), axis=1)
            if not np.all((ours * theirs).sum(axis=1) >= ALIKE * lengths):
                raise DistrustedError(
                    f"s3://{workspace.store.place}/features/{frozen.fingerprint}/: not the features of the photos; "
                    "find out who writes to features/, delete them there and in .ssclass/features/, and retrain"
                )


def read(workspace: Workspace, version: Version, key: str) -> Result:
    """Read the result of a decision key on this machine, and hold it against the version that it is of.

    FailedError when it is not here at all. DistrustedError when it cannot be read, or is of other photos, other labels,
    or another champion: it is thrown away then, in S3 too, as it is wrong for every machine.
    """
    folder = result_folder(workspace, key)
    if not (folder / RESULT).exists():
        raise FailedError(f"results/{key}/: not on this machine; `ssclass retrain` trains anew")
    try:
        result = Result.read(folder / RESULT)
        wrong = difference(result, version, key)
    except BatchError as error:
        wrong = str(error)
    if wrong is not None:
        raise _thrown_away(workspace, key, wrong)
    return result


def _thrown_away(workspace: Workspace, key: str, wrong: str) -> DistrustedError:
    """Delete a result that is wrong for every machine, here and in S3: else the next retrain would fetch it again."""
    for name in (RESULT, RUN):
        workspace.store.delete(f"results/{key}/{name}")
    shutil.rmtree(result_folder(workspace, key))
    return DistrustedError(
        f"s3://{workspace.store.place}/results/{key}/: {wrong}; it was thrown away. Find out who writes to results/; "
        "`ssclass retrain` trains anew"
    )


def difference(result: Result, version: Version, key: str) -> str | None:
    """Say in words where a result contradicts its version; None where it does not."""
    classes, rows = version.params.dataset.classes, version.dataset.holdout
    if result.key != key:
        return f"it is the result of {result.key}"
    if result.classes != tuple(classes):
        return "its classes are not those of params.yaml"
    if result.holdout != tuple(row.sha256 for row in rows):
        return "the scored photos are not the held-out split of this data version"
    if not np.array_equal(result.candidate.labels, label_index(rows, classes)):
        return "its labels are not those of the data set"
    if result.champion_key != version.state.champion:
        return "it was compared with another champion"
    return None


def note_run(workspace: Workspace, key: str, run_id: str) -> None:
    """Say in S3 which MLflow run holds the result; only once it does."""
    workspace.store.put(f"results/{key}/{RUN}", json.dumps({"run_id": run_id}).encode())


def noted_run(workspace: Workspace, key: str) -> str | None:
    """The MLflow run that S3 says holds the result; None when it names none."""
    found = workspace.store.get(f"results/{key}/{RUN}", limit=10_000)
    try:
        return None if found is None else str(json.loads(found)["run_id"])
    except (ValueError, KeyError, TypeError):
        return None
