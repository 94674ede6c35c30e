"""Commands of the study: study, look."""

from __future__ import annotations

from pathlib import Path

import click

from ssclass.cli.common import (
    FOLDER,
    as_json,
    in_workspace,
    print_json,
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

    Rows that are finished are not trained again. Each becomes a run in MLflow; study.md and study.html have the table.
    Nothing of it is registered or promoted.
    """
    from ssclass import progress
    from ssclass.study.report import as_dict
    from ssclass.study.rows import choose, load_rows
    from ssclass.study.run import conduct, survey, write

    workspace = workspace_at(folder)
    chosen = [row.name for row in choose(load_rows(workspace), rows)]
    if only_list:
        found = survey(workspace, load_rows(workspace), workspace.at().dataset)
    else:
        with progress.shown():
            found = conduct(workspace, rows, progress.report, lambda line: click.echo(line, err=True))
    told = as_dict(found)
    if as_json:
        print_json(told | {"rows": [row for row in told["rows"] if row["row"] in chosen]})
        return
    lines = [row for row in told["rows"] if row["row"] in chosen]
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


@click.command()
@click.argument("photos", type=FOLDER, required=False)
@click.option("--model", default="champion", show_default=True, help="A version, alias, run or folder.")
@click.option(
    "--out", type=FOLDER, default=Path("look"), show_default=True, help="Folder for the page and its pictures."
)
@click.option("--log", "log_it", is_flag=True, help="Put them on the model's MLflow run as well.")
@in_workspace
def look(photos: Path | None, model: str, out: Path, log_it: bool, folder: Path | None) -> None:
    """See a model on the class folders in PHOTOS (default: on the held-out photos).

    One page: its mistakes and some right answers, where on them it sees the class, what its channels look for, ROC,
    precision and recall, calibration, and the threshold that cross-validation would choose.
    """
    from ssclass import progress
    from ssclass.serving.model import open_model
    from ssclass.study import explain as looking
    from ssclass.study.answers import of_folder, of_holdout
    from ssclass.workspace.workspace import Workspace

    settings = settings_for([model], folder) if photos and not log_it else settings_at(folder)
    workspace = Workspace(settings) if settings else None
    with progress.shown():
        opened = open_model(model, settings)
        shown = of_folder(photos, opened) if photos else of_holdout(workspace or workspace_at(folder))
        page = looking.look(opened, shown, workspace, progress.report)
    click.echo(f"{looking.write(page, out)}")
    if log_it and workspace:
        click.echo(f"on run {looking.log(workspace, opened, out)}")


COMMANDS = (study, look)
