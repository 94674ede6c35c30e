"""The demo command."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click

from ssclass.cli.common import FOLDER, as_json, print_json, print_table


@click.command()
@click.option("--photos", type=FOLDER, help="Folder of class folders; default: drawings made by code.")
@click.option(
    "--workspace",
    "folder",
    type=FOLDER,
    help="A new folder for the workspace; default: the next of demo/001, demo/002, …",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Which photo goes into which batch.")
@as_json
def demo(photos: Path | None, folder: Path | None, seed: int, as_json: bool) -> None:
    """Run the whole pipeline on five deliveries, on this machine."""
    from ssclass.demo.run import run

    found = run(photos, folder, seed, lambda line: print(line, file=sys.stderr, flush=True))
    if as_json:
        print_json(found)
        return
    rows = [
        (
            number,
            step["what"],
            f"{step['accepted']} in, {step['refused']} refused" if step["accepted"] or step["refused"] else "",
            step["decision"],
            step["candidate"],
            step["champion"],
            step["data_version"],
            f"{step['seconds']:.0f}",
        )
        for number, step in enumerate(found["steps"], 1)
    ]
    click.echo("")
    print_table(("", "delivered", "photos", "decision", "candidate", "champion", "data", "s"), rows)
    click.echo("candidate, champion: right of the same held-out photos. Why, step by step:")
    for number, step in enumerate(found["steps"], 1):
        click.echo(f"  {number}. {step['decision']}: {step['reason']}")
    champion = found["champion"]
    if champion:
        low, high = champion["cv_accuracy_interval"]
        click.echo(
            f"champion {champion['number']} ({champion['head']}): {champion['right']} of {champion['of']} held-out "
            f"photos; cross-validated accuracy {champion['cv_accuracy']:.3f} (95 % {low:.3f} to {high:.3f})"
        )
    here = Path.cwd()
    root = Path(found["workspace"])
    shown = root.relative_to(here) if root.is_relative_to(here) else root
    program = Path(sys.argv[0])
    program = program.relative_to(here) if program.is_absolute() and program.is_relative_to(here) else program
    command = program if os.sep in str(program) and program.suffix != ".py" else "ssclass"
    click.echo(
        f"data and ledger  {shown} (git log, dvc.yaml, ledger.jsonl); models and runs in "
        f"{shown / '.ssclass' / 'mlflow'}"
    )
    click.echo(f"MLflow UI        {command} ui --workspace {shown}")
    click.echo(f"go on with it    {command} up --workspace {shown}")


COMMANDS = (demo,)
