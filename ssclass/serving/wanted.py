"""What to label next: unlabelled photos in the order in which the champion would learn from them."""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ssclass.data.decoders import decoders
from ssclass.data.images import Refused
from ssclass.errors import InputError
from ssclass.files import whole
from ssclass.params import IngestParams
from ssclass.retrain.predict import Progress, decided_classifier, memo_of, silent
from ssclass.serving.ranking import doubt, embedded, novelty, ranked
from ssclass.serving.unlabelled import Unlabelled, photos_at
from ssclass.workspace.version import Version
from ssclass.workspace.workspace import Workspace

if TYPE_CHECKING:
    from ssclass.model.adopted import Adopted
    from ssclass.model.classifier import Classifier
    from ssclass.model.features import Features
    from ssclass.model.spec import Spec

TOGETHER = 16  # photos whose bytes are in memory at once
LIST = "labels.csv"
_ENDS = {b"\xff\xd8\xff": ".jpg", b"\x89PNG": ".png", b"GIF8": ".gif", b"RIFF": ".webp", b"II*\0": ".tif"}


@dataclass(frozen=True)
class Choice:
    """A photo that is worth a label: what the champion says of it, how much it doubts that, and how new the photo is.

    `doubt`: 0 to 1, `novelty`: cosine distance to the nearest photo of the data set.
    """

    photo: Unlabelled
    sha256: str
    label: str
    probability: float
    doubt: float
    novelty: float

    def as_dict(self) -> dict[str, Any]:
        """JSON-able."""
        about = {"photo": self.photo.name, "sha256": self.sha256, "label": self.label}
        return about | {"probability": self.probability, "doubt": self.doubt, "novelty": self.novelty}


@dataclass
class Wanted:
    """The most wanted photos first; how many were looked at, and how many of those the data set has.

    `copies`: of a photo that was looked at before. `refused`: (name, why) of what is no photo.
    """

    photos: list[Choice] = field(default_factory=list)
    looked_at: int = 0
    known: int = 0
    copies: int = 0
    refused: list[tuple[str, Refused]] = field(default_factory=list)


@dataclass
class _Seen:
    """What is kept of each photo that may be chosen: some 1.5 kB. `extractors`: by spec, each made once."""

    extractors: dict[Any, Any] = field(default_factory=dict)
    photos: list[Unlabelled] = field(default_factory=list)
    sha256s: list[str] = field(default_factory=list)
    probabilities: list[np.ndarray] = field(default_factory=list)
    vectors: list[np.ndarray] = field(default_factory=list)


def wanted(workspace: Workspace, where: str, count: int, progress: Progress = silent) -> Wanted:
    """Rank the photos of a folder or of s3://bucket/prefix; the `count` most wanted of them.

    Memory grows by some 1.5 kB a photo. InputError where there is no champion or no photo.
    """
    version = workspace.at()
    key = version.state.champion
    if key is None:
        raise InputError(f"{workspace.root}: no champion yet that could be unsure; label any photos, `ssclass retrain`")
    champion = decided_classifier(workspace, key)
    made, seen = Wanted(), _Seen()
    limits = IngestParams(
        max_bytes=version.params.ingest.max_bytes, max_pixels=version.params.ingest.max_pixels, min_side=1
    )
    source = photos_at(where, workspace.settings, limits.max_bytes)
    present, found = set(version.dataset.by_sha256), set[str]()
    with ThreadPoolExecutor(TOGETHER) as pool:
        while part := list(islice(source, TOGETHER)):
            read = pool.map(lambda photo: _read(photo, limits), part)
            new: list[tuple[Unlabelled, str, bytes, bytes]] = []
            for photo, answer in zip(part, read, strict=True):
                made.looked_at += 1
                if isinstance(answer, Refused):
                    made.refused.append((photo.name, answer))
                    continue
                sha256, data, palette = answer
                made.known += sha256 in present
                made.copies += sha256 in found
                if sha256 not in present | found:
                    new.append((photo, sha256, data, palette))
                found.add(sha256)
            if new:
                _ask(champion, new, seen)
            progress("photos looked at", made.looked_at, made.looked_at + len(part))
    if seen.photos:
        made.photos = _chosen(version, workspace, champion, seen, count, progress)
    return made


def _read(photo: Unlabelled, limits: IngestParams) -> tuple[str, bytes, bytes] | Refused:
    """The sha256, bytes and palette of a photo that opens, or why it does not."""
    try:
        data = photo.read()
        picture = decoders().inspect(data, limits)
        return picture.sha256, data, picture.palette
    except Refused as refused:
        return refused


def _ask(champion: Classifier | Adopted, new: list[tuple[Unlabelled, str, bytes, bytes]], seen: _Seen) -> None:
    """Note what the champion says of photos, and where they lie among others."""
    from ssclass.model import extraction
    from ssclass.model.features import Features

    known: dict[Any, Features] = {}

    def features_of(spec: Spec) -> Features:
        if spec not in seen.extractors:
            seen.extractors[spec] = extraction.make_extractor(spec.network)
        photos = ((sha256, data) for _, sha256, data, _ in new)
        known[spec] = Features(*extraction.extract(spec, photos, seen.extractors[spec], lambda done: None))
        return known[spec]

    seen.probabilities.append(champion.predict(features_of))
    seen.vectors.append(_vectors(list(known.values()), [palette for *_, palette in new]))
    seen.photos += [photo for photo, *_ in new]
    seen.sha256s += [sha256 for _, sha256, *_ in new]


def _vectors(features: list[Features], palettes: list[bytes]) -> np.ndarray:
    """The embedding of photos: the means of the champion's features, or, where it has none, their colours."""
    means = [
        array.reshape(len(array), -1)
        for each in features
        for name, array in sorted(each.arrays.items())
        if name.endswith(".out.mean")
    ]
    if means:
        return embedded(np.concatenate(means, axis=1))
    colours = np.zeros((len(palettes), 512), np.float32)
    for row, palette in enumerate(palettes):
        colours[row, : len(palette)] = np.frombuffer(palette, np.uint8)
    return embedded(colours)


def _chosen(
    version: Version, workspace: Workspace, champion: Classifier | Adopted, seen: _Seen, count: int, progress: Progress
) -> list[Choice]:
    probabilities, vectors = np.concatenate(seen.probabilities), np.concatenate(seen.vectors)
    known = np.concatenate(
        [np.zeros((0, vectors.shape[1]), np.float32), *_known(version, workspace, champion, progress)]
    )
    unsure, new = doubt(probabilities), novelty(vectors, known)
    return [
        Choice(
            seen.photos[row],
            seen.sha256s[row],
            champion.classes[int(probabilities[row].argmax())],
            float(probabilities[row].max()),
            float(unsure[row]),
            float(new[row]),
        )
        for row in ranked(unsure, vectors, known, count)
    ]


def _known(
    version: Version, workspace: Workspace, champion: Classifier | Adopted, progress: Progress
) -> Iterator[np.ndarray]:
    """Where the photos of the data set lie, a shard at a time: the features of all at once may not fit."""
    from ssclass.model.features import shard_features

    memo = memo_of(workspace)
    specs = getattr(champion, "specs", ())  # an adopted model has none
    for done, shard in enumerate(version.dataset.shards, 1):
        if shard.rows:

            def photos(batch: str = shard.batch_id) -> Iterator[tuple[str, bytes]]:
                return version.photos(batch)

            features = [shard_features(spec, memo, shard, photos) for spec in specs]
            yield _vectors(features, [row.palette for row in shard.rows])
        progress("batches of the data set", done, len(version.dataset.shards))


def write(made: Wanted, folder: Path) -> None:
    """Write the photos into a new folder, the most wanted first, with a list that waits for their labels.

    ``labels.csv`` has path, an empty label, and what the champion says; filled in, `ssclass submit` takes it.
    """
    if folder.exists():
        raise InputError(f"{folder}: is there already; name a new folder with --to")
    with whole(folder) as new:
        new.mkdir()
        rows = []
        for number, choice in enumerate(made.photos, 1):
            try:
                data = choice.photo.read()
            except Refused:  # gone since
                continue
            if hashlib.sha256(data).hexdigest() != choice.sha256:
                continue
            name = f"{number:04}-{choice.sha256[:12]}{_end(choice.photo.name, data)}"
            (new / name).write_bytes(data)
            about = _cell(choice.label), f"{choice.probability:.3f}", _cell(choice.photo.name)
            rows.append((name, "", *about))
        with (new / LIST).open("w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows([("path", "label", "champion", "probability", "source"), *rows])


def _cell(text: str) -> str:
    """A name of others for a table that a person opens in a spreadsheet, which would compute what begins like this."""
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t", "\r")) else text


def _end(name: str, data: bytes) -> str:
    """How a photo's file name ends, so that a person's programs open it."""
    end = Path(name).suffix.lower()
    if 1 < len(end) <= 5 and end[1:].isalnum():
        return end
    return next((found for begin, found in _ENDS.items() if data.startswith(begin)), "")
