"""The last blocks of a backbone with weights of their own, as tuning leaves them and a classifier keeps them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from ssclass.files import check_unpacked
from ssclass.model.weights import digest

MOST = 1_000_000_000  # bytes of all tensors


@dataclass(frozen=True, eq=False)
class TunedBlocks:
    """The last `blocks` of a backbone, with weights of their own: `tensors` float32, in the order of their layers."""

    blocks: int
    tensors: tuple[np.ndarray, ...]

    @cached_property
    def sha256(self) -> str:
        """Digest of the tensors (:func:`ssclass.model.weights.digest`)."""
        return digest(self.tensors)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, TunedBlocks) and (self.blocks, self.sha256) == (other.blocks, other.sha256)

    def __hash__(self) -> int:
        return hash((self.blocks, self.sha256))

    def save(self, path: Path) -> None:
        """Write the tensors, so that the same ones give the same bytes."""
        with path.open("wb") as file:
            np.savez(file, **{f"{i:04d}": tensor for i, tensor in enumerate(self.tensors)})  # type: ignore[arg-type]

    @classmethod
    def load(cls, path: Path, blocks: int, sha256: str) -> TunedBlocks:
        """The blocks that :meth:`save` wrote; OSError, ValueError or BadZipFile when the file is not that."""
        check_unpacked(path, MOST)
        with np.load(path, allow_pickle=False) as file:
            found = cls(blocks, tuple(file[name] for name in sorted(file.files)))
        if found.sha256 != sha256:
            raise ValueError(f"{path.name} has other tensors than it says")
        return found
