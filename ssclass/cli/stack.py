"""Commands about running by itself: up, down, deploy, listen."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from ssclass.cli.common import as_json, in_workspace, print_json, settings_at

if TYPE_CHECKING:
    from ssclass.settings import Settings


def needs_prefect(settings: Settings) -> None:
    """ParamsError where no Prefect server is named."""
    from ssclass.errors import ParamsError
    from ssclass.started import command

    if settings.prefect_url is None:
        where = settings.workspace
        raise ParamsError(
            f"{where}: no Prefect server is running or named; `{command(settings, 'up')}` starts one, or name yours as "
            "prefect_url in ssclass.toml"
        )


@click.command()
@click.option("--detach", is_flag=True, help="Return once everything runs; `ssclass down` stops it.")
@in_workspace
@as_json
def up(detach: bool, folder: Path | None, as_json: bool) -> None:
    """Run S3, Prefect, MLflow, listener and workers on this machine.

    A part that ssclass.toml names by its URL (s3_endpoint, prefect_url, mlflow_uri) is yours, and is not started.
    --json detaches.
    """
    from ssclass.settings import load_settings
    from ssclass.stack.manager import addresses
    from ssclass.stack.manager import up as start

    settings = load_settings(folder)
    start(settings, (lambda line: click.echo(line, err=True)) if as_json else click.echo, detach=detach or as_json)
    if as_json:
        print_json(addresses(settings))


@click.command()
@in_workspace
def down(folder: Path | None) -> None:
    """Stop what `ssclass up` started."""
    from ssclass.settings import load_settings
    from ssclass.stack.manager import down as stop

    stop(load_settings(folder), click.echo)


@click.command()
@click.option("--git", "git_url", is_flag=True, help="Tell the runs the URL of origin instead of this folder.")
@click.option(
    "--notify",
    multiple=True,
    envvar="SSCLASS_NOTIFY",
    help="Send notices to this URL, and to no other: http(s)://…, mailto(s)://…, slack://… or another of Apprise; "
    "repeatable; none: to nobody. One with a password: $SSCLASS_NOTIFY.",
)
@in_workspace
@as_json
def deploy(git_url: bool, notify: tuple[str, ...], folder: Path | None, as_json: bool) -> None:
    """Bring the Prefect server up to deployments.yaml."""
    from ssclass.stack.deployment import deploy as apply
    from ssclass.workspace.origin import Origin

    settings = settings_at(folder)
    needs_prefect(settings)
    where = Origin(settings).url if git_url else str(settings.workspace)
    changes = apply(settings, where, list(notify))
    if as_json:
        print_json({"prefect": settings.prefect_url, "changes": changes})
        return
    for line in changes:
        click.echo(line)
    click.echo(f"{settings.prefect_url}: {'up to date' if changes else 'nothing to change'}")


@click.command()
@click.option("--sqs", help="URL of the queue that S3 notifies; default: sqs in ssclass.toml.")
@click.option("--webhook", help="[HOST:]PORT to be notified at, path /s3; the secret is $SSCLASS_WEBHOOK_SECRET.")
@in_workspace
def listen(sqs: str | None, webhook: str | None, folder: Path | None) -> None:
    """Turn S3's notifications into Prefect events, and sweep for what they missed."""
    import logging
    import os
    import signal
    import threading

    from ssclass.secrets import LineFormatter, hide
    from ssclass.stack.listening import listen as run
    from ssclass.stack.webhook import server

    settings = settings_at(folder)
    needs_prefect(settings)
    secret = os.environ.get("SSCLASS_WEBHOOK_SECRET") or None
    hide(secret or "")
    serve = server(webhook, secret) if webhook else None
    handler = logging.StreamHandler()
    handler.setFormatter(LineFormatter("%(asctime)s %(message)s"))
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    run(settings, sqs or settings.sqs, serve, stop)


COMMANDS = (up, down, deploy, listen)
