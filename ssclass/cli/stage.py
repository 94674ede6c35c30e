"""The steps of dvc.yaml, and what a fresh clone needs. For `dvc repro`; hidden from the list of commands."""

from __future__ import annotations

from pathlib import Path

import click


@click.group(hidden=True)
def stage() -> None:
    """Run one step in this folder, a checkout or an experiment's copy of the workspace."""


@stage.command()
def bootstrap() -> None:
    """Make the folders of the empty data set."""
    from ssclass.workspace.dvc import bootstrap as make

    make(Path.cwd())


@stage.command()
def code() -> None:
    """Write this code's digest to code.json, which the steps depend on."""
    from ssclass.code import code_json

    Path("code.json").write_text(code_json())


@stage.command()
def train() -> None:
    """Train on data/ by params.yaml; writes candidate/."""
    _step("train")


@stage.command()
def evaluate() -> None:
    """Score candidate/ on the held-out photos; writes metrics.json."""
    _step("evaluate")


def _step(name: str) -> None:
    import os

    from ssclass import progress
    from ssclass.environment import quiet_libraries
    from ssclass.retrain.train import STAGES
    from ssclass.settings import Settings
    from ssclass.workspace.workspace import Workspace

    settings = Settings(workspace=Path(os.environ.get("DVC_ROOT") or Path.cwd()))
    quiet_libraries(settings)
    with progress.shown():
        STAGES[name](Workspace(settings), progress.report)


COMMANDS = (stage,)
