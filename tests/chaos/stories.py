"""Stories: one command, one point, what happens there, and what comes afterwards; each ends with everything in place.

A story is killed or stopped before or after a point, or a call of a partner fails there once, twice or for good,
undone or done but not answered. Afterwards the command is given again, or a new batch comes and a retrain before that;
while a process is stopped, the other clone acts.
"""

from __future__ import annotations

import itertools
import random
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.chaos.theatre import Ended, World

COMMANDS: dict[str, Callable[[World], tuple[str, ...]]] = {
    "retrain": lambda world: ("retrain",),
    "rollback": lambda world: ("rollback", "1"),
    "freeze": lambda world: ("freeze",),
    "unfreeze": lambda world: ("unfreeze",),
    "admit": lambda world: ("batch", "admit", "bad"),
    "drop": lambda world: ("batch", "drop", "bad"),
    "revoke": lambda world: ("batch", "revoke", "second"),
    "forget": lambda world: ("forget", "--yes", victim(world)),
    "gc": lambda world: ("gc",),
    "rebuild": lambda world: ("rebuild",),
    "adopt": lambda world: (*("adopt", str(model_file(world)), "--classes", "sandwich,sushi", "--preprocess", "none"),),
}
"""Every command that writes."""

ACTS: dict[str, Callable[[World], tuple[str, ...]]] = {
    "retrain": lambda world: ("retrain",),
    "rollback": lambda world: ("rollback", "1"),
    "freeze": lambda world: ("freeze",),
    "revoke": lambda world: ("batch", "revoke", "second"),
    "drop": lambda world: ("batch", "drop", "bad"),
    "batch and retrain": lambda world: ("retrain",),
}
"""What the other clone does while a process is stopped."""


def victim(world: World) -> str:
    """A photo of the second batch."""
    return next(iter(world.sent["second"]))


def model_file(world: World) -> Path:
    path = world.folder / "theirs.keras"
    path.write_text('{"calls": [0, 1], "skill": 0.8}')
    return path


@dataclass(frozen=True)
class Story:
    """`command` at the n-th of its points, called `point`; `do` kill, stop or fail; `then` what comes afterwards."""

    command: str
    at: int
    point: str
    do: str
    when: str
    then: str

    def __str__(self) -> str:
        return f"{self.command}: {self.do} {self.when} {self.point} ({self.at}), then {self.then}"


@dataclass
class Tally:
    """What was tried, and what was found."""

    tried: dict[str, int] = field(default_factory=dict)
    found: dict[str, list[str]] = field(default_factory=dict)

    def count(self, what: str, n: int = 1) -> None:
        self.tried[what] = self.tried.get(what, 0) + n

    def add(self, story: object, findings: dict[str, list[str]]) -> None:
        for kind, sentences in findings.items():
            self.found.setdefault(kind, []).extend(f"{story}: {sentence}" for sentence in sentences)

    def lines(self) -> Iterator[str]:
        for what, n in self.tried.items():
            yield f"{what}: {n}"
        for kind in ("losses", "doubles", "wrong champions", "others"):
            yield f"{kind}: {len(self.found.get(kind, ()))}"
            yield from (f"    {sentence}" for sentence in self.found.get(kind, ()))

    @property
    def clean(self) -> bool:
        return not any(self.found.values())


class Stage:
    """The worlds in which stories begin, each made once."""

    def __init__(self, busy: World, bare: World, folder: Path, chance: random.Random) -> None:
        self.busy, self.bare, self.folder, self.chance = busy, bare, folder, chance
        self.numbers = itertools.count()
        self.points: dict[str, list[str]] = {}

    def world(self, command: str) -> World:
        """A world in which the command has something to do."""
        origin = self.bare if command == "adopt" else self.busy
        world = origin.copy(self.folder / f"story-{next(self.numbers)}")
        if command == "unfreeze":
            assert world.ssclass("freeze").well
        if command == "rebuild":
            (world.folder / "mlflow.db").unlink()
            shutil.copy(self.folder / "empty.db", world.folder / "mlflow.db")
        return world

    def points_of(self, command: str) -> list[str]:
        """Names of the points of a command, from a run in which nothing happens."""
        if command not in self.points:
            world = self.world(command)
            self.points[command] = world.points(*world.line(*COMMANDS[command](world)))
            world.close()
        return self.points[command]

    def stories(self, command: str) -> list[Story]:
        """Every story of a command."""
        made = []
        for at, point in enumerate(self.points_of(command), 1):
            for when in ("before", "after"):
                thens = {
                    "kill": ("again", "batch"),
                    "stop": tuple(ACTS),
                    "fail": () if point in ("notice", "file in place") else ("once", "twice", "for good"),
                }
                made += [Story(command, at, point, do, when, then) for do, each in thens.items() for then in each]
        return made


TIMES = {"once": 1, "twice": 2, "for good": 10**6}


def play(stage: Stage, story: Story, tally: Tally) -> None:
    """Play a story to its end, and look."""
    world = stage.world(story.command)
    call = world.line(*COMMANDS[story.command](world))
    if story.command == "forget":
        world.forgotten.append(victim(world))
    point = {"do": story.do, "at": story.at, "when": story.when}
    findings: dict[str, list[str]] = {"others": []}

    def expect(ended: Ended, how: str, what: str) -> Ended:
        if not getattr(ended, how):
            findings["others"].append(f"{what} ended {ended.state} {ended.code}: {ended.said[-1500:]}")
        return ended

    if story.do == "fail":
        tally.count("failing calls")
        expect(
            world.run(*call, point={**point, "times": TIMES[story.then]}, SSCLASS_PATIENCE=patience(story.then)),
            "politely",
            "the command whose partner failed",
        )
    elif story.do == "kill":
        tally.count("crash points (SIGKILL)")
        world.run(*call, point=point)
        if story.then == "batch":
            world.deliver("later", world.photos(10))
            if story.command != "rebuild" or not refers_to_rebuild(world):
                again(world, expect, "the retrain on the new batch", "b" if stage.chance.random() < 0.5 else "a")
    else:
        tally.count("interleavings (SIGSTOP)")
        running = world.start(*call, point=point)
        stopped = running.wait()
        if stopped.state == "stopped":
            if story.then == "batch and retrain":
                world.deliver("later", world.photos(10))
            expect(world.ssclass(*ACTS[story.then](world), clone="b"), "politely", "the other clone")
            stopped = running.go_on()
        expect(stopped, "politely", "the one that was stopped")
    ended = world.run(*call)
    expect(ended, "politely", "the command given again")
    again(world, expect, "the retrain afterwards")
    if story.do == "kill" and story.command != "adopt" and not done(story.command, world.told()):
        findings["others"].append(f"given again, it did not happen: {ended.code} {ended.said[-500:]}")
    tally.add(story, findings)
    tally.add(story, world.findings())
    world.close()


def again(world: World, expect: Callable[[Ended, str, str], Ended], what: str, clone: str = "a") -> None:
    """A retrain; a batch that is held is no fault."""
    ended = world.ssclass("retrain", clone=clone)
    if not (ended.code == 2 and "is HELD" in ended.said):
        expect(ended, "well", what)


def refers_to_rebuild(world: World) -> bool:
    """Whether a retrain refers to `rebuild`, as MLflow is rebuilt by half; the story then goes on with it."""
    ended = world.ssclass("retrain")
    return ended.code == 1 and "no run of the champion" in ended.said and "`ssclass rebuild`" in ended.said


def patience(then: str) -> str:
    """Seconds with which each task is tried as often as the story needs: once more, twice more, not again."""
    return {"once": "2", "twice": "6", "for good": "0"}[then]


def done(command: str, told: dict[str, Any]) -> bool:
    """Whether what the command is for has happened; it was given again after it was killed."""
    return {
        "retrain": lambda: told["batches"]["third"] == "ingested",
        "rollback": lambda: told["number"] == 1 and told["frozen"],
        "freeze": lambda: bool(told["frozen"]),
        "unfreeze": lambda: told["frozen"] is None,
        "admit": lambda: told["batches"]["bad"] == "ingested",
        "drop": lambda: told["batches"]["bad"] == "dropped",
        "revoke": lambda: told["batches"]["second"] == "revoked",
        "forget": lambda: "forget" in told["events"],
        "gc": lambda: True,
        "rebuild": lambda: True,
    }[command]()
