"""How time and memory grow with the data set: `python -m benchmarks growth [ROWS [FILE.svg]]`; else 100,000, undrawn.

Features are made up, and each case has a process of its own.

Printed: a line a case with the seconds that it took, those of processors (the figure to trust where other programs run
beside it), and the memory that its process had at most, less what it had before it began, and in all. docs/scale.md
draws on it.
"""

from __future__ import annotations

import json
import math
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from benchmarks.table import CLASSES, rows_of
from ssclass.data.dataset import Dataset
from ssclass.data.shards import Receipt, Shard, read_memo, write_memo
from ssclass.data.split import assign
from ssclass.model.backbones import import_keras
from ssclass.model.features import FeatureMemo, Features
from ssclass.model.folds import grouped_folds
from ssclass.model.heads.registry import HEADS
from ssclass.model.pooled import PooledSpec, fixed_axes, sample
from ssclass.model.training import plan
from ssclass.params import Params, TrainParams
from ssclass.retrain.predict import HeldOut
from ssclass.retrain.train import fit

BATCH, SIZE = 100, 320
HEAD = {"head": "bilinear"}
GOAL_SECONDS, GOAL_MEGABYTES = 60, 2000
Case = Callable[[int], Callable[[], object]]


def read(rows: int) -> Callable[[], object]:
    """Read a data set of shards of BATCH rows, all but the photos, and its digest."""
    folder = Path(tempfile.mkdtemp())
    for number in range(rows // BATCH):
        receipt = Receipt(f"b{number}", "manifest.json", "etag", number + 1, BATCH, 0)
        write_memo(Shard(tuple(rows_of(BATCH, number)), receipt), folder / f"{number}.json")
    return lambda: Dataset.of(map(read_memo, folder.glob("*.json"))).digest


def near(rows: int) -> Callable[[], object]:
    """Place BATCH new photos beside so many."""
    known, new = rows_of(rows, 1), rows_of(BATCH, 2)
    return lambda: assign(new, [None] * BATCH, known, 0.2, 6)


def retrain(rows: int) -> Callable[[], object]:
    """What a retrain with one more batch does itself, `bilinear` being the last winner, a fifth of the photos held out.

    Features are in memory (the folder of the memo), those of the batch too: roots of all but the batch, and the maps
    that axes are found from. Cross-validation, fit, the candidate's answers and the
    champion's on the held-out photos.
    """
    import_keras()  # its seconds are not the data's
    folder = Path(tempfile.mkdtemp())
    params = Params.model_validate({"dataset": {"classes": CLASSES}, "features": {"sizes": [SIZE]}, "model": HEAD})
    shards = []
    for number in range(rows // BATCH):
        photos = [
            replace(row, split=("train", "holdout")[at % 5 == 4]) for at, row in enumerate(rows_of(BATCH, number))
        ]
        shards.append(Shard(tuple(photos), Receipt(f"b{number}", "manifest.json", "etag", number + 1, BATCH, 0)))
    version: Any = SimpleNamespace(dataset=Dataset.of(shards), params=params, photos=None)
    ((spec, _),) = plan(params)
    memo = FeatureMemo(folder, None)
    drawn, seen = sample(shards, {row.sha256 for row in version.dataset.train})
    for number, shard in enumerate(shards):
        if shard.photos_digest in seen or number == len(shards) - 1:
            _put(memo, spec, shard, f"{SIZE}.out.map", (1, 10, 10, 1024), number)
    maps = HeldOut(version, memo, ()).without(spec, drawn, (f"{SIZE}.out.map",))
    pooled = PooledSpec.of(spec, fixed_axes(maps, params.train.seed), seen)
    for number, shard in enumerate(shards[:-1]):
        if shard.photos_digest not in seen:
            _put(memo, pooled, shard, f"{SIZE}.out.root", (2080,), number)

    def work() -> object:
        held_out = HeldOut(version, memo, version.dataset.holdout)
        trained = fit(version, memo, params, version.dataset, held_out=held_out)
        held_out.answer(trained.classifier)
        return held_out.answer(trained.classifier)

    return work


def _put(memo: FeatureMemo, spec: Any, shard: Shard, name: str, shape: tuple[int, ...], seed: int) -> None:
    """Remember made features of a shard: of each class about a mean of its own, of maps most is 0 as in real ones."""
    means = np.random.default_rng(0).standard_normal((2, shape[-1]), np.float32)
    chance, maps = np.random.default_rng(seed + 1), len(shape) > 1
    made = chance.standard_normal((len(shard.rows), *shape), np.float32) * (1 if maps else 2)
    made += means[[CLASSES.index(row.label) for row in shard.rows]].reshape(-1, *[1] * (len(shape) - 1), shape[-1])
    made = np.maximum(made - 1.6, 0) if maps else made / np.linalg.norm(made, axis=1, keepdims=True)
    sha256s = tuple(row.sha256 for row in shard.rows)
    memo.put(spec, shard.photos_digest, Features(sha256s, {name: made.astype(np.float16)}))


def race(name: str) -> Case:
    """Cross-validate a head that needs means alone, and fit it to everything: what a retrain does with it."""

    def prepare(rows: int) -> Callable[[], object]:
        import_keras()
        chance, labels = np.random.default_rng(0), np.arange(rows) % 2
        made = chance.standard_normal((rows, 1, 1024), np.float32)
        made += (chance.random((2, 1, 1024), np.float32) * 2)[labels]
        features = Features(tuple(map(str, range(rows))), {f"{SIZE}.out.mean": np.maximum(0, made - 1.6)})
        head = HEADS[name](SIZE, 2, TrainParams())
        folds = grouped_folds(labels, features.sha256s, CLASSES, 5, 0)
        return lambda: head.fit(features, labels, head.cross_validate(features, labels, folds, lambda: None))

    return prepare


RETRAIN, READ, NEAR = f"retrain, {BATCH} more photos", "data set read", f"near-duplicates of {BATCH} new photos"
CASES: dict[str, tuple[Case, tuple[int, ...]]] = {
    READ: (read, (1_000, 10_000, 100_000)),
    NEAR: (near, (1_000, 10_000, 100_000)),
    "head rbf, folds and fit": (race("rbf"), (1_000, 10_000, 100_000)),
    RETRAIN: (retrain, (1_000, 4_000, 10_000, 100_000)),
}


def main(most: int, plot: Path | None) -> None:
    """Measure every case at every size up to `most` rows; draw what came of it."""
    measured: dict[str, list[dict[str, float]]] = {}
    for name, (_, sizes) in CASES.items():
        for rows in (*sizes, *range(1_000_000, most + 1, 1_000_000)):
            if rows <= most:
                command = [sys.executable, "-m", "benchmarks.growth", name, str(rows)]
                done = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
                measured.setdefault(name, []).append({"rows": rows} | done)
                took = f"{done['seconds']:8.2f} s  {done['processor']:8.2f} s of a core"
                memory = f"{done['megabytes']:7.0f} MB more, {done['peak']:7.0f} MB in all"
                print(f"{name:40} {rows:8,} rows  {took}  {memory}", flush=True)
    if plot is not None:
        draw(measured, plot)


def draw(measured: dict[str, list[dict[str, float]]], path: Path) -> None:
    """Two charts beside each other, seconds and megabytes by rows, both axes logarithmic; SVG whose text is text."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.fonttype"] = "none"
    from matplotlib import pyplot

    figure, (seconds, memory) = pyplot.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for (name, points), mark in zip(measured.items(), "os^Dv", strict=False):
        rows = [point["rows"] for point in points]
        seconds.loglog(rows, [point["processor"] for point in points], f"{mark}-", label=name)
        more = [point["megabytes"] if point["megabytes"] >= 1 else math.nan for point in points]
        memory.loglog(rows, more, f"{mark}-")  # what had more before it began says nothing
    for axes, title in ((seconds, "seconds of processors"), (memory, "MB, beside what a process has anyway")):
        axes.set(title=title, xlabel="rows of the data set")
        axes.grid(alpha=0.3)
    seconds.axhline(GOAL_SECONDS, color="grey", linestyle=":")
    memory.axhline(GOAL_MEGABYTES, color="grey", linestyle=":")
    seconds.legend(fontsize=8)
    figure.savefig(path, metadata={"Date": None})


def one(name: str, rows: int) -> None:
    """Measure one case at one size, in this process; JSON."""
    work = CASES[name][0](rows)
    before, began, used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter(), time.process_time()
    work()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = {"seconds": time.perf_counter() - began, "processor": time.process_time() - used}
    print(json.dumps(found | {"megabytes": (peak - before) / 1024, "peak": peak / 1024}))


if __name__ == "__main__":
    if len(sys.argv) > 2 and sys.argv[1] in CASES:
        one(sys.argv[1], int(sys.argv[2]))
    else:
        limit = int(sys.argv[1]) if len(sys.argv) > 1 else 100_000
        main(limit, Path(sys.argv[2]) if len(sys.argv) > 2 else None)
