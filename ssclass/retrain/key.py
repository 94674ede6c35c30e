"""The decision key: which question a decision answers. Same key, same answer, so nothing is asked twice.

A question is: is the model that *this data, these params and this code* give better than *this champion*, while
promotion is allowed (or frozen)? All four are in the key. So the question is asked anew when

- photos join, go, or get another label, even if that undoes an earlier change (the champion is another meanwhile);
- a person edits the params, there and back;
- a person makes an earlier champion the champion;
- promotion was frozen when the question was answered, and may go on now.

It is not asked when the champion is itself the model that this data, these params and this code give, nor when that
model was the champion and a person rolled back from it.
"""

from __future__ import annotations

import hashlib

from ssclass.code import code_digest
from ssclass.model.runtimes import runtime_of
from ssclass.workspace.ledger import State
from ssclass.workspace.version import Version

FROZEN = "frozen"


def training_key(version: Version) -> str:
    """What a training depends on (hex, 16): the rows used, the params that matter, the code, the runtime of features.

    TensorFlow, which is always there and whose version is the code's, is not named. ParamsError where
    ``features.engine`` names a runtime that is not installed.
    """
    parts = [version.dataset.digest, version.params.result_digest, code_digest()]
    runtime = runtime_of(version.params.features)
    return _hex(" ".join([*parts, *([runtime] if runtime else [])]))


def decision_key(training: str, champion: str | None, frozen: bool = False) -> str:
    """What a decision depends on (hex, 16): the training, the champion's decision key, whether promotion is frozen."""
    return _hex(" ".join([training, champion or "no champion", *([FROZEN] if frozen else [])]))


def key_of(version: Version) -> str:
    """The decision key of the question that a version asks, whether it is answered or not."""
    state = version.state
    return decision_key(training_key(version), state.champion, state.frozen is not None)


def pending_key(version: Version) -> str | None:
    """The decision key of the question that is still to be answered; None when it is, or when there is no data."""
    if not version.dataset.used:
        return None
    state, training = version.state, training_key(version)
    if any(_is_model_of(training, champion, state) for champion in {state.champion, *state.withdrawn}):
        return None
    asked = decision_key(training, state.champion, state.frozen is not None)
    answered = {asked, decision_key(training, state.champion)}
    return None if answered & set(state.decisions) else asked


def _is_model_of(training: str, key: str | None, state: State) -> bool:
    """Whether a champion is the model of this training."""
    if key is None:
        return False
    beaten = state.decisions[key].body.get("champion")
    return key == decision_key(training, beaten and beaten["key"])


def _hex(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
