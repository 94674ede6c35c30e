"""Labels that are probably wrong, by the out-of-fold probabilities of a cross-validation.

Confident learning (Northcutt, Jiang & Chuang, JAIR 2021), as cleanlab has it: the photos are ranked by the probability
that the model gives their label out of fold; those that the estimated joint distribution of given and true labels
says are wrong are marked as issues.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ssclass.data.dataset import Dataset
from ssclass.data.images import thumbnail
from ssclass.pages.page import Page, Picture, jpeg
from ssclass.retrain.predict import Progress, memo_of, silent
from ssclass.retrain.result import label_index
from ssclass.study.measure import cross_validated, finished
from ssclass.study.rows import DEFAULT, load_rows
from ssclass.workspace.version import photos_of
from ssclass.workspace.workspace import Workspace

REPEATS = 4  # of the cross-validation, where the study has no finished row with these params
SIDE = 220  # of a thumbnail's longer side, pixels


@dataclass(frozen=True)
class Suspect:
    """A training photo whose label may be wrong. `quality`: the probability of its label, out of fold.

    `issue`: whether the label counts as wrong, rather than as merely unlikely.
    """

    sha256: str
    batch: str
    key: str
    label: str
    suggested: str
    quality: float
    issue: bool


def suspects(workspace: Workspace, progress: Progress = silent) -> list[Suspect]:
    """Rank every training photo, the most suspicious first; BatchError when there is too little to cross-validate."""
    version = workspace.at()
    params, dataset = version.params, version.dataset
    row = load_rows(workspace)[DEFAULT]
    measured = finished(workspace, row, dataset)
    if measured is not None and measured.train == tuple(row.sha256 for row in dataset.train):
        probabilities = np.array(measured.out_of_fold)
    else:
        _, probabilities, _ = cross_validated(version, memo_of(workspace), params, dataset, REPEATS, progress)
    return ranked(dataset, probabilities, params.dataset.classes)


def ranked(dataset: Dataset, probabilities: np.ndarray, classes: Sequence[str]) -> list[Suspect]:
    """Rank the training photos of a data set by out-of-fold probabilities, float [train, classes]."""
    from cleanlab.filter import find_label_issues
    from cleanlab.rank import get_label_quality_scores

    labels = label_index(dataset.train, classes)
    present = np.unique(labels)  # cleanlab wants a photo of every class; params.yaml may name one before it has any
    known = probabilities[:, present] / probabilities[:, present].sum(axis=1, keepdims=True)
    given = np.searchsorted(present, labels)
    quality = get_label_quality_scores(given, known)
    issue = find_label_issues(given, known, n_jobs=1)
    return [
        Suspect(
            sha256=row.sha256,
            batch=dataset.batch_of(row.sha256),
            key=row.key,
            label=row.label,
            suggested=classes[present[known[at].argmax()]],
            quality=float(quality[at]),
            issue=bool(issue[at]),
        )
        for at in np.argsort(quality, kind="stable")
        for row in [dataset.train[at]]
    ]


def manifest(found: Sequence[Suspect]) -> str:
    """Make the manifest of a batch of corrections from suspects, for a person to check and submit."""
    relabel = [
        {"sha256": suspect.sha256, "label": suspect.suggested}
        for suspect in found
        if suspect.label != suspect.suggested
    ]
    return json.dumps({"schema": 1, "relabel": relabel}, indent=1, ensure_ascii=False) + "\n"


def page(workspace: Workspace, found: Sequence[Suspect], of: int) -> Page:
    """Make a page of the suspects with their pictures; `of`: how many training photos there are."""
    shown = Page(f"Suspicious labels: {len(found)} of {of} training photos")
    marked = sum(suspect.issue for suspect in found)
    shown.text(
        f"Most suspicious first; {marked} of them are marked `issue`: the label is probably wrong, not merely "
        "unlikely. The number is the probability of the given label by models that have not seen the photo. A person "
        "decides: `ssclass review` has these photos, a key each. Or write the corrections to a manifest (`ssclass data "
        "suspects --manifest FILE`), take out those that are not right, and send the rest (`ssclass submit FILE`)."
    )
    pictures = dict(photos_of(workspace.at(), {suspect.sha256 for suspect in found}))
    shown.show(
        {
            f"{place:03}-{suspect.sha256[:12]}": Picture(
                jpeg(thumbnail(pictures[suspect.sha256], SIDE)),
                f"{place}. {suspect.label} → {suspect.suggested}{' · issue' if suspect.issue else ''}"
                f" · {suspect.quality:.3f}\n"
                f"{suspect.sha256[:16]}… in {suspect.batch}\n{suspect.key}",
            )
            for place, suspect in enumerate(found, 1)
        }
    )
    return shown


def as_dicts(found: Sequence[Suspect]) -> list[dict[str, Any]]:
    """The suspects as JSON-able values."""
    return [asdict(suspect) for suspect in found]


def write(path: Path, text: str) -> None:
    """Write a text file, its folder made if need be."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
