"""The data set: shards in the order in which they came, folded into the photos that count now.

A later shard may relabel or remove photos of earlier ones; the last decision wins, and the shards keep the history.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

from ssclass.data.shards import Row, Shard
from ssclass.data.split import HOLDOUT, TRAIN
from ssclass.errors import NotFoundError


@dataclass(frozen=True)
class Dataset:
    """Use `Dataset.of`, which orders the shards. Photos of other sources than `sources` neither train nor judge."""

    shards: tuple[Shard, ...] = ()
    sources: Literal["all"] | tuple[str, ...] = "all"

    @classmethod
    def of(cls, shards: Iterable[Shard], sources: Literal["all"] | tuple[str, ...] = "all") -> Dataset:
        """A data set of these shards, whatever order they are given in."""
        return cls(tuple(sorted(shards, key=lambda shard: (shard.receipt.sequence, shard.batch_id))), sources)

    @cached_property
    def by_sha256(self) -> dict[str, Row]:
        """sha256 → row, of the photos that count."""
        rows: dict[str, Row] = {}
        for shard in self.shards:
            of = shard.receipt
            correct(rows, of.relabel | of.relabel_again, (*of.remove, *of.remove_again))
            rows.update((row.sha256, row) for row in shard.rows)
        return rows

    @cached_property
    def rows(self) -> tuple[Row, ...]:
        """The photos that count, corrections applied, in the order in which they came."""
        return tuple(self.by_sha256.values())

    @cached_property
    def used(self) -> tuple[Row, ...]:
        """The rows of the chosen sources, which train and judge."""
        if self.sources == "all":
            return self.rows
        return tuple(row for row in self.rows if self.uses(row.sha256))

    def uses(self, sha256: str) -> bool:
        """Whether a photo counts and is of a chosen source."""
        return sha256 in self.by_sha256 and (self.sources == "all" or self._sources[sha256] in self.sources)

    @property
    def train(self) -> tuple[Row, ...]:
        """Rows to learn from."""
        return tuple(row for row in self.used if row.split == TRAIN)

    @property
    def holdout(self) -> tuple[Row, ...]:
        """Rows that are never learnt from."""
        return tuple(row for row in self.used if row.split == HOLDOUT)

    @cached_property
    def digest(self) -> str:
        """sha256 over the used rows in order (photo, label, split, group): two equal ones train alike."""
        rows = [[row.sha256, row.label, row.split, row.group] for row in self.used]
        return hashlib.sha256(json.dumps(rows, separators=(",", ":")).encode()).hexdigest()

    @property
    def next_sequence(self) -> int:
        """The sequence number of the next shard."""
        return max((shard.receipt.sequence for shard in self.shards), default=0) + 1

    def batch_of(self, sha256: str) -> str:
        """The batch that a photo came with; NotFoundError when none did."""
        if sha256 not in self._batches:
            raise NotFoundError(
                f"photo {sha256}: in no batch of the data set; `ssclass export DIR` shows what is in it"
            )
        return self._batches[sha256]

    @cached_property
    def _batches(self) -> dict[str, str]:
        """sha256 → the newest batch that has it."""
        return {row.sha256: shard.batch_id for shard in self.shards for row in shard.rows}

    @cached_property
    def _sources(self) -> dict[str, str]:
        """sha256 → the source of the newest batch that has it."""
        return {row.sha256: shard.receipt.source for shard in self.shards for row in shard.rows}

    def source_of(self, sha256: str) -> str:
        """The source of the newest batch that has a photo; KeyError where none has it."""
        return self._sources[sha256]

    def by_source(self) -> dict[str, dict[str, int]]:
        """source → photos that train, that judge (`holdout`), and that are kept without either (`unused`)."""
        table: dict[str, dict[str, int]] = {}
        used = {row.sha256 for row in self.used}
        for row in self.rows:
            sides = table.setdefault(self._sources[row.sha256], {TRAIN: 0, HOLDOUT: 0, "unused": 0})
            sides[row.split if row.sha256 in used else "unused"] += 1
        return dict(sorted(table.items()))

    def counts(self) -> dict[str, dict[str, int]]:
        """class → split → photos."""
        return count(self.rows)


def correct(rows: dict[str, Row], relabel: Mapping[str, str], remove: Iterable[str]) -> None:
    """Apply a batch's corrections, in place; of photos that are not there, nothing."""
    for sha256, label in relabel.items():
        if sha256 in rows:
            rows[sha256] = replace(rows[sha256], label=label)
    for sha256 in remove:
        rows.pop(sha256, None)


def count(rows: Iterable[Row]) -> dict[str, dict[str, int]]:
    """class → split → photos, sorted."""
    table: dict[str, dict[str, int]] = {}
    for row in rows:
        sides = table.setdefault(row.label, {TRAIN: 0, HOLDOUT: 0})
        sides[row.split] += 1
    return dict(sorted(table.items()))
