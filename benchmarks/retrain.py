"""What a retrain costs when a little is new: `python -m benchmarks.retrain DIR [BATCHES]`, default 3; ten minutes.

DIR holds class folders. All but BATCHES x 20 photos are the first batch; then 20 photos arrive at a time. Beside each
retrain, the script that people write instead trains on the same photos: `image_dataset_from_directory`, MobileNet
frozen, the study's head T1, `fit`. It has no cache, no champion to compare with, no registry. Two of its epochs are
timed (after one that warms up); the study trained for 50.

Printed: seconds of the first retrain, medians of the later ones, of one with nothing to learn, and of the script.
"""

from __future__ import annotations

import shutil
import statistics
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

from ssclass.data.submit import submit
from ssclass.environment import leave_user_settings, quiet_libraries
from ssclass.model.backbones import find_backbone, import_keras
from ssclass.model.weights import load_weights
from ssclass.stack.storage import storage
from ssclass.workspace.create import create
from ssclass.workspace.workspace import Workspace

NEW, EPOCHS, STUDY_EPOCHS, SIZE = 20, 2, 50, 224


def script(folder: Path, size: int = SIZE) -> float:
    """Seconds an epoch of the home-made script on class folders, at so many pixels a side."""
    keras = import_keras()
    layers = keras.layers
    photos = keras.utils.image_dataset_from_directory(
        folder, image_size=(size, size), batch_size=32, seed=0, validation_split=0.2, subset="both", verbose=False
    )
    backbone = find_backbone("mobilenet")
    trunk = backbone.trunk(load_weights("mobilenet").tensors, size)
    images = keras.Input((size, size, 3))
    found = layers.GlobalAveragePooling2D()(layers.BatchNormalization()(trunk(backbone.preprocess(images))))
    found = layers.Dense(256, activation="relu")(layers.Dropout(0.5)(found))
    found = layers.Dense(1, activation="sigmoid")(layers.Dropout(0.5)(layers.BatchNormalization()(found)))
    model = keras.Model(images, found)
    model.compile("adam", "binary_crossentropy", metrics=["accuracy"])
    train, judge = photos
    model.fit(train, validation_data=judge, epochs=1, verbose=0)
    began = time.monotonic()
    model.fit(train, validation_data=judge, epochs=EPOCHS, verbose=0)
    return (time.monotonic() - began) / EPOCHS


def split(photos: Path, folder: Path, batches: int) -> list[Path]:
    """Links to the photos: the first batch, then `batches` of NEW photos, all with both classes alike."""
    files = [(each.parent.name, each) for name in sorted(photos.iterdir()) if name.is_dir() for each in name.iterdir()]
    files.sort(key=lambda file: file[1].name[::-1])
    late = batches * NEW
    parts = [files[late:], *(files[at : at + NEW] for at in range(0, late, NEW))]
    for number, part in enumerate(parts):
        for label, path in part:
            (folder / f"{number}" / label).mkdir(parents=True, exist_ok=True)
            (folder / f"{number}" / label / path.name).symlink_to(path.resolve())
    return [folder / f"{number}" for number in range(len(parts))]


def main(photos: Path, batches: int) -> None:
    """Deliver, retrain, and train the script on the same photos."""
    with tempfile.TemporaryDirectory() as scratch, ExitStack() as running:
        root = Path(scratch) / "workspace"
        leave_user_settings()
        made = create(root, {"bucket": "ssclass", "exports": ""})  # what comes after the decision is not timed
        quiet_libraries(made.settings)
        workspace = Workspace(running.enter_context(storage(made.settings)))
        from flows.retrain import retrain

        def timed() -> tuple[float, str]:
            began = time.monotonic()
            decision = retrain(str(root)).decision
            return time.monotonic() - began, decision

        timed()  # starts Prefect; nothing has been delivered
        both: list[tuple[float, float]] = []
        everything = Path(scratch) / "all"
        for number, part in enumerate(split(photos, Path(scratch) / "parts", batches)):
            submit(workspace.store, part, f"batch-{number}", workspace.at().params.dataset.classes)
            shutil.copytree(part, everything, symlinks=True, dirs_exist_ok=True)
            seconds, decision = timed()
            both.append((seconds, script(everything)))
            print(
                f"batch-{number}: {decision} after {seconds:.1f} s; the script: {both[-1][1]:.1f} s an epoch, "
                f"{both[-1][1] * STUDY_EPOCHS:.0f} s for {STUDY_EPOCHS}",
                flush=True,
            )
        skipped = statistics.median(timed()[0] for _ in range(3))
    later = statistics.median(seconds for seconds, _ in both[1:])
    epoch = statistics.median(seconds for _, seconds in both[1:])
    print(f"first retrain, all features new        {both[0][0]:8.1f} s")
    print(f"retrain, {NEW} new photos, median          {later:8.1f} s")
    print(f"retrain, nothing new, median of 3      {skipped:8.1f} s")
    print(
        f"script, {STUDY_EPOCHS} epochs, each time             {epoch * STUDY_EPOCHS:8.1f} s   ({epoch:.1f} s an epoch)"
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 3)
