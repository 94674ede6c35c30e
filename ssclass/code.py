"""The code's own digest: part of the decision key, and what the stages of dvc.yaml depend on."""

from __future__ import annotations

import hashlib
import json
import subprocess
from functools import cache
from importlib.metadata import version
from pathlib import Path

from ssclass import __version__
from ssclass.settings import PACKAGE

COMPUTES = (
    "distributions.py",
    "params.py",
    "presets.py",
    "data/dataset.py",
    "data/images.py",
    "data/nearness.py",
    "data/palette.py",
    "data/pixels.py",
    "data/shapes.py",
    "data/shards.py",
    "data/split.py",
    "data/structure.py",
    "model/**/*.py",
    "retrain/gate.py",
    "retrain/predict.py",
    "retrain/race.py",
    "retrain/result.py",
    "retrain/scores.py",
    "retrain/statistics.py",
    "retrain/train.py",
)
"""What the answers may depend on: decode, split, features, training, scoring, gate. A change elsewhere, to a command
or a report, leaves decision keys as they are; tests/test_architecture.py holds the list against the imports."""


@cache
def code_digest() -> str:
    """sha256 over the modules in `COMPUTES` and the versions of what computes (hex, 16)."""
    digest = hashlib.sha256()
    for name in ("tensorflow", "keras", "numpy", "scipy", "pillow"):
        digest.update(f"{name}=={version(name)}\n".encode())
    for path in computing_files():
        digest.update(path.relative_to(PACKAGE).as_posix().encode() + b"\0" + path.read_bytes().replace(b"\r\n", b"\n"))
    return digest.hexdigest()[:16]


def computing_files() -> list[Path]:
    """The modules in `COMPUTES`, sorted."""
    return sorted(path for pattern in COMPUTES for path in PACKAGE.glob(pattern))


def code_json() -> str:
    """The text of code.json."""
    return json.dumps({"code": code_digest(), "ssclass": __version__}) + "\n"


def code_commit() -> str | None:
    """The git commit of the code's checkout, with ``+`` where it has uncommitted changes; None outside of one."""

    def git(*args: str) -> str | None:
        done = subprocess.run(["git", "-C", str(PACKAGE.parent), *args], capture_output=True, text=True)
        return done.stdout.strip() if done.returncode == 0 else None

    top = git("rev-parse", "--show-toplevel")
    if top is None or Path(top) != PACKAGE.parent:
        return None
    commit = git("rev-parse", "HEAD")
    return commit and commit + ("+" if git("status", "--porcelain") else "")
