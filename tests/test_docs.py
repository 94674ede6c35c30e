"""The documentation says what the code does."""

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from ssclass.cli import cli
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


def commands() -> Iterator[tuple[str, list[str]]]:
    """(file, words) of every line in a block of code that calls ssclass, in README.md and docs/."""
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))):
        fenced = False
        for line in path.read_text(encoding="utf-8").splitlines():
            if line.lstrip().startswith("```"):
                fenced = not fenced
            elif (fenced or line.startswith("    ")) and path.name != "cli.md":
                said = re.sub(r"\s{2,}\S.*", "", line.strip())  # the words after it explain it
                found = re.match(r"(?:[$] |\S*/)?ssclass (?!init shop && )([a-z].*)", said)
                if found:
                    yield path.name, shlex.split(found[1].split(" #")[0].split(" | ")[0])


@pytest.mark.parametrize(("file", "words"), [pytest.param(*each, id=" ".join(each[1])[:60]) for each in commands()])
def test_commands_in_the_documentation_exist_with_those_options(file: str, words: list[str]):
    command, context = cli, click.Context(cli, info_name="ssclass")
    while isinstance(command, click.Group):
        name = words.pop(0)
        below = command.get_command(context, name)
        assert below is not None, f"{file}: ssclass has no command {name}"
        command, context = below, click.Context(below, info_name=name, parent=context)
    command.make_parser(context).parse_args(words)


def test_messages_that_are_explained_are_messages():
    source = "".join(path.read_text(encoding="utf-8") for path in sorted((ROOT / "ssclass").rglob("*.py")))
    source = re.sub(r'"\s*\n\s*f?"', "", source)  # a sentence over two lines
    explained = re.findall(r"^\| `([^`]+)` \|", (ROOT / "docs" / "troubleshooting.md").read_text("utf-8"), re.MULTILINE)
    assert len(explained) > 10
    assert not [words for words in explained if words not in source]


def test_the_site_builds_without_a_warning(tmp_path: Path):
    """Every page is in its menu, every link and heading that is pointed at is there, every function has its text."""
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "site" / "python" / "index.html").read_text(encoding="utf-8")
    assert "Promote if and only if the candidate has more held-out photos right" in page
    for name in ("tutorial", "howto", "troubleshooting", "cli"):
        text = (tmp_path / "site" / name / "index.html").read_text(encoding="utf-8")
        assert not re.search(r'(?:src|href)="https?://[^"]*\.(?:js|css|woff2?)"', text), (
            "nothing is fetched from elsewhere"
        )
