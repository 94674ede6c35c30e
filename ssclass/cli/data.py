"""Commands about the data set: export, data diff, data suspects, lineage, forget."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ssclass.cli.common import FILE, FOLDER, as_json, in_workspace, print_json, print_line, print_table, workspace_at


@click.command()
@click.argument("target", type=FOLDER)
@click.option(
    "--version", "rev", default="HEAD", help="A data version (data/3), a run tag or a commit; default: the newest."
)
@click.option(
    "--strip", is_flag=True, help="Take out of the photos what they say of place, camera and author; pixels stay."
)
@click.option(
    "--format",
    "kind",
    type=click.Choice(["folders", "parquet", "webdataset", "croissant"]),
    default="folders",
    show_default=True,
    help="Class folders, Parquet for Hugging Face datasets, pandas and DuckDB, or tars for WebDataset.",
)
@in_workspace
@as_json
def export(target: Path, rev: str, strip: bool, kind: str, folder: Path | None, as_json: bool) -> None:
    """Write the data set to TARGET as it is in force; photos byte for byte as they were received.

    Corrections are applied: labels are the corrected ones, removed photos are left out. The held-out photos are the
    split test.
    """
    from ssclass import progress
    from ssclass.history.export import export as write

    with progress.shown():
        count, telling = write(workspace_at(folder), target, rev, without_metadata=strip, kind=kind)
    if as_json:
        print_json({"photos": count, "target": str(target), "telling": telling, "stripped": strip})
        return
    click.echo(f"{count} photos in {target}")
    if telling:
        said = "without it now" if strip else "`--strip` takes it out"
        click.echo(f"{telling} of them said where, when or with what they were taken: {said}")


@click.group()
def data() -> None:
    """Look at data versions and labels."""


@data.command()
@click.argument("before")
@click.argument("after", default="HEAD")
@in_workspace
@as_json
def diff(before: str, after: str, folder: Path | None, as_json: bool) -> None:
    """Show what changed from data version BEFORE to AFTER."""
    from collections import Counter

    from ssclass.history.export import difference

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


@data.command()
@click.option("--top", type=click.IntRange(min=1), default=20, show_default=True, help="How many to show.")
@click.option("--html", type=FILE, help="Write a page with the photos.")
@click.option("--manifest", "manifest_file", type=FILE, help="Write the corrections as a manifest, to edit and submit.")
@in_workspace
@as_json
def suspects(top: int, html: Path | None, manifest_file: Path | None, folder: Path | None, as_json: bool) -> None:
    """Rank training labels that are probably wrong, by cross-validation; nothing is changed."""
    from ssclass import progress
    from ssclass.study.suspects import as_dicts, manifest, page, write
    from ssclass.study.suspects import suspects as rank

    workspace = workspace_at(folder)
    with progress.shown():
        ranking = rank(workspace, progress.report)
    found = ranking[:top]
    if html:
        write(html, page(workspace, found, len(ranking)).html())
    if manifest_file:
        write(manifest_file, manifest([each for each in found if each.issue]))
    if as_json:
        print_json(as_dicts(found))
        return
    print_table(
        ("", "photo", "batch", "label", "suggested", "p of label", "issue"),
        [
            (
                place,
                each.sha256[:16],
                each.batch,
                each.label,
                each.suggested,
                f"{each.quality:.3f}",
                "yes" if each.issue else "",
            )
            for place, each in enumerate(found, 1)
        ],
    )
    issues = sum(each.issue for each in ranking)
    click.echo(f"{issues} of {len(ranking)} training labels are probably wrong")


@click.command()
@click.argument("name")
@in_workspace
@as_json
def lineage(name: str, folder: Path | None, as_json: bool) -> None:
    """Tell where NAME comes from and where it went: a champion's number, a run key, data/N, a batch, a sha256."""
    from ssclass.history.lineage import lineage as trace

    found = trace(workspace_at(folder), name)
    if as_json:
        print_json(found)
        return
    for field, value in found.items():
        if not isinstance(value, list):
            print_line(f"{field:<13} {'–' if value is None else value}")
    for field, value in found.items():
        if isinstance(value, list) and value and isinstance(value[0], dict):
            print_table(tuple(value[0]), [_cells(item) for item in value], title=field)
        elif isinstance(value, list):
            print_line(f"{field:<13} {', '.join(map(str, value)) or 'none'}")


def _cells(item: dict[str, Any]) -> list[object]:
    return [
        ", ".join(f"{name} {sum(sides.values())}" for name, sides in cell.items()) if isinstance(cell, dict) else cell
        for cell in item.values()
    ]


@click.command()
@click.argument("sha256s", nargs=-1, required=True, metavar="SHA256...")
@click.option("--reason", default="by request", help="Why; kept in the ledger.")
@click.option("--yes", is_flag=True, help="Do not ask; old data versions lose these photos for good.")
@in_workspace
@as_json
def forget(sha256s: tuple[str, ...], reason: str, yes: bool, folder: Path | None, as_json: bool) -> None:
    """Take photos out of every store and every version, for good."""
    from dataclasses import asdict

    from ssclass.upkeep.forget import forget as take_out

    workspace = workspace_at(folder)
    if not yes:
        click.confirm(
            f"Forget {len(sha256s)} photos for good? Old data versions with them can no longer be pulled.", abort=True
        )
    done = take_out(workspace, sha256s, reason)
    if as_json:
        print_json(asdict(done))
        return
    rewritten = f"rewrote {', '.join(done.batches)}" if done.batches else "no batch had to be rewritten"
    click.echo(f"forgotten: {rewritten}; deleted {len(done.objects)} objects in S3")
    for model in done.models:
        click.echo(f"saw it: run/{model['key']} ({model['decision']}, {model['use']})")
    for copy in done.near_copies[:20]:
        print_line(f"stays, a near-copy: {copy['sha256'] or 'refused'} ({copy['batch']}: {copy['key']})")
    if len(done.near_copies) > 20:
        click.echo(f"and {len(done.near_copies) - 20} near-copies more; --json lists them all")
    if done.ledger_lines:
        click.echo(
            f"{done.ledger_lines} lines of the ledger, written by an older ssclass, quote 12 digits of a sha256; git "
            "keeps them"
        )
    if done.tags:
        click.echo(f"can no longer be pulled: {', '.join(done.tags)}")
    click.echo("other clones: delete their .ssclass/ and .dvc/cache/; copies that were exported are not ours to find")


COMMANDS = (export, data, lineage, forget)
