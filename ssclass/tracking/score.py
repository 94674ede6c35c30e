"""A decision's score as people say it: how many of the same photos the candidate and the champion had right."""

from __future__ import annotations

from ssclass.workspace.ledger import Event


def compared(event: Event) -> dict[str, str]:
    """Of a decision: `candidate`, as in 139/144, and `champion`, on the same photos; "none" where there was none."""
    body = event.body
    size = body["holdout"]["size"]
    champion = body["champion"]
    return {
        "candidate": f"{body['candidate']['right']}/{size}",
        "champion": "none" if champion is None else f"{champion['right']}/{size}",
    }
