"""`make chaos`: as many stories as fit into CHAOS_SECONDS, drawn by CHAOS_SEED; what was tried and found is printed.

In `make test` it has four minutes at most. A story that found something is played again by the seed that is printed.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from tests.chaos import partners, stories
from tests.chaos.machine import walk
from tests.chaos.stories import COMMANDS, Stage, Story, Tally
from tests.chaos.theatre import ENVIRONMENT, Forks, World, base, seed_of_today
from tests.support.shops import empty_mlflow, pictures

SECONDS = float(os.environ.get("CHAOS_SECONDS", "240"))
SHARES = {"stories": 0.6, "walks": 0.25, "partners": 0.15}

pytestmark = pytest.mark.timeout(max(1200, 3 * SECONDS))


@pytest.fixture(scope="module")
def seed() -> int:
    return seed_of_today()


@pytest.fixture(scope="module")
def stage(tmp_path_factory, seed: int) -> Iterator[Stage]:
    folder = tmp_path_factory.mktemp("chaos")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in ENVIRONMENT.items():
            patch.setenv(name, value)
        server = subprocess.Popen(
            [sys.executable, "-m", "tests.chaos.s3"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert server.stdout is not None
        endpoint = f"http://127.0.0.1:{server.stdout.readline().strip()}"
        forks = Forks()
        try:
            empty_mlflow(folder / "empty.db")
            drawn = pictures(folder / "pictures", 260)
            bare = World.new(forks, folder / "bare", endpoint, drawn, folder / "empty.db")
            bare.first()
            busy = base(World.new(forks, folder / "busy", endpoint, drawn, folder / "empty.db"))
            yield Stage(busy, bare, folder, random.Random(seed))
        finally:
            forks.close()
            assert server.stdin is not None
            server.stdin.close()
            server.wait(30)


@pytest.fixture
def tally() -> Tally:
    return Tally()


def report(tally: Tally, seed: int, capsys: pytest.CaptureFixture[str]) -> None:
    with capsys.disabled():
        print("\n" + "\n".join([f"chaos: CHAOS_SEED={seed} CHAOS_SECONDS={SECONDS:g}", *tally.lines()]))


def test_the_check_itself_finds_nothing_where_nothing_happened(stage: Stage):
    world = stage.busy.copy(stage.folder / "quiet")
    ended = world.ssclass("retrain")
    assert ended.well, ended.said
    assert not any(world.findings().values()), world.findings()
    assert not any(world.findings("b").values())
    world.close()


def test_killed_stopped_and_failing_at_every_point(stage: Stage, tally: Tally, seed: int, capsys):
    """Of all stories of all commands, as many as fit; each command and each kind gets its turn."""
    end = time.monotonic() + SECONDS * SHARES["stories"]
    chance = random.Random(seed)
    waiting: dict[tuple[str, str], list[Story]] = {}
    names = list(COMMANDS)
    chance.shuffle(names)
    known = 0
    while time.monotonic() < end:
        for command in names:
            if time.monotonic() > end:
                break
            if (command, "kill") not in waiting:
                for story in stage.stories(command):
                    waiting.setdefault((command, story.do), []).append(story)
                for do in ("kill", "stop", "fail"):
                    chance.shuffle(waiting.setdefault((command, do), []))
                    known += len(waiting[command, do])
            for do in (
                ("kill", "kill", "stop", "fail") if command == "retrain" else ("kill", chance.choice(["stop", "fail"]))
            ):
                if waiting[command, do] and time.monotonic() < end:
                    stories.play(stage, waiting[command, do].pop(), tally)
    tally.count("stories of the commands that had a turn", known)
    report(tally, seed, capsys)
    assert tally.clean, "\n".join(tally.lines())


def test_two_clones_and_everybody_else(stage: Stage, tally: Tally, seed: int, capsys):
    walk(stage, tally, time.monotonic() + SECONDS * SHARES["walks"], seed)
    report(tally, seed, capsys)
    assert tally.clean, "\n".join(tally.lines())


def test_partners_on_a_bad_day(stage: Stage, tally: Tally, seed: int, capsys):
    end = time.monotonic() + SECONDS * SHARES["partners"]
    cases = [(name, cold) for name in partners.BAD_DAYS for cold in (False, True)]
    random.Random(seed).shuffle(cases)
    for name, cold in cases:
        if time.monotonic() < end:
            partners.play(stage, name, tally, cold=cold)
    report(tally, seed, capsys)
    assert tally.clean, "\n".join(tally.lines())
