"""Commands about the data set: export, data diff, lineage."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ssclass.cli.common import FOLDER, as_json, in_workspace, print_json, print_table, workspace_at


@click.command()
@click.argument("target", type=FOLDER)
@click.option(
    "--version", "rev", default="HEAD", help="A data version (data/3), a run tag or a commit; default: the newest."
)
@in_workspace
def export(target: Path, rev: str, folder: Path | None) -> None:
    """Write the data set to TARGET as class folders."""
    from ssclass import progress
    from ssclass.export import export as write

    with progress.shown():
        count = write(workspace_at(folder), target, rev)
    click.echo(f"{count} photos in {target}")


@click.group()
def data() -> None:
    """Look at data versions."""


@data.command()
@click.argument("before")
@click.argument("after", default="HEAD")
@in_workspace
@as_json
def diff(before: str, after: str, folder: Path | None, as_json: bool) -> None:
    """Show what changed from data version BEFORE to AFTER."""
    from collections import Counter

    from ssclass.export import difference

    found = difference(workspace_at(folder), before, after)
    if as_json:
        print_json(found.as_dict())
        return
    rows: list[tuple[object, ...]] = []
    for name, changed in (("added", found.added), ("removed", found.removed)):
        rows += [
            (name, label, split, count)
            for (label, split), count in sorted(Counter((row.label, row.split) for row in changed).items())
        ]
    rows += [
        ("relabelled", f"{old} → {new}", split, count)
        for (old, new, split), count in sorted(
            Counter((a.label, b.label, b.split) for a, b in found.relabelled).items()
        )
    ]
    print_table(("change", "class", "split", "photos"), rows or [("none", "", "", 0)])


@click.command()
@click.argument("name")
@in_workspace
@as_json
def lineage(name: str, folder: Path | None, as_json: bool) -> None:
    """Tell where NAME comes from and where it went: a champion's number, a run key, data/N, a batch, a sha256."""
    from ssclass.lineage import lineage as trace

    found = trace(workspace_at(folder), name)
    if as_json:
        print_json(found)
        return
    for field, value in found.items():
        if not isinstance(value, list):
            click.echo(f"{field:<13} {'–' if value is None else value}")
    for field, value in found.items():
        if isinstance(value, list) and value and isinstance(value[0], dict):
            print_table(tuple(value[0]), [_cells(item) for item in value], title=field)
        elif isinstance(value, list):
            click.echo(f"{field:<13} {', '.join(map(str, value)) or 'none'}")


def _cells(item: dict[str, Any]) -> list[object]:
    return [
        ", ".join(f"{name} {sum(sides.values())}" for name, sides in cell.items()) if isinstance(cell, dict) else cell
        for cell in item.values()
    ]


COMMANDS = (export, data, lineage)
