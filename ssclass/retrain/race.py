"""Which heads are tried: all of them now and then, and in between only the one that won.

Cross-validating four heads costs several times what the winner alone does, and among nearly the same photos the same
one wins. So `auto` races all heads when there is nothing to go by, and again when the training photos have become a
tenth more (or fewer) since the last full race. Which race was full follows from the ledger: two machines that read the
same commit try the same heads, and so give the same bits.
"""

from __future__ import annotations

from ssclass.code import code_digest
from ssclass.workspace.version import Version

MORE, OF = 11, 10
"""All heads are raced again at so many training photos for so many of the last full race, or at fewer by as much."""


def last_winner(version: Version, train_size: int) -> str | None:
    """The head that won the last full race; None where all heads are to be tried, or params.yaml names what is.

    `train_size`: the photos that are to be trained on. Only decisions by the same params and the same code count, and
    of those only the ones that came before this data set was first asked about, so that a training that is done again
    at its own commit tries the same heads.
    """
    params = version.params
    if params.model.head != "auto" or params.model.members:
        return None
    ours = code_digest(), params.result_digest[:16]
    raced, winner = 0, None
    for event in version.state.decisions.values():
        body = event.body
        if (body.get("code"), body.get("params")) != ours or "adopted" in body:
            continue
        if body.get("data_version") == version.data_version:
            break
        size, head = body.get("train_size"), body.get("head")
        if not isinstance(size, int) or not isinstance(head, str):
            continue
        if _other(size, raced):
            raced = size
        winner = head
    return None if _other(train_size, raced) else winner


def _other(size: int, raced: int) -> bool:
    return OF * size >= MORE * raced or MORE * size <= OF * raced
