"""Where photos that are to be forgotten can be found: in shards, as they were sent, and in what names them.

A photo is known by its sha256; by the name under which it was sent in a batch, which a manifest, a receipt and
quarantine's reasons repeat; and by the first 12 digits of its sha256, which reasons and warnings quote.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from io import BytesIO
from typing import Any

from ssclass.data.batches import INCOMING, MANIFEST
from ssclass.data.build import QUARANTINE
from ssclass.data.dataset import count
from ssclass.data.shards import Receipt, Row, Shard, iter_photos, read_shard
from ssclass.history.shards import forgotten_md5s, revoked_shards, stray_shards
from ssclass.serving.collected import COLLECT
from ssclass.store import Store
from ssclass.workspace.dvc import DATA
from ssclass.workspace.objects import Tracked
from ssclass.workspace.workspace import Workspace

NOBODY = "0" * 64  # in place of a sha256, where a record keeps its length
DIGITS = 12  # of a sha256 that reasons and warnings quote
REQUESTS = 8  # at a time


@dataclass(frozen=True)
class Traces:
    """What tells of some photos. names: (batch, key in it); sent: (key in S3, version) of copies; records: keys in S3.

    JSON-able by `to_json`: written into the bucket before anything is deleted, and gone when all is.
    """

    photos: frozenset[str]
    names: frozenset[tuple[str, str]] = frozenset()
    sent: tuple[tuple[str, str], ...] = ()
    records: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.sent or self.records)

    def to_json(self) -> dict[str, Any]:
        """Plain lists, in order."""
        return {
            "photos": sorted(self.photos),
            "names": sorted(self.names),
            "sent": self.sent,
            "records": self.records,
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Traces:
        """The inverse of to_json."""
        pairs = {name: [(str(a), str(b)) for a, b in value[name]] for name in ("names", "sent")}
        return cls(frozenset(value["photos"]), frozenset(pairs["names"]), tuple(pairs["sent"]), tuple(value["records"]))

    def in_rows(self, shard: Shard) -> bool:
        """Whether a shard has one of the photos."""
        return any(row.sha256 in self.photos for row in shard.rows)

    def in_shard(self, shard: Shard) -> bool:
        """Whether a shard has one of the photos, or names one: in a group, a correction, a refusal or a warning."""
        receipt = shard.receipt
        return (
            self.in_rows(shard)
            or any(row.group in self.photos for row in shard.rows)
            or not self.photos.isdisjoint(receipt.corrected)
            or any(self._is(shard.batch_id, item.key) or self.quoted(item.detail) for item in receipt.refused)
            or any(self.quoted(item.detail) for item in receipt.warnings)
        )

    def quoted(self, text: str) -> bool:
        """Whether a text quotes a sha256, whole or by its first digits."""
        return any(sha256[:DIGITS] in text for sha256 in self.photos)

    def without(self, shard: Shard, rows: Iterable[Row]) -> Receipt:
        """The receipt of a shard that has only these rows now, and that names none of the photos."""
        old, kept = shard.receipt, list(rows)
        return replace(
            old,
            accepted=len(kept),
            counts=count(kept),
            refused=tuple(
                replace(item, detail=self.blanked(item.detail))
                for item in old.refused
                if not self._is(shard.batch_id, item.key)
            ),
            warnings=tuple(replace(item, detail=self.blanked(item.detail)) for item in old.warnings),
            relabel={sha256: label for sha256, label in old.relabel.items() if sha256 not in self.photos},
            remove=tuple(sha256 for sha256 in old.remove if sha256 not in self.photos),
            relabel_again={name: label for name, label in old.relabel_again.items() if name not in self.photos},
            remove_again=tuple(sha256 for sha256 in old.remove_again if sha256 not in self.photos),
        )

    def blanked(self, text: str) -> str:
        """A text without the sha256s, whole or quoted; a whole one keeps its length."""
        for sha256 in self.photos:
            text = text.replace(sha256, NOBODY).replace(sha256[:DIGITS], NOBODY[:DIGITS])
        return text

    def cleaned(self, key: str, data: bytes) -> bytes:
        """A record (an object in S3) without what it says of the photos; the same bytes where it says nothing."""
        batch, _, name = _place(key)
        said = any(sha256[:DIGITS].encode() in data for sha256 in self.photos)
        if not said and not any(batch == where for where, _ in self.names):
            return data
        try:
            body = json.loads(data)
        except ValueError:
            body = None
        if name == MANIFEST and isinstance(body, dict):
            return self._manifest(batch, body, data)
        if isinstance(body, list) and all(isinstance(item, dict) for item in body):  # reasons.json
            kept = [item for item in body if not self._is(batch, str(item.get("key")))]
            text = self.blanked(json.dumps(kept, ensure_ascii=False, indent=1))
            return data if json.loads(text) == body else text.encode()
        return self.blanked(data.decode("utf-8", "surrogateescape")).encode("utf-8", "surrogateescape")

    def _manifest(self, batch: str, body: dict[str, Any], data: bytes) -> bytes:
        made = dict(body)
        for name in ("photos", "relabel", "remove"):
            if isinstance(body.get(name), list):
                made[name] = [item for item in body[name] if not self._entry(batch, item)]
        text = self.blanked(json.dumps(made, ensure_ascii=False, indent=1))
        return data if json.loads(text) == body else text.encode("utf-8", "surrogatepass")

    def _entry(self, batch: str, item: Any) -> bool:
        return isinstance(item, dict) and (
            item.get("sha256") in self.photos or ("key" in item and self._is(batch, str(item["key"])))
        )

    def _is(self, batch: str, key: str) -> bool:
        return key in self.photos or (batch, key) in self.names


def known_shards(workspace: Workspace) -> list[tuple[Tracked, Shard]]:
    """Every shard that there is, by itself: of the data set, of revoked batches, of commits that main does not contain.

    A shard that is nowhere is passed over, unless it is in the data set; StoreError when that cannot be told.
    """
    version = workspace.at()
    files = {each.name.removesuffix(".parquet"): each for each in version.files(DATA)}
    found = [(files[shard.batch_id], shard) for shard in version.dataset.shards]
    seen = {tracked.md5 for tracked, _ in found} | forgotten_md5s(version.events)
    for tracked in (*revoked_shards(workspace), *stray_shards(workspace)):
        if tracked.md5 in seen:
            continue
        seen.add(tracked.md5)
        if workspace.objects.exists(tracked.md5):
            found.append((tracked, version.shard(tracked)))
            continue
        for key, number, _ in workspace.store.versions(workspace.objects.key(tracked.md5)):  # deleted, not erased
            found.append((tracked, read_shard(BytesIO(workspace.store.get_version(key, number)))))
    return found


def find(workspace: Workspace, photos: frozenset[str], shards: Iterable[tuple[Tracked, Shard]]) -> Traces:
    """Look for photos in `incoming/`, `quarantine/` and `collect/`: copies by their content, records by what they say.

    Where every photo is in a shard, its size is known, and only objects of that size are read.
    """
    store, names, sizes = workspace.store, set[tuple[str, str]](), dict[str, int]()
    for tracked, shard in shards:
        here = {row.sha256 for row in shard.rows} & photos
        names |= {(shard.batch_id, row.key) for row in shard.rows if row.sha256 in here}
        if not here <= set(sizes) and workspace.objects.exists(tracked.md5):
            with workspace.objects.open(tracked.md5) as file:
                sizes |= {sha256: len(data) for sha256, data in iter_photos(file, here)}
    wanted = set(sizes.values()) if set(sizes) == photos else None
    listed = [each for folder in (INCOMING, QUARANTINE, COLLECT) for each in store.versions(f"{folder}/")]
    sent = tuple(_copies(store, photos, [each for each in listed if wanted is None or each[2] in wanted]))
    for key, _ in sent:
        batch, _, name = _place(key)
        names.add((batch, name))
    texts = _read(store, [each for each in listed if each[0].endswith(".json")])
    for key, _, data in texts:
        names |= set(_named(key, data, photos))
    traces = Traces(photos, frozenset(names), sent)
    records = {key for key, _, data in texts if traces.cleaned(key, data) != data}
    return replace(traces, records=tuple(sorted(records)))


def _read(store: Store, listed: Collection[tuple[str, str, int]]) -> list[tuple[str, str, bytes]]:
    """(key, version, bytes) of versions of objects."""
    with ThreadPoolExecutor(REQUESTS) as pool:
        bodies = pool.map(lambda each: store.get_version(each[0], each[1]), listed)
        return [(key, version, body) for (key, version, _), body in zip(listed, bodies, strict=True)]


def _copies(
    store: Store, photos: frozenset[str], listed: Collection[tuple[str, str, int]]
) -> Iterator[tuple[str, str]]:
    """(key, version) of the objects that are one of the photos; one at a time in memory for each request."""

    def is_one(each: tuple[str, str, int]) -> bool:
        return hashlib.sha256(store.get_version(each[0], each[1])).hexdigest() in photos

    with ThreadPoolExecutor(REQUESTS) as pool:
        for (key, version, _), found in zip(listed, pool.map(is_one, listed), strict=True):
            if found:
                yield key, version


def _named(key: str, data: bytes, photos: frozenset[str]) -> Iterator[tuple[str, str]]:
    """The names that a manifest gives to photos by their sha256."""
    batch, folder, name = _place(key)
    if folder != INCOMING or name != MANIFEST or not any(sha256.encode() in data for sha256 in photos):
        return
    try:
        entries = json.loads(data)["photos"]
        yield from ((batch, str(entry["key"])) for entry in entries if entry.get("sha256") in photos)
    except (ValueError, KeyError, TypeError, AttributeError):  # no manifest that ingest could read
        return


def _place(key: str) -> tuple[str, str, str]:
    """(batch, folder, name in it) of an object's key."""
    folder, _, rest = key.partition("/")
    batch, _, name = rest.partition("/")
    return batch, folder, name
