"""What a model answers on the photos of a data set: their features, through the memo, and its probabilities on them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ssclass.data.shards import Row
from ssclass.files import whole
from ssclass.retrain.result import Answers
from ssclass.workspace.dvc import CANDIDATE
from ssclass.workspace.version import Version
from ssclass.workspace.workspace import Workspace

if TYPE_CHECKING:
    from ssclass.model.adopted import Adopted
    from ssclass.model.classifier import Classifier
    from ssclass.model.features import FeatureMemo, Features
    from ssclass.model.spec import Spec

Progress = Callable[[str, int, int], None]
"""Called with (what is being done, done, in all)."""


def silent(what: str, done: int, total: int) -> None:
    """Report to nobody."""


def memo_of(workspace: Workspace) -> FeatureMemo:
    """The features that were computed before: a folder of the workspace, and the bucket behind it."""
    from ssclass.model.features import FeatureMemo

    return FeatureMemo(workspace.private, workspace.store)


def features_of(version: Version, memo: FeatureMemo, spec: Spec, progress: Progress = silent) -> Features:
    """Features of every photo of the data set, computed only for shards never seen under this fingerprint.

    A spec of augmented photos computes features of training photos only.
    """
    from ssclass.model.features import concat, shard_features

    parts = []
    for shard in version.dataset.shards:
        if not shard.rows:
            continue

        def photos(batch: str = shard.batch_id) -> Iterator[tuple[str, bytes]]:
            return version.photos(batch)

        def report(done: int, total: int, batch: str = shard.batch_id) -> None:
            progress(f"features of {batch}{spec.name}", done, total)

        parts.append(shard_features(spec, memo, shard, photos, progress=report))
    return concat(parts)


def probabilities(
    version: Version,
    memo: FeatureMemo,
    model: Classifier | Adopted,
    rows: Sequence[Row],
    progress: Progress = silent,
) -> NDArray[np.float64]:
    """A model's probabilities for rows of the data set, float64 [n, its classes], through the memo."""
    return model.predict(lambda spec: features_of(version, memo, spec, progress).take(row.sha256 for row in rows))


def answer(
    version: Version,
    memo: FeatureMemo,
    model: Classifier | Adopted,
    rows: Sequence[Row],
    progress: Progress = silent,
) -> Answers:
    """A model's answers on rows of the data set, in the classes of the version's params."""
    raw = probabilities(version, memo, model, rows, progress)
    return Answers.of(model, raw, rows, version.params.dataset.classes)


def decided_classifier(workspace: Workspace, key: str) -> Classifier | Adopted:
    """The classifier of a decision, as git and DVC have it at ``run/<key>``; kept in a local folder."""
    from ssclass.model.adopted import open_classifier

    folder = workspace.private / "champions" / key
    if not (folder / "classifier.json").exists():
        with whole(folder) as new:
            new.mkdir()
            workspace.decided(key).copy(CANDIDATE, new)
    return open_classifier(folder)


def result_folder(workspace: Workspace, key: str) -> Path:
    """Where the result of a decision key lies on this machine: result.json, metrics.json and candidate/."""
    return workspace.private / "results" / key
