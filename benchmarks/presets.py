"""What the presets give and cost, on class folders: `python -m benchmarks presets DIR [SEEDS [SPLITS]]`; else 4 and 5.

It prints markdown tables, in this order, and goes on from what it has in `$SSCLASS_HOME/benchmark`:

1. grouped cross-validation of one network and two, of squares and own shapes, and of the presets, SEEDS times with
   other folds: accuracy and log loss; the pooled out-of-fold answers (mean over the seeds) with their 95 % interval, by
   source, and against the default's by exact McNemar;
2. the ceiling: photos that either network of `best` has right, and those that both have wrong, by name;
3. 160 photos held back, SPLITS times: how many `default`, `best`, `light` and its int8 export have right; the first
   split once more by `ssclass evaluate` on exported models;
4. photos of a source that was left out of training, where the others have two classes;
5. the price: milliseconds a photo, one core and one photo at a time, the presets by turns; megabytes; seconds of a
   training with its cross-validation, features apart. Run it on a machine that does nothing else.

Sources are those of the column `original_dataset` of DIR/provenance.tsv, where there is one. `auto` of the default is
raced in (5) alone: elsewhere it is bilinear, which it took whenever it was raced (docs/models.md).
"""

from __future__ import annotations

import csv
import hashlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.accuracy import grouped, held_back, seeded
from ssclass.data.images import decode, inspect
from ssclass.data.shapes import about_size
from ssclass.model.classifier import Classifier
from ssclass.model.classifier import Member as Trained
from ssclass.model.engine import open_engine
from ssclass.model.extraction import extract, make_extractor
from ssclass.model.features import FeatureMemo, Features
from ssclass.model.heads.base import CrossValidation
from ssclass.model.heads.registry import HEADS
from ssclass.model.spec import FeatureSpec
from ssclass.model.training import plan, train, train_planned
from ssclass.params import Params, load_params
from ssclass.retrain.statistics import clopper_pearson, mcnemar_exact
from ssclass.settings import home
from ssclass.study.rows import changed
from ssclass.workspace.create import template_file

Member = tuple[str, int, str]  # backbone, size, shape
MOBILENET, LITE2 = "mobilenet", "efficientnet_lite2"
ROWS: dict[str, tuple[Member, ...]] = {
    "default": ((MOBILENET, 320, "square"),),
    "light": ((MOBILENET, 288, "square"),),
    "best": ((MOBILENET, 320, "square"), (LITE2, 320, "square")),
    "own shape": ((MOBILENET, 320, "own"),),
    "best, own shape": ((MOBILENET, 320, "own"), (LITE2, 320, "own")),
    "Lite0": (("efficientnet_lite0", 320, "square"),),
    "Lite1": (("efficientnet_lite1", 320, "square"),),
    "Lite2": ((LITE2, 320, "square"),),
    "Lite2, own shape": ((LITE2, 320, "own"),),
    "MobileNet 256": ((MOBILENET, 256, "square"),),
    "MobileNet 224": ((MOBILENET, 224, "square"),),
}
PRESETS = ("light", "default", "best")
TIMED = 24  # photos, of which each preset answers one after the other, by turns


@dataclass(frozen=True)
class Photos:
    """Labelled photos: (sha256, bytes) each, labels int [n], near-duplicate groups, sources, names of the files."""

    listed: list[tuple[str, bytes]]
    labels: NDArray[np.int64]
    groups: list[str]
    sources: NDArray[np.str_]
    names: list[str]
    params: Params

    @classmethod
    def of(cls, folder: Path) -> Photos:
        """The photos of class folders."""
        shipped = load_params(template_file("params.yaml"))
        classes = sorted(path.name for path in folder.iterdir() if path.is_dir())
        params = Params.model_validate(shipped.model_dump() | {"dataset": {"classes": classes}})
        paths = [(label, path) for label, name in enumerate(classes) for path in sorted((folder / name).iterdir())]
        table = folder / "provenance.tsv"
        rows = list(csv.DictReader(table.open(), delimiter="\t")) if table.exists() else []
        source = {row["file"]: row["original_dataset"].split(" (")[0] for row in rows}
        names = [f"{path.parent.name}/{path.name}" for _, path in paths]
        data = [path.read_bytes() for _, path in paths]
        return cls(
            [(hashlib.sha256(each).hexdigest(), each) for each in data],
            np.array([label for label, _ in paths]),
            grouped([inspect(each, params.ingest) for each in data], params),
            np.array([source.get(name, "one") for name in names]),
            names,
            params,
        )

    @cached_property
    def digest(self) -> str:
        """The name of these photos in the memo of features."""
        return hashlib.sha256(" ".join(sha256 for sha256, _ in self.listed).encode()).hexdigest()

    def features(self, spec: FeatureSpec) -> Features:
        """Their features, remembered."""
        memo, sha256s = FeatureMemo(home() / "benchmark", None), tuple(sha256 for sha256, _ in self.listed)
        if (found := memo.get(spec, self.digest, sha256s)) is None:
            found = Features(*extract(spec, self.listed, make_extractor(spec)))
            memo.put(spec, self.digest, found)
        return found

    def of_member(self, member: Member, head: str = "bilinear") -> Params:
        """params.yaml for one network and head."""
        backbone, size, shape = member
        one = {"features.backbone": backbone, "features.sizes": [size], "features.shape": shape, "model.head": head}
        return changed(self.params, one)

    def of_preset(self, name: str) -> Params:
        """params.yaml with a preset."""
        return changed(self.params, {"model.preset": name})

    def fitted(self, member: Member, learn: NDArray[np.integer]) -> Classifier:
        """The classifier of a member, fitted to the photos `learn` as a retrain fits it, without cross-validation."""
        params = self.of_member(member)
        ((spec, head),) = plan(params)
        classes = params.dataset.classes
        found = HEADS[head](max(spec.sizes), len(classes), params.train)
        features = replace(self.features(spec).rows(learn), groups=tuple(self.groups[row] for row in learn))
        nothing = CrossValidation((), np.empty((0, len(classes))))  # its fit asks nothing of one
        return Classifier(classes, (Trained(spec, head, found.fit(features, self.labels[learn], nothing).model),))

    def answers(self, row: str, learn: NDArray[np.integer], judge: NDArray[np.integer]) -> NDArray[np.float64]:
        """Probabilities of the photos `judge` by a row that is fitted to the photos `learn`."""
        made = []
        for member in ROWS[row]:
            name = f"{member} {learn.tobytes()!r} {judge.tobytes()!r}"
            if name not in self.asked:
                one = self.fitted(member, learn).members[0]
                self.asked[name] = one.predict(self.features(one.spec).rows(judge))
            made.append(self.asked[name])
        return np.mean(made, axis=0)

    @cached_property
    def asked(self) -> dict[str, NDArray[np.float64]]:
        """The answers so far: rows share members."""
        return {}

    def out_of_fold(self, member: Member, seeds: int) -> NDArray[np.float64]:
        """Out-of-fold probabilities of each seed, float64 [seeds, n, classes], remembered."""
        params = self.of_member(member)
        ((spec, _),) = plan(params)
        about = f"{spec.fingerprint} {self.digest} {' '.join(self.groups)} {params.result_digest}"
        kept = home() / "benchmark" / f"{hashlib.sha256(about.encode()).hexdigest()[:16]}.npy"
        found: NDArray[np.float64] = (
            np.load(kept) if kept.exists() else np.empty((0, len(self.labels), len(params.dataset.classes)))
        )
        if len(found) < seeds:
            features = self.features(spec)
            more = [
                train(features, self.labels, self.groups, spec, seeded(params, seed)).cv["bilinear"].probabilities
                for seed in range(len(found), seeds)
            ]
            found = np.concatenate([found, more])
            np.save(kept, found)
        return found[:seeds]


def main(folder: Path, seeds: int = 4, splits: int = 5) -> None:
    """Print the tables."""
    photos = Photos.of(folder)
    by_row = cross_validation(photos, seeds)
    ceiling(photos, by_row["default"], by_row["Lite2"])
    parts = [split_of(photos, seed) for seed in range(splits)]
    held_back_photos(photos, parts)
    left_out(photos)
    if parts:
        in_whole_numbers(photos, parts)
        from_outside(photos, parts[0])
    price(photos)


def cross_validation(photos: Photos, seeds: int) -> dict[str, NDArray[np.float64]]:
    """Print the rows by cross-validation; their pooled out-of-fold probabilities."""
    sources = sorted(set(photos.sources))
    print(f"\n## Cross-validated, {seeds} times, {len(photos.labels)} photos\n")
    print("| row | accuracy | log loss | pooled, 95 % | only it / only `default` right | p |", end="")
    print("".join(f" {source} |" for source in sources))
    print("|---" * (6 + len(sources)) + "|")
    pooled: dict[str, NDArray[np.float64]] = {}
    for name, members in ROWS.items():
        each = np.mean([photos.out_of_fold(member, seeds) for member in members], axis=0)
        accuracy = (each.argmax(axis=2) == photos.labels).mean(axis=1)
        spread = f" ± {accuracy.std(ddof=1):.4f}" if seeds > 1 else ""
        pooled[name] = each.mean(axis=0)
        right = pooled[name].argmax(axis=1) == photos.labels
        versus = against(right, pooled["default"].argmax(axis=1) == photos.labels) if name != "default" else " | "
        print(
            f"| {name} | {accuracy.mean():.4f}{spread} | {log_loss(each, photos.labels):.3f} | {interval(right)} "
            f"| {versus} |" + "".join(f" {interval(right[photos.sources == source])} |" for source in sources),
            flush=True,
        )
    return pooled


def ceiling(photos: Photos, one: NDArray[np.float64], other: NDArray[np.float64]) -> None:
    """Print what the two networks of `best` could have right together, and what neither has."""
    first, second = (answers.argmax(axis=1) == photos.labels for answers in (one, other))
    print("\n## The ceiling\n")
    print(f"Either network right: {interval(first | second)}; both wrong:")
    print(", ".join(sorted(name for name, wrong in zip(photos.names, ~(first | second), strict=True) if wrong)))


def left_out(photos: Photos) -> None:
    """Print how the rows do on photos of a source that none was trained on."""
    for source in sorted(set(photos.sources)):
        judge = np.flatnonzero(photos.sources == source)
        learn = np.flatnonzero(photos.sources != source)
        kept = {photos.groups[row] for row in judge}
        learn = np.array([row for row in learn if photos.groups[row] not in kept], dtype=int)
        if len(set(photos.labels[learn])) < 2:
            print(f"\n{source} left out: the others have photos of fewer than two classes.")
            continue
        print(f"\n## {source}: {len(judge)} photos, left out of training ({len(learn)} others)\n")
        print("| row | right, 95 % | only it / only `default` right | p |\n|---|---|---|---|")
        default = None
        for name in ("default", "own shape", "best, own shape", "best", "light"):
            answers = photos.answers(name, learn, judge)
            right = answers.argmax(axis=1) == photos.labels[judge]
            default = right if default is None else default
            print(f"| {name} | {interval(right)} | {against(right, default)} |", flush=True)


def split_of(photos: Photos, seed: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Row numbers to learn from, and of 160 photos held back, whole groups."""
    judge = held_back(photos.groups, seed)
    return np.setdiff1d(np.arange(len(photos.labels)), judge), judge


def held_back_photos(photos: Photos, parts: Sequence[tuple[NDArray[np.intp], NDArray[np.intp]]]) -> None:
    """Print how many of 160 photos that were held back each preset has right."""
    print(f"\n## Held back: {len(parts)} times 160 photos, whole groups\n")
    print("| row | right of 160, each time | mean ± sd | only it / only `default` right, in all | p |")
    print("|---" * 5 + "|")
    default = None
    for name in ("default", "own shape", "best, own shape", "best", "light") if parts else ():
        each = [photos.answers(name, *part).argmax(axis=1) == photos.labels[part[1]] for part in parts]
        default = np.concatenate(each) if default is None else default
        right = [int(one.sum()) for one in each]
        spread = f" ± {np.std(right, ddof=1):.1f}" if len(parts) > 1 else ""
        listed = ", ".join(map(str, right))
        versus = against(np.concatenate(each), default)
        print(f"| {name} | {listed} | {np.mean(right):.1f}{spread} | {versus} |", flush=True)


def in_whole_numbers(photos: Photos, parts: Sequence[tuple[NDArray[np.intp], NDArray[np.intp]]]) -> None:
    """Print what `light` loses as a LiteRT file in int8, on the photos that were held back."""
    whole, plain = [], []
    for learn, judge in parts:
        light = photos.fitted(ROWS["light"][0], learn)
        assert isinstance(light.size, int)
        images = [decode(photos.listed[row][1], light.size) for row in judge]
        whole.append(in_int8(light, images).argmax(axis=1) == photos.labels[judge])
        plain.append(photos.answers("light", learn, judge).argmax(axis=1) == photos.labels[judge])
        print(f"\n`light` in int8: {whole[-1].sum()} right, `light` {plain[-1].sum()}", flush=True)
    lost = against(np.concatenate(whole), np.concatenate(plain)).replace("|", "right, p =")
    print(f"\nOnly in int8 / only `light` itself right, in all: {lost}", flush=True)


def from_outside(photos: Photos, part: tuple[NDArray[np.intp], NDArray[np.intp]]) -> None:
    """Print what `ssclass evaluate` says of `default` and `best`, exported, on class folders of photos held back."""
    print("\n## The first of these, by `ssclass evaluate`\n")
    learn, judge = part
    with tempfile.TemporaryDirectory() as scratch:
        for name in ("default", "best"):
            members = tuple(photos.fitted(member, learn).members[0] for member in ROWS[name])
            made, folder = Classifier(photos.params.dataset.classes, members), Path(scratch) / name
            folder.mkdir()
            made.export(folder / "model.keras")
            about = {"classes": list(made.classes)} | about_size(made.size)
            (folder / "model.json").write_text(json.dumps(about), encoding="utf-8")
        for row in judge:
            target = Path(scratch) / "photos" / photos.names[row]
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(photos.listed[row][1])
        command = [sys.executable, "-m", "ssclass", "evaluate", "photos", "--models", "default,best"]
        done = subprocess.run(command, cwd=scratch, capture_output=True, text=True, check=True)
        print(done.stdout, flush=True)


def of_preset(photos: Photos, preset: str) -> Classifier:
    """The classifier of a preset, as a retrain makes it of all photos: raced or not, and cross-validated."""
    params = photos.of_preset(preset)
    planned = plan(params)
    given = {spec: photos.features(spec) for spec, _ in planned}
    return train_planned(given.__getitem__, photos.labels, photos.groups, planned, params).classifier


def in_int8(classifier: Classifier, images: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
    """What the LiteRT export of a classifier in int8 answers."""
    from ssclass.serving.exporting import convert, open_export

    assert isinstance(classifier.size, int)
    with tempfile.TemporaryDirectory() as scratch:
        path = convert(classifier.whole(), classifier.size, "litert", "int8", Path(scratch))
        run = open_export(path, "litert")
        return np.stack([run(image) for image in images])


def price(photos: Photos) -> None:
    """Print what each preset costs."""
    engines, sizes, seconds, megabytes = {}, {}, {}, {}
    for name in PRESETS:
        for spec, _ in plan(photos.of_preset(name)):
            photos.features(spec)  # so that they are remembered
        began = time.perf_counter()
        made = of_preset(photos, name)
        seconds[name] = time.perf_counter() - began
        with tempfile.TemporaryDirectory() as scratch:
            made.export(Path(scratch) / "model.keras")
            megabytes[name] = (Path(scratch) / "model.keras").stat().st_size / 1e6
        engines[name], sizes[name] = open_engine(made.whole(), made.size), made.size
    draw = np.random.default_rng(0).choice(len(photos.labels), TIMED, replace=False)
    times: dict[str, list[float]] = {name: [] for name in PRESETS}
    for turn, row in enumerate([*draw, *draw]):
        for name in PRESETS:
            image = decode(photos.listed[row][1], sizes[name])[None]
            began = time.perf_counter()
            engines[name].predict(image)
            if turn >= TIMED:  # the first round warms up: every shape is planned once
                times[name].append(1000 * (time.perf_counter() - began))
    base = {name: float(np.median(each)) for name, each in times.items()}
    print("\n## The price\n")
    print("| preset | ms a photo | of `default`'s | MB, exported | training, s | of `default`'s |")
    print("|---" * 6 + "|")
    for name in PRESETS:
        print(
            f"| {name} | {base[name]:.0f} | {base[name] / base['default']:.2f} | {megabytes[name]:.1f} "
            f"| {seconds[name]:.1f} | {seconds[name] / seconds['default']:.2f} |"
        )


def interval(right: NDArray[np.bool_]) -> str:
    """Right of all, their share, and its 95 % interval."""
    span = clopper_pearson(int(right.sum()), len(right))
    return f"{right.sum()} of {len(right)}, {right.mean():.4f} ({span.low:.3f}–{span.high:.3f})"


def against(right: NDArray[np.bool_], other: NDArray[np.bool_]) -> str:
    """Only the one right / only the other, and p of exact McNemar, as two cells."""
    wins, losses = int((right & ~other).sum()), int((~right & other).sum())
    return f"{wins} / {losses} | {mcnemar_exact(wins, losses):.2g}"


def log_loss(probabilities: NDArray[np.float64], labels: NDArray[np.int64]) -> float:
    """Mean over seeds and photos, nats."""
    own = probabilities[:, np.arange(len(labels)), labels]
    return float(-np.log(np.maximum(own, 1e-12)).mean())


if __name__ == "__main__":
    main(Path(sys.argv[1]), *map(int, sys.argv[2:4]))
