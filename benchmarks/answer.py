"""From a delivery to an app's answer: `python -m benchmarks.answer [PHOTOS]`; ten minutes on two cores.

A workspace of its own with the whole stack by `ssclass up`, `ssclass serve` in it, and the shipped params but for the
head, `linear`. PHOTOS holds class folders, as those of `ssclass submit`; without it, drawings take their place. A small
first batch makes the first champion; then larger ones are delivered, until one brings a better model. Printed, as JSON,
for each: seconds from the start of `ssclass submit` to its end, to the decision in the ledger, and to the first answer
over HTTP by the new model, asked four times a second.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
import time
from datetime import datetime
from pathlib import Path
from typing import Any

import requests

from ssclass.demo.drawings import draw
from ssclass.environment import free_port
from ssclass.settings import home
from tests.support.running import CLASSES, Running, clean_environment

FIRST, LATER, TRIES = 12, 60, 4
"""Photos of each class in the first batch and in each later one; later batches at most."""
PATIENCE = 900.0  # seconds for one delivery


def deal(photos: Path | None, folder: Path, start: int, count: int) -> None:
    """Write class folders with `count` photos a class, from the `start`-th on; drawings where there are none."""
    if photos is None:
        draw(folder, CLASSES, count, seed=1000 + start)
        return
    for name in sorted(each.name for each in photos.iterdir() if each.is_dir()):
        (folder / name).mkdir(parents=True)
        for path in sorted((photos / name).iterdir())[start : start + count]:
            shutil.copy(path, folder / name)


def version_at(url: str, photo: bytes) -> str | None:
    """The version that answers on a photo; None while none does."""
    done = requests.post(f"{url}/predict", data=photo, headers={"Content-Type": "image/jpeg"}, timeout=60)
    return str(done.json()["model"]["version"]) if done.status_code == 200 else None


def delivered(running: Running, url: str, batch: str, folder: Path) -> dict[str, Any]:
    """Submit a folder, and time what follows until another version answers, or the batch is decided otherwise."""
    photo = next(path for path in sorted(folder.rglob("*")) if path.is_file()).read_bytes()
    before, started, began = version_at(url, photo), time.time(), time.monotonic()
    running.cli("submit", str(folder), "--id", batch)
    found: dict[str, Any] = {"batch": batch, "submitted": round(time.monotonic() - began, 1)}
    while time.monotonic() - began < PATIENCE:
        if (now := version_at(url, photo)) != before:
            found |= {"version": now, "answered": round(time.monotonic() - began, 1)}
            break
        if batch in running.decided() and not running.runs("retrain", "RUNNING", "PENDING"):
            break
        time.sleep(0.25)
    for event in running.state().decisions.values():
        if batch in event.body["batches"]:
            at = datetime.fromisoformat(event.at).timestamp()
            found |= {"decision": event.body["decision"], "decided": round(at - started, 1)}
    running.idle()
    return found


def main(photos: Path | None) -> None:
    """Start the stack, deliver, and print the times."""
    with tempfile.TemporaryDirectory() as scratch:
        port = free_port()
        asked = {"SSCLASS_SERVE_LISTEN": f"127.0.0.1:{port}", "SSCLASS_HOME": str(home())}
        running = Running(Path(scratch) / "workspace", clean_environment(**asked))
        running.make()
        try:
            url, told, start = f"http://127.0.0.1:{port}", [], 0
            for number in range(1 + TRIES):
                folder, count = Path(scratch) / f"photos-{number}", LATER if number else FIRST
                deal(photos, folder, start, count)
                start += count
                told.append(delivered(running, url, f"day-{number}", folder))
                if number and "answered" in told[-1]:
                    break
            print(json.dumps(told, indent=1))
        finally:
            running.cli("down")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else None)
