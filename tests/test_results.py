"""A finished training is used again, by whoever finds it, and without TensorFlow."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ssclass.data.submit import submit
from ssclass.demo.drawings import draw
from ssclass.settings import CHECKOUT
from ssclass.store import Store
from ssclass.workspace.create import create
from ssclass.workspace.workspace import Workspace

CLASSES = ("sandwich", "sushi")
RETRAIN = """
import json, sys
from pathlib import Path
from ssclass.cli.common import settings_at
settings_at(Path(sys.argv[1]))
from flows.retrain import retrain
outcome = retrain(sys.argv[1])
print(json.dumps({"decision": outcome.decision, "tensorflow": "tensorflow" in sys.modules}))
"""
TRAIN = """
import sys
from pathlib import Path
from ssclass.cli.common import settings_at
settings = settings_at(Path(sys.argv[1]))
from flows.train import train
print(train(sys.argv[2], sys.argv[3], sys.argv[4]))
"""
INGEST = """
import sys
from pathlib import Path
from ssclass.retrain.ingest import ingest, waiting
from ssclass.cli.common import workspace_at
from ssclass.retrain.key import pending_key
workspace = workspace_at(Path(sys.argv[1]))
for ref in waiting(workspace.store, workspace.newest().state):
    ingest(workspace, ref)
print(pending_key(workspace.at()))
"""


@pytest.fixture
def workspace(s3: Store, tmp_path: Path) -> Workspace:
    made = create(
        tmp_path / "workspace",
        {
            "bucket": s3.bucket,
            "s3_endpoint": s3.settings.s3_endpoint or "",
            "s3_region": "us-east-1",
            "mlflow_uri": f"sqlite:///{tmp_path / 'mlflow.db'}",
        },
    )
    params = made.root / "params.yaml"
    params.write_text(params.read_text().replace("head: auto", "head: linear"))
    made.git("commit", "--quiet", "--all", "--message", "A quick head")
    made.git("push", "--quiet", "origin", "main")
    draw(tmp_path / "photos", CLASSES, 15)
    submit(Store(made.settings), tmp_path / "photos", "day-1", CLASSES)
    return made


def run(program: str, *arguments: str | Path) -> str:
    command = [sys.executable, "-c", program, *map(str, arguments)]
    done = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.strip().splitlines()[-1]


def test_a_result_made_elsewhere_is_taken_up_without_tensorflow(workspace: Workspace, s3: Store, tmp_path: Path):
    """Train from nothing but URLs, in a clone that is gone afterwards; decide where no training ever ran."""
    key = run(INGEST, workspace.root)
    origin = workspace.git("remote", "get-url", "origin")
    run_id = run(TRAIN, workspace.root, origin, key, workspace.head)
    assert not (workspace.private / "results").exists(), "the training touched the workspace's own folder"
    assert {key.rpartition("/")[2] for key in (each.key for each in s3.list(f"results/{key}/"))} >= {
        "result.json",
        "run.json",
        "metrics.json",
    }

    shutil.rmtree(workspace.private / "features", ignore_errors=True)
    outcome = json.loads(run(RETRAIN, workspace.root))
    assert outcome == {"decision": "PROMOTED", "tensorflow": False}
    assert not (workspace.private / "features").exists(), "features were fetched or computed"
    event = workspace.at().state.decisions[key]
    assert event.body["run_id"] == run_id

    again = json.loads(run(RETRAIN, workspace.root))
    assert again == {"decision": "SKIPPED", "tensorflow": False}


def test_other_code_refuses_the_work(workspace: Workspace):
    run(INGEST, workspace.root)
    origin = workspace.git("remote", "get-url", "origin")
    command = [sys.executable, "-c", TRAIN, str(workspace.root), origin, "0123456789abcdef", workspace.head]
    done = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True)
    assert done.returncode != 0
    assert "install the same ssclass on every worker" in done.stderr
