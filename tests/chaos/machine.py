"""Two clones of one origin, and everybody who may do something to them, in any order: hypothesis chooses.

After each retrain that ends well everything is looked at. Invariants are those of `tests.chaos.invariants`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule, run_state_machine_as_test

from tests.chaos.stories import Stage, Tally
from tests.chaos.theatre import Ended, World

CLONES = st.sampled_from(["a", "b"])
BATCHES = st.sampled_from(["first", "second", "bad", "third", "new-1", "new-2"])


def machine(stage: Stage, tally: Tally, end: float) -> type[RuleBasedStateMachine]:
    """A machine class whose steps do nothing any more once the time is over."""

    class TwoClones(RuleBasedStateMachine):
        def __init__(self) -> None:
            super().__init__()
            self.world: World | None = None
            self.fresh = 0

        @property
        def over(self) -> bool:
            if time.monotonic() > end:
                return True
            if self.world is None:
                self.world = stage.world("retrain")
            tally.count("steps of two clones")
            return False

        def teardown(self) -> None:
            if self.world is None:
                return
            if time.monotonic() <= end + 30:
                self._retrain("a")
            self.world.close()
            tally.count("walks of two clones")

        def _ssclass(self, *arguments: str, clone: str = "a") -> Ended:
            assert self.world is not None
            ended = self.world.ssclass(*arguments, clone=clone)
            assert ended.politely, f"{arguments}: {ended.state} {ended.code}: {ended.said[-1500:]}"
            return ended

        def _retrain(self, clone: str) -> None:
            assert self.world is not None
            ended = self._ssclass("retrain", clone=clone)
            assert ended.code == 0 or "is HELD" in ended.said, ended.said[-1500:]
            found = self.world.findings(clone)
            tally.add("two clones", found)
            assert not any(found.values()), found

        @rule(clone=CLONES)
        def retrain(self, clone: str) -> None:
            if not self.over:
                self._retrain(clone)

        @rule(batch=BATCHES, flipped=st.booleans())
        def deliver(self, batch: str, flipped: bool) -> None:
            """A new batch, a batch that is sent again with other photos, a rewritten marker."""
            if self.over or self.world is None or self.fresh > 12:
                return
            self.fresh += 1
            difficulties = (0.0,) if flipped else (0.5,)
            self.world.deliver(batch, self.world.photos(6, flipped=flipped, difficulties=difficulties))

        @rule(batch=BATCHES)
        def redeliver(self, batch: str) -> None:
            """The same marker, written once more."""
            if self.over or self.world is None:
                return
            key = f"incoming/{batch}/manifest.json"
            if (body := self.world.store.get(key)) is not None:
                self.world.store.put(key, body)

        @rule(number=st.integers(0, 3), batch=st.sampled_from(["fix-1", "fix-2"]), remove=st.booleans())
        def correct(self, number: int, batch: str, remove: bool) -> None:
            """Relabel, or remove, a photo of the second batch."""
            if self.over or self.world is None or batch in self.world.sent:
                return
            sha256, label = list(self.world.sent["second"].items())[number]
            other = "sushi" if label == "sandwich" else "sandwich"
            asked: Any = (
                {"remove": [{"sha256": sha256}]} if remove else {"relabel": [{"sha256": sha256, "label": other}]}
            )
            self.world.deliver(batch, [], **asked)

        @rule(batch=BATCHES, clone=CLONES, what=st.sampled_from(["admit", "drop", "revoke"]))
        def answer(self, batch: str, clone: str, what: str) -> None:
            if not self.over:
                self._ssclass("batch", what, batch, clone=clone)

        @rule(clone=CLONES, number=st.sampled_from(["", "1", "2"]))
        def rollback(self, clone: str, number: str) -> None:
            if not self.over:
                self._ssclass("rollback", *filter(None, [number]), clone=clone)

        @rule(clone=CLONES, what=st.sampled_from(["freeze", "unfreeze"]))
        def freeze(self, clone: str, what: str) -> None:
            if not self.over:
                self._ssclass(what, clone=clone)

        @rule(clone=CLONES, number=st.integers(4, 6))
        def forget(self, clone: str, number: int) -> None:
            if self.over or self.world is None:
                return
            sha256 = list(self.world.sent["second"])[number]
            ended = self._ssclass("forget", "--yes", sha256, clone=clone)
            if ended.well and sha256 not in self.world.forgotten:
                self.world.forgotten.append(sha256)

        @rule(clone=CLONES)
        def gc(self, clone: str) -> None:
            if not self.over:
                self._ssclass("gc", clone=clone)

        @rule(folds=st.sampled_from([4, 5]), clone=CLONES)
        def params(self, folds: int, clone: str) -> None:
            """A person edits params.yaml, there and back."""
            if self.over or self.world is None:
                return
            ended = self.world.run("edit", self.world.path(clone), folds)
            assert ended.well, ended.said

        @rule(number=st.sampled_from(["1", "2"]))
        def alias_by_hand(self, number: str) -> None:
            if self.over or self.world is None:
                return
            ended = self.world.run("alias_by_hand", self.world.path("a"), number)
            assert ended.well, ended.said

    return TwoClones


def walk(stage: Stage, tally: Tally, end: float, seed: int) -> None:
    """Random walks until the time is over; the first that finds something is told, step by step."""
    from hypothesis import core

    made: Callable[[], RuleBasedStateMachine] = machine(stage, tally, end)
    while time.monotonic() < end:
        core.global_force_seed = seed
        seed += 1
        try:
            run_state_machine_as_test(
                made,
                settings=settings(
                    max_examples=60,
                    stateful_step_count=12,
                    deadline=None,
                    database=None,
                    phases=[Phase.generate],
                    suppress_health_check=list(HealthCheck),
                    print_blob=False,
                ),
            )
        except Exception as error:
            notes = "\n".join(getattr(error, "__notes__", ()))
            tally.add(f"two clones (seed {seed - 1})", {"others": [f"{type(error).__name__}: {error}\n{notes}"]})
            return
        finally:
            core.global_force_seed = None
