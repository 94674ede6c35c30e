"""A retrain needs neither Keras nor TensorFlow where another runtime computes features and NumPy trains."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import uuid
from pathlib import Path
from typing import Any

import pytest

from ssclass.data.submit import submit
from ssclass.model.runtimes import PACKAGES, described
from ssclass.retrain.challenger import challenger
from ssclass.workspace.create import create
from tests.support.models import needed_weights
from tests.support.pipelines import deal, set_params
from tests.support.shops import empty_mlflow

CHECKOUT = Path(__file__).parent.parent
CLASSES = ("sandwich", "sushi")
RETRAIN = """
import json, sys
from tests.support.fake_head import retrain_flow
flow, heavy = retrain_flow(), ("tensorflow", "keras", "scipy.stats", "sklearn")
told = flow.retrain(sys.argv[1])
print(json.dumps({"decision": told.decision, "imported": [name for name in heavy if name in sys.modules]}))
"""


def test_a_retrain_and_what_it_registers(s3_endpoint: str, tmp_path: Path) -> None:
    """The first one on a machine needs them: for the network's graph, and to hold what is written against Keras.

    Nor does the whole model of who is made the challenger, or promoted.
    """
    needed_weights()
    if not any(described(name) for name in PACKAGES):
        pytest.skip("no other runtime is installed")
    empty_mlflow(tmp_path / "mlflow.db")
    values = {"bucket": f"test-{uuid.uuid4().hex[:12]}", "s3_endpoint": s3_endpoint, "s3_region": "us-east-1"}
    workspace = create(tmp_path / "a", values | {"mlflow_uri": f"sqlite:///{tmp_path / 'mlflow.db'}", "exports": ""})
    workspace.store.make_bucket()
    set_params(workspace, head="bilinear", sizes="[128]", min_net_wins=99)
    environment = {**os.environ, "PYTHONPATH": str(CHECKOUT), "SSCLASS_EXPORTS": ""}

    def retrain(number: int, per_class: int) -> Any:
        deal(tmp_path / f"batch-{number}", CLASSES, per_class, number)
        submit(workspace.store, tmp_path / f"batch-{number}", f"batch-{number}", CLASSES)
        command = [sys.executable, "-c", RETRAIN, str(workspace.root)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-3000:]
        return json.loads(done.stdout.splitlines()[-1])

    assert retrain(0, 40)["decision"] == "PROMOTED"  # who is compared with nobody is promoted above the majority rate
    second = retrain(20, 3)
    assert second == {"decision": "REJECTED", "imported": []}
    assert challenger(workspace.at().state) is not None, "so its whole model was registered"
