"""The training: from a decision key to a logged result, on whichever machine has the means.

Called by the retrain in its own process, or as a deployment on a worker that shares no disk with it. What it leaves
is in S3 (``results/<key>/``) and MLflow, so that the retrain, or the next one, takes it up.
"""

from __future__ import annotations

from prefect import flow

from ssclass.workspace.clones import at_commit
from tasks import retraining as step


@flow(name="train", flow_run_name="train {key}", validate_parameters=False)
def train(workspace: str, key: str, commit: str | None = None) -> str:
    """Train for a decision key; returns the MLflow run. `workspace`: a folder, or a git URL, read at `commit`."""
    with at_commit(workspace, commit) as folder:
        where, at = str(folder), commit or "HEAD"
        step.check_key(where, at, key)
        step.train(where, at, key)
        return step.log_run(where, at, key)
