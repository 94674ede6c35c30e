"""Put the question to the gate: gather the preconditions, judge, and word the ledger event."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np

from ssclass.code import code_digest
from ssclass.retrain.gate import Precondition, Verdict, judge
from ssclass.retrain.scores import Comparison, Scores, compare
from ssclass.retrain.train import Result
from ssclass.workspace.dvc import commit_stages
from ssclass.workspace.ledger import Event, State
from ssclass.workspace.workspace import Workspace


def preconditions(workspace: Workspace, result: Result, state: State) -> list[Precondition]:
    """What must hold before any score counts."""
    dataset = workspace.dataset()
    train, holdout = dataset.train, dataset.holdout
    overlap = {row.sha256 for row in train} & {row.sha256 for row in holdout}
    shared = {row.group for row in train} & {row.group for row in holdout}
    finite = all(np.isfinite(np.array(each)).all() for each in (result.candidate, result.champion or ()))
    champion = state.champion
    descends = champion is None or workspace.has_ancestor(f"run/{champion}")
    return [
        Precondition(
            "held-out set as split",
            result.holdout == tuple(row.sha256 for row in holdout),
            "the scored photos are not the held-out split of this data version; retrain",
        ),
        Precondition(
            "no photo on both sides",
            not overlap and not shared,
            (
                f"{len(overlap)} photos and {len(shared)} near-duplicate groups are in training and held out; revoke "
                "their batch"
            ),
        ),
        Precondition("finite scores", finite, "a probability is not a number; look at the run's curves"),
        Precondition(
            "same answers after saving",
            result.saved_alike,
            "the saved model does not answer as the trained one did; report this",
        ),
        Precondition(
            "the champion is the ledger's",
            result.champion_key == champion,
            "another run moved the champion meanwhile; retrain",
        ),
        Precondition(
            "data descends from the champion's",
            descends,
            f"history no longer contains run/{champion}; restore main from the reflog or roll back",
        ),
        Precondition(
            "promotion not frozen",
            state.frozen is None,
            f"frozen: {state.frozen}; `ssclass unfreeze` lets promotion go on",
        ),
    ]


def ask_gate(workspace: Workspace, result: Result) -> Verdict:
    """The gate's verdict on a result, against the ledger of this commit."""
    return judge(
        np.array(result.labels),
        np.array(result.candidate_class),
        None if result.champion_class is None else np.array(result.champion_class),
        workspace.params.gate,
        preconditions(workspace, result, workspace.state()),
    )


def comparison(result: Result) -> Comparison | None:
    """Candidate against champion on the same photos; None without a champion."""
    if result.champion_class is None:
        return None
    labels = np.array(result.labels)
    return compare(np.array(result.candidate_class) == labels, np.array(result.champion_class) == labels)


def right(result: Result) -> tuple[int, int | None]:
    """Held-out photos that the candidate and the champion have right."""
    labels = np.array(result.labels)
    champion = None if result.champion_class is None else int((np.array(result.champion_class) == labels).sum())
    return int((np.array(result.candidate_class) == labels).sum()), champion


def holdout_digest(result: Result) -> str:
    """Names a held-out set by its photos (hex, 16), to count how often it was consulted."""
    return hashlib.sha256(" ".join(sorted(result.holdout)).encode()).hexdigest()[:16]


def decision_event(
    workspace: Workspace, result: Result, verdict: Verdict, run_id: str, adopted: dict[str, Any] | None = None
) -> Event:
    """The ledger's line for a decision; `adopted` says where a model came from that has learnt from none of our photos.

    The batches of such a decision are still to be learnt from.
    """
    state = workspace.state()
    scores, champion_scores = result.scores()
    compared = comparison(result)
    digest = holdout_digest(result)
    ours, theirs = right(result)
    folds = result.cross_validation.get(result.head, [])
    seen = {batch for event in state.decisions.values() for batch in event.body["batches"]}
    return Event.now(
        "decision",
        decision=verdict.decision,
        reason=verdict.reason,
        key=result.key,
        data_version=result.data_version,
        batches=[
            batch for batch in state.ingested if adopted is None and batch not in seen and batch not in state.revoked
        ],
        head=result.head,
        train_size=result.train_size,
        cross_validated={"right": round(float(np.mean(folds or [0])) * result.train_size), "n": result.train_size},
        holdout={
            "size": scores.n,
            "digest": digest,
            "consulted": 1 + sum(event.body["holdout"]["digest"] == digest for event in state.decisions.values()),
        },
        candidate=_brief(scores, ours),
        champion=None if champion_scores is None else {"key": result.champion_key, **_brief(champion_scores, theirs)},
        wins=compared and compared.wins,
        losses=compared and compared.losses,
        mcnemar_p=compared and compared.mcnemar_p,
        run_id=run_id,
        code=code_digest(),
        params=workspace.params.result_digest[:16],
        seconds=round(sum(result.seconds.values()), 1),
        **({} if adopted is None else {"adopted": adopted}),
    )


def _brief(scores: Scores, right: int | None) -> dict[str, Any]:
    return {
        "right": right,
        "accuracy": right / scores.n if right is not None and scores.n else 0.0,
        "loss": scores.loss,
    }


def record(workspace: Workspace, result: Result, run_id: str, adopted: dict[str, Any] | None = None) -> Event:
    """Judge, and make the verdict one pushed commit with the tag ``run/<key>``; LostRaceError when another was "
    "first."""
    verdict = ask_gate(workspace, result)
    event = decision_event(workspace, result, verdict, run_id, adopted)
    commit_stages(workspace.root)
    workspace.publish(f"{verdict.decision} {result.key}: {verdict.reason}", [event], tags=[f"run/{result.key}"])
    return event
