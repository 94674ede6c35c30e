"""Which photos a model would learn most from: those that it doubts, that are unlike what it knows, and one another.

A greedy choice. The next photo is the one with the largest product of doubt (1 less the margin between the two
likeliest classes) and distance to the nearest photo that is labelled or chosen already, so that of ten pictures of one
dish nine come late. `python -m benchmarks wanted DIR` measures it beside others.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

ROWS = 1024  # of distances that are in memory at once
DIMENSIONS = 256  # that an embedding is projected to, if it has more: distances change by a few hundredths

Vectors = NDArray[np.float32]


def doubt(probabilities: NDArray[np.floating]) -> NDArray[np.float64]:
    """How unsure answers are, float64 [n]: 0 where one class has everything, 1 where the two likeliest are equal."""
    two = np.sort(np.asarray(probabilities, np.float64), axis=1)[:, -2:]
    return 1.0 - (two[:, 1] - two[:, 0])


def embedded(vectors: NDArray[Any]) -> Vectors:
    """Vectors [n, d] of length 1, in `DIMENSIONS` dimensions at most; the same projection each time."""
    made = np.asarray(vectors, np.float32)
    if made.shape[1] > DIMENSIONS:
        chance = np.random.default_rng(0).standard_normal((made.shape[1], DIMENSIONS), np.float32)
        made = made @ chance
    length = np.linalg.norm(made, axis=1, keepdims=True)
    return np.asarray(made / np.where(length > 0, length, 1), np.float32)


def novelty(vectors: Vectors, known: Vectors) -> NDArray[np.float64]:
    """Cosine distance of each embedded vector to the nearest known one, float64 [n], 0 to 2; 1 where none is known."""
    if not len(known):
        return np.ones(len(vectors))
    parts = [(vectors[at : at + ROWS] @ known.T).max(axis=1) for at in range(0, len(vectors), ROWS)]
    return np.maximum(0.0, 1.0 - np.concatenate(parts).astype(float)) if parts else np.zeros(0)


def ranked(unsure: NDArray[np.floating], vectors: Vectors, known: Vectors, count: int) -> list[int]:
    """Row numbers of `count` photos, the most wanted first, given their doubt [n] and embedded vectors [n, d].

    Of equals the first comes first. What is worth nothing by this measure (no doubt, a copy) comes last, by its doubt.
    """
    distance, left = novelty(vectors, known), np.ones(len(unsure), bool)
    chosen: list[int] = []
    for _ in range(min(count, len(unsure))):
        worth = np.where(left, unsure * distance, -1.0)
        best = int(worth.argmax())
        if worth[best] <= 0:
            best = int(np.where(left, unsure, -1.0).argmax())
        chosen.append(best)
        left[best] = False
        distance = np.minimum(distance, np.maximum(0.0, 1.0 - vectors @ vectors[best]))
    return chosen
