"""Commands for the long run: gc, rebuild, verify."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from ssclass.cli.common import as_json, in_workspace, print_json, print_line, print_table, workspace_at


@click.command()
@click.option(
    "--days",
    type=click.IntRange(min=1),
    default=30,
    show_default=True,
    help="Whatever is younger than this stays.",
)
@click.option(
    "--keep-champions/--no-keep-champions",
    default=True,
    show_default=True,
    help="Keep every champion in DVC's store, or only the one in force.",
)
@click.option("--dry-run", is_flag=True, help="Delete nothing: print what would go.")
@in_workspace
@as_json
def gc(days: int, keep_champions: bool, dry_run: bool, folder: Path | None, as_json: bool) -> None:
    """Delete what nothing points at: old candidates, features, results, quarantine, caches."""
    from ssclass.upkeep.gc import KINDS, collect

    found = collect(workspace_at(folder), days, keep_champions=keep_champions, dry_run=dry_run)
    if as_json:
        print_json([each.as_dict() for each in found])
        return
    for each in found:
        print_line(f"{each.size:>14,}  {each.kind}: {each.where}")
    rows = [(kind, [each.size for each in found if each.kind == kind]) for kind in KINDS]
    total = [each.size for each in found]
    said = "would go" if dry_run else "gone"
    print_table(
        ("what", said, "bytes"),
        [(kind, len(sizes), f"{sum(sizes):,}") for kind, sizes in (*rows, ("in all", total))],
    )


@click.command()
@in_workspace
@as_json
def rebuild(folder: Path | None, as_json: bool) -> None:
    """Make MLflow's runs and registry anew from the ledger and DVC, as far as they are missing."""
    from dataclasses import asdict

    from ssclass import progress
    from ssclass.upkeep.rebuild import rebuild as make

    with progress.shown():
        made = make(workspace_at(folder), progress.report)
    if as_json:
        print_json([asdict(each) for each in made])
        return
    for each in made:
        click.echo(f"{each.decision} {each.key}{f' ({each.note})' if each.note else ''}")
    click.echo(f"{len(made)} runs made anew" if made else "every run is there")


@click.command()
@click.option("--repair", is_flag=True, help="Put right what can be made again from the ledger.")
@in_workspace
@as_json
def verify(repair: bool, folder: Path | None, as_json: bool) -> None:
    """Check ledger, tags, shards, DVC objects, features, runs, models and alias against each other."""
    from ssclass import progress
    from ssclass.upkeep.verify import verify as check

    found = []
    with progress.shown():
        for each in check(workspace_at(folder), repair=repair, report=progress.report):
            found.append(each)
            if not as_json:
                print_line(each.line())
    if as_json:
        print_json([each.as_dict() for each in found])
    elif not found:
        click.echo("all is well")
    if not all(each.mended for each in found):
        sys.exit(1)


COMMANDS = (gc, rebuild, verify)
