"""The command that opens the review: a local page on which a person decides."""

from __future__ import annotations

import logging
import socket
import sys
from pathlib import Path

import click

from ssclass.cli.common import in_workspace, workspace_at


@click.command()
@click.option("--port", type=click.IntRange(0, 65535), default=0, help="Port on this machine; default: a free one.")
@click.option("--open/--no-open", "show", default=True, help="Open the browser, where there is one.")
@in_workspace
def review(port: int, show: bool, folder: Path | None) -> None:
    """Decide in the browser on held batches and doubtful labels, and see what was refused.

    The page is on this machine alone, and only the address that is printed opens it. Nothing is sent before you say so;
    what you decided stays when you close it.
    """
    from ssclass.environment import free_port, temporary_folder, write_private
    from ssclass.errors import InputError
    from ssclass.review.application import application
    from ssclass.review.desk import Desk
    from ssclass.stack.serving import server
    from ssclass.upkeep.decisions import impatient
    from ssclass.workspace.workspace import Workspace

    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="%(asctime)s %(message)s")
    workspace = Workspace(impatient(workspace_at(folder).settings))
    port = port or free_port()
    try:
        socket.create_server(("127.0.0.1", port)).close()
    except OSError as error:
        raise InputError(f"--port {port}: {error.strerror or error}; choose another port") from None
    with temporary_folder(workspace.settings) as scratch:
        desk = Desk(workspace, scratch)
        entry = application(desk)
        address = f"http://127.0.0.1:{port}{entry.root}/"
        click.echo(address)
        if show:  # by a file of ours: others on this machine see the arguments of a browser
            write_private(page := scratch / "open.html", f'<meta http-equiv="refresh" content="0; url={address}">')
            click.launch(page.as_uri())
        try:
            server(entry, "127.0.0.1", port).run()
        finally:
            desk.jobs.close()
        if len(desk.steps):
            click.echo(f"{len(desk.steps)} steps are not sent; `ssclass review` has them again", err=True)


COMMANDS = (review,)
