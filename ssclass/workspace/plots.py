"""decisions.csv: a line a decision, as `dvc plots` draws them. It follows from the ledger, and may be lost."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ssclass.workspace.ledger import Event

FILE = "decisions.csv"
COLUMNS = ("number", "candidate", "champion", "photos", "decision", "data_version", "key")
"""`candidate` and `champion` are shares of the same held-out photos, 0 to 1; without a champion its cell is empty."""
HEADER = ",".join(COLUMNS) + "\n"
LONGEST = 400  # bytes of a line, more than any has


def ours(path: Path) -> bool:
    """Whether a file is one that this module wrote: a person may have one of that name."""
    try:
        with path.open("rb") as file:
            return file.read(len(HEADER)) == HEADER.encode()
    except OSError:
        return False


def add(path: Path, decisions: dict[str, Event], made: Sequence[Event]) -> None:
    """Add the decisions `made` to the file, whose last line is that of the last of `decisions` (key → event).

    Where it is not (an older ssclass decided, or there is no file yet), the file is written anew from all of them. A
    person's file is left alone.
    """
    if path.exists() and not ours(path):
        return
    new = {event.body["key"]: event for event in made}
    if path.exists() and not new.keys() & decisions.keys() and _last_key(path) == next(reversed(decisions), "key"):
        with path.open("a", encoding="utf-8", newline="") as file:
            file.write(_lines(new, len(decisions)))
    else:
        path.write_text(HEADER + _lines({**decisions, **new}, 0), encoding="utf-8", newline="")


def _last_key(path: Path) -> str | None:
    """The key in a file's last line ("key" of the header alone); None where that line is not whole."""
    with path.open("rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - LONGEST))
        end = file.read().decode("utf-8", "replace")
    return end.rstrip("\n").rpartition(",")[2] if end.endswith("\n") else None


def _lines(decisions: Mapping[str, Event], before: int) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows(_line(number, event.body) for number, event in enumerate(decisions.values(), before + 1))
    return text.getvalue()


def _line(number: int, body: Mapping[str, Any]) -> tuple[Any, ...]:
    size, champion = body["holdout"]["size"], body["champion"]
    return (
        number,
        _share(body["candidate"]["right"], size),
        _share(champion["right"], size) if champion else "",
        size,
        body["decision"],
        body["data_version"],
        body["key"],
    )


def _share(right: int, size: int) -> str:
    return f"{right / size:.4f}" if size else ""
