"""Commands that bring the champion to others: serve, export-model."""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path

import click

from ssclass.cli.common import FOLDER, as_json, in_workspace, print_json, print_line, settings_at, workspace_at

KEY = "SSCLASS_SERVE_KEY"


@click.command()
@click.option(
    "--listen", default="127.0.0.1:8008", show_default=True, metavar="[HOST:]PORT", help="Where to listen for requests."
)
@in_workspace
def serve(listen: str, folder: Path | None) -> None:
    """Answer on photos over HTTP, always by the champion; a key that clients must send: $SSCLASS_SERVE_KEY."""
    import logging

    from ssclass.errors import InputError
    from ssclass.stack.serving import parse_address, server
    from ssclass.upkeep.decisions import impatient

    try:
        host, port = parse_address(listen)
    except ValueError as error:
        raise InputError(f"--listen {listen}: {error}; give [HOST:]PORT") from None
    key = os.environ.get(KEY) or None
    local = host in ("127.0.0.1", "localhost", "::1")
    if not local and key is None:
        raise InputError(f"--listen {listen}: others can reach that; set {KEY} to a secret that clients must send")
    try:
        socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET).close()
    except OSError as error:
        raise InputError(f"--listen {listen}: {error.strerror or error}; choose another port") from None
    settings = settings_at(folder)
    # A poll that fails is asked again a second later: MLflow's own patience, minutes, would miss a new champion.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="%(asctime)s %(message)s")
    logging.getLogger("ssclass").setLevel(logging.INFO)
    logging.getLogger("urllib3").setLevel(logging.ERROR)  # it would tell of each poll that fails; we tell once

    from ssclass.serving.service import application
    from ssclass.serving.start import start

    service = start(workspace_at(settings.workspace), impatient(settings), key)
    running = server(application(service, local=local), host, port)
    click.echo(f"http://{host if ':' not in host else f'[{host}]'}:{port}/docs", err=True)
    running.run()


@click.command("export-model")
@click.argument("version", default="champion")
@click.option("--format", "kind", type=click.Choice(["litert", "onnx", "savedmodel"]), required=True)
@click.option("--dtype", type=click.Choice(["float32", "float16", "int8"]), default="float32", show_default=True)
@click.option("--to", type=FOLDER, help="A new folder; default: named by version, format and dtype, in this one.")
@in_workspace
@as_json
def export_model(version: str, kind: str, dtype: str, to: Path | None, folder: Path | None, as_json: bool) -> None:
    """Write VERSION for another runtime, checked on its held-out photos."""
    from ssclass import progress
    from ssclass.serving.checked import export_model as export
    from ssclass.serving.exporting import check_choice
    from ssclass.serving.model import open_model

    check_choice(kind, dtype)
    workspace = workspace_at(folder)
    target = to or Path(f"{version}-{kind}-{dtype}")
    with progress.shown():
        made = export(workspace, open_model(version, workspace.settings), kind, dtype, target, progress.report)
    if as_json:
        print_json(made)
        return
    found = made["check"]
    print_line(f"{target / made['file']}: {found['bytes'] / 1e6:.1f} MB, {found['milliseconds']:.0f} ms a photo")
    print_line(
        f"{found['right']} of {found['photos']} held-out photos right, the model {found['model_right']}; "
        f"probabilities differ by {found['largest_difference']:.1g} at most"
    )


COMMANDS = (serve, export_model)
