"""The documentation says what the code does."""

import subprocess
import sys
from pathlib import Path

from ssclass.report import METRICS

ROOT = Path(__file__).resolve().parent.parent


def test_every_command_is_documented_as_its_help_says():
    tell = "import runpy; print(runpy.run_path('scripts/reference.py')['reference'](), end='')"
    done = subprocess.run([sys.executable, "-c", tell], cwd=ROOT, capture_output=True, text=True, check=True)
    written = done.stdout  # of a new process: click keeps what an earlier call of a command was given
    assert (ROOT / "docs" / "cli.md").read_text(encoding="utf-8") == written, "run scripts/reference.py"


def test_the_tree_in_the_readme_is_true():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    tree = text.split("## Where things are")[1].split("```")[1]
    for path in sorted((ROOT / "ssclass").iterdir()):
        if path.name.startswith("__") or path.name == "template":
            continue
        name = path.name + "/" if path.is_dir() else path.name
        assert f" {name}" in tree, f"{name} is missing from the tree in README.md"
    for name in (
        word for line in tree.splitlines() for word in line.split("   ")[0].split() if word.endswith((".py", "/"))
    ):
        inside = ROOT / "ssclass" / name.rstrip("/")
        assert inside.exists() or (ROOT / name.rstrip("/")).exists(), f"{name} in README.md's tree does not exist"


def test_the_metric_names_are_documented():
    text = (ROOT / "docs" / "formats.md").read_text(encoding="utf-8")
    for name in METRICS:
        assert f"`{name}`" in text
