"""Commands about the workspace: init, status, history, rollback, freeze, unfreeze."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

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
    workspace_in_a_hurry,
)


@click.command()
@click.argument("folder", type=FOLDER)
@click.option("--name", help="What it is called on servers that others use too, as in shop; default: ssclass.")
@click.option(
    "--bucket", default="ssclass", show_default=True, help="Bucket, or s3://bucket/prefix; prefix by default: --name."
)
@click.option("--git", "git_url", help="URL of origin; default: a bare repository beside FOLDER.")
@click.option("--endpoint", help="URL of an S3-compatible server; default: AWS.")
@click.option("--region", help="AWS region.")
@click.option("--profile", help="Name of a profile in your AWS configuration.")
@click.option("--mlflow", help="MLflow tracking URI; default: SQLite in the workspace.")
@click.option("--prefect", help="Prefect API URL; default: a temporary server per run.")
@as_json
def init(
    folder: Path, name: str | None, bucket: str, git_url: str | None, as_json: bool, **services: str | None
) -> None:
    """Make a workspace in FOLDER, or clone the one at --git."""
    from ssclass.settings import check_name
    from ssclass.workspace.create import create

    names = {
        "endpoint": "s3_endpoint",
        "region": "s3_region",
        "profile": "s3_profile",
        "mlflow": "mlflow_uri",
        "prefect": "prefect_url",
    }
    at, _, prefix = bucket.removeprefix("s3://").strip("/").partition("/")
    values = {"bucket": at}
    if name is not None:
        check_name(name)
        values |= {"name": name, "model_name": name}
    if prefix or name:
        values["s3_prefix"] = prefix or name or ""
    values |= {names[option]: value for option, value in services.items() if value}
    workspace = create(folder.resolve(), values, git_url)
    named = services["endpoint"] or services["region"] or services["profile"]
    if as_json:
        print_json({"workspace": str(workspace.root), "origin": workspace.origin, "place": workspace.settings.place})
        return
    click.echo(f"workspace {workspace.root}, origin {workspace.git('remote', 'get-url', 'origin')}")
    then = "`ssclass submit DIR`, then `ssclass retrain`" if named else "`ssclass up`; then `ssclass submit DIR`"
    click.echo(f"next: cd {folder}; edit params.yaml (dataset.classes) and push it; {then}")


@click.command()
@in_workspace
@as_json
def status(folder: Path | None, as_json: bool) -> None:
    """Show champion, data, held and waiting batches, the stack and the health of the loop."""
    from ssclass.errors import StoreError
    from ssclass.retrain.challenger import challenger
    from ssclass.retrain.health import health
    from ssclass.retrain.ingest import waiting
    from ssclass.stack.health import lines, loop

    workspace = workspace_at(folder)
    state, dataset = workspace.at().state, workspace.at().dataset
    champion = state.decisions[state.champion].body if state.champion else None
    newest = state.newest_score(state.champion) if state.champion else None
    decided, close = next(reversed(state.decisions.values()), None), challenger(state)
    try:
        pending: list[str] | str = [ref.id for ref in waiting(workspace.store, state)]
    except StoreError as error:
        pending = str(error)
    found = {
        "workspace": str(workspace.root),
        "champion": champion
        and {
            "number": state.number_of(champion["key"]),
            "key": champion["key"],
            **champion["candidate"],
            "of": champion["holdout"]["size"],
            "data_version": champion["data_version"],
            "newest": newest and dict(zip(("right", "of", "data_version"), newest, strict=True)),
        },
        "last_decision": decided
        and {"at": decided.at}
        | {name: decided.body[name] for name in ("decision", "reason", "key", "data_version", "batches")},
        "challenger": close
        and {name: close.body[name] for name in ("key", "data_version", "reason", "mcnemar_p")}
        | {"right": close.body["candidate"]["right"], "champion_right": close.body["champion"]["right"]}
        | {"of": close.body["holdout"]["size"]},
        "frozen": state.frozen,
        "data_version": workspace.at().data_version,
        "photos": dataset.counts(),
        "held": [{"batch": batch, "reason": event.body["reason"]} for (batch, _), event in state.held.items()],
        "waiting": pending,
    }
    running, well = loop(workspace.settings), health(state, dataset)
    found["health"] = well.as_dict()
    if as_json:
        print_json(found | {"loop": running})
        return
    if champion and newest:
        then = f"{champion['candidate']['right']} of {champion['holdout']['size']}"
        click.echo(
            f"champion   {state.number_of(champion['key'])}: {newest[0]} of {newest[1]} held-out photos right "
            f"({newest[2]}); {then} when promoted ({champion['data_version']}, run/{champion['key']})"
        )
    else:
        click.echo("champion   none yet")
    if decided:
        at, body = decided.at[:16].replace("T", " "), decided.body
        print_line(f"decision   {body['decision']} {at} UTC ({body['data_version']}): {body['reason']}")
    if close:
        ours, theirs, size = (
            close.body["candidate"]["right"],
            close.body["champion"]["right"],
            close.body["holdout"]["size"],
        )
        print_line(
            f"challenger run/{close.body['key']}: {ours} of {size} held-out photos right, the champion {theirs} "
            f"({close.body['data_version']}); `ssclass evaluate DIR --models champion,challenger` compares them"
        )
    if state.frozen:
        print_line(f"promotion  frozen: {state.frozen}; `ssclass unfreeze` lets it go on")
    photos = ", ".join(
        f"{sum(sides.values())} {name} ({sides['holdout']} held out)" for name, sides in dataset.counts().items()
    )
    print_line(f"data       {workspace.at().data_version}: {photos or 'empty'}")
    for (batch, _), event in state.held.items():
        print_line(
            f"held       {batch}: {event.body['reason']}; `ssclass batch admit {batch}` or `ssclass batch drop {batch}`"
        )
    print_line(f"waiting    {pending if isinstance(pending, str) else ', '.join(pending) or 'none'}")
    for source, each in well.running.items():
        low, high = each.interval.low, each.interval.high
        print_line(
            f"running    {source}: {each.right} of {each.n} right before they were learnt from ({low:.0%} to "
            f"{high:.0%}), {each.expected:.0f} usual; the last {each.batches} batches"
        )
    for source, calibration in well.calibration.items():
        print_line(f"calibration {source}: {calibration.told()}; the last {calibration.batches} batches")
    ages = {"champion": well.champion_days, "decision": well.decision_days, "batch": well.batch_days}
    if known := [f"{name} {days:.1f}" for name, days in ages.items() if days is not None]:
        print_line(f"days ago   {', '.join(known)}")
    for alarm in well.alarms:
        print_line(f"alarm      {alarm}")
    for line in lines(running):
        click.echo(line)


@click.command()
@click.option("--plot", is_flag=True, help="Draw how candidates and champions did, decision by decision.")
@in_workspace
@as_json
def history(plot: bool, folder: Path | None, as_json: bool) -> None:
    """Show every event of the ledger, oldest first."""
    import json

    workspace = workspace_at(folder)
    events = workspace.at().events
    if plot:
        _draw([event.body for event in workspace.at().state.decisions.values()])
        return
    if as_json:
        print_json([json.loads(event.line()) for event in events])
        return
    rows = []
    for event in events:
        body = event.body
        champion = body.get("champion")
        scores = (
            f"{body['candidate']['right']} / {champion['right'] if champion else '–'} of {body['holdout']['size']}"
            if "candidate" in body
            else ""
        )
        what = body.get("decision", event.kind)
        said = body.get("reason") or _ingest_line(body.get("receipt")) or ""
        rows.append(
            (event.at[:19].replace("T", " "), what, body.get("batch") or body.get("data_version") or "", scores, said)
        )
    print_table(("when (UTC)", "what", "on", "candidate / champion", "why"), rows)


def _draw(decisions: Sequence[dict[str, Any]]) -> None:
    """Show candidate and champion of each decision on the same held-out photos as bars, from the least share shown."""
    from rich.bar import Bar
    from rich.console import Console
    from rich.table import Table

    decisions = [body for body in decisions if body["holdout"]["size"]]
    if not decisions:
        print_line("no decisions yet; `ssclass retrain` makes one")
        return
    models = ("champion", "candidate")
    share = [{of: body[of]["right"] / body["holdout"]["size"] for of in models if body.get(of)} for body in decisions]
    least = max(0.0, min(value for each in share for value in each.values()) - 0.05)
    table = Table(box=None, pad_edge=False)
    for name in ("on", "decision", "model", "right"):
        table.add_column(name, no_wrap=True)
    table.add_column(f"{least:.0%} to 100%", ratio=1)
    for body, each in zip(decisions, share, strict=True):
        for of, value in each.items():
            first = of == next(iter(each))
            table.add_row(
                str(body.get("data_version") or "") if first else "",
                str(body["decision"]) if first else "",
                of,
                f"{body[of]['right']}/{body['holdout']['size']}",
                Bar(1 - least, 0, value - least),
            )
    Console(width=None if sys.stdout.isatty() else 80).print(table)


def _ingest_line(receipt: dict[str, object] | None) -> str | None:
    if receipt is None:
        return None
    refused = receipt["refused"]
    assert isinstance(refused, dict)
    reasons = ", ".join(f"{count} {reason}" for reason, count in refused.items())
    said = f"{receipt['accepted']} photos in, {receipt['duplicates']} there already, {sum(refused.values())} refused"
    return f"{said} ({reasons})" if reasons else said


@click.command()
@click.argument("number", type=int, required=False)
@in_workspace
def rollback(number: int | None, folder: Path | None) -> None:
    """Make champion NUMBER the champion again, and freeze promotion.

    Without NUMBER: the one before the champion that was promoted last. Given again, it changes nothing more.
    """
    from ssclass.upkeep.decisions import roll_back

    workspace = workspace_in_a_hurry(folder)
    event, in_force = roll_back(workspace, number)
    key = workspace.at().state.champion
    already = " already" if event is None else ""
    click.echo(f"champion {in_force} (run/{key}) is{already} in force; promotion is frozen until `ssclass unfreeze`")


@click.command()
@click.option("--reason", default="by hand", help="Why; shown by status and in decisions.")
@in_workspace
def freeze(reason: str, folder: Path | None) -> None:
    """Stop promotion: retrains still train and record, nothing becomes champion."""
    from ssclass.upkeep import decisions

    decisions.freeze(workspace_in_a_hurry(folder), reason)
    click.echo("promotion is frozen until `ssclass unfreeze`")


@click.command()
@in_workspace
def unfreeze(folder: Path | None) -> None:
    """Let promotion go on."""
    from ssclass.upkeep.decisions import append

    append(workspace_in_a_hurry(folder), "unfreeze", "Unfreeze")
    click.echo("promotion goes on with the next retrain")


@click.command()
@click.option("--port", type=int, default=0, help="Port on 127.0.0.1; default: a free one.")
@in_workspace
def ui(port: int, folder: Path | None) -> None:
    """Open the MLflow UI on this workspace's runs."""
    import secrets
    import sys

    from ssclass.environment import free_port
    from ssclass.stack.viewing import view
    from ssclass.tracking.client import Tracking

    settings = settings_at(folder)
    tracking = Tracking(settings)
    if settings.mlflow_uri and settings.mlflow_uri.startswith("http"):
        click.echo(tracking.page(settings.mlflow_uri))
        return
    port, password = port or free_port(), secrets.token_hex(8)
    click.echo(f"MLflow UI: {tracking.page(f'http://127.0.0.1:{port}')}  (Ctrl-C ends it)")
    click.echo(f"it asks once: user ssclass, password {password}")
    sys.exit(view(settings, port, password))


COMMANDS = (init, status, history, rollback, freeze, unfreeze, ui)
