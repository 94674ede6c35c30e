"""Features of photos that lie in many shards, each put where it belongs: no photo's are in memory twice."""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np

from ssclass.model.features import Features

ON_DISK = 256_000_000  # bytes from which an array is a file that has no name: the system holds as much of it as it can


class Gathered:
    """Features of the photos that are asked for, in that order, of shards that come one after the other.

    `folder`: where large arrays are put; their files have no names and end with the arrays.
    """

    def __init__(self, sha256s: Sequence[str], folder: Path) -> None:
        self.asked = tuple(sha256s)
        self._at = {sha256: row for row, sha256 in enumerate(dict.fromkeys(self.asked))}
        self._filled = np.zeros(len(self._at), dtype=bool)
        self._folder = folder
        self._arrays: dict[str, np.ndarray] = {}

    def wants(self, sha256s: Collection[str]) -> bool:
        """Whether one of these photos is asked for."""
        return bool(self._at) and not self._at.keys().isdisjoint(sha256s)

    def add(self, found: Features, names: Collection[str] | None = None) -> None:
        """Take what is asked for from a shard's features, of a photo that came before anew; `names`: these arrays."""
        rows = [row for row, sha256 in enumerate(found.sha256s) if sha256 in self._at]
        if not rows:
            return
        at = np.array([self._at[found.sha256s[row]] for row in rows])
        for name, array in found.arrays.items():
            if names is None or name in names:
                if name not in self._arrays:
                    self._arrays[name] = self._room((len(self._at), *array.shape[1:]), array.dtype)
                self._arrays[name][at] = array if len(rows) == len(array) else array[rows]
        self._filled[at] = True

    def features(self) -> Features:
        """The features; KeyError names a photo that was in no shard."""
        there = tuple(self._at)
        if not self._filled.all():
            raise KeyError(there[int(np.argmin(self._filled))])
        return Features(there, self._arrays).take(self.asked)

    def _room(self, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        size = int(np.prod(shape)) * dtype.itemsize
        if size <= ON_DISK:
            return np.empty(shape, dtype)
        self._folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=self._folder) as file:
            return np.memmap(file, dtype, "w+", shape=shape)
