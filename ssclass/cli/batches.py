"""Commands about batches: submit, batch admit, batch drop."""

from __future__ import annotations

from pathlib import Path

import click

from ssclass.cli.common import FOLDER, in_workspace, workspace_at


@click.command()
@click.argument("source", type=FOLDER)
@click.option("--id", "batch_id", help="Name of the batch; default: the folder's name and the time.")
@in_workspace
def submit(source: Path, batch_id: str | None, folder: Path | None) -> None:
    """Upload SOURCE's class folders as a batch."""
    import re
    from datetime import UTC, datetime

    from ssclass import progress
    from ssclass.batches import submit as upload
    from ssclass.store import Store

    workspace = workspace_at(folder)
    name = re.sub(r"[^A-Za-z0-9_-]+", "-", source.resolve().name).strip("-") or "batch"
    batch = batch_id or f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{name[:60]}"
    with progress.shown():
        count = upload(
            Store(workspace.settings),
            source,
            batch,
            workspace.params.dataset.classes,
            lambda done, total: progress.report(f"upload of {batch}", done, total),
        )
    click.echo(
        f"batch {batch}: {count} photos in s3://{workspace.settings.bucket}/incoming/{batch}/; `ssclass retrain` "
        "takes it in"
    )


@click.group()
def batch() -> None:
    """Decide on held batches."""


@batch.command()
@click.argument("batch_id")
@in_workspace
def admit(batch_id: str, folder: Path | None) -> None:
    """Let a HELD batch in with the next retrain."""
    from ssclass.operations import answer_held

    answer_held(workspace_at(folder), batch_id, "admit")
    click.echo(f"{batch_id} joins with the next `ssclass retrain`")


@batch.command()
@click.argument("batch_id")
@in_workspace
def drop(batch_id: str, folder: Path | None) -> None:
    """Keep a HELD batch out for good."""
    from ssclass.operations import answer_held

    answer_held(workspace_at(folder), batch_id, "drop")
    click.echo(f"{batch_id} stays out; its photos remain in incoming/{batch_id}/")


COMMANDS = (submit, batch)
