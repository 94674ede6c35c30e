"""Crafted and damaged input of every kind that a person or a sender can write, for as long as FUZZ_SECONDS says."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ssclass.settings import CHECKOUT
from tests.chaos.fuzz import KINDS

SECONDS = float(os.environ.get("FUZZ_SECONDS") or float(os.environ.get("CHAOS_SECONDS") or 44) / len(KINDS))
SEED = int(os.environ.get("CHAOS_SEED") or 7)

pytestmark = [
    pytest.mark.timeout(600 + 3 * SECONDS),
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the limits are Linux's"),
]


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_input_is_read_or_refused_in_a_line_and_runs_nothing(kind: str, tmp_path: Path, capsys):
    done = subprocess.run(
        [sys.executable, "-m", "tests.chaos.fuzz", kind, str(SEED), str(SECONDS), str(tmp_path)],
        cwd=CHECKOUT,
        env=os.environ | {"PYTHONPATH": str(CHECKOUT), "CUDA_VISIBLE_DEVICES": "", "TF_CPP_MIN_LOG_LEVEL": "3"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, f"{done.returncode}: {done.stderr[-3000:]}"
    told = json.loads(done.stdout.splitlines()[-1])
    with capsys.disabled():
        print(f"\nfuzz: {kind}: {told['tried']} inputs, {told['refused']} refused, {len(told['found'])} found")
    assert told["tried"]
    assert not told["found"], "\n".join(f"{each['what']} ({each['begins']})" for each in told["found"])
    assert not (tmp_path / "pwned").exists()
    assert not Path("pwned").exists()
