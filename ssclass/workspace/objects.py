"""What DVC keeps, read by content: from the local cache, else from the bucket, and checked against its md5.

DVC's own reader is not used here: opening its repository takes half a second, and nothing that it reads is checked.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

from ssclass.errors import StoreError, WorkspaceError
from ssclass.store import Store

CACHE, REMOTE = ".dvc/cache/files/md5", "dvc/files/md5/"
"""Where DVC keeps an object: here, and in the bucket; under the first two digits of its md5, then the others."""
EMPTY_DIR = "d751713988987e9331980363e24189ce.dir"
"""DVC's md5 of an empty folder: that of ``[]``."""

_MD5 = re.compile(r"[0-9a-f]{32}(\.dir)?")
BLOCK = 1 << 18
"""Bytes that a reader of a remote object asks for at least: a Parquet footer with its receipt fits in."""


@dataclass(frozen=True)
class Tracked:
    """One file that DVC tracks: its path in the workspace and the md5 of its bytes."""

    path: str
    md5: str

    @property
    def name(self) -> str:
        """The file's own name."""
        return self.path.rsplit("/", 1)[-1]


class Objects:
    """The objects of one workspace. Safe to use from several threads."""

    def __init__(self, root: Path, store: Store) -> None:
        self.root = root
        self.store = store

    def here(self, md5: str) -> Path:
        """Where the local cache keeps an object, whether it is there or not."""
        return self.root / CACHE / _checked(md5)[:2] / md5[2:]

    def key(self, md5: str) -> str:
        """Where the bucket keeps an object."""
        return f"{REMOTE}{_checked(md5)[:2]}/{md5[2:]}"

    def read(self, md5: str) -> bytes | None:
        """A whole object, checked; None when it is nowhere. StoreError when the bucket's has other bytes."""
        path = self.here(md5)
        if path.exists():
            data = path.read_bytes()
            if _md5(data) == md5[:32]:
                return data
        data_there = self.store.get(self.key(md5))
        if data_there is not None and _md5(data_there) != md5[:32]:
            raise self._altered(md5)
        return data_there

    def exists(self, md5: str) -> bool:
        """Whether an object is in the local cache or in the bucket; StoreError when that cannot be told."""
        return self.here(md5).exists() or self.store.head(self.key(md5)) is not None

    def listing(self, md5: str, folder: str) -> tuple[Tracked, ...]:
        """The files of a tracked folder (md5 with ``.dir``), by name; StoreError when the listing is nowhere."""
        if md5 == EMPTY_DIR:
            return ()
        data = self.read(md5)
        if data is None:
            raise StoreError(
                f"{folder}: its listing {md5} is neither in DVC's cache nor in the bucket; `dvc pull` tells more"
            )
        try:
            found = [Tracked(f"{folder}/{item['relpath']}", _checked(item["md5"])) for item in json.loads(data)]
        except (ValueError, KeyError, TypeError) as error:
            raise WorkspaceError(
                f"DVC object {md5}: not a listing ({error}); restore {folder} from a backup"
            ) from error
        return tuple(sorted(found, key=lambda each: each.path))

    def open(self, md5: str) -> BinaryIO:
        """Open an object for reading and seeking; StoreError when it is nowhere, or when its bytes are others.

        Of a remote object only the ranges that are read travel, where S3's ETag says that it has the md5 of its name.
        Where the ETag is another (an upload in parts, encryption by KMS), the object is fetched whole and checked.
        """
        path = self.here(md5)
        if path.exists():
            return path.open("rb")
        found = self.store.head(self.key(md5))
        if found is None:
            raise StoreError(
                f"s3://{self.store.place}/{self.key(md5)}: gone from DVC's cache and from the bucket; push it "
                "from a machine "
                "that has it with `dvc push`"
            )
        if found.etag == md5[:32]:
            return cast(BinaryIO, io.BufferedReader(_Ranges(self.store, found.key, found.etag, found.size), BLOCK))
        data = self.read(md5)
        assert data is not None, "it was there a moment ago"
        return io.BytesIO(data)

    def copy(self, md5: str, to: Path) -> None:
        """Write an object to a file, checked; StoreError as in `read`, or when it is nowhere."""
        data = self.read(md5)
        if data is None:
            raise StoreError(
                f"s3://{self.store.place}/{self.key(md5)}: gone; `ssclass gc` took it, or DVC never pushed it"
            )
        to.parent.mkdir(parents=True, exist_ok=True)
        to.write_bytes(data)

    def erase(self, md5: str) -> None:
        """Delete an object from the local cache and from the bucket, every version of it."""
        self.here(md5).unlink(missing_ok=True)
        self.store.erase(self.key(md5))

    def _altered(self, md5: str) -> StoreError:
        return StoreError(
            f"s3://{self.store.place}/{self.key(md5)}: its bytes are not what its name says; delete it, and push "
            "it again "
            "from a machine that has it (`dvc push`)"
        )


class _Ranges(io.RawIOBase):
    """An S3 object as a file: each read asks for a range, of the version with that ETag and of no other."""

    def __init__(self, store: Store, key: str, etag: str, size: int) -> None:
        self.store, self.key, self.etag, self.size = store, key, etag, size
        self.at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self.at, io.SEEK_END: self.size}[whence]
        self.at = max(0, start + offset)
        return self.at

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        wanted = min(len(buffer), self.size - self.at)
        if wanted <= 0:
            return 0
        data = self.store.get_range(self.key, self.at, wanted, self.etag)
        buffer[: len(data)] = data
        self.at += len(data)
        return len(data)


def _checked(md5: str) -> str:
    """The name of an object, as it came; StoreError unless it can be one."""
    if not isinstance(md5, str) or not _MD5.fullmatch(md5):
        raise StoreError(f"{md5!r}: not the name of a DVC object; restore data.dvc and dvc.lock with `git checkout`")
    return md5


def _md5(data: bytes) -> str:
    return hashlib.md5(data, usedforsecurity=False).hexdigest()
