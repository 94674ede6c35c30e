"""What the machine takes for each decision in `ssclass review`: `python -m benchmarks.review [DECISIONS]`, default 100.

A held batch of so many photos is decided on in a real browser by keyboard alone: a key a photo, Enter from page to
page. A fake head stands in for TensorFlow, S3 is moto in a process of its own. Printed: milliseconds from a key to the
next photo having the keyboard, to the decision being kept on disk, and for the next page.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ssclass.environment import free_port, leave_user_settings, quiet_libraries
from ssclass.review.application import application
from ssclass.review.desk import Desk
from tests.support.browsing import browser, in_a_thread
from tests.support.moto import s3_process
from tests.support.shops import Shop, open_shop

BATCH = "day-2"
AT = "() => document.activeElement.closest('.photo') ? document.activeElement.id : ''"
KEPT = "() => last.then(() => document.querySelector('[data-count]').textContent)"


@contextmanager
def served(desk: Desk) -> Iterator[str]:
    """The review at an address of this machine."""
    entry, port = application(desk), free_port()
    with in_a_thread(entry, port):
        yield f"http://127.0.0.1:{port}{entry.root}/"
    desk.jobs.close()


def decide(page: Any, decisions: int) -> dict[str, list[float]]:
    """Seconds of each step of a person who never waits."""
    took: dict[str, list[float]] = {"next photo": [], "kept": [], "next page": []}
    for number in range(decisions):
        began, before = time.perf_counter(), page.evaluate(AT)
        page.keyboard.press("12"[number % 2])
        page.wait_for_function(f"before => ({AT})() !== before", arg=before)
        took["next photo"].append(time.perf_counter() - began)
        assert page.evaluate(KEPT) == str(number + 1)
        took["kept"].append(time.perf_counter() - began)
        if number + 1 < decisions and not page.evaluate(AT):
            began = time.perf_counter()
            page.keyboard.press("Enter")
            page.wait_for_function(f"() => ({AT})()")
            took["next page"].append(time.perf_counter() - began)
    return took


def summary(took: Sequence[float]) -> dict[str, int]:
    """Median and longest, in milliseconds."""
    return {"median": round(1000 * statistics.median(took)), "longest": round(1000 * max(took))}


def main(decisions: int) -> None:
    """Print the figures as a line of JSON."""
    with tempfile.TemporaryDirectory() as scratch, s3_process() as endpoint:
        os.environ |= {"SSCLASS_EXPORTS": ""}
        leave_user_settings()
        with open_shop(Path(scratch), endpoint, decisions + 60) as shop, browser(Path(scratch)) as chromium:
            quiet_libraries(shop.workspace.settings)
            hold(shop, decisions)
            with served(Desk(shop.workspace, Path(scratch))) as address, chromium.page() as page:
                page.goto(f"{address}held/{BATCH}")
                page.wait_for_function(f"() => ({AT})()", timeout=120_000)
                began = time.perf_counter()
                took = decide(page, decisions)
                whole = time.perf_counter() - began
    told: dict[str, Any] = {name: summary(each) for name, each in took.items() if each}
    print(json.dumps({"decisions": decisions, "seconds": round(whole, 1), "milliseconds": told}))


def hold(shop: Shop, photos: int) -> None:
    """A champion, and a batch whose labels are all wrong."""
    shop.first(train=30)
    shop.retrain()
    wrong = [{**entry, "split": "train"} for entry in shop.photos(photos, (0.1,), flipped=True)]
    shop.deliver(BATCH, wrong)
    shop.retrain()
    assert {batch for batch, _ in shop.state.held} == {BATCH}


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 100)
