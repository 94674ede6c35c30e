"""The command line. Only click is imported here and in the modules beside this one: `--help` is instant."""

from __future__ import annotations

import errno
import io
import os
import signal
import sys

import click

from ssclass import __version__
from ssclass.cli import (
    batches,
    data,
    demo,
    examples,
    models,
    review,
    services,
    serving,
    stack,
    stage,
    study,
    upkeep,
    weights,
    workspace,
)
from ssclass.errors import SsclassError
from ssclass.secrets import without_secrets

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""What the operating system says when a disk, or a person's share of it, is full."""


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__)
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def cli(debug: bool) -> None:
    """Retrain a photo classifier as labelled photos arrive, and promote only what is better."""
    if debug:
        os.environ["SSCLASS_DEBUG"] = "1"


for module in (workspace, batches, review, data, models, serving, study, weights, services, upkeep, demo, stack, stage):
    for command in module.COMMANDS:
        cli.add_command(command)


examples.add(cli)


def main() -> None:
    """Run a command; an error on purpose is one line on stderr, exit code 2 (bad input) or 1 (failed)."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal or a pipe may lack letters that a label has
            stream.reconfigure(errors="backslashreplace")
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # what it started ends with it
    try:
        sys.exit(cli.main(standalone_mode=False) or 0)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        sys.exit(130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except SsclassError as error:
        if os.environ.get("SSCLASS_DEBUG"):
            raise
        print(f"ssclass: {without_secrets(str(error))}", file=sys.stderr)
        sys.exit(error.exit_code)
    except OSError as error:
        if error.errno not in FULL or os.environ.get("SSCLASS_DEBUG"):
            raise
        where = f"{error.filename}: " if error.filename else ""
        print(
            f"ssclass: {where}{os.strerror(error.errno)}; make room on this disk, and run this again", file=sys.stderr
        )
        sys.exit(1)
