"""Which photos a head is trained on and which it is tested on: near-duplicates together, class shares alike."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import numpy as np

from ssclass.errors import BatchError

Fold = tuple[np.ndarray, np.ndarray]  # row numbers: of the training photos, of the test photos
S = TypeVar("S")
T = TypeVar("T")

DEALT = 2000  # photos above which folds are dealt: scikit-learn takes a millisecond a group to find the best one
VALIDATION = 6  # one photo in so many is for validation, in a training that stops early


def grouped_folds(
    labels: np.ndarray, groups: Sequence[str], classes: Sequence[str], folds: int, seed: int
) -> list[Fold]:
    """Row numbers to train on and to test on; fewer folds than asked for when a class has fewer groups.

    A class without photos is allowed (params.yaml may name it before its first batch), two classes must have some.
    """
    names = np.asarray(groups)
    counts = {name: len(np.unique(names[labels == i])) for i, name in enumerate(classes)}
    usable = [count for count in counts.values() if count > 1]
    if len(usable) < 2:
        have = ", ".join(f"{name}: {count}" for name, count in counts.items())
        raise BatchError(
            f"training split: two classes need at least two different photos each (have {have}); submit more photos"
        )
    count = min(folds, *usable)
    tested = (_dealt if len(labels) > DEALT else _balanced)(labels, names, count, seed)
    return [(np.flatnonzero(tested != number), np.flatnonzero(tested == number)) for number in range(count)]


def _balanced(labels: np.ndarray, groups: np.ndarray, folds: int, seed: int) -> np.ndarray:
    """The fold of each of few photos, as of scikit-learn's `StratifiedGroupKFold`, whose import takes two seconds.

    In seeded order, groups that tell the classes apart first, each group goes where the shares of the classes then
    differ least between folds; where two folds are as good, into the one with fewer photos.
    """
    _, label, photos = np.unique(labels, return_inverse=True, return_counts=True)
    _, group = np.unique(groups, return_inverse=True)
    table = np.zeros((int(group.max()) + 1, len(photos)))
    np.add.at(table, (group, label), 1)
    order = np.arange(len(table))
    np.random.RandomState(seed).shuffle(order)  # scikit-learn's generator
    counts, fold = np.zeros((folds, len(photos))), np.empty(len(table), dtype=np.int64)
    for each in order[np.argsort(-np.std(table[order], axis=1), kind="stable")]:
        tried = counts + np.eye(folds)[:, :, None] * table[each]
        uneven = np.std(tried / photos, axis=1).mean(axis=1)
        best = 0
        for at in range(1, folds):
            alike = np.isclose(uneven[at], uneven[best]) and counts[at].sum() < counts[best].sum()
            if uneven[at] < uneven[best] or alike:
                best = at
        counts[best] += table[each]
        fold[each] = best
    return fold[group]


def _dealt(labels: np.ndarray, groups: np.ndarray, folds: int, seed: int) -> np.ndarray:
    """The fold of each of many photos: groups of a class, large ones first, in seeded order, are dealt out to and fro.

    A group is of the class that most of its photos have.
    """
    _, group = np.unique(groups, return_inverse=True)
    table = np.zeros((int(group.max()) + 1, int(labels.max()) + 1), dtype=np.int64)
    np.add.at(table, (group, labels), 1)
    chance = np.random.default_rng(seed).random(len(table))
    order = np.lexsort((chance, -table.sum(axis=1), table.argmax(axis=1)))
    turn, place = np.divmod(np.arange(len(table)), folds)
    fold = np.empty(len(table), dtype=np.int64)
    fold[order] = np.where(turn % 2, folds - 1 - place, place)
    return fold[group]


def split_validation(labels: np.ndarray, groups: Sequence[str], train: np.ndarray, seed: int) -> Fold:
    """The rows `train` as two parts, for training and for validation; the second is empty where photos are too few.

    Both are training photos: test photos and the held-out set have no part in when a training stops.
    """
    classes = [str(label) for label in range(int(labels.max()) + 1)]
    try:
        kept, validation = grouped_folds(labels[train], [groups[row] for row in train], classes, VALIDATION, seed)[0]
    except BatchError:
        return train, train[:0]
    return train[kept], train[validation]


def on_each_core(task: Callable[[S], T], items: Sequence[S]) -> Iterator[T]:
    """Do a task for each item, one on each core, and yield what it gives in their order.

    Linear algebra uses one thread each: the same bits on any number of cores, and no threads that wait for each other.
    """
    workers = min(len(items), os.cpu_count() or 1)
    with one_blas_thread(), ThreadPoolExecutor(workers, thread_name_prefix="fold") as pool:
        yield from pool.map(task, items)


@contextmanager
def one_blas_thread() -> Iterator[None]:
    """Let linear algebra use one thread while the block runs, NumPy's and SciPy's, which bring a library each.

    Only what is loaded can be limited: SciPy's, loaded inside the block, would use all cores and give other bits.
    """
    import scipy.linalg  # noqa: F401
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1, user_api="blas"):
        yield
