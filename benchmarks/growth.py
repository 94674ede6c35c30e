"""How time and memory grow with the data set: `python -m benchmarks growth`; made features, a process for each case.

Printed: a line a case with the seconds that it took, those of processors (the figure to trust where other programs run
beside it), and the memory that its process had at most, less what the process
had before it began. docs/scale.md draws on it.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from benchmarks.table import CLASSES, rows_of
from ssclass.data.dataset import Dataset
from ssclass.data.shards import Receipt, Shard, read_memo, write_memo
from ssclass.data.split import assign
from ssclass.model.backbones import import_keras
from ssclass.model.features import Features
from ssclass.model.folds import grouped_folds
from ssclass.model.heads.registry import HEADS
from ssclass.params import TrainParams

BATCH, SIZE = 100, 320
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


def _features(rows: int, *, maps: bool) -> tuple[Features, np.ndarray]:
    chance, labels = np.random.default_rng(0), np.arange(rows) % 2
    means = (chance.random((2, 1024)) * 2).astype(np.float32)
    name, shape = ("320.out.map", (1, 10, 10, 1024)) if maps else ("320.out.mean", (1, 1024))
    made = np.empty((rows, *shape), np.float16 if maps else np.float32)
    for at in range(0, rows, 100):
        noise = chance.standard_normal((len(made[at : at + 100]), *shape), np.float32) - 1.6
        made[at : at + 100] = np.maximum(
            0, noise + means[labels[at : at + 100]].reshape(-1, *[1] * (len(shape) - 1), 1024)
        )
    return Features(tuple(map(str, range(rows))), {name: made}), labels


def race(name: str) -> Case:
    """Cross-validate a head, and fit it to everything: what a retrain does with the last winner."""

    def prepare(rows: int) -> Callable[[], object]:
        import_keras()  # its seconds are not the data's
        features, labels = _features(rows, maps=HEADS[name].maps)
        head = HEADS[name](SIZE, 2, TrainParams())
        folds = grouped_folds(labels, features.sha256s, CLASSES, 5, 0)
        return lambda: head.fit(features, labels, head.cross_validate(features, labels, folds, lambda: None))

    return prepare


CASES: dict[str, tuple[Case, tuple[int, ...]]] = {
    "data set read": (read, (1_000, 10_000, 100_000)),
    f"near-duplicates of {BATCH} new photos": (near, (1_000, 10_000, 100_000)),
    "head rbf, folds and fit": (race("rbf"), (1_000, 10_000)),
    "head bilinear, folds and fit": (race("bilinear"), (1_000, 4_000)),
}


def main() -> None:
    """Measure every case at every size."""
    for name, (_, sizes) in CASES.items():
        for rows in sizes:
            command = [sys.executable, "-m", "benchmarks.growth", name, str(rows)]
            done = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            took = f"{done['seconds']:8.2f} s  {done['processor']:8.2f} s of a core"
            print(f"{name:40} {rows:8,} rows  {took}  {done['megabytes']:7.0f} MB more", flush=True)


def one(name: str, rows: int) -> None:
    """Measure one case at one size, in this process; JSON."""
    work = CASES[name][0](rows)
    before, began, used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter(), time.process_time()
    work()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = {"seconds": time.perf_counter() - began, "processor": time.process_time() - used}
    print(json.dumps(found | {"megabytes": (peak - before) / 1024}))


if __name__ == "__main__":
    main() if len(sys.argv) < 3 else one(sys.argv[1], int(sys.argv[2]))
