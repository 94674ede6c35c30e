"""What models answer on the held-out photos: `Answers` of one model, and the `Result` that a decision is made from."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from ssclass.data.dataset import Dataset
from ssclass.data.shapes import side_of
from ssclass.data.shards import Row
from ssclass.errors import BatchError
from ssclass.files import write_whole
from ssclass.retrain.scores import Comparison, Scores, align, compare, predicted, score
from ssclass.text import shown

if TYPE_CHECKING:
    from ssclass.model.adopted import Adopted
    from ssclass.model.classifier import Classifier

RESULT = "result.json"
_Index = Annotated[int, Field(ge=-1, lt=1_000_000)]


class _File(BaseModel):
    """What result.json must say; probabilities are [n][classes]."""

    model_config = ConfigDict(strict=True, extra="forbid")

    key: str
    data_version: str
    head: str
    fingerprint: str
    size: int
    train_size: int
    batches: list[str]
    holdout: list[str]
    classes: list[str]
    labels: list[_Index]
    candidate: list[list[float]]
    candidate_class: list[_Index]
    champion_key: str | None
    champion: list[list[float]] | None
    champion_class: list[_Index] | None
    cross_validation: dict[str, list[float]]
    history: dict[str, list[float]]
    saved_alike: bool
    seconds: dict[str, float]
    sources: dict[str, dict[str, int]] = {}

    @model_validator(mode="after")
    def _fits(self) -> Self:
        n, m = len(self.holdout), len(self.classes)
        per_photo: list[Sequence[Any]] = [self.batches, self.labels, self.candidate_class, self.candidate]
        if self.champion is not None:
            per_photo += [self.champion, self.champion_class or []]
        if any(len(each) != n for each in per_photo):
            raise ValueError("it does not answer once for each held-out photo")
        if any(len(row) != m for row in (*self.candidate, *(self.champion or ()))):
            raise ValueError("it does not answer once for each class")
        return self


def _first(error: Exception) -> str:
    """The first thing that is wrong, in a line."""
    if isinstance(error, ValidationError):
        first = error.errors(include_url=False, include_input=False)[0]
        return shown(f"{'.'.join(str(part) for part in first['loc'])}: {first['msg']}", 300)
    return shown(error, 300)


@dataclass(frozen=True, eq=False)
class Answers:
    """What one model answers on labelled photos, one photo a row, in one order.

    photos: sha256. classes: those of params.yaml. labels: int [n], index of `classes`. probabilities: float64
    [n, classes]. predicted: int [n], index of `classes`, -1 where the model says a class that is not among them, or
    where a probability is not finite.
    """

    photos: tuple[str, ...]
    classes: tuple[str, ...]
    labels: NDArray[np.int64]
    probabilities: NDArray[np.float64]
    predicted: NDArray[np.int64]

    @classmethod
    def of(
        cls, model: Classifier | Adopted, raw: NDArray[np.floating], rows: Sequence[Row], classes: Sequence[str]
    ) -> Answers:
        """A model's own probabilities (float [n, its classes]) on rows, told in `classes`."""
        return cls(
            photos=tuple(row.sha256 for row in rows),
            classes=tuple(classes),
            labels=label_index(rows, classes),
            probabilities=np.asarray(align(raw, model.classes, classes), dtype=np.float64),
            predicted=np.asarray(predicted(raw, model.classes, classes), dtype=np.int64),
        )

    @property
    def correct(self) -> NDArray[np.bool_]:
        """Which photos the model has right, bool [n]."""
        return np.asarray(self.predicted == self.labels)

    @property
    def right(self) -> int:
        """How many photos the model has right."""
        return int(self.correct.sum())

    @cached_property
    def scores(self) -> Scores:
        """Accuracy, loss and the rest, of `numbers`."""
        return score(self.numbers, self.labels, self.classes)

    @cached_property
    def numbers(self) -> NDArray[np.float64]:
        """The probabilities, for who reckons with them or shows them: 0 where one is not finite."""
        return np.nan_to_num(self.probabilities, nan=0.0, posinf=0.0, neginf=0.0)

    @property
    def finite(self) -> bool:
        """Whether every probability is a number."""
        return bool(np.isfinite(self.probabilities).all())

    def same_bits(self, other: Answers) -> bool:
        """Whether another model answers the same, bit for bit."""
        return np.array_equal(self.probabilities, other.probabilities, equal_nan=True)


@dataclass(frozen=True, eq=False)
class Result:
    """What a training found out: both models' answers on the same held-out photos, and how the candidate came about.

    batches: the batch of each held-out photo. cross_validation: head → accuracy of each fold. history: curve → values.
    seconds: step → seconds. sources: source → photos that train, that are held out, and that are neither.
    """

    key: str
    data_version: str
    head: str
    fingerprint: str
    size: int
    train_size: int
    batches: tuple[str, ...]
    candidate: Answers
    champion_key: str | None
    champion: Answers | None
    cross_validation: dict[str, list[float]]
    history: dict[str, list[float]]
    saved_alike: bool
    seconds: dict[str, float]
    sources: dict[str, dict[str, int]] = field(default_factory=dict)

    @property
    def classes(self) -> tuple[str, ...]:
        """The classes of params.yaml."""
        return self.candidate.classes

    @property
    def holdout(self) -> tuple[str, ...]:
        """The held-out photos, by sha256."""
        return self.candidate.photos

    @property
    def comparison(self) -> Comparison | None:
        """Candidate against champion on the same photos; None without a champion."""
        return None if self.champion is None else compare(self.candidate.correct, self.champion.correct)

    @property
    def holdout_digest(self) -> str:
        """The name of this held-out set (hex, 16), by its photos: decisions count how often it was consulted."""
        return hashlib.sha256(" ".join(sorted(self.holdout)).encode()).hexdigest()[:16]

    def write(self, path: Path) -> None:
        """Write as JSON, whole or not at all."""
        write_whole(path, json.dumps(self.to_json()))

    def to_json(self) -> dict[str, Any]:
        """Plain dicts and lists; probabilities are [n][classes]."""
        kept = {
            name: value
            for name, value in vars(self).items()
            if name not in ("candidate", "champion") and not name.startswith("_")
        }
        return {
            **kept,
            "classes": self.classes,
            "holdout": self.holdout,
            "labels": self.candidate.labels.tolist(),
            "candidate": self.candidate.probabilities.tolist(),
            "candidate_class": self.candidate.predicted.tolist(),
            "champion": self.champion and self.champion.probabilities.tolist(),
            "champion_class": self.champion and self.champion.predicted.tolist(),
        }

    @classmethod
    def read(cls, path: Path) -> Result:
        """Read what `write` wrote; BatchError names a file that is none."""
        try:
            body = _File.model_validate_json(path.read_bytes()).model_dump()
            photos, classes = tuple(body.pop("holdout")), tuple(body.pop("classes"))
            labels = np.array(body.pop("labels"), dtype=np.int64)

            def answers(name: str) -> Answers | None:
                rows, called = body.pop(name), body.pop(f"{name}_class")
                if rows is None:
                    return None
                probabilities = np.array(rows, dtype=np.float64).reshape(len(photos), len(classes))
                return Answers(photos, classes, labels, probabilities, np.array(called, dtype=np.int64))

            candidate, champion = answers("candidate"), answers("champion")
            if candidate is None:
                raise ValueError("no answers of a candidate")
            body["batches"] = tuple(body["batches"])
            return cls(candidate=candidate, champion=champion, **body)
        except (OSError, ValueError, OverflowError) as error:
            raise BatchError(f"{path}: not a readable result ({_first(error)}); delete it, and retrain") from error


def make_result(
    *,
    key: str,
    data_version: str,
    dataset: Dataset,
    model: Classifier | Adopted,
    head: str,
    candidate: Answers,
    champion: tuple[str, Answers] | None,
    train_size: int,
    cross_validation: Mapping[str, Sequence[float]],
    history: Mapping[str, Sequence[float]],
    saved_alike: bool,
    seconds: Mapping[str, float],
) -> Result:
    """The Result of answers on the held-out photos of a data set, for whoever asks a model there."""
    return Result(
        key=key,
        data_version=data_version,
        head=head,
        fingerprint=model.fingerprint,
        size=side_of(model.size),
        train_size=train_size,
        batches=tuple(dataset.batch_of(sha256) for sha256 in candidate.photos),
        candidate=candidate,
        champion_key=champion and champion[0],
        champion=champion and champion[1],
        cross_validation={name: [float(value) for value in values] for name, values in cross_validation.items()},
        history={name: [float(value) for value in values] for name, values in history.items()},
        saved_alike=saved_alike,
        seconds=dict(seconds),
        sources=dataset.by_source(),
    )


def label_index(rows: Sequence[Row], classes: Sequence[str]) -> NDArray[np.int64]:
    """Labels as indices of `classes`, int64 [n]; BatchError names a label that is not among them."""
    place = {name: i for i, name in enumerate(classes)}
    for row in rows:
        if row.label not in place:
            raise BatchError(
                f"the data set has photos labelled {row.label!r}, which dataset.classes in params.yaml does not "
                "name; add it there"
            )
    return np.array([place[row.label] for row in rows], dtype=np.int64)
