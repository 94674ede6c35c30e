"""Answers on as many photos as there are, into a Parquet file; stopped at any moment and given again, it goes on.

What is answered lies beside the file that is asked for, in ``.<name>.parts/``: ``job.json``, which says of what and by
which model, and Parquet files of some rows each. At the end they become the one file, and go. No more than some photos
and the rows of one part are in memory; of those that are done, 32 bytes each.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ssclass.data.decoders import decoders
from ssclass.data.images import Limits, Refused
from ssclass.errors import InputError
from ssclass.files import whole, write_whole
from ssclass.serving.carried import Carried, carry
from ssclass.serving.model import Model
from ssclass.serving.unlabelled import Unlabelled
from ssclass.settings import Settings
from ssclass.spread import elsewhere, spread

TOGETHER = 16  # photos that are read, decoded and asked about at a time, while as many more are read
ROWS = 1000  # of a part
JOB = "job.json"
ABOUT = b"ssclass"
"""The metadata of the file that holds what job.json said."""

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Job:
    """What is asked: which photos (as they were named), and which model.

    `asked`: the model as it was named, `run_id` and `key`: of the one that this named when the job began, so that a
    promotion meanwhile changes nothing.
    """

    source: str
    asked: str
    run_id: str | None
    key: str | None
    classes: tuple[str, ...]

    def to_json(self) -> str:
        """The text of job.json."""
        return json.dumps({"format": 1, **vars(self), "classes": list(self.classes)}, indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes) -> Job:
        """The inverse of to_json; ValueError, KeyError or TypeError where it is none."""
        body = json.loads(text)
        return cls(body["source"], body["asked"], body["run_id"], body["key"], tuple(body["classes"]))


@dataclass(frozen=True)
class Summary:
    """How many photos there are answers on, and how many of those could not be read."""

    photos: int
    unreadable: int


def parts_of(target: Path) -> Path:
    """The folder of what is answered so far."""
    return target.with_name(f".{target.name}.parts")


def begun(target: Path, source: str, asked: str) -> Job | None:
    """The job that was begun for a file, if one was; InputError where that is another one, or the file is no job's."""
    for path, read in ((parts_of(target) / JOB, Path.read_bytes), (target, _about)):
        try:
            job = Job.from_json(read(path))
        except FileNotFoundError:
            continue
        except (OSError, ValueError, KeyError, TypeError, pa.ArrowException) as error:
            raise InputError(f"{path}: is there already, and is no predictions of ours; name a new file") from error
        if (job.source, job.asked) != (source, asked):
            raise InputError(
                f"{path}: holds what {job.asked} says of {job.source}; name a new file, or remove that one"
            )
        return job
    return None


def finished(target: Path) -> Summary | None:
    """What a file has that is whole; None where it is still to be made."""
    return _summary(target) if target.exists() and not (parts_of(target) / JOB).exists() else None


def predict_all(
    model: Model,
    job: Job,
    photos: Iterator[Unlabelled],
    target: Path,
    limits: Limits,
    progress: Progress,
    settings: Settings | None = None,
) -> Summary:
    """Write a row a photo: `photo`, `sha256`, `label`, `probability`, `probabilities` by class, or `error`.

    `settings` say where photos are decoded and the model is asked; none: here. What is answered already is not asked
    again. InputError where another process is at it. What a source or S3 raises ends it; what is answered by then
    stays.
    """
    if (summary := finished(target)) is not None:
        return summary
    folder = parts_of(target)
    folder.mkdir(parents=True, exist_ok=True)
    with _alone(folder, target):
        write_whole(folder / JOB, job.to_json())
        if not target.exists():  # else the parts are left of a run that was stopped at its very end
            done = _keys(folder)
            left = (photo for photo in photos if not _among(done, photo.key))
            _answer(model, left, folder, len(done), limits, progress, settings)
            _join(folder, target, job)
    shutil.rmtree(folder)
    return _summary(target)


def _schema(classes: tuple[str, ...]) -> pa.Schema:
    odds = pa.struct([(name, pa.float64()) for name in classes])
    return pa.schema(
        [
            ("key", pa.string()),
            ("photo", pa.string()),
            ("sha256", pa.string()),
            ("label", pa.string()),
            ("probability", pa.float64()),
            ("probabilities", odds),
            ("error", pa.string()),
        ]
    )


@dataclass
class _Part:
    """Rows that are answered and not written yet."""

    folder: Path
    schema: pa.Schema
    number: int
    rows: list[dict[str, Any]] = field(default_factory=list)

    def write(self) -> None:
        if self.rows:
            with whole(self.folder / f"{self.number:08}.parquet") as new:
                pq.write_table(pa.Table.from_pylist(self.rows, self.schema), new)
            self.number, self.rows = self.number + 1, []


def _answer(
    model: Model,
    photos: Iterator[Unlabelled],
    folder: Path,
    before: int,
    limits: Limits,
    progress: Progress,
    settings: Settings | None,
) -> None:
    part, done = _Part(folder, _schema(model.classes), len(_parts(folder))), before
    make: Callable[[], _Answering] = partial(_Answering, model, limits)
    if elsewhere(settings):
        make, photos = partial(_arrived, carry(model), limits), (photo.carried() for photo in photos)
    try:
        for rows in spread(settings, make, _batches(photos), threads=2):  # one reads while the other asks the network
            part.rows += rows
            done += len(rows)
            progress("photos", done, done + 1)
            if len(part.rows) >= ROWS:
                part.write()
    finally:
        part.write()
    progress("photos", done, done)


def _batches(photos: Iterator[Unlabelled]) -> Iterator[list[Unlabelled]]:
    while batch := list(islice(photos, TOGETHER)):
        yield batch


def _arrived(carried: Carried, limits: Limits) -> _Answering:
    return _Answering(carried.open(), limits)


class _Answering:
    """A function of some photos: the row of each. Safe to call from several threads."""

    def __init__(self, model: Model, limits: Limits) -> None:
        self.model, self.limits = model, limits
        self.pool = ThreadPoolExecutor(TOGETHER, thread_name_prefix="open")
        self.one_asks = threading.Lock()  # the network takes all cores

    def __call__(self, photos: list[Unlabelled]) -> list[dict[str, Any]]:
        opened = list(self.pool.map(self._open, photos))
        images = [pixels for _, _, pixels in opened if not isinstance(pixels, Refused)]
        with self.one_asks:
            odds = iter(self.model.predict(images) if images else ())
        return [_row(self.model, *each, odds) for each in opened]

    def _open(self, photo: Unlabelled) -> Opened:
        """A photo with its sha256 and pixels, or why there are none."""
        sha256 = None
        try:
            data = photo.read()
            sha256 = hashlib.sha256(data).hexdigest() if len(data) <= self.limits.max_bytes else None
            return photo, sha256, decoders().decode(data, self.model.size, self.limits)
        except Refused as refused:
            return photo, sha256, refused


Opened = tuple[Unlabelled, str | None, NDArray[np.uint8] | Refused]


def _row(
    model: Model, photo: Unlabelled, sha256: str | None, pixels: NDArray[np.uint8] | Refused, odds: Iterator[Any]
) -> dict[str, Any]:
    row: dict[str, Any] = {"key": photo.key, "photo": photo.name, "sha256": sha256}
    if isinstance(pixels, Refused):
        return row | {"error": f"{pixels.reason}: {pixels.detail}"}
    values = [float(value) for value in next(odds)]
    best = int(np.argmax(values))
    named = dict(zip(model.classes, values, strict=True))
    return row | {"label": model.classes[best], "probability": values[best], "probabilities": named}


def _parts(folder: Path) -> list[Path]:
    return sorted(folder.glob("[0-9]*.parquet"))


def _digest(key: str) -> bytes:
    return hashlib.blake2b(key.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest().encode()


def _keys(folder: Path) -> NDArray[np.bytes_]:
    """What the parts have, as sorted digests of their keys."""
    found = [
        np.array([_digest(key) for key in pq.read_table(path, columns=["key"]).column("key").to_pylist()], "S32")
        for path in _parts(folder)
    ]
    return np.sort(np.concatenate(found)) if found else np.empty(0, "S32")


def _among(done: NDArray[np.bytes_], key: str) -> bool:
    digest = np.bytes_(_digest(key))
    at = int(np.searchsorted(done, digest))
    return at < len(done) and bool(done[at] == digest)


def _join(folder: Path, target: Path, job: Job) -> None:
    """Make the one file of all parts, a part at a time."""
    schema = _schema(job.classes)
    schema = schema.remove(schema.get_field_index("key")).with_metadata({ABOUT: job.to_json().encode()})
    with whole(target) as new, pq.ParquetWriter(new, schema) as file:
        for path in _parts(folder):
            file.write_table(pq.read_table(path).drop_columns(["key"]).cast(schema))


def _about(target: Path) -> bytes:
    """What the metadata of a file of ours says; KeyError where it is none."""
    return bytes((pq.read_schema(target).metadata or {})[ABOUT])


def _summary(target: Path) -> Summary:
    with pq.ParquetFile(target) as file:
        errors = sum(len(batch) - batch.column("error").null_count for batch in file.iter_batches(columns=["error"]))
        return Summary(file.metadata.num_rows, errors)


@contextmanager
def _alone(folder: Path, target: Path) -> Iterator[None]:
    from filelock import FileLock, Timeout

    try:
        with FileLock(folder / "lock", timeout=0):
            yield
    except Timeout as error:
        raise InputError(f"{target}: another process writes it now; wait for it, or name another file") from error
