"""Score several models on one folder of photos."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ssclass import progress
from ssclass.data.folders import LabelledFile, labelled_files
from ssclass.data.images import Refused
from ssclass.errors import BatchError
from ssclass.retrain.scores import Scores, align, score
from ssclass.serving.model import Model, stream


def evaluate_folder(
    folder: Path, models: Sequence[Model], *, in_memory: bool
) -> tuple[dict[str, Scores], list[tuple[LabelledFile, Refused]]]:
    """Scores by model name, and the files that could not be read.

    `in_memory`: decode once and hold every image; otherwise decode anew for each model, a batch at a time.
    Models that tell other classes are scored on the classes of the first.
    """
    classes = models[0].classes
    files = labelled_files(folder, classes, only=True)
    held = {size: list(stream(files, size)) for size in {model.size for model in models}} if in_memory else None
    scores: dict[str, Scores] = {}
    refused: list[tuple[LabelledFile, Refused]] = []
    for model in models:
        labels: list[int] = []
        answers: list[NDArray[np.floating]] = []
        refused = []
        for good, images, bad in held[model.size] if held else stream(files, model.size):
            answers.append(align(model.predict(images), model.classes, classes))
            labels += [classes.index(file.label) for file in good]
            refused += bad
            progress.report(f"answers of {model.name}", len(labels) + len(refused), len(files))
        if not labels:
            raise BatchError(
                f"{folder}: none of its {len(files)} files is a readable photo ({refused[0][1].reason}: "
                f"{refused[0][0].path.name}); name a folder of photos"
            )
        scores[model.name] = score(np.concatenate(answers), np.array(labels), classes)
    return scores, refused
