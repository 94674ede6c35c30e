"""A finished training is used again by whoever finds it, and nothing that lies in S3 is believed."""

import io
import json
import shutil
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ssclass.data.submit import submit
from ssclass.demo.drawings import draw
from ssclass.errors import FailedError
from ssclass.retrain import results
from ssclass.retrain.decide import decide
from ssclass.retrain.key import pending_key
from ssclass.retrain.predict import result_folder
from ssclass.retrain.result import Result
from ssclass.retrain.train import train
from ssclass.settings import CHECKOUT, Settings
from ssclass.store import Store
from ssclass.workspace.create import create
from ssclass.workspace.workspace import Workspace
from tests.support.models import needed_weights
from tests.support.pipelines import CLASSES, ingest_all, set_params

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


def test_a_result_made_elsewhere_is_confirmed_and_taken_up(workspace: Workspace, s3: Store, tmp_path: Path):
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
    computed = {item.key: item.modified for item in s3.list("features/")}
    outcome = json.loads(run(RETRAIN, workspace.root))
    assert outcome["decision"] == "PROMOTED"
    assert {item.key: item.modified for item in s3.list("features/")} == computed, "features were fetched, not computed"
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


@dataclass(frozen=True)
class Trained:
    """A question that a worker answered: its result and its features are in S3, and no other machine has them."""

    workspace: Workspace
    key: str

    def objects(self) -> dict[str, bytes]:
        store = self.workspace.store
        return {
            item.key: store.get(item.key) or b"" for prefix in ("results/", "features/") for item in store.list(prefix)
        }


@pytest.fixture(scope="module")
def trained(s3_endpoint: str, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    needed_weights()
    folder = tmp_path_factory.mktemp("trained")
    bucket = f"test-{uuid.uuid4().hex[:12]}"
    at = {"bucket": bucket, "s3_endpoint": s3_endpoint, "s3_region": "us-east-1"}
    Store(Settings(workspace=folder, bucket=bucket, s3_endpoint=s3_endpoint)).make_bucket()
    workspace = create(folder / "workspace", at)
    set_params(workspace, head="linear")
    draw(folder / "photos", CLASSES, 15)
    submit(workspace.store, folder / "photos", "day-1", CLASSES)
    ingest_all(workspace)
    key = pending_key(workspace.at())
    assert key is not None
    worker = create(folder / "worker", {}, git=workspace.origin)
    train(worker, worker.at(), key)
    results.keep(worker, key)
    return Trained(workspace, key)


@pytest.fixture
def host(trained: Trained, tmp_path: Path) -> Iterator[Workspace]:
    """A machine that is to decide; whatever a test does to S3 is undone."""
    before = trained.objects()
    yield create(tmp_path / "host", {}, git=trained.workspace.origin)
    store = trained.workspace.store
    for key in trained.objects().keys() - before.keys():
        store.delete(key)
    for key, data in before.items():
        store.put(key, data)


def forged(host: Workspace, trained: Trained, change: Callable[[dict[str, Any]], None]) -> None:
    name = f"results/{trained.key}/result.json"
    body = json.loads(host.store.get(name) or b"")
    change(body)
    host.store.put(name, json.dumps(body).encode())


def refused(host: Workspace, trained: Trained, words: str) -> None:
    """The decision ends in an error with these words; nothing is decided, and nothing of the result stays."""
    assert results.fetch(host, trained.key)
    with pytest.raises(FailedError, match=words):
        decide(host, trained.key, "a-run")
    assert host.newest().state.decisions == {}


def test_an_honest_result_is_confirmed_and_decided(host: Workspace, trained: Trained) -> None:
    assert results.fetch(host, trained.key)
    told = Result.read(result_folder(host, trained.key) / "result.json")
    results.confirm(host, host.at(), trained.key)
    ours = results.read(host, host.at(), trained.key)
    assert np.array_equal(ours.candidate.predicted, told.candidate.predicted)
    assert not (result_folder(host, trained.key) / results.ELSEWHERE).exists()


def test_labels_that_a_result_invents_do_not_count(host: Workspace, trained: Trained) -> None:
    def flip(body: dict[str, Any]) -> None:
        body["labels"] = body["candidate_class"]

    labels = json.loads(host.store.get(f"results/{trained.key}/result.json") or b"")
    if labels["labels"] == labels["candidate_class"]:  # it has all right: invent that it has none
        forged(host, trained, lambda body: body.update(labels=[1 - label for label in body["labels"]]))
    else:
        forged(host, trained, flip)
    refused(host, trained, "its labels are not those of the data set")


def test_answers_that_a_result_invents_do_not_count(host: Workspace, trained: Trained) -> None:
    def better(body: dict[str, Any]) -> None:
        body["candidate_class"] = [1 - each for each in body["candidate_class"]]
        body["candidate"] = [row[::-1] for row in body["candidate"]]

    forged(host, trained, better)
    refused(host, trained, "the candidate answers otherwise")


def test_features_of_other_photos_are_found_out(host: Workspace, trained: Trained) -> None:
    for item in host.store.list("features/"):
        with np.load(io.BytesIO(host.store.get(item.key) or b"")) as file:
            arrays = {name: file[name] for name in file.files}
        for name, values in arrays.items():
            if name != "sha256s":
                arrays[name] = np.random.default_rng(0).random(values.shape).astype(values.dtype)
        made = io.BytesIO()
        np.savez(made, **arrays)
        host.store.put(item.key, made.getvalue())
    refused(host, trained, "not the features of the photos")


@pytest.mark.parametrize(
    "name",
    [
        "candidate/../../../outside",
        "../outside",
        "/outside",
        "candidate/a/b",
        "candidate/.hidden",
        "x.py",
    ],
)
def test_a_result_writes_only_files_of_a_result(host: Workspace, trained: Trained, name: str) -> None:
    host.store.client.put_object(Bucket=host.store.bucket, Key=f"results/{trained.key}/{name}", Body=b"x")
    before = set(host.root.parent.rglob("*"))
    with pytest.raises(FailedError, match="no file of a result has this name"):
        results.fetch(host, trained.key)
    made = set(host.root.parent.rglob("*")) - before
    assert all(path.is_relative_to(host.private) for path in made)
    assert not [path for path in made if "outside" in path.name]


def test_curves_of_heads_that_were_not_chosen_stand_apart():
    """MLflow sorts charts by name: T1's were the first of forty, though another head was the model."""
    from types import SimpleNamespace
    from typing import Any

    from ssclass.tracking.report import curves

    result: Any = SimpleNamespace(
        head="bilinear",
        cross_validation={"T1": [0.9], "bilinear": [0.95], "rbf": [0.9]},
        history={"T1_loss": [2.0, 1.0], "bilinear_cv_loss": [0.3], "mobilenet/bilinear_cv_loss": [0.2]},
    )
    assert curves(result) == {
        "tried/T1_loss": [2.0, 1.0],
        "bilinear_cv_loss": [0.3],
        "mobilenet/bilinear_cv_loss": [0.2],
    }
