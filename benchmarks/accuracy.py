"""Cross-validated accuracy of every head on class folders: `python -m benchmarks.accuracy DIR [SEEDS]`, default 3.

Decodes, extracts features (photos a second), then repeats the grouped 5-fold cross-validation of the shipped params
with different folds. On the 741 photos of the study's kind: linear 0.91, T1 0.92 to 0.93 (docs/models.md).
"""

from __future__ import annotations

import hashlib
import sys
import time
from pathlib import Path

import numpy as np

from ssclass.extraction import extract, make_extractor
from ssclass.features import Features, feature_spec
from ssclass.images import Refused, inspect
from ssclass.params import Params, load_params
from ssclass.settings import CHECKOUT
from ssclass.training import train


def main(folder: Path, seeds: int) -> None:
    """Print one line a measurement."""
    shipped = load_params(CHECKOUT / "params.yaml")
    classes = tuple(sorted(path.name for path in folder.iterdir() if path.is_dir()))
    params = Params.model_validate(shipped.model_dump() | {"dataset": {"classes": classes}})
    photos, labels = [], []
    for label, name in enumerate(classes):
        for path in sorted((folder / name).iterdir()):
            data = path.read_bytes()
            try:
                inspect(data, params.ingest)
            except Refused as refused:
                print(f"{path}: {refused}")
                continue
            photos.append((hashlib.sha256(data).hexdigest(), data))
            labels.append(label)

    spec = feature_spec(params.features)
    extractor = make_extractor(spec)
    extractor(np.zeros((1, spec.size, spec.size, 3), np.uint8))  # traced before the clock starts
    start = time.perf_counter()
    features = Features(*extract(spec, photos, extractor))
    print(f"features: {len(photos) / (time.perf_counter() - start):.1f} photos/s, {spec.views} views each")

    for seed in range(seeds):
        repeat = params.model_copy(update={"train": params.train.model_copy(update={"seed": seed})})
        start = time.perf_counter()
        found = train(features, np.array(labels), features.sha256s, spec, repeat)
        seconds = time.perf_counter() - start
        heads = ", ".join(f"{name} {each.mean:.4f} ± {each.sd:.4f}" for name, each in found.cv.items())
        print(f"seed {seed}: {heads}; {found.head} chosen; {seconds:.1f} s")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 3)
