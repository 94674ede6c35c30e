"""Commands that bring the champion to others, and photos back: serve, export-model, wanted."""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path

import click

from ssclass.cli.common import (
    FOLDER,
    as_json,
    in_workspace,
    print_json,
    print_line,
    print_table,
    settings_at,
    workspace_at,
)

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
@click.option("--format", "kind", type=click.Choice(["litert", "onnx", "savedmodel", "tfjs"]), required=True)
@click.option("--dtype", type=click.Choice(["float32", "float16", "int8"]), default="float32", show_default=True)
@click.option("--to", type=FOLDER, help="A new folder; default: named by version, format and dtype, in this one.")
@in_workspace
@as_json
def export_model(version: str, kind: str, dtype: str, to: Path | None, folder: Path | None, as_json: bool) -> None:
    """Write VERSION for another runtime, checked on its held-out photos."""
    from ssclass import progress
    from ssclass.serving.attached import attached_to
    from ssclass.serving.checked import export_model as export
    from ssclass.serving.exporting import check_choice
    from ssclass.serving.model import open_model

    check_choice(kind, dtype)
    workspace = workspace_at(folder)
    target = to or Path(f"{version}-{kind}-{dtype}")
    with progress.shown():
        made = attached_to(workspace, version, f"{kind}-{dtype}", target) or export(
            workspace, open_model(version, workspace.settings), kind, dtype, target, progress.report
        )
    if as_json:
        print_json(made)
        return
    found = made["check"]
    print_line(f"{target / made['file']}: {found['bytes'] / 1e6:.1f} MB, {found['milliseconds']:.0f} ms a photo")
    print_line(
        f"{found['right']} of {found['photos']} held-out photos right, the model {found['model_right']}; "
        f"probabilities differ by {found['largest_difference']:.1g} at most"
    )


@click.command()
@click.argument("source", metavar="DIR|s3://BUCKET/PREFIX")
@click.option("--count", type=click.IntRange(min=1), default=100, show_default=True, help="How many photos to name.")
@click.option("--to", type=FOLDER, help="A new folder for them, with a list to fill in for `ssclass submit`.")
@in_workspace
@as_json
def wanted(source: str, count: int, to: Path | None, folder: Path | None, as_json: bool) -> None:
    """Name the unlabelled photos in SOURCE that the champion would learn most from, the best first."""
    from ssclass import progress
    from ssclass.errors import InputError
    from ssclass.serving.wanted import LIST, write
    from ssclass.serving.wanted import wanted as find

    if to is not None and to.exists():
        raise InputError(f"--to {to}: is there already; name a new folder")
    with progress.shown():
        found = find(workspace_at(folder), source, count, progress.report)
    if to is not None:
        write(found, to)
    refused = [{"photo": name, "reason": f"{why.reason}: {why.detail}"} for name, why in found.refused]
    if as_json:
        counts = {"looked_at": found.looked_at, "known": found.known, "copies": found.copies}
        print_json({**counts, "refused": refused, "photos": [each.as_dict() for each in found.photos]})
        return
    for item in refused:
        print_line(f"left out {item['photo']}: {item['reason']}", err=True)
    print_table(
        ("photo", "champion says", "probability", "novelty"),
        [(each.photo.name, each.label, f"{each.probability:.3f}", f"{each.novelty:.3f}") for each in found.photos],
    )
    print_line(
        f"{len(found.photos)} of {found.looked_at} photos; {found.known} are in the data set, {found.copies} are copies"
    )
    if to is not None:
        print_line(f"fill in the labels in {to / LIST}, take out lines without one, then `ssclass submit {to / LIST}`")


COMMANDS = (serve, export_model, wanted)
