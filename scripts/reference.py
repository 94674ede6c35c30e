"""Write docs/cli.md from the commands' own help: ``.venv/bin/python scripts/reference.py``."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import click

from ssclass.cli import cli

TARGET = Path(__file__).resolve().parent.parent / "docs" / "cli.md"
HEAD = """# Commands

Written by `scripts/reference.py` from each command's `--help`. Exit codes: 0 done, 1 something outside failed, 2 bad
input (or a batch was HELD); an error is one line on stderr that names the thing and the remedy. `ssclass --debug …`
shows the traceback.
"""


def helps(command: click.Command, context: click.Context) -> Iterator[tuple[str, str]]:
    """(path, help text) of a command and all below it."""
    if command.hidden:
        return
    yield context.command_path, command.get_help(context)
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            below = command.get_command(context, name)
            assert below is not None
            yield from helps(below, click.Context(below, info_name=name, parent=context, **cli.context_settings))


def reference() -> str:
    """The text of docs/cli.md."""
    root = click.Context(cli, info_name="ssclass", **cli.context_settings)
    parts = [f"## {path}\n\n```\n{text}\n```\n" for path, text in helps(cli, root)]
    return "\n".join([HEAD, *parts])


if __name__ == "__main__":
    TARGET.write_text(reference(), encoding="utf-8")
