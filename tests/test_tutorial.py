"""docs/tutorial.md, command by command, as a newcomer types it."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from ssclass.demo.drawings import draw
from ssclass.settings import CHECKOUT
from tests.support.running import CLASSES, clean_environment

pytestmark = pytest.mark.timeout(900)
INSTALLING = ("make install", "export PATH")
"""What the tests' own environment has done already."""


def test_every_command_of_the_tutorial_works_in_its_order(tmp_path: Path):
    text = (CHECKOUT / "docs" / "tutorial.md").read_text(encoding="utf-8")
    lines = [line for block in re.findall(r"```\n(.*?)```", text, re.DOTALL) for line in block.splitlines()]
    lines = [line for line in lines if not line.startswith(INSTALLING)]
    assert len(lines) > 12
    draw(tmp_path / "photos", CLASSES, 20, seed=3)
    (tmp_path / "here").mkdir()
    at, environment = tmp_path / "here", clean_environment()
    (tmp_path / "here" / "photos").symlink_to(tmp_path / "photos")
    said: dict[str, str] = {}
    try:
        for line in lines:
            if line.startswith("cd "):
                at = at / line.removeprefix("cd ")
                continue
            done = subprocess.run(["bash", "-c", line], cwd=at, env=environment, capture_output=True, text=True)
            said[line] = done.stdout + done.stderr
            assert done.returncode == 0, f"{line}\n{said[line]}"
    finally:
        subprocess.run(["ssclass", "down"], cwd=at, env=environment, capture_output=True)
    assert "PROMOTED" in said["ssclass history"]
    (predicted,) = (told for line, told in said.items() if line.startswith("ssclass predict"))
    assert len(re.findall(r"\bsushi\b", predicted)) >= 20
