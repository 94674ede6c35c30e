"""Asking a deployment to train, on a real Prefect server; the worker is this test, which says how each run ended."""

import threading
from pathlib import Path
from typing import Any

import pytest
import requests

from ssclass.environment import quiet_libraries
from ssclass.errors import FailedError
from ssclass.settings import SETTINGS_FILE, load_settings
from ssclass.stack.deployment import deploy
from ssclass.workspace.workspace import Workspace
from tests.support.pipelines import Pipeline


class Worker(threading.Thread):
    """Takes every training that is asked for, and ends it in `state`."""

    def __init__(self, url: str) -> None:
        super().__init__(daemon=True)
        self.url, self.state, self.ended, self.stop = url, "FAILED", 0, threading.Event()

    def run(self) -> None:
        body = {"flows": {"name": {"any_": ["train"]}}, "flow_runs": {"state": {"type": {"any_": ["SCHEDULED"]}}}}
        while not self.stop.wait(0.2):
            for run in self.ask("flow_runs/filter", body) or []:
                state = {"state": {"type": self.state, "message": "said the test"}, "force": True}
                if self.ask(f"flow_runs/{run['id']}/set_state", state) is not None:
                    self.ended += 1

    def ask(self, path: str, body: dict[str, Any]) -> Any:
        """Prefect's answer; None while it is busy (SQLite answers 503 then), and the next round asks again."""
        try:
            answer = requests.post(f"{self.url}/{path}", json=body, timeout=30)
        except requests.RequestException:
            return None
        return answer.json() if answer.ok else None


def test_a_training_that_failed_is_asked_for_again_by_the_next_retrain(pipeline: Pipeline, tmp_path: Path):
    folder = pipeline.workspace(tmp_path / "workspace").root
    with (folder / SETTINGS_FILE).open("a") as file:
        file.write('train_deployment = "train/gpu"\n')
    workspace = Workspace(load_settings(folder))
    quiet_libraries(workspace.settings)
    deploy(workspace.settings, str(folder), [])
    from tasks import remote

    worker = Worker(pipeline.prefect)
    worker.start()
    try:
        with pytest.raises(FailedError, match="failed 3 times"):
            remote.train(workspace, workspace.head, "a-key", lambda: None)
        assert worker.ended == 3
        worker.state = "COMPLETED"
        assert remote.train(workspace, workspace.head, "a-key", lambda: "a-run") == "a-run"
        assert worker.ended == 4, "the failed ones do not count against it"
        assert remote.train(workspace, workspace.head, "a-key", lambda: "a-run") == "a-run"
        assert worker.ended == 4, "what is finished is found by its key"
    finally:
        worker.stop.set()
        worker.join(30)
