"""A batch of 270 odd files, by the commands that people type: no crash, bounded memory, every refusal explained."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from tests.support.odd import odd_files, some_photos
from tests.support.pipelines import CLASSES, Command, Pipeline, real_photos

pytestmark = pytest.mark.slow
MOST = 1500  # MB of memory, of any process of a retrain


def test_a_folder_of_odd_files_is_taken_in(pipeline: Pipeline, ssclass: Command, photos: Path, tmp_path: Path) -> None:
    workspace = pipeline.workspace(tmp_path / "workspace")
    source = some_photos(tmp_path / "drawn", photos if real_photos() else None, CLASSES, 120)
    mixed = [data for pair in zip(*source.values(), strict=True) for data in pair]
    wanted: dict[str, bool | None] = {}
    for n, (name, data, comes_in) in enumerate(odd_files(mixed)):
        path = tmp_path / "odd" / CLASSES[n % 2] / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        wanted[f"{CLASSES[n % 2]}/{name}"] = comes_in
    assert len(wanted) > 250
    done = ssclass("submit", tmp_path / "odd", "--id", "odd", "--workspace", workspace.root)
    assert done.returncode == 0, done.stderr

    code, most, out = measured(ssclass, "retrain", "--json", "--workspace", workspace.root)
    assert code == 0, out
    assert json.loads(out)["decision"] == "PROMOTED"
    (shard,) = workspace.at().dataset.shards
    taken = {row.key for row in shard.rows}
    refused = {item.key: item for item in shard.receipt.refused}
    assert not taken & set(refused)
    for key, comes_in in wanted.items():
        if comes_in is not None:
            told = refused.get(key)
            assert (key in taken) == comes_in, (key, told)
    assert all(item.reason and item.detail for item in refused.values())
    assert len(Counter(item.reason for item in refused.values())) > 4
    quarantined = {item.key.removeprefix("quarantine/odd/") for item in workspace.store.list("quarantine/")}
    assert quarantined == set(refused) | {"reasons.json"}
    print(f"{len(wanted)} files, {len(taken)} taken, {most} MB")
    assert most < MOST


def measured(ssclass: Command, *args: object) -> tuple[int, int, str]:
    """Run a command; (exit code, the most memory that one of its processes held in MB, what it printed)."""
    between = [sys.executable, "-c", MEASURE]  # small: a child begins with the size of whoever starts it
    command = [*between, str(ssclass.folder / "ssclass"), *map(str, args)]
    done = subprocess.run(command, env=ssclass.environment(), capture_output=True, text=True)
    *said, most = done.stderr.splitlines()
    print("\n".join(said))
    return done.returncode, int(most) // 1024, done.stdout


MEASURE = """
import resource, subprocess, sys
code = subprocess.call(sys.argv[1:])
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss, file=sys.stderr)
sys.exit(code)
"""
