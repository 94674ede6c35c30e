"""What a person has decided and not sent yet: steps in order, each of which can be taken back."""

from __future__ import annotations

import json
import threading
from collections.abc import Collection
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from ssclass.environment import write_private
from ssclass.errors import InputError
from ssclass.study.erase import STEPS
from ssclass.workspace.workspace import Workspace

Kind = Literal["relabel", "remove", "keep", "admit", "drop"]


@dataclass(frozen=True)
class Step:
    """One decision. `target`: a photo's sha256, or a batch for admit and drop.

    `label`: the new one, of a relabel. `batch`: of a photo that is not in the data set, the held batch that has it, or
    the folder where `ssclass serve` kept it; of a batch, the etag of the marker that was looked at.
    """

    kind: Kind
    target: str
    label: str = ""
    batch: str = ""

    @property
    def words(self) -> str:
        """What the step does, in a word or two."""
        return {
            "relabel": f"new label: {self.label}",
            "remove": "to be removed",
            "keep": "the label is right",
            "admit": "to be admitted",
            "drop": "to be dropped",
        }[self.kind]


class Steps:
    """The steps of a workspace, kept in its private folder: they are there again after the page was closed.

    Safe to use from several threads of one process. The file is read anew before each change: `ssclass forget` takes
    photos out of it.
    """

    def __init__(self, workspace: Workspace) -> None:
        self.path = workspace.private / STEPS
        self._lock = threading.Lock()
        self._steps = _read(self.path)

    def __len__(self) -> int:
        return len(self._steps)

    @property
    def all(self) -> list[Step]:
        """Every step, oldest first."""
        return list(self._steps)

    def add(self, step: Step) -> None:
        """Add a step; it takes the place of what was decided of the same photo or batch before."""
        with self._lock:
            self._write([*_read(self.path), step])

    def undo(self) -> Step | None:
        """Take the last step back; what it was, None where there is none."""
        with self._lock:
            before = _read(self.path)
            if not before:
                return None
            last = before.pop()
            self._write(before)
            return last

    def take_back(self, target: str) -> None:
        """Take back all that was decided of a photo or a batch."""
        self.forget({target})

    def forget(self, targets: Collection[str]) -> None:
        """Take back what was decided of these, as when it was sent."""
        with self._lock:
            self._write([step for step in _read(self.path) if step.target not in targets])

    def standing(self) -> dict[str, Step]:
        """What is decided now, by photo or batch."""
        return {step.target: step for step in self._steps}

    def _write(self, steps: list[Step]) -> None:
        write_private(self.path, json.dumps([asdict(step) for step in steps]))
        self._steps = steps


def _read(path: Path) -> list[Step]:
    if not path.exists():
        return []
    try:
        return [_step(each) for each in json.loads(path.read_text(encoding="utf-8"))]
    except (OSError, ValueError, TypeError) as error:
        raise InputError(f"{path}: not readable ({error}); delete it, and decide anew what it held") from error


def _step(body: dict[str, Any]) -> Step:
    step = Step(**body)
    if step.kind not in get_args(Kind) or not all(isinstance(value, str) for value in body.values()):
        raise ValueError(f"no step is {step.kind!r}")
    return step
