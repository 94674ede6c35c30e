"""Photos that `ssclass serve` kept as the champion doubted them: ``collect/<day>/<sha256>`` in S3, as they were sent.

The key says all: the day (UTC) from which they are kept so many days, and what the bytes must be. They are kept by
:mod:`ssclass.serving.collecting`, ranked by `ssclass wanted`, and labelled by a person.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta

from ssclass.errors import ObjectError
from ssclass.store import Store

COLLECT = "collect"
"""The folder in the bucket."""
MOST_DAYS = 90
"""For how long they may be kept at most: then the bucket's own rule takes them, whoever runs or does not."""
_KEY = re.compile(rf"{COLLECT}/(\d{{4}}-\d{{2}}-\d{{2}})/([0-9a-f]{{64}})")


@dataclass(frozen=True)
class Collected:
    """A photo that is kept: its key in S3, the day (UTC) it came, sha256, and size in bytes."""

    key: str
    day: date
    sha256: str
    size: int


def collected(store: Store) -> Iterator[Collected]:
    """Every photo that is kept, the oldest day first; what else lies there is passed over. StoreError."""
    for found in store.list(f"{COLLECT}/"):
        if match := _KEY.fullmatch(found.key):
            try:
                day = date.fromisoformat(match[1])
            except ValueError:
                continue
            yield Collected(found.key, day, match[2], found.size)


def read(store: Store, photo: Collected) -> bytes | None:
    """The bytes of a photo that is kept; None where it is gone, or is not what its key says. StoreError."""
    try:
        data = store.get(photo.key, limit=photo.size + 1)
    except ObjectError:
        return None
    return data if data is not None and hashlib.sha256(data).hexdigest() == photo.sha256 else None


def keep(store: Store, data: bytes, sha256: str) -> Collected:
    """Keep a photo from today on. StoreError."""
    day = today()
    photo = Collected(f"{COLLECT}/{day.isoformat()}/{sha256}", day, sha256, len(data))
    store.put(photo.key, data)
    return photo


def remove_old(store: Store, days: float) -> int:
    """Remove what has been kept for more than so many days, in every version; how many there were. StoreError."""
    last = today() - timedelta(days=days)
    old = [photo for photo in collected(store) if photo.day < last]
    for photo in old:
        store.erase(photo.key)
    return len(old)


def today() -> date:
    """The day, UTC."""
    return datetime.now(UTC).date()
