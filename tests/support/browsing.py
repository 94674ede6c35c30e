"""A real browser for tests: Debian's Chromium by Playwright, and axe-core, which finds what shuts people out."""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from ssclass.stack.serving import server

CAMERA = ("--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream")
"""A camera that shows a drawing, for pages that may use it."""
WIDE, PHONE = (1280, 900), (390, 844)
SHOTS = os.environ.get("SSCLASS_SCREENSHOTS")
"""A folder for the pictures of pages that the tests look at; without it they go with the test's own folder."""


@contextmanager
def in_a_thread(application: Any, port: int) -> Iterator[None]:
    """An ASGI application, served on loopback by a thread of this process for as long as it is needed."""
    served = server(application, "127.0.0.1", port)
    thread = threading.Thread(target=served.run)
    thread.start()
    try:
        while not served.started:
            time.sleep(0.02)
        yield
    finally:
        served.should_exit = True
        thread.join()


class Browser:
    """Opens pages, and looks at them."""

    def __init__(self, chromium: Any, folder: Path) -> None:
        self._chromium = chromium
        self.folder = folder

    @contextmanager
    def page(
        self, size: tuple[int, int] = WIDE, scheme: str = "light", *, strict: bool = True, **more: Any
    ) -> Iterator[Any]:
        """A page of a new, private window. Whatever goes wrong in its script fails the test, where that is `strict`."""
        context = self._chromium.new_context(
            viewport={"width": size[0], "height": size[1]}, color_scheme=scheme, **more
        )
        page = context.new_page()
        page.set_default_timeout(30_000)
        wrong: list[str] = []
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("console", lambda message: wrong.append(message.text) if message.type == "error" else None)
        yield page
        context.close()
        assert not (strict and wrong), wrong

    def shoot(self, page: Any, name: str) -> None:
        """Keep a picture of the whole page."""
        page.screenshot(path=str(self.folder / f"{name}.png"), full_page=True)


def violations(page: Any) -> list[str]:
    """What axe-core finds wrong with a page, a line each. A page that lets no script in needs ``bypass_csp``."""
    from axe_playwright_python.sync_playwright import Axe

    found = Axe().run(page).response["violations"]
    return [f"{each['id']}: {each['help']}: {node['target']}" for each in found for node in each["nodes"]]


def fits(page: Any) -> bool:
    """Whether nothing of a page is wider than the window."""
    return bool(page.evaluate("document.documentElement.scrollWidth <= window.innerWidth"))


@contextmanager
def browser(folder: Path) -> Iterator[Browser]:
    """A browser; the test is skipped where there is none."""
    playwright = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed: `make dev` does it")
    path = shutil.which("chromium") or shutil.which("google-chrome") or shutil.which("chromium-browser")
    if path is None:
        pytest.skip("no Chromium on this machine: `apt-get install chromium` brings it")
    folder = Path(SHOTS) if SHOTS else folder
    folder.mkdir(parents=True, exist_ok=True)
    with playwright.sync_playwright() as started:
        sandbox = [] if os.getuid() else ["--no-sandbox"]  # Chromium's own does not work for root
        chromium = started.chromium.launch(executable_path=path, args=[*sandbox, *CAMERA])
        yield Browser(chromium, folder)
        chromium.close()
