"""`ssclass verify`: whether ledger, tags, shards, objects, features, runs, models and alias say the same.

The ledger on origin's main is the truth. What it says can be made again from it, is; what cannot is told.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

from ssclass.errors import SsclassError
from ssclass.upkeep.verify import data, history, tracking
from ssclass.upkeep.verify.finding import Finding
from ssclass.workspace.workspace import Workspace

Check = Callable[[Workspace], Iterator[Finding]]

CHECKS: tuple[tuple[str, Check], ...] = (
    ("ledger.jsonl", history.ledger),
    ("git tags", history.tags),
    ("DVC objects", data.objects),
    ("data set", data.shards),
    ("features", data.features),
    ("batches", data.deliveries),
    ("forgetting", data.forgetting),
    ("MLflow experiment", tracking.experiment),
    ("MLflow runs", tracking.runs),
    ("MLflow registry", tracking.registry),
    ("MLflow models", tracking.models),
    ("MLflow alias", tracking.alias),
    ("MLflow challenger", tracking.challenger_alias),
    ("MLflow exports", tracking.exports),
)


def verify(
    workspace: Workspace, *, repair: bool = False, report: Callable[[str, int, int], None] = lambda *_: None
) -> Iterator[Finding]:
    """Check everything against everything; what is wrong, and with `repair` what is put right, one after the other.

    A part that is away is a finding, too; the others are checked all the same. FailedError when origin is away.
    """
    if repair:
        workspace.claim()
    workspace.newest()
    for number, (part, check) in enumerate(CHECKS):
        report("verify", number, len(CHECKS))
        try:
            for finding in check(workspace):
                yield _mended(finding) if repair else finding
        except SsclassError as error:
            yield Finding(part, "cannot be checked", f"{error}")
            if check is history.ledger:
                return


def _mended(finding: Finding) -> Finding:
    if finding.mend is None:
        return finding
    try:
        finding.mend()
    except SsclassError as error:
        return replace(finding, wrong=f"{finding.wrong}, and was not mended", remedy=str(error))
    return replace(finding, mended=True)


__all__ = ["CHECKS", "Finding", "verify"]
