"""Take the pictures of the documentation anew: ``.venv/bin/python scripts/screenshots.py [FOLDER]``, some ten minutes.

They are of a demo whose photos are drawings, and of `ssclass up` on its workspace: the report of its champion, its
runs in MLflow, in Prefect the retrain of one more batch, which nobody started by hand, and the review of a batch that
is held. FOLDER is docs/pictures by default.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import requests
from PIL import Image

from ssclass.demo.drawings import draw
from ssclass.environment import logins
from ssclass.settings import load_settings

PICTURES = Path(__file__).resolve().parent.parent / "docs" / "pictures"
WIDE = {"width": 1280, "height": 800}
COLOURS = 128  # of a picture: pages have few, and the files are a quarter as large
PATIENCE = 600.0  # seconds for a batch to be read or decided on, on a busy machine


def ssclass(workspace: Path, *arguments: str) -> str:
    """What a command prints."""
    command = [sys.executable, "-m", "ssclass", *arguments, "--workspace", str(workspace)]
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout


class Camera:
    """A browser that keeps pictures of pages in a folder."""

    def __init__(self, chromium: Any, folder: Path) -> None:
        self._chromium, self._folder = chromium, folder

    @contextmanager
    def page(self, login: dict[str, str] | None = None) -> Iterator[Any]:
        """A page of a new window; `login`: that of the server behind it."""
        user = {"username": login["user"], "password": login["password"]} if login else None
        context = self._chromium.new_context(viewport=WIDE, http_credentials=user)
        if login:  # as Prefect's UI keeps it once it was typed
            word = json.dumps(f"{login['user']}:{login['password']}")
            context.add_init_script(f"localStorage.setItem('prefect-password', btoa({word}))")
        page = context.new_page()
        page.set_default_timeout(1000 * PATIENCE)
        yield page
        context.close()

    def shoot(self, page: Any, name: str, *, top: int = 0) -> None:
        """Keep what the window shows, from `top` pixels on."""
        with Image.open(BytesIO(page.screenshot())) as taken:
            picture = taken.convert("RGB").crop((0, top, *taken.size)).quantize(COLOURS)
            picture.save(self._folder / f"{name}.png", optimize=True)
        print(f"{name}.png: {(self._folder / f'{name}.png').stat().st_size // 1000} kB", flush=True)


def shoot_report(camera: Camera, workspace: Path) -> None:
    """The report of the newest champion."""
    path = workspace.parent / "report.html"
    ssclass(workspace, "report", "champion", "--out", str(path))
    with camera.page() as page:
        page.goto(path.as_uri())
        camera.shoot(page, "report")


def shoot_review(camera: Camera, workspace: Path, prefect: str, login: dict[str, str]) -> None:
    """A batch that is held as its labels are swapped, three of them set right."""
    drawn = draw_batch(workspace, "day-5", seed=5)
    (drawn / "sushi").rename(drawn / "swapped")
    (drawn / "sandwich").rename(drawn / "sushi")
    (drawn / "swapped").rename(drawn / "sandwich")
    ssclass(workspace, "submit", str(drawn), "--id", "day-5")
    retrain_after(prefect, login, "day-5")
    command = [sys.executable, "-m", "ssclass", "review", "--no-open", "--workspace", str(workspace)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as served:
        assert served.stdout is not None
        address = served.stdout.readline().strip()
        try:
            with camera.page() as page:
                until_served(address)
                page.goto(f"{address}held/day-5")
                page.wait_for_selector(".photo")
                for key in "212":
                    page.keyboard.press(key)
                page.wait_for_selector('[data-count]:text-is("3")')
                page.evaluate("scrollTo(0, 0)")
                camera.shoot(page, "review")
        finally:
            served.terminate()


def draw_batch(workspace: Path, batch: str, seed: int) -> Path:
    """A folder of new drawings, in class folders."""
    drawn = workspace.parent / batch
    draw(drawn, ["sandwich", "sushi"], 20, seed=seed)
    return drawn


def until_served(address: str) -> None:
    """Wait until a page is there."""
    for _ in range(300):
        try:
            requests.get(address, timeout=30)
            return
        except requests.ConnectionError:
            time.sleep(0.2)
    raise TimeoutError(address)


def shoot_mlflow(camera: Camera, runs: str, login: dict[str, str]) -> None:
    """The list of runs, and the newest that was rejected."""
    with camera.page(login) as page:
        page.goto(runs)
        page.get_by_role("link", name="PROMOTED").first.wait_for()
        page.wait_for_timeout(3000)  # its table moves into place, and its assistant offers itself
        if (close := page.get_by_role("button", name="Close")).count():
            close.last.click()
            page.wait_for_timeout(1000)
        camera.shoot(page, "mlflow-runs")
        page.get_by_role("link", name="REJECTED").or_(page.get_by_role("link", name="PROMOTED")).first.click()
        page.get_by_text("on the same held-out photos").first.scroll_into_view_if_needed()
        page.wait_for_timeout(1000)
        camera.shoot(page, "mlflow-run")


def shoot_prefect(camera: Camera, workspace: Path, prefect: str, login: dict[str, str]) -> None:
    """The retrain that a batch began, once it is over."""
    ssclass(workspace, "submit", str(draw_batch(workspace, "day-4", seed=4)), "--id", "day-4")
    run = retrain_after(prefect, login, "day-4")
    with camera.page(login) as page:
        page.goto(f"{prefect.removesuffix('/api')}/runs/flow-run/{run['id']}")
        page.get_by_text(run["state"]["name"], exact=True).first.wait_for()
        page.wait_for_timeout(3000)  # its graph is drawn
        camera.shoot(page, "prefect-run")


def retrain_after(prefect: str, login: dict[str, str], batch: str) -> dict[str, Any]:
    """The retrain that a batch began, once it is over."""
    asked = {"flow_runs": {"state": {"type": {"any_": ["COMPLETED"]}}}, "flows": {"name": {"any_": ["retrain"]}}}
    until = time.monotonic() + PATIENCE
    while time.monotonic() < until:
        found = requests.post(
            f"{prefect}/flow_runs/filter", json=asked, auth=(login["user"], login["password"]), timeout=60
        ).json()
        for run in found:
            if run["parameters"].get("batch") == batch:
                return dict(run)
        time.sleep(2)
    raise TimeoutError(f"{batch} is not decided on after {PATIENCE:.0f} s")


def main() -> None:
    """Take all of them."""
    from playwright.sync_api import sync_playwright

    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else PICTURES
    folder.mkdir(parents=True, exist_ok=True)
    sandbox = [] if os.getuid() else ["--no-sandbox"]  # Chromium's own does not work for root
    with tempfile.TemporaryDirectory() as scratch, sync_playwright() as started:
        chromium = started.chromium.launch(executable_path=shutil.which("chromium"), args=sandbox)
        camera, workspace = Camera(chromium, folder), Path(scratch) / "shop"
        ssclass(workspace, "demo")
        told = json.loads(ssclass(workspace, "up", "--json"))
        try:
            entered = logins(load_settings(workspace))
            shoot_report(camera, workspace)
            shoot_mlflow(camera, told["runs"], entered["mlflow"])
            shoot_prefect(camera, workspace, told["prefect"], entered["prefect"])
            shoot_review(camera, workspace, told["prefect"], entered["prefect"])
        finally:
            ssclass(workspace, "down")
        chromium.close()


if __name__ == "__main__":
    main()
