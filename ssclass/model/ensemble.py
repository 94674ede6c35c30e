"""The answers of several models as one: the mean of their probabilities, or a vote.

Each member votes for its most likely class. With V of M members for a class and m the mean of their probabilities for
it, the vote gives (V + m) / (M + 1): the most votes win, of equally many the higher mean (m is less than 1 apart
where it counts, a vote is 1), and over the classes these are probabilities.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ssclass.model.backbones import import_keras


def combined(members: Sequence[np.ndarray], how: str) -> np.ndarray:
    """Combine the members' probabilities, one float64 [n, classes] each, into one such array.

    `how`: ``mean`` or ``vote``.
    """
    stacked = np.stack(members)
    mean = stacked.mean(axis=0)
    if how == "mean":
        return np.asarray(mean)
    votes = np.eye(stacked.shape[2])[stacked.argmax(axis=2)].sum(axis=0)
    return np.asarray((votes + mean) / (len(members) + 1))


def combine_tensors(members: Sequence[Any], how: str) -> Any:
    """Combine the members' probabilities as :func:`combined` does, for Keras tensors, by standard layers."""
    keras = import_keras()
    if len(members) == 1:
        return members[0]
    mean = keras.layers.Average(name="mean")(list(members))
    if how == "mean":
        return mean
    classes = mean.shape[-1]
    votes = [keras.ops.one_hot(keras.ops.argmax(member, axis=-1), classes) for member in members]
    total = keras.layers.Add(name="votes")([*votes, mean])
    return keras.layers.Rescaling(1 / (len(members) + 1), name="vote")(total)
