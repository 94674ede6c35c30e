"""Thumbnails for the review: pixels alone, as JPEG; a file of a stranger is opened by the guard of the ingest first."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from functools import lru_cache

from ssclass.data.build import QUARANTINE
from ssclass.data.decoders import decoders
from ssclass.data.images import Refused, thumbnail
from ssclass.data.shards import iter_photos
from ssclass.errors import StoreError
from ssclass.pages.page import Picture, jpeg
from ssclass.params import IngestParams
from ssclass.review.held import HeldBatch
from ssclass.serving.collected import collected, read
from ssclass.workspace.version import photos_of
from ssclass.workspace.workspace import Workspace

SIDE, QUALITY = 320, 80
"""Of a thumbnail: pixels of the longer side, and JPEG's quality."""


class Pictures:
    """Thumbnails as addresses for <img>, by sha256; the last few hundred are remembered."""

    def __init__(self, workspace: Workspace) -> None:
        self._workspace = workspace
        self._made: dict[str, str] = {}
        self._quarantined = lru_cache(256)(self._quarantine)

    def of_dataset(self, wanted: Collection[str]) -> dict[str, str]:
        """Thumbnails of photos of the data set; none of those that are no longer in it, or cannot be had now."""
        try:
            return self._of(wanted, lambda left: photos_of(self._workspace.at(), left))
        except StoreError:
            return {}

    def of_held(self, held: HeldBatch, wanted: Collection[str]) -> dict[str, str]:
        """Thumbnails of photos of a held batch."""
        return self._of(wanted, lambda left: iter_photos(held.shard, set(left)))

    def of_collected(self, wanted: Collection[str]) -> dict[str, str]:
        """Thumbnails of photos that `ssclass serve` kept; empty for one that cannot be opened safely."""

        def kept(left: set[str]) -> Iterator[tuple[str, bytes]]:
            for photo in collected(self._workspace.store):
                if photo.sha256 in left and (data := read(self._workspace.store, photo)) is not None:
                    left.discard(photo.sha256)
                    yield photo.sha256, data

        try:
            return self._of(wanted, kept, self._inspect)
        except StoreError:
            return {}

    def of_quarantine(self, batch: str, key: str) -> str:
        """The thumbnail of a refused file; empty where it is not there, or cannot be opened safely."""
        return self._quarantined(batch, key)

    def _quarantine(self, batch: str, key: str) -> str:
        try:
            limit = self._workspace.at().params.ingest.max_bytes
            data = self._workspace.store.get(f"{QUARANTINE}/{batch}/{key}", limit=limit)
            if data is None:
                return ""
            self._inspect(data)
            return _address(data)
        except (StoreError, Refused):
            return ""

    def _inspect(self, data: bytes) -> None:
        """Open a stranger's file in a process with limits; Refused where that is not safe."""
        limits = self._workspace.at().params.ingest
        decoders().inspect(data, IngestParams(max_bytes=limits.max_bytes, max_pixels=limits.max_pixels, min_side=1))

    def _of(
        self,
        wanted: Collection[str],
        read: Callable[[set[str]], Iterator[tuple[str, bytes]]],
        inspect: Callable[[bytes], None] = lambda data: None,
    ) -> dict[str, str]:
        left = set(wanted) - self._made.keys()
        for sha256, data in read(left) if left else ():
            try:
                inspect(data)
                self._made[sha256] = _address(data)
            except Refused:
                self._made[sha256] = ""
        found = {sha256: self._made[sha256] for sha256 in wanted if sha256 in self._made}
        while len(self._made) > 400:
            self._made.pop(next(iter(self._made)))
        return found


def _address(data: bytes) -> str:
    return Picture(jpeg(thumbnail(data, SIDE), QUALITY)).source
