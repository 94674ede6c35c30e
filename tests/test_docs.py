"""The documentation says what the code does."""

import re
import subprocess
import sys
from pathlib import Path

from ssclass.tracking.report import METRICS

ROOT = Path(__file__).resolve().parent.parent


def test_every_command_is_documented_as_its_help_says():
    tell = "import runpy; print(runpy.run_path('scripts/reference.py')['reference'](), end='')"
    done = subprocess.run([sys.executable, "-c", tell], cwd=ROOT, capture_output=True, text=True, check=True)
    written = done.stdout  # of a new process: click keeps what an earlier call of a command was given
    assert (ROOT / "docs" / "cli.md").read_text(encoding="utf-8") == written, "run scripts/reference.py"


def test_the_tree_in_the_readme_is_true():
    """Everything that it names is where it says, and no module or folder of the package is missing."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    folders: dict[int, Path] = {0: ROOT}  # by the indentation of what is in them
    named = set()
    for line in text.split("## Where things are")[1].split("```")[1].splitlines():
        depth = len(line) - len(line.lstrip())
        for name in line.strip().split("  ")[0].split():
            if name.endswith((".py", "/")):
                path = folders[depth] / name
                assert path.exists(), f"{name} in README.md's tree does not exist"
                named.add(path)
                if path.is_dir():
                    folders[depth + 2] = path
    package = ROOT / "ssclass"
    with_modules = [package, *(package / name for name in ("data", "workspace", "model", "retrain"))]
    there = {path for folder in with_modules for path in folder.glob("[!_]*") if path.is_dir() or path.suffix == ".py"}
    assert there <= named, "missing from the tree in README.md"


def test_the_metric_names_are_documented():
    text = (ROOT / "docs" / "formats.md").read_text(encoding="utf-8")
    for name in METRICS:
        assert f"`{name}`" in text


def test_every_promise_names_tests_that_exist():
    text = (ROOT / "docs" / "guarantees.md").read_text(encoding="utf-8")
    named = re.findall(r"`(test_\w+\.py)::(\w+)`", text)
    assert len(named) > 15
    for file, test in named:
        assert f"def {test}(" in (ROOT / "tests" / file).read_text(encoding="utf-8"), f"{file}::{test}"
