"""Put the question to the gate: gather the preconditions, judge, and make the answer the ledger's."""

from __future__ import annotations

from typing import Any

import numpy as np

from ssclass import progress
from ssclass.code import code_digest
from ssclass.errors import OvertakenError, WorkspaceError
from ssclass.retrain import results
from ssclass.retrain.gate import Precondition, Verdict, judge
from ssclass.retrain.key import pending_key
from ssclass.retrain.predict import result_folder
from ssclass.retrain.result import Answers, Result
from ssclass.workspace.dvc import CANDIDATE
from ssclass.workspace.ledger import Event
from ssclass.workspace.transaction import Change
from ssclass.workspace.version import Version
from ssclass.workspace.workspace import Workspace


def decide(workspace: Workspace, key: str, run_id: str) -> Event:
    """Judge the result of a key, and make the verdict one pushed commit with the tag ``run/<key>``.

    The decision that the ledger has for the key, where another run, or this one before it was killed, made it.
    OvertakenError when the newest version asks another question by now.
    """

    version = workspace.newest()
    if pending_key(version) == key:
        results.confirm(workspace, version, key, progress.report)

    def write(change: Change) -> Event:
        version = change.version
        if (decided := version.state.decisions.get(key)) is not None:
            return decided
        if pending_key(version) != key:
            raise OvertakenError(f"{key}: no longer the question, as another writer changed data, params or champion")
        return record(change, results.read(workspace, version, key), run_id)

    return workspace.write(write)


def record(change: Change, result: Result, run_id: str, adopted: dict[str, Any] | None = None) -> Event:
    """Judge a result and publish the verdict; `adopted` says where a model came from that was not trained here."""
    workspace, version = change.workspace, change.version
    _descends(workspace, version)
    verdict = ask_gate(version, result)
    event = decision_event(version, result, verdict, run_id, adopted)
    folder = result_folder(workspace, result.key)
    change.record_candidate(folder / CANDIDATE, folder / results.METRICS)
    change.publish(f"{verdict.decision} {result.key}: {verdict.reason}", [event], tags=[f"run/{result.key}"])
    return event


def _descends(workspace: Workspace, version: Version) -> None:
    """WorkspaceError unless the champion's decision is in the history of this version; that says nothing of a model."""
    champion = version.state.champion
    if champion is not None and not workspace.has_ancestor(
        workspace.decided(champion).commit or "", version.commit or ""
    ):
        raise WorkspaceError(
            f"{workspace.root}: main no longer descends from run/{champion}, the champion's decision; restore "
            "main from "
            "the reflog of origin, or `ssclass rollback NUMBER` to a champion that it contains"
        )


def preconditions(version: Version, result: Result) -> list[Precondition]:
    """What must hold of a candidate before any score counts."""
    train, holdout = version.dataset.train, version.dataset.holdout
    overlap = {row.sha256 for row in train} & {row.sha256 for row in holdout}
    shared = {row.group for row in train} & {row.group for row in holdout}
    return [
        Precondition(
            "no photo on both sides",
            not overlap and not shared,
            (
                f"{len(overlap)} photos and {len(shared)} near-duplicate groups are in training and held out; revoke "
                "their batch"
            ),
        ),
        # Of a champion such an answer is wrong, and no more: it would keep every candidate out for ever.
        Precondition(
            "finite scores", result.candidate.finite, "a probability is not a number; look at the run's curves"
        ),
        Precondition(
            "same answers after saving",
            result.saved_alike,
            "the saved model does not answer as the trained one did; report this",
        ),
        Precondition(
            "promotion is frozen",
            version.state.frozen is None,
            f"{version.state.frozen}; `ssclass unfreeze` lets it go on",
        ),
    ]


def ask_gate(version: Version, result: Result) -> Verdict:
    """The gate's verdict on a result, against the ledger of a version."""
    group_of = {row.sha256: row.group for row in version.dataset.holdout}
    return judge(
        result.candidate.labels,
        result.candidate.predicted,
        None if result.champion is None else result.champion.predicted,
        version.params.gate,
        preconditions(version, result),
        result.classes,
        [group_of.get(sha256, sha256) for sha256 in result.holdout],
    )


def decision_event(
    version: Version, result: Result, verdict: Verdict, run_id: str, adopted: dict[str, Any] | None = None
) -> Event:
    """The ledger's line for a decision. Of an adopted model it names no batches: they are still to be learnt from."""
    state, compared = version.state, result.comparison
    folds = result.cross_validation.get(result.head, [])
    digest = result.holdout_digest
    return Event.now(
        "decision",
        decision=verdict.decision,
        reason=verdict.reason,
        key=result.key,
        data_version=result.data_version,
        batches=state.undecided() if adopted is None else [],
        head=result.head,
        train_size=result.train_size,
        cross_validated={"right": round(float(np.mean(folds or [0])) * result.train_size), "n": result.train_size},
        holdout={
            "size": len(result.holdout),
            "digest": digest,
            "consulted": 1 + sum(event.body["holdout"]["digest"] == digest for event in state.decisions.values()),
        },
        candidate=_summary(result.candidate),
        champion=result.champion and {"key": result.champion_key, **_summary(result.champion)},
        wins=compared and compared.wins,
        losses=compared and compared.losses,
        mcnemar_p=compared and compared.mcnemar_p,
        run_id=run_id,
        code=code_digest(),
        params=version.params.result_digest[:16],
        seconds=round(sum(result.seconds.values()), 1),
        **({} if adopted is None else {"adopted": adopted}),
    )


def _summary(answers: Answers) -> dict[str, Any]:
    n = len(answers.photos)
    return {
        "right": answers.right,
        "accuracy": answers.right / n if n else 0.0,
        "loss": answers.scores.loss,
    }
