"""What a model answers on the photos of a data set: their features, through the memo, and its probabilities on them."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Collection, Iterator, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ssclass.data.shards import Row, Shard, iter_photos
from ssclass.files import file_md5, whole
from ssclass.retrain.result import Answers
from ssclass.spread import elsewhere, spread
from ssclass.store import Store
from ssclass.workspace.dvc import CANDIDATE, DATA
from ssclass.workspace.objects import Objects, Tracked
from ssclass.workspace.version import Version
from ssclass.workspace.workspace import Workspace

if TYPE_CHECKING:
    from ssclass.model.adopted import Adopted
    from ssclass.model.classifier import Classifier
    from ssclass.model.features import FeatureMemo, Features
    from ssclass.model.spec import Spec

Progress = Callable[[str, int, int], None]
"""Called with (what is being done, done, in all)."""


def silent(what: str, done: int, total: int) -> None:
    """Report to nobody."""


def memo_of(workspace: Workspace) -> FeatureMemo:
    """The features that were computed before: a folder of the workspace, and the bucket behind it."""
    from ssclass.model.features import FeatureMemo

    return FeatureMemo(workspace.private, workspace.store)


def features_of(
    version: Version,
    memo: FeatureMemo,
    spec: Spec,
    *asked: Sequence[str],
    progress: Progress = silent,
    names: Collection[str] | None = None,
) -> list[Features]:
    """Features of photos of the data set, in the order in which each list of sha256s asks for them; one pass for all.

    They are computed only for shards never seen under this fingerprint, and shards without a photo that is asked for
    are not opened. A spec of augmented photos computes features of training photos only. `names`: the arrays that are
    wanted, if not all. KeyError names a photo that is in no shard.
    """
    from ssclass.model.extraction import make_extractor
    from ssclass.model.features import shard_features
    from ssclass.model.gathered import Gathered
    from ssclass.model.packed import read_packed

    network = partial(make_extractor, engine=version.params.features.engine)
    gathered = [Gathered(sha256s, memo.local) for sha256s in asked]
    wanted = [
        shard for shard in version.dataset.shards if any(each.wants(spec.photos(shard.rows)) for each in gathered)
    ]
    if memo.store is not None and elsewhere(memo.store.settings):
        remember_elsewhere(version, memo, memo.store, spec, wanted, progress)

    def one(shard: Shard) -> Features:
        def photos() -> Iterator[tuple[str, bytes]]:
            return version.photos(shard.batch_id)

        def report(done: int, total: int) -> None:
            progress(f"features of {shard.batch_id}{spec.name}", done, total)

        return shard_features(spec, memo, shard, photos, extractor=network, progress=report, names=names)

    for found in read_packed(memo, spec, version.dataset, wanted, names, one):
        for each in gathered:
            each.add(found, names)
    return [each.features() for each in gathered]


def remember_elsewhere(
    version: Version, memo: FeatureMemo, store: Store, spec: Spec, shards: Sequence[Shard], progress: Progress = silent
) -> None:
    """Have the features that are not remembered computed on the cluster of the settings; who does so puts them into S3.

    Answers of an adopted model, which would have to travel, are left. What is not in S3 afterwards is computed here.
    """
    from ssclass.model.spec import ModelSpec

    if isinstance(spec.network, ModelSpec):
        return
    files = {Path(each.name).stem: each.md5 for each in version.files(DATA)}
    missing = [
        (shard, files[shard.batch_id])
        for shard in shards
        if spec.photos(shard.rows) and not memo.knows(spec, shard.photos_digest)
    ]
    total, done = sum(len(spec.photos(shard.rows)) for shard, _ in missing), 0
    make = partial(_remembering, store, spec, version.params.features.engine)
    for photos in spread(store.settings, make, missing):
        done += photos
        progress(f"features of {len(missing)} batches{spec.name}", done, total)


def _remembering(store: Store, spec: Spec, engine: str) -> Callable[[tuple[Shard, str]], int]:
    """A function of a shard and the md5 of its file: puts its features into S3, and says of how many photos."""
    from ssclass.model.extraction import make_extractor
    from ssclass.model.features import FeatureMemo, shard_features

    network, objects = partial(make_extractor, engine=engine), Objects(store.settings.workspace, store)

    def remember(asked: tuple[Shard, str]) -> int:
        shard, md5 = asked

        def photos() -> Iterator[tuple[str, bytes]]:
            with objects.open(md5) as source:
                yield from iter_photos(source)

        with TemporaryDirectory(prefix="features-") as folder:
            memo = FeatureMemo(Path(folder), store)
            return len(shard_features(spec, memo, shard, photos, extractor=network))

    return remember


def probabilities(
    version: Version,
    memo: FeatureMemo,
    model: Classifier | Adopted,
    rows: Sequence[Row],
    progress: Progress = silent,
) -> NDArray[np.float64]:
    """A model's probabilities for rows of the data set, float64 [n, its classes], through the memo."""
    return HeldOut(version, memo, rows, progress).probabilities(model)


def answer(
    version: Version,
    memo: FeatureMemo,
    model: Classifier | Adopted,
    rows: Sequence[Row],
    progress: Progress = silent,
) -> Answers:
    """A model's answers on rows of the data set, in the classes of the version's params."""
    raw = probabilities(version, memo, model, rows, progress)
    return Answers.of(model, raw, rows, version.params.dataset.classes)


class HeldOut:
    """The features of the held-out photos while a training lasts: several models are asked about the same ones."""

    def __init__(self, version: Version, memo: FeatureMemo, rows: Sequence[Row], progress: Progress = silent) -> None:
        self.version = version
        self.rows = rows
        self.memo = memo
        self._progress = progress
        self._known: dict[Any, Features] = {}

    def beside(self, spec: Spec, sha256s: Sequence[str], names: tuple[str, ...] | None = None) -> Features:
        """Features of other photos; those of the held-out ones are kept, as they come by in the same pass.

        `names`: these arrays alone.
        """
        asked = [row.sha256 for row in self.rows]
        found, self._known[spec, names] = features_of(
            self.version, self.memo, spec, sha256s, asked, progress=self._progress, names=names
        )
        return found

    def without(self, spec: Spec, sha256s: Sequence[str], names: tuple[str, ...] | None = None) -> Features:
        """Features of other photos, and no more; `names`: these arrays alone."""
        (found,) = features_of(self.version, self.memo, spec, sha256s, progress=self._progress, names=names)
        return found

    def of(self, spec: Spec, names: tuple[str, ...] | None = None) -> Features:
        """Features of the held-out photos; `names`: these arrays alone."""
        if (spec, names) not in self._known:
            self.beside(spec, (), names)
        return self._known[spec, names]

    def answer(self, model: Classifier | Adopted) -> Answers:
        """A model's answers on the held-out photos, in the classes of the version's params."""
        return Answers.of(model, self.probabilities(model), self.rows, self.version.params.dataset.classes)

    def probabilities(self, model: Classifier | Adopted) -> NDArray[np.float64]:
        """A model's probabilities for the held-out photos, float64 [n, its classes].

        A member is asked by roots where it takes maps and those do.
        """
        from ssclass.model.classifier import Classifier
        from ssclass.model.pooled import asked_of

        if not isinstance(model, Classifier):
            return model.predict(self.of)
        seen = [shard.photos_digest for shard in self.version.dataset.shards]
        return model.answers(lambda member: self.of(*asked_of(member, seen)))


def decided_classifier(workspace: Workspace, key: str) -> Classifier | Adopted:
    """The classifier of a decision, as git and DVC have it at ``run/<key>``; NumPy computes its heads where it can.

    It is kept in a local folder, whose files are held against those that git names whenever it is opened.
    """
    from ssclass.model.adopted import open_classifier

    folder, decided = decided_folder(workspace, key), workspace.decided(key)
    if not _has(folder, decided.files(CANDIDATE)):
        shutil.rmtree(folder, ignore_errors=True)
        with whole(folder) as new:
            new.mkdir()
            decided.copy(CANDIDATE, new)
    return open_classifier(folder, quick=True)


def decided_folder(workspace: Workspace, key: str) -> Path:
    """Where the classifier of a decision is kept on this machine."""
    return workspace.private / "champions" / key


def _has(folder: Path, files: Sequence[Tracked]) -> bool:
    """Whether a folder has the bytes of all these files of ``candidate/``."""
    try:
        same = all(file_md5(folder / each.path.removeprefix(f"{CANDIDATE}/")) == each.md5 for each in files)
    except OSError:
        return False
    return bool(files) and same


def result_folder(workspace: Workspace, key: str) -> Path:
    """Where the result of a decision key lies on this machine: result.json, metrics.json and candidate/."""
    return workspace.private / "results" / key
