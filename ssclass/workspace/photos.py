"""The photos of the data set, by sha256."""

from __future__ import annotations

from collections.abc import Iterator

from ssclass.data.shards import iter_photos
from ssclass.workspace.dvc import DATA
from ssclass.workspace.workspace import Workspace


def read_photos(workspace: Workspace, wanted: set[str]) -> Iterator[tuple[str, bytes]]:
    """(sha256, bytes as received) of these photos of the data set, shard by shard; each once."""
    left = set(wanted)
    with workspace.snapshot() as snapshot:
        for shard in workspace.dataset().shards:
            here = left & {row.sha256 for row in shard.rows}
            if here:
                with snapshot.open(f"{DATA}/{shard.batch_id}.parquet") as source:
                    yield from iter_photos(source, here)
                left -= here
