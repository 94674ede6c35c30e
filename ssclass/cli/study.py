"""Commands that make pages: study, explain, report."""

from __future__ import annotations

from pathlib import Path

import click

from ssclass.cli.common import (
    FILE,
    FOLDER,
    as_json,
    in_workspace,
    print_json,
    print_line,
    print_table,
    settings_at,
    settings_for,
    workspace_at,
)


@click.command()
@click.argument("rows", nargs=-1)
@click.option("--list", "only_list", is_flag=True, help="Train nothing: show the rows and which are finished.")
@in_workspace
@as_json
def study(rows: tuple[str, ...], only_list: bool, folder: Path | None, as_json: bool) -> None:
    """Train and compare the ROWS of study.yaml (default: all) on the workspace's data set.

    Rows that are finished are not trained again. Each row becomes a run in MLflow; study.md and study.html have the
    table. No model of the study is registered or promoted.
    """
    from ssclass import progress
    from ssclass.study.report import as_dict
    from ssclass.study.rows import choose, load_rows
    from ssclass.study.run import run_study, survey, write

    workspace = workspace_at(folder)
    chosen = [row.name for row in choose(load_rows(workspace), rows)]
    if only_list:
        found = survey(workspace, load_rows(workspace), workspace.at().dataset)
    else:
        with progress.shown():
            found = run_study(workspace, rows, progress.report, lambda line: click.echo(line, err=True))
    record = as_dict(found)
    if as_json:
        print_json(record | {"rows": [row for row in record["rows"] if row["row"] in chosen]})
        return
    lines = [row for row in record["rows"] if row["row"] in chosen]
    if only_list:
        print_table(
            ("row", "what", "study, %", "state"),
            [(row["row"], row["about"], row["study"] and f"{row['study']:.2f}", row["state"]) for row in lines],
        )
        return
    print_table(
        ("row", "study, %", "held out", "cross-validated", "training, s", "against", "significant"),
        [
            (
                row["row"],
                row["study"] and f"{row['study']:.2f}",
                f"{row['right']} of {row['holdout_size']}",
                f"{row['cv_accuracy']:.4f} ± {row['cv_accuracy_sd']:.4f}",
                f"{row['seconds_training']:.1f}",
                ", ".join(each["against"] for each in row["compared"]),
                ", ".join(each["significant"] for each in row["compared"]),
            )
            if row["state"] == "finished"
            else (row["row"], row["study"] and f"{row['study']:.2f}", "not run", "", "", "", "")
            for row in lines
        ],
    )
    click.echo(f"{write(workspace, found) / 'study.html'}")


def _explaining(name: str, *, hidden: bool = False) -> click.Command:
    """The command that explains a model, under a name; its folder has that name too unless ``--out`` is given."""

    @click.command(name, hidden=hidden)
    @click.argument("photos", type=FOLDER, required=False)
    @click.option("--model", default="champion", show_default=True, help="A version, alias, run or folder.")
    @click.option(
        "--out", type=FOLDER, default=Path(name), show_default=True, help="Folder for the page and its pictures."
    )
    @click.option("--log", "log_it", is_flag=True, help="Log them to the model's MLflow run as well.")
    @in_workspace
    def command(photos: Path | None, model: str, out: Path, log_it: bool, folder: Path | None) -> None:
        """Explain a model by its answers on the class folders in PHOTOS (default: the held-out photos).

        It writes one page: mistakes and some right answers, each with its class-activation map; what channels detect;
        ROC, precision and recall, calibration; and the threshold that cross-validation would choose.
        """
        from ssclass import progress
        from ssclass.serving.model import open_model
        from ssclass.study.answers import of_folder, of_holdout
        from ssclass.study.explain import explain, log, write
        from ssclass.workspace.workspace import Workspace

        settings = settings_for([model], folder) if photos and not log_it else settings_at(folder)
        workspace = Workspace(settings) if settings else None
        with progress.shown():
            opened = open_model(model, settings)
            shown = of_folder(photos, opened) if photos else of_holdout(workspace or workspace_at(folder))
            page = explain(opened, shown, workspace, progress.report)
        click.echo(f"{write(page, out)}")
        if log_it and workspace:
            click.echo(f"on run {log(workspace, opened, out)}")

    return command


@click.command()
@click.argument("name", metavar="[RUN|VERSION]", required=False)
@click.option("--out", type=FILE, help="The file; default: report-KEY.html in this folder.")
@click.option("--log", "log_it", is_flag=True, help="Put it on the MLflow run too, in the place of the one there.")
@in_workspace
@as_json
def report(name: str | None, out: Path | None, log_it: bool, folder: Path | None, as_json: bool) -> None:
    """Write the report of a decision as one HTML file (default: of the last decision).

    RUN is a decision key or an MLflow run, VERSION a champion's number or `champion`. The page says whether the new
    model is better, why, and what went into it. Every decision's run in MLflow has it, as report.html.
    """
    from ssclass import progress
    from ssclass.upkeep.reports import log, write

    workspace = workspace_at(folder)
    with progress.shown():
        made = write(workspace, name, out, progress.report)
    if as_json:
        print_json({"key": made.key, "decision": made.decision, "file": str(made.path)})
    else:
        print_line(str(made.path))
    if log_it:
        print_line(f"on run {log(workspace, made)}", err=as_json)


COMMANDS = (
    study,
    report,
    _explaining("explain"),
    _explaining("look", hidden=True),  # the name that it had up to 0.1; to be dropped after the next release
)
