"""The challenger: the newest candidate that lost to the champion in force by no more than chance explains.

It follows from the ledger alone, so that every machine, `rebuild` and `verify` name the same one.
"""

from __future__ import annotations

import re

from ssclass.workspace.ledger import REJECTED, Event, State

TELLS_APART = 0.05
"""Exact McNemar p from which on the same held-out photos do not tell two models apart."""
_ELIGIBLE = re.compile(r"promotion is frozen|candidate \d+/\d+, champion \d+/\d+; needs ")
"""How reasons of the gate begin where nothing but the count of right photos, or a freeze, was in the way."""


def challenger(state: State) -> Event | None:
    """The decision whose candidate is the challenger; None where there is none.

    It is the newest decision, where that REJECTED a candidate beside the champion in force for its count of right
    photos or as promotion was frozen, and the candidate had more right, or not significantly fewer. It stops being so
    with the next decision, or when another champion is put in force.
    """
    newest = next(reversed(state.decisions.values()), None)
    if newest is None or newest.body["decision"] != REJECTED:
        return None
    body, champion = newest.body, newest.body["champion"]
    if champion is None or champion["key"] != state.champion or not _ELIGIBLE.match(body["reason"]):
        return None
    ahead = body["candidate"]["right"] >= champion["right"]
    p = body.get("mcnemar_p")
    return newest if ahead or (p is not None and p >= TELLS_APART) else None


def challenger_key(state: State) -> str | None:
    """The decision key of the challenger; None where there is none."""
    event = challenger(state)
    return None if event is None else str(event.body["key"])
