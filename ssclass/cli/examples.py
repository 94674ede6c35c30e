"""An example of each command, shown at the end of its help; what is in capitals there is the person's."""

from __future__ import annotations

import click

EXAMPLES = {
    "adopt": ["adopt food.keras --classes sandwich,sushi --preprocess -1..1"],
    "batch admit": ["batch admit day-3"],
    "batch drop": ["batch drop day-3"],
    "batch list": ["batch list"],
    "batch revoke": ["batch revoke day-3 --reason 'blurred photos'"],
    "batch show": ["batch show day-3"],
    "bucket setup": ["bucket setup", "bucket setup --print"],
    "data diff": ["data diff data/1 data/2"],
    "data suspects": ["data suspects --html suspects.html --manifest corrections.json"],
    "demo": ["demo", "demo --photos ~/photos"],
    "deploy": ["deploy", "deploy --notify https://chat.example.org/hook"],
    "doctor": ["doctor"],
    "down": ["down", "down --workspace demo/001"],
    "evaluate": ["evaluate ~/test-photos", "evaluate ~/test-photos --models champion,1"],
    "explain": ["explain", "explain ~/test-photos --model 2 --out explained"],
    "export": ["export ~/data-set", "export ~/data-set --version data/3 --strip", "export ~/data-set --format parquet"],
    "export-model": ["export-model --format litert", "export-model 2 --format onnx --dtype float16"],
    "forget": ["forget 0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef --reason 'asked by mail'"],
    "freeze": ["freeze --reason 'holidays until 6 January'"],
    "gc": ["gc --dry-run"],
    "history": ["history", "history --json", "history --plot"],
    "import": ["import ~/food-photos", "import s3://old-bucket/photos --id old"],
    "init": ["init shop", "init shop --bucket s3://my-photos --region eu-central-1"],
    "lineage": ["lineage data/3", "lineage day-3"],
    "listen": ["listen", "listen --webhook 8099"],
    "predict": [
        "predict photo.jpg",
        "predict --model 2 a.jpg b.jpg",
        "predict --from ~/photos --to predictions.parquet",
    ],
    "rebuild": ["rebuild"],
    "report": ["report", "report 2 --out champion-2.html"],
    "retrain": ["retrain"],
    "review": ["review", "review --port 8010 --no-open"],
    "rollback": ["rollback", "rollback 2"],
    "serve": ["serve", "serve --listen 127.0.0.1:8000"],
    "status": ["status", "status --workspace demo/001"],
    "study": ["study"],
    "submit": ["submit ~/new-photos", "submit ~/new-photos --id day-3", "submit ~/labels.csv"],
    "ui": ["ui", "ui --workspace demo/001 --port 5000"],
    "unfreeze": ["unfreeze"],
    "up": ["up", "up --detach --workspace demo/001"],
    "verify": ["verify", "verify --repair"],
    "wanted": ["wanted ~/camera-roll --count 50 --to to-label", "wanted s3://ssclass/collect"],
    "weights import": ["weights import mobilenet_1_0_224_tf_no_top.h5"],
}
CODES = "Exit codes: 0 done, 1 something outside failed, 2 bad input (or a batch was HELD), 130 interrupted."


def leaves(command: click.Command, path: tuple[str, ...] = ()) -> dict[str, click.Command]:
    """Every command below a group that does something, by its path in words; hidden ones are left out."""
    if command.hidden:
        return {}
    if not isinstance(command, click.Group):
        return {" ".join(path): command}
    found: dict[str, click.Command] = {}
    for name, below in command.commands.items():
        found |= leaves(below, (*path, name))
    return found


def add(root: click.Group) -> None:
    """Put its examples at the end of each command's help, and the exit codes at the end of the root's."""
    for path, command in leaves(root).items():
        lines = EXAMPLES.get(path, [])
        title = "Examples" if len(lines) > 1 else "Example"
        if lines:
            command.epilog = "\b\n" + "\n".join([f"{title}:", *(f"  ssclass {line}" for line in lines)])
    root.epilog = CODES
