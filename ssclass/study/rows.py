"""The rows of the study: names, and what each changes in params.yaml. Kept in the workspace's study.yaml."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ssclass.code import code_digest
from ssclass.data.dataset import Dataset
from ssclass.errors import NotFoundError, ParamsError
from ssclass.params import Params, read_yaml
from ssclass.presets import is_decided, undecided, without_preset
from ssclass.workspace.create import template_file
from ssclass.workspace.workspace import Workspace

FILE = "study.yaml"
DEFAULT = "default"
"""The row that is params.yaml as it is; the others are compared with it."""
VERSION = 2  # of how a row is measured: a change makes every row new


class _RowEntry(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)
    about: str
    set: dict[str, Any] = {}
    study: float | None = Field(None, ge=0, le=100)
    repeats: int | None = Field(None, ge=1, le=50)
    auxiliary: bool = False
    against: str = DEFAULT


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)
    repeats: int = Field(8, ge=1, le=50)
    rows: dict[str, _RowEntry]


@dataclass(frozen=True)
class StudyRow:
    """One row of the study. `params` are those of the workspace with `changes` (dotted) applied.

    `study`: the original study's validation accuracy, per cent. `auxiliary`: needs photos of another source than
    `main`. `against`: the row that it is compared with.
    """

    name: str
    about: str
    changes: Mapping[str, Any]
    params: Params
    repeats: int
    study: float | None
    auxiliary: bool
    against: str

    @property
    def experiment(self) -> str:
        """The command that does this row alone, as an experiment of DVC."""
        options = "".join(f" -S {_quoted(name, value)}" for name, value in self.changes.items())
        return f"dvc exp run{options}"

    @property
    def backbones(self) -> tuple[str, ...]:
        """The networks that it needs, each once."""
        members = [backbone for backbone, _ in self.params.model.pairs]
        return tuple(dict.fromkeys(members or [self.params.features.backbone]))

    def with_sources(self, dataset: Dataset) -> Dataset:
        """Apply this row's choice of sources to the data set."""
        return replace(dataset, sources=self.params.dataset.sources)

    def key(self, dataset: Dataset) -> str:
        """The digest (hex, 16) of what its figures depend on: data set, params, code, repeats."""
        text = f"{VERSION} {dataset.digest} {self.params.result_digest} {code_digest()} {self.repeats}"
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def load_rows(workspace: Workspace) -> dict[str, StudyRow]:
    """The rows of study.yaml by name, in its order; the template's where the workspace has none.

    ParamsError names the row and the field that is wrong.
    """
    path = workspace.root / FILE
    if not path.exists():
        path = template_file(FILE)
    base = workspace.work_tree().params
    try:
        file = _File.model_validate(read_yaml(path))
    except ValidationError as error:
        raise _wrong(path, error) from error
    if DEFAULT not in file.rows or file.rows[DEFAULT].set:
        raise ParamsError(f"{path}: the row `{DEFAULT}` must be there and change nothing; put it back")
    rows = {}
    for name, row in file.rows.items():
        if row.against not in file.rows:
            raise ParamsError(f"{path}: {name}: against: no row {row.against!r}; name one of {', '.join(file.rows)}")
        changes = row.set
        if base.model.preset is not None and any(is_decided(dotted) for dotted in changes):
            changes = {"model.preset": None} | changes  # its switches count
        try:
            params = changed(base, changes)
        except ValidationError as error:
            raise _wrong(path, error, name) from error
        repeats = row.repeats or file.repeats
        rows[name] = StudyRow(name, row.about, changes, params, repeats, row.study, row.auxiliary, row.against)
    return rows


def choose(rows: Mapping[str, StudyRow], names: Iterable[str]) -> list[StudyRow]:
    """The rows of these names, or all of them; NotFoundError for a name that is none."""
    wanted = list(names)
    for name in wanted:
        if name not in rows:
            raise NotFoundError(
                f"{name}: no row of the study ({', '.join(rows)}); `ssclass study --list` describes them"
            )
    return [row for name, row in rows.items() if not wanted or name in wanted]


def changed(params: Params, changes: Mapping[str, Any]) -> Params:
    """Copy params with dotted names set to values; ValidationError when they do not fit.

    What a preset decided gives way where `changes` name another, or none; what a person set gives way to a preset.
    """
    values = params.model_dump(mode="json")
    if "model.preset" in changes:
        values = without_preset(values) if changes["model.preset"] is None else undecided(values)
    for dotted, value in changes.items():
        *path, last = dotted.split(".")
        at = values
        for part in path:
            at = at.setdefault(part, {})
        at[last] = value
    return Params.model_validate(values)


def _wrong(path: Path, error: ValidationError, row: str = "") -> ParamsError:
    first = error.errors()[0]
    field = ".".join(str(part) for part in first["loc"])
    return ParamsError(f"{path}: {f'{row}: ' if row else ''}{field}: {first['msg']}; correct that value")


def _quoted(name: str, value: Any) -> str:
    if isinstance(value, list | tuple):
        return f"'{name}=[{','.join(map(str, value))}]'"
    if value is None:
        return f"{name}=null"
    return f"{name}={str(value).lower() if isinstance(value, bool) else value}"
