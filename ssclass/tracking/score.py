"""A decision's score as people say it: how many of the same photos the candidate and the champion had right."""

from __future__ import annotations

from ssclass.workspace.ledger import Event


def compared(event: Event) -> dict[str, str]:
    """Of a decision: `candidate`, as in 139/144, `champion` on the same photos, and `gain` in photos, as in +2.

    The latter two are "none" where there was no champion.
    """
    body = event.body
    right, size, champion = body["candidate"]["right"], body["holdout"]["size"], body["champion"]
    return {
        "candidate": f"{right}/{size}",
        "champion": "none" if champion is None else f"{champion['right']}/{size}",
        "gain": "none" if champion is None else f"{right - champion['right']:+d}",
    }
