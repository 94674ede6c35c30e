"""Commands about batches: submit, batch list, show, admit, drop."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from ssclass.cli.common import (
    as_json,
    in_workspace,
    print_json,
    print_line,
    print_table,
    workspace_at,
    workspace_in_a_hurry,
)

if TYPE_CHECKING:
    from ssclass.history.batches import Story


from_source = click.option(
    "--source", "kind", default="main", show_default=True, help="Where the photos come from; see dataset.sources."
)


@click.command()
@click.argument("source", type=click.Path(path_type=Path))
@click.option("--id", "batch_id", help="Name of the batch; default: the folder's name and the time.")
@from_source
@in_workspace
@as_json
def submit(source: Path, batch_id: str | None, kind: str, folder: Path | None, as_json: bool) -> None:
    """Upload SOURCE as a batch: class folders, or a list of photos (SOURCE.csv or .jsonl: path, label, split).

    Exports of Roboflow, Label Studio, CVAT and WebDataset are taken as they are (docs/data.md). A manifest of
    corrections (SOURCE.json) is sent as it is.
    """
    import re
    from datetime import UTC, datetime

    from ssclass import progress
    from ssclass.data.submit import is_photos, submit_corrections
    from ssclass.data.submit import submit as upload

    workspace = workspace_at(folder)
    name = re.sub(r"[^A-Za-z0-9_-]+", "-", source.resolve().name.removesuffix(".json")).strip("-") or "batch"
    batch = batch_id or f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{name[:60]}"
    if source.is_file() and not is_photos(source):
        count = submit_corrections(workspace.store, source, batch)
        if as_json:
            print_json({"batch": batch, "corrections": count})
            return
        print_line(f"batch {batch}: {count} corrections; `ssclass retrain` ingests them")
        return
    with progress.shown():
        count = upload(
            workspace.store,
            source,
            batch,
            workspace.work_tree().params.dataset.classes,
            lambda done, total: progress.report(f"upload of {batch}", done, total),
            kind,
        )
    if as_json:
        print_json({"batch": batch, "photos": count, "place": f"s3://{workspace.settings.place}/incoming/{batch}/"})
        return
    print_line(
        f"batch {batch}: {count} photos in s3://{workspace.settings.place}/incoming/{batch}/; `ssclass retrain` "
        "ingests it"
    )


@click.command(name="import")
@click.argument("source")
@click.option("--id", "name", help="Name of the batches; default: the folder's name.")
@click.option("--size", type=click.IntRange(min=1), default=5000, show_default=True, help="Photos in a batch.")
@from_source
@in_workspace
@as_json
def import_(source: str, name: str | None, size: int, kind: str, folder: Path | None, as_json: bool) -> None:
    """Send a data set as batches: class folders, on disk or at s3://…, or a list (SOURCE.csv or .jsonl).

    Folders train/ and test/, and the list's column split, keep photos on their sides. Exports of Roboflow, Label
    Studio, CVAT and WebDataset are taken as they are (docs/data.md).
    """
    import re

    from ssclass import progress
    from ssclass.data.submit import fetch, import_folder
    from ssclass.environment import temporary_folder

    workspace = workspace_at(folder)
    prefix = name or re.sub(r"[^A-Za-z0-9_-]+", "-", Path(source).resolve().name).strip("-")[:90] or "import"
    with progress.shown(), temporary_folder(workspace.settings) as scratch:
        local = Path(source)
        if source.startswith("s3://"):
            local = scratch
            fetch(workspace.settings, source, local, lambda done, total: progress.report("download", done, total))
        sent = import_folder(
            workspace.store,
            local,
            prefix,
            workspace.work_tree().params.dataset.classes,
            size,
            lambda done, total: progress.report("upload", done, total),
            kind,
        )
    if as_json:
        print_json([{"batch": batch, "photos": count} for batch, count in sent.items()])
        return
    for batch, count in sent.items():
        print_line(f"batch {batch}: {count} photos")
    print_line("`ssclass retrain` ingests them")


@click.group()
def batch() -> None:
    """See what became of batches, and decide on held ones."""


@batch.command(name="list")
@in_workspace
@as_json
def list_(folder: Path | None, as_json: bool) -> None:
    """Show every batch and what became of it."""
    from ssclass.history.batches import stories

    found = stories(workspace_at(folder))
    if as_json:
        print_json([each.as_dict() for each in found])
        return
    print_table(
        ("batch", "received (UTC)", "status", "in", "there already", "refused", "warnings", "data", "decision"),
        [_cells(batch) for batch in found],
    )


def _cells(batch: Story) -> tuple[object, ...]:
    receipt = batch.receipt or {}
    refused = receipt.get("refused", {})
    return (
        batch.batch,
        (batch.received or "")[:16].replace("T", " "),
        batch.status,
        receipt.get("accepted"),
        receipt.get("duplicates"),
        sum(refused.values()) if receipt else None,
        ", ".join(sorted({item["code"] for item in receipt.get("warnings", ())})),
        batch.data_version,
        batch.decision and batch.decision["decision"],
    )


@batch.command()
@click.argument("batch_id")
@in_workspace
@as_json
def show(batch_id: str, folder: Path | None, as_json: bool) -> None:
    """Tell the story of a batch: what arrived, what was refused and why, what it changed."""
    from ssclass.history.batches import story

    found = story(workspace_at(folder), batch_id)
    if as_json:
        print_json(found.as_dict())
        return
    for line in _lines(found):
        print_line(line)


def _lines(found: Story) -> list[str]:
    lines = [f"{found.batch}  {found.status}{f': {found.reason}' if found.reason else ''}"]
    if found.received:
        lines.append(f"received   {found.received[:19].replace('T', ' ')} UTC")
    receipt = found.receipt
    if receipt:
        if receipt.get("source", "main") != "main":
            lines.append(f"source     {receipt['source']}")
        lines.append(f"photos     {receipt['accepted']} in, {receipt['duplicates']} there already")
        for label, sides in receipt["counts"].items():
            lines.append(f"           {label}: {sides['train']} to train, {sides['holdout']} held out")
        refused = receipt["refused"]
        if isinstance(refused, dict):
            lines += [f"refused    {count} {reason}" for reason, count in refused.items()]
        else:
            lines += [f"refused    {item['key']}: {item['reason']} ({item['detail']})" for item in refused]
        lines += [f"relabelled {sha256} → {label}" for sha256, label in (receipt.get("relabel") or {}).items()]
        lines += [f"removed    {sha256}" for sha256 in receipt.get("remove") or ()]
        again = (receipt.get("relabel_again") or {}).items()
        lines += [f"relabelled {sha256} → {label}, as it was already" for sha256, label in again]
        lines += [f"removed    {sha256}, as it was already" for sha256 in receipt.get("remove_again") or ()]
        lines += [f"warning    {item['code']}: {item['detail']}" for item in receipt.get("warnings", ())]
    if test := found.champion_test:
        lines.append(
            f"champion   {test['right']} of {test['n']} right before it learnt from them (p = {test['p']:.2g}, "
            f"run/{test['key']})"
        )
    if found.data_version:
        lines.append(f"data       {found.data_version}")
    if found.decision:
        lines.append(
            f"decision   {found.decision['decision']}: {found.decision['reason']} (run/{found.decision['key']}, "
            f"{found.decision['data_version']})"
        )
    lines += [
        f"{event['at'][:19].replace('T', ' ')}  {event.get('decision', event['event'])}" for event in found.events
    ]
    return lines


@batch.command()
@click.argument("batch_id")
@in_workspace
@as_json
def admit(batch_id: str, folder: Path | None, as_json: bool) -> None:
    """Let a HELD batch in with the next retrain."""
    from ssclass.upkeep import decisions

    decisions.admit(workspace_in_a_hurry(folder), batch_id)
    if as_json:
        print_json({"batch": batch_id, "status": "admitted"})
        return
    print_line(f"{batch_id} joins with the next `ssclass retrain`")


@batch.command()
@click.argument("batch_id")
@in_workspace
@as_json
def drop(batch_id: str, folder: Path | None, as_json: bool) -> None:
    """Keep a batch out for good, whether it is HELD or waits."""
    from ssclass.upkeep import decisions

    decisions.drop(workspace_in_a_hurry(folder), batch_id)
    if as_json:
        print_json({"batch": batch_id, "status": "dropped"})
        return
    print_line(f"{batch_id} stays out; its photos remain in incoming/{batch_id}/")


@batch.command()
@click.argument("batch_id")
@click.option("--reason", default="by hand", help="Why; shown by `batch show` and in the ledger.")
@in_workspace
def revoke(batch_id: str, reason: str, folder: Path | None) -> None:
    """Take an ingested batch out again: a new data version without it, which the next retrain learns from."""
    from ssclass.history.lineage import decisions_with
    from ssclass.upkeep.decisions import revoke as take_out

    workspace = workspace_in_a_hurry(folder)
    event = take_out(workspace, batch_id, reason)
    print_line(f"{batch_id} is out since data/{event.body['sequence']}; `ssclass retrain` learns without it")
    state = workspace.at().state
    learnt = {each.body["key"] for each in decisions_with(workspace.at().events, batch_id)}
    if state.champion in learnt:
        earlier = [number for number, key in enumerate(state.champions, 1) if key not in learnt]
        remedy = f"; `ssclass rollback {earlier[-1]}` goes back to one that has not" if earlier else ""
        print_line(f"the champion in force has learnt from it{remedy}")


COMMANDS = (submit, import_, batch)
