"""Commands about the services that a workspace uses: bucket setup, doctor."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from ssclass.cli.common import as_json, in_workspace, print_json, settings_at


@click.group()
def bucket() -> None:
    """Prepare the bucket."""


@bucket.command()
@click.option("--print", "only_print", is_flag=True, help="Change nothing: print bucket, rules and policies as JSON.")
@click.option("--notify", help="ARN of the queue or webhook that S3 tells of new batches.")
@in_workspace
@as_json
def setup(only_print: bool, notify: str | None, folder: Path | None, as_json: bool) -> None:
    """Make the bucket, its folders and lifecycle rules; --print gives the roles' policies."""
    from ssclass.store import Store
    from ssclass.upkeep.bucket import FOLDERS, check_queue, plan
    from ssclass.upkeep.bucket import notify as announce
    from ssclass.upkeep.bucket import setup as prepare

    settings = settings_at(folder)
    if only_print:
        print_json(plan(settings.place))
        return
    if notify:
        check_queue(notify)
    has_rules = prepare(Store(settings))
    rules = "lifecycle rules" if has_rules else "no lifecycle rules, as this server has none"
    if notify:
        announce(Store(settings), notify)
    if as_json:
        print_json({"place": f"s3://{settings.place}", "folders": FOLDERS, "lifecycle": has_rules, "notifies": notify})
        return
    if notify:
        click.echo(f"s3://{settings.place} tells {notify} of markers under incoming/")
    click.echo(f"s3://{settings.place}: {', '.join(f'{name}/' for name in FOLDERS)}, {rules}")
    click.echo("policies of every role: `ssclass bucket setup --print`")


@click.command()
@in_workspace
@as_json
def doctor(folder: Path | None, as_json: bool) -> None:
    """Probe S3, DVC, git, MLflow, Prefect and the GPU for real; say how to mend what fails."""
    from dataclasses import replace

    from ssclass.secrets import without_secrets
    from ssclass.upkeep.doctor import FAILED, examine

    found = []
    for each in examine(settings_at(folder)):
        each = replace(each, detail=without_secrets(each.detail))
        found.append(each)
        if not as_json:
            click.echo(f"{each.state:<7} {each.part}: {each.detail}")
            if each.remedy:
                click.echo(f"        → {each.remedy}")
    if as_json:
        print_json([each.as_dict() for each in found])
    if any(each.state == FAILED for each in found):
        sys.exit(1)


COMMANDS = (bucket, doctor)
