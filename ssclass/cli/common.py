"""What the commands share: the workspace option, JSON output, tables."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from ssclass.settings import Settings
    from ssclass.workspace.workspace import Workspace

F = TypeVar("F", bound=Callable[..., Any])

FOLDER = click.Path(path_type=Path, file_okay=False)
FILE = click.Path(path_type=Path, dir_okay=False)
as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


def in_workspace(function: F) -> F:
    """Add ``--workspace DIR``."""
    option = click.option(
        "--workspace",
        "folder",
        type=FOLDER,
        help="The workspace; default: $SSCLASS_WORKSPACE, or the one around this folder.",
    )
    return option(function)


def settings_at(folder: Path | None) -> Settings:
    """Settings of the workspace, with the libraries told where their files go."""
    from ssclass.environment import quiet_libraries
    from ssclass.workspace.clones import find_settings

    settings = find_settings(folder)
    quiet_libraries(settings)
    return settings


def settings_for(models: Sequence[str], folder: Path | None) -> Settings | None:
    """The workspace's settings; None where none is needed, as every model is a folder."""
    if folder is None and all(Path(name).is_dir() for name in models):
        return None
    return settings_at(folder)


def workspace_at(folder: Path | None) -> Workspace:
    """The workspace itself."""
    from ssclass.errors import WorkspaceError
    from ssclass.workspace.workspace import Workspace

    settings = settings_at(folder)
    if not (settings.workspace / ".git").exists():
        raise WorkspaceError(
            f"{settings.workspace}: has an ssclass.toml, but no git repository; make a workspace with "
            "`ssclass init DIR`, and copy ssclass.toml there"
        )
    return Workspace(settings)


def workspace_in_a_hurry(folder: Path | None) -> Workspace:
    """The workspace, for a command of an emergency: what is away is told after seconds."""
    from ssclass.upkeep.decisions import impatient
    from ssclass.workspace.workspace import Workspace

    return Workspace(impatient(settings_at(folder)))


def print_line(line: str, *, err: bool = False) -> None:
    """Print a line that may quote what others wrote, to stdout or stderr; it stays one line, and moves no cursor."""
    from ssclass.text import printable

    click.echo(printable(line), err=err)


def print_json(value: Any) -> None:
    """Print JSON to stdout."""
    click.echo(json.dumps(value, indent=1, default=str))


def print_table(columns: Sequence[str], rows: Iterable[Sequence[object]], title: str | None = None) -> None:
    """Print a table that also reads well in a log file."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from ssclass.text import printable

    cells = [["" if cell is None else printable(str(cell)) for cell in row] for row in rows]
    table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left", pad_edge=False)
    for place, column in enumerate(columns):
        word = not any(" " in row[place] for row in cells)  # an id is typed: it is neither cut nor broken
        table.add_column(column, no_wrap=word, overflow="ignore" if word else "fold")
    for row in cells:
        table.add_row(*map(Text, row))
    console = Console()
    if not console.is_terminal:
        console = Console(width=160)
    if table.__rich_measure__(console, console.options).minimum <= console.width:
        console.print(table)
        return
    if title:
        click.echo(title)
    wide = max(map(len, columns))
    for row in cells:  # too narrow for a table: an entry a line
        for column, cell in zip(columns, row, strict=True):
            if cell:
                click.echo(f"{column:<{wide}}  {cell}")
        click.echo("")
