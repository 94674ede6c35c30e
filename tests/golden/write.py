"""Write today's formats, from drawings and fixed numbers: `python tests/golden/write.py`.

A file is written once, by the code that had its version, and never again: tests/test_formats.py reads it for ever. The
ledger and the manifest, which are text, were written by hand.
"""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image

from ssclass import params
from ssclass.data import shards
from ssclass.model import adopted, classifier
from ssclass.workspace.create import template_file

HERE = Path(__file__).parent
CLASSES = ("sandwich", "sushi")


def picture(shade: int) -> bytes:
    """A PNG of 40 x 32 pixels."""
    out = io.BytesIO()
    ramp = np.arange(40 * 32 * 3, dtype=np.uint32).reshape(32, 40, 3)
    Image.fromarray(((ramp * 7 + shade * 31) % 256).astype(np.uint8)).save(out, "PNG")
    return out.getvalue()


def shard(path: Path) -> None:
    """Three photos, one of them held out, with everything that a receipt can say."""
    import hashlib

    rows = []
    for place, (label, split) in enumerate((("sushi", "train"), ("sandwich", "train"), ("sushi", "holdout"))):
        data = picture(place)
        sha256 = hashlib.sha256(data).hexdigest()
        group = rows[0][0].sha256 if place == 1 else sha256
        palette = bytes([place]) * 512 if place else b""
        rows.append(
            (shards.Row(sha256, label, split, group, f"{place:016x}", palette, f"{label}/é {place}.png", 40, 32), data)
        )
    receipt = shards.Receipt(
        batch_id="golden",
        marker="manifest.json",
        etag="0123",
        sequence=3,
        accepted=3,
        duplicates=1,
        counts={"sandwich": {"train": 1, "holdout": 0}, "sushi": {"train": 1, "holdout": 1}},
        refused=(shards.Refusal("sushi/cut.jpg", "truncated", "JPEG: cut off"),),
        warnings=(shards.Warned("flood", "2 of 3"),),
        relabel={"a" * 64: "sushi"},
        remove=("b" * 64,),
        source="bought",
    )
    shards.write_shard(path, rows, receipt)


def head(folder: Path) -> None:
    """A head with weights from a formula, and its answers on features from one."""
    from ssclass.model.backbones import import_keras
    from ssclass.model.spec import FeatureSpec

    keras = import_keras()
    name, channels = "224.out.mean", 6
    given = {name: keras.Input((1, channels), name=name)}
    flat = keras.layers.Flatten()(given[name])
    dense = keras.layers.Dense(2, activation="softmax")
    model = keras.Model(given, dense(flat), name="head")
    dense.set_weights([formula((channels, 2)), formula((2,))])
    spec = FeatureSpec("mobilenet", "0" * 64, (224,), False)
    classifier.Classifier(CLASSES, (classifier.Member(spec, "linear", model),)).save(folder)
    np.save(folder / "answers.npy", model({name: formula((4, 1, channels))}).numpy())


def adopted_model(folder: Path) -> None:
    """A small network as its owner saved it, wrapped; and its answers on two pictures."""
    from ssclass.model.backbones import import_keras

    keras = import_keras()
    dense = keras.layers.Dense(2, activation="softmax")
    theirs = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.GlobalAveragePooling2D(), dense])
    dense.set_weights([formula((3, 2)), formula((2,))])
    folder.mkdir(exist_ok=True)
    theirs.save(folder / "theirs.keras")
    made = adopted.wrap(folder / "theirs.keras", folder, CLASSES, "torch")
    (folder / "theirs.keras").unlink()
    np.save(folder / "answers.npy", made.whole()(images()).numpy())


def formula(shape: tuple[int, ...]) -> np.ndarray:
    """float32, between -1 and 1."""
    return np.sin(np.arange(np.prod(shape), dtype=np.float32)).reshape(shape)


def images() -> np.ndarray:
    """uint8 [2, 32, 40, 3]."""
    return np.stack([np.asarray(Image.open(io.BytesIO(picture(shade)))) for shade in (0, 1)])


def main() -> None:
    """Write what is not there yet."""
    wanted = {
        f"shard-{shards.SCHEMA_VERSION}.parquet": shard,
        f"params-{params.SCHEMA_VERSION}.yaml": lambda path: path.write_bytes(
            template_file("params.yaml").read_bytes()
        ),
        f"classifier-{classifier.FORMAT}": head,
        f"classifier-{adopted.FORMAT}": adopted_model,
    }
    for name, write in wanted.items():
        if not (HERE / name).exists():
            write(HERE / name)


if __name__ == "__main__":
    main()
