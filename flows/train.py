"""The training: from a decision key to a logged result, on whichever machine has the means.

Called by the retrain in its own process, or as a deployment on a worker that shares no disk with it. What it leaves
is in S3 (``results/<key>/``) and MLflow, so that the retrain, or the next one, takes it up.
"""

from __future__ import annotations

from prefect import flow

from ssclass.workspace.clones import at_commit
from tasks import retraining as step
from tasks import telling


@flow(
    name="train",
    flow_run_name="train {key}",
    validate_parameters=False,
    persist_result=True,  # the MLflow run's id
    result_serializer="json",
)
def train(workspace: str, key: str, commit: str | None = None) -> str:
    """Train for a decision key; returns the MLflow run.

    Args:
        workspace: The workspace: its folder, or the URL of its git origin.
        key: The decision key: which data, params and code the training is of.
        commit: The commit of the workspace to train at; none: the folder as it is.
    """
    with at_commit(workspace, commit) as folder, telling.logged(str(folder)):
        where, at = str(folder), commit or "HEAD"
        step.check_key(where, at, key)
        telling.say(f"training for {key}")
        step.train(where, at, key)
        run_id = step.log_run(where, at, key)
        telling.say(f"trained {key}; MLflow run {run_id}")
        return run_id
