"""One table of figures, each beside what one would use instead: `python -m benchmarks table [DIR [FILE.svg]]`.

Each figure is measured REPEATS times, ssclass and its peers in turn, so that a busy machine slows all of them. Printed:
medians, the spread (slowest by fastest), the best peer, what this machine can do at most where that is known, and the
ratios; 1.00 x is as fast as that. DIR holds photos in class folders; without it, drawings take their place. A line with
the machine is appended to benchmarks/history.jsonl; FILE.svg draws the ratios. The `aws` of the PATH is measured where
there is one. A quarter of an hour on two cores; run nothing else meanwhile.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from itertools import count as count_from
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.retrain import script
from benchmarks.twenty import deliver
from ssclass.code import code_commit
from ssclass.data.batches import find_batches, read_batch
from ssclass.data.build import build_shard
from ssclass.data.dataset import Dataset
from ssclass.data.shards import Receipt, Row, read_memo, read_shard, write_memo, write_shard
from ssclass.data.split import assign
from ssclass.data.submit import submit
from ssclass.demo.drawings import draw
from ssclass.environment import leave_user_settings, quiet_libraries
from ssclass.params import FeatureParams, load_params
from ssclass.workspace import dvc
from ssclass.workspace.create import create
from ssclass.workspace.workspace import Workspace
from tests.support.moto import s3_server

REPEATS = 5
EPOCHS = 10
"""Of the script that people write; its seconds an epoch are measured, and taken so many times."""
HISTORY = Path(__file__).parent / "history.jsonl"
GFLOP = 2.33  # of MobileNet at 320 x 320, a photo
SIZE, TOGETHER, PHOTOS = 320, 4, 16
SHARDS, ROWS = 1000, 20
CLASSES = ("sandwich", "sushi")


@dataclass
class Figure:
    """A figure and its values, by who gave them; `more`: more of it is better. `limit`: what the machine can do."""

    name: str
    unit: str
    more: bool
    values: dict[str, list[float]] = field(default_factory=dict)
    limit: float | None = None

    def measure(self, ways: dict[str, Callable[[], float]], repeats: int = REPEATS) -> Figure:
        """Ask each way for its value, in turn; the first way is ours."""
        for _ in range(repeats):
            for name, way in ways.items():
                self.values.setdefault(name, []).append(way())
        return self

    @property
    def ours(self) -> float:
        """Our median."""
        return statistics.median(next(iter(self.values.values())))

    @property
    def best(self) -> tuple[str, float] | None:
        """The best peer and its median; None where there is no other way."""
        _, *others = ((name, statistics.median(values)) for name, values in self.values.items())
        return (max if self.more else min)(others, key=lambda each: each[1], default=None)

    def ratio(self, other: float) -> float:
        """How many times as fast we are as what has this figure."""
        return self.ours / other if self.more else other / self.ours

    def cells(self) -> list[str]:
        """The row of the table."""
        values, best = next(iter(self.values.values())), self.best
        return [
            self.name,
            f"{_shown(self.ours)} {self.unit}",
            f"{max(values) / min(values):.2f}",
            f"{_shown(best[1])} ({best[0]})" if best else "",
            f"{self.ratio(best[1]):.2f} x" if best else "",
            "" if self.limit is None else _shown(self.limit),
            "" if self.limit is None else f"{self.ratio(self.limit):.2f} x",
        ]


def _shown(value: float) -> str:
    return f"{value:.3g}" if value < 100 else f"{value:.0f}"


def seconds(work: Callable[[], Any]) -> float:
    """How long it takes."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


# -- the figures -------------------------------------------------------------------------------------------


def gemm() -> float:
    """GFLOP/s of float32 matrix products of 2,048 rows and columns, the best of five."""
    a = np.random.default_rng(0).random((2048, 2048), np.float32)
    return max(2 * 2048**3 / 1e9 / seconds(lambda: a @ a) for _ in range(5))


def backbone(limit: float) -> Figure:
    """MobileNet's features, decoded photos in: by what `auto` chooses, and by each runtime that is installed."""
    import tensorflow as tf

    from ssclass.model.backbones import import_keras
    from ssclass.model.extraction import compiled, feature_arrays, make_extractor
    from ssclass.model.runtimes import PACKAGES, chosen, described
    from ssclass.model.spec import feature_spec

    keras, spec = import_keras(), feature_spec(FeatureParams(sizes=(SIZE,)))
    pixels = keras.Input((None, None, 3), dtype="uint8")
    model = keras.Model(pixels, feature_arrays(spec, pixels))
    images = np.random.default_rng(0).integers(0, 256, (PHOTOS, SIZE, SIZE, 3), dtype=np.uint8)

    def rate(run: Callable[[np.ndarray], Any], together: int = TOGETHER) -> Callable[[], float]:
        run(images[:together])  # traced before it is timed

        def value() -> float:
            return PHOTOS / seconds(lambda: [run(images[at : at + together]) for at in range(0, PHOTOS, together)])

        return value

    there = [name for name in PACKAGES if described(name)]
    ways = {
        "ssclass": rate(make_extractor(spec), PHOTOS),
        **{name: rate(make_extractor(spec, name), PHOTOS) for name in there if name != chosen("auto")},
        "TensorFlow, constants folded": rate(make_extractor(spec, "tensorflow")),
        "tf.function": rate(compiled(model, SIZE)),
        "Keras predict": rate(lambda some: model.predict(some, verbose=0), PHOTOS),
        "Keras called": rate(lambda some: model(tf.constant(some), training=False)),
    }
    return Figure(f"backbone at {SIZE} px, no decode", "photos/s", True, limit=limit / GFLOP).measure(ways)


def rows_of(count: int, seed: int) -> list[Row]:
    """Rows of photos that are not alike, with palettes as photos have them."""
    chance = np.random.default_rng(seed)
    shares = chance.dirichlet(np.full(512, 0.05), min(count, 2000))
    palettes = [root.astype(np.uint8).tobytes() for root in np.rint(np.sqrt(shares) * 255)]
    hashes = chance.integers(0, 2**63, count)
    return [
        Row(f"{seed:08x}{at:056x}", CLASSES[at % 2], "train", f"{seed:08x}{at:056x}", f"{int(bits):016x}",
            palettes[(at * 7919) % len(palettes)], f"{CLASSES[at % 2]}/{at}.jpg", 640, 480)
        for at, bits in enumerate(hashes)
    ]  # fmt: skip


def near_duplicates(new: int, there: int) -> Figure:
    """New photos, placed beside those that are there."""
    rows, known = rows_of(new, 1), rows_of(there, 2)
    palettes = np.array([np.frombuffer(row.palette, np.uint8) for row in (*known, *rows)], np.float32)
    palettes /= np.linalg.norm(palettes, axis=1, keepdims=True)
    hashes = np.array([int(row.dhash, 16) for row in (*known, *rows)], np.uint64)

    sample = range(0, new, max(1, new // 100))  # the rest is extrapolated

    def one_by_one() -> float:
        def near() -> None:
            for at in sample:
                np.flatnonzero((np.bitwise_count(hashes ^ hashes[at]) <= 6) | (palettes @ palettes[at] >= 0.935))

        return seconds(near) * new / len(sample)

    ways = {"ssclass": lambda: seconds(lambda: assign(rows, [None] * new, known, 0.2, 6)), "NumPy by rows": one_by_one}
    name = f"near-duplicates: {new:,} new photos" + (f" beside {there:,}" if there else "")
    return Figure(name, "s", False).measure(ways, 3)


def folds(photos: int = 600) -> Iterator[Figure]:
    """Cross-validation of the heads, on made maps of the size of a network's."""
    from ssclass.model.features import Features
    from ssclass.model.folds import grouped_folds
    from ssclass.model.heads.registry import HEADS
    from ssclass.params import TrainParams

    chance, labels = np.random.default_rng(0), np.arange(photos) % 2
    means = (chance.random((2, 1024)) * 2)[labels][:, None, None, None]
    maps = np.maximum(0, chance.normal(-1.6, 1, (photos, 1, 10, 10, 1024)) + means).astype(np.float16)
    pooled = maps.mean((2, 3), dtype=np.float64).astype(np.float32)
    features = Features(tuple(map(str, range(photos))), {"320.out.map": maps, "320.out.mean": pooled})
    parts = grouped_folds(labels, features.sha256s, CLASSES, 5, 0)

    def ours(name: str) -> Callable[[], float]:
        head = HEADS[name](SIZE, 2, TrainParams())
        return lambda: seconds(lambda: head.cross_validate(features, labels, parts, lambda: None))

    def sklearn() -> float:
        from sklearn.linear_model import LogisticRegressionCV
        from sklearn.model_selection import cross_val_score

        warnings.simplefilter("ignore", FutureWarning)
        # ours tries nine penalties too, on the same five folds
        return seconds(
            lambda: cross_val_score(LogisticRegressionCV(Cs=9, cv=3, max_iter=200), pooled[:, 0], labels, cv=parts)
        )

    yield Figure(f"head bilinear, 5 folds of {photos} photos", "s", False).measure({"ssclass": ours("bilinear")}, 3)
    yield Figure(f"head rbf, 5 folds of {photos} photos", "s", False).measure({"ssclass": ours("rbf")}, 3)
    yield Figure(f"head linear, 5 folds of {photos} photos", "s", False).measure(
        {"ssclass": ours("linear"), "scikit-learn": sklearn}, 3
    )


def shards() -> Figure:
    """What a process reads of a data set of many shards, all but the photos."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        for number in range(SHARDS):
            receipt = Receipt(f"b{number}", "manifest.json", "etag", number + 1, ROWS, 0)
            shard = write_shard(folder / f"{number}.parquet", ((row, b"") for row in rows_of(ROWS, number)), receipt)
            write_memo(shard, folder / f"{number}.json")
        ways = {
            "ssclass": lambda: seconds(lambda: Dataset.of(map(read_memo, sorted(folder.glob("*.json")))).digest),
            "Parquet": lambda: seconds(lambda: Dataset.of(map(read_shard, sorted(folder.glob("*.parquet")))).digest),
        }
        return Figure(f"data set of {SHARDS:,} shards, read", "s", False).measure(ways, 3)


def ingest(workspace: Workspace, count: int) -> Figure:
    """A batch from S3 to a shard, every check done, beside the download alone."""
    store, params = workspace.store, load_params(workspace.root / "params.yaml")
    (ref,) = find_batches(store, ["bench"])
    batch = read_batch(store, ref, params.dataset.classes)
    keys = [ref.prefix + entry.key for entry in batch.entries]

    def whole() -> float:
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch) / "photos"
            folder.mkdir()
            out = Path(scratch) / "bench.parquet"
            return len(keys) / seconds(lambda: build_shard(store, batch, params, Dataset(), folder, out))

    def bare(threads: int) -> Callable[[], float]:
        def value() -> float:
            with ThreadPoolExecutor(threads) as pool:
                return len(keys) / seconds(lambda: list(pool.map(store.get, keys)))

        return value

    def aws(binary: str) -> Callable[[], float]:
        def value() -> float:
            with tempfile.TemporaryDirectory() as scratch:
                place = f"s3://{store.place}/{ref.prefix}"
                command = [binary, "s3", "cp", "--recursive", "--quiet", place, scratch, "--endpoint-url"]
                command.append(str(store.settings.s3_endpoint))
                return len(keys) / seconds(lambda: subprocess.run(command, check=True))

        return value

    ways = {"ssclass": whole, "boto3, one by one": bare(1), "boto3, 32 at once": bare(32)}
    if binary := shutil.which("aws"):
        ways["aws s3 cp"] = aws(binary)
    return Figure(f"ingest of {count} photos, all checks", "photos/s", True).measure(ways, 3)


def versioning(workspace: Workspace) -> Figure:
    """One more shard of a megabyte beside a hundred: into data.dvc, and to S3."""
    numbers, data = count_from(1), workspace.root / "data"

    def shard(folder: Path) -> Path:
        path = folder / f"bench-{next(numbers)}.parquet"
        path.write_bytes(np.random.default_rng(next(numbers)).bytes(1 << 20))
        return path

    def ours() -> float:
        path = shard(workspace.root.parent)
        return seconds(lambda: dvc.add_shards(workspace.settings, workspace.objects, [path]))

    def commands() -> None:
        for arguments in (["add", "--quiet", "data"], ["push", "--quiet", "data.dvc"]):
            subprocess.run([sys.executable, "-m", "dvc", *arguments], cwd=workspace.root, check=True)

    def theirs() -> float:
        shard(data)
        return seconds(commands)

    for _ in range(100):
        shard(data)
    commands()
    ours()  # imports DVC
    return Figure("a shard of 1 MB more beside 100, pushed", "s", False).measure({"ssclass": ours, "dvc": theirs}, 3)


def twenty(photos: Path) -> Iterator[Figure]:
    """20 new photos, beside ten epochs of the script that people write: the whole retrain, and its training alone.

    The retrain is a process of its own; the script's imports are not counted. The training is cross-validation, fit,
    and both models' answers on the held-out photos; features of the new ones were made for the champion's test of them.
    """
    found = list(deliver(photos, 3, "bilinear"))[2:]
    fits = {f"Keras fit, ten epochs, {size} px": [EPOCHS * script(photos, size)] for size in (SIZE, 224)}
    for name, values in (
        ("a retrain with 20 new photos", [each["clock"] for each in found]),
        ("of that the training", [each["by_the_clock"]["train"] for each in found]),
    ):
        yield Figure(name, "s", False, {"ssclass": values, **fits})


def waits(workspace: Workspace) -> Iterator[Figure]:
    """What a person waits for, from the shell and back."""
    flow = (
        "import sys; from pathlib import Path; from ssclass.cli.common import settings_at; "
        "settings_at(Path(sys.argv[1])); from flows.retrain import retrain; retrain(sys.argv[1])"
    )

    def command(*arguments: str) -> Callable[[], float]:
        return lambda: seconds(lambda: subprocess.run([sys.executable, *arguments], check=True, capture_output=True))

    bare = command("-c", "import click")
    yield Figure("ssclass --help", "s", False).measure({"ssclass": command("-m", "ssclass", "--help"), "Click": bare})
    retrain = command("-m", "ssclass", "retrain", "--workspace", str(workspace.root))
    ways = {"ssclass": retrain, "the same flow by Prefect": command("-c", flow, str(workspace.root))}
    yield Figure("ssclass retrain, nothing new", "s", False).measure(ways, 3)
    keras = (
        "import sys, numpy as np, keras; from PIL import Image; model = keras.models.load_model(sys.argv[1]); "
        f"photo = Image.open(sys.argv[2]).convert('RGB').resize(({SIZE}, {SIZE})); "
        "print(model(np.asarray(photo)[None], training=False))"
    )
    photo, model = next((workspace.root.parent / "drawn").rglob("*.jpg")), next(workspace.private.rglob("model.keras"))
    predict = command("-m", "ssclass", "predict", str(photo), "--workspace", str(workspace.root))
    ways = {"ssclass": predict, "Keras, the same model": command("-c", keras, str(model), str(photo))}
    yield Figure("ssclass predict, one photo", "s", False).measure(ways, 3)


# -- the table -----------------------------------------------------------------------------------------------


@contextmanager
def pipeline(photos: Path | None) -> Iterator[tuple[Workspace, int]]:
    """A workspace with a champion, and a batch `bench` that nobody took in; how many photos that has."""
    with tempfile.TemporaryDirectory() as scratch, s3_server() as endpoint:
        leave_user_settings()
        workspace = create(Path(scratch) / "shop", {"bucket": "ssclass", "s3_endpoint": endpoint})
        quiet_libraries(workspace.settings)
        workspace.store.make_bucket()
        params = workspace.root / "params.yaml"
        params.write_text(params.read_text().replace("head: auto", "head: linear"))
        workspace.git("commit", "-qam", "A quick head")
        workspace.git("push", "-q", "origin", "main")
        draw(Path(scratch) / "drawn", CLASSES, 12)
        submit(workspace.store, Path(scratch) / "drawn", "first", CLASSES)
        command = [sys.executable, "-m", "ssclass", "retrain", "--workspace", str(workspace.root)]
        subprocess.run(command, check=True, capture_output=True)
        if photos is None:
            photos = Path(scratch) / "more"
            draw(photos, CLASSES, 100)
        submit(workspace.store, photos, "bench", CLASSES)
        yield workspace, sum(1 for path in photos.glob("*/*") if path.is_file())


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    cpu = next((line.partition(":")[2].strip() for line in Path("/proc/cpuinfo").read_text().splitlines()
                if line.startswith("model name")), platform.processor())  # fmt: skip
    packages = {}
    for name in ("tensorflow", "keras", "numpy", "scipy", "boto3", "prefect", "mlflow", "dvc", "openvino"):
        try:
            packages[name] = version(name)
        except PackageNotFoundError:
            continue
    return {
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": code_commit(),
        "cpu": cpu,
        "cores": len(os.sched_getaffinity(0)),
        "load": round(os.getloadavg()[0], 1),
        "python": platform.python_version(),
        "packages": packages,
    }


def figures(photos: Path | None) -> Iterator[Figure]:
    """All figures, one after the other."""
    limit = gemm()
    print(f"GEMM, float32: {limit:.0f} GFLOP/s", flush=True)
    with pipeline(photos) as (workspace, count):
        waiting = workspace.store.list("incoming/bench/")
        yield ingest(workspace, count)
        for found in [each.key for each in waiting]:
            workspace.store.delete(found)
        yield from waits(workspace)
        yield versioning(workspace)
    with tempfile.TemporaryDirectory() as scratch:
        if photos is None:
            draw(Path(scratch), CLASSES, 100)
        yield from twenty(photos or Path(scratch))
    yield near_duplicates(10_000, 0)
    yield near_duplicates(100, 100_000)
    yield shards()
    yield backbone(limit)
    yield from folds()


def plot(found: Sequence[Figure], path: Path) -> None:
    """Draw how many times as fast as the best peer we are, figure by figure."""
    import matplotlib

    matplotlib.rcParams["svg.fonttype"] = "none"
    from matplotlib.figure import Figure as Drawing

    ratios = {figure.name: figure.ratio(figure.best[1]) for figure in reversed(found) if figure.best}
    drawing = Drawing(figsize=(8, 0.8 + 0.36 * len(ratios)), layout="constrained")
    axes = drawing.subplots()
    colours = ["#1f6fb4" if ratio >= 1 else "#a35200" for ratio in ratios.values()]
    axes.barh(range(len(ratios)), [ratio - 1 for ratio in ratios.values()], left=1, color=colours)
    for place, ratio in enumerate(ratios.values()):
        words = f"{ratio:.2f}" if ratio < 10 else f"{ratio:.0f}"
        axes.text(max(ratio, 1) * 1.07, place, f"{words} x", va="center", fontsize=9)
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_yticks(range(len(ratios)), list(ratios), fontsize=9)
    span = min(0.3, *ratios.values()), max(ratios.values()) * 3
    axes.set(xscale="log", xlim=span, xlabel="times as fast as the best other way")
    axes.xaxis.set_major_formatter("{x:g}")
    drawing.savefig(path, metadata={"Date": None})


def main(photos: Path | None = None, drawn: Path | None = None) -> None:
    """Measure, print each row when it is there and the table at the end, and note it."""
    from ssclass.cli.common import print_table

    about, found = machine(), []
    print(json.dumps(about), flush=True)
    for figure in figures(photos):
        found.append(figure)
        print("  ".join(figure.cells()), flush=True)
    print_table(
        ("figure", "ssclass", "spread", "best peer", "ratio", "limit", "ratio"), [each.cells() for each in found]
    )
    if drawn is not None:
        plot(found, drawn)
    with HISTORY.open("a", encoding="utf-8") as file:
        file.write(json.dumps(about | {"figures": [vars(each) for each in found]}) + "\n")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:3]))
