"""What a gate's rule is worth: `python -m benchmarks.gate [REPEATS]`, default 100; two minutes. Simulated, seeded.

250 retrains. A candidate's true accuracy is 0.92 ± 0.01, whatever came before: real retrains scatter like that, and
only the gate can tell the better half. The held-out set begins with 160 photos and gets 20 with each retrain. Models of
one pipeline fail on the same photos: being right is sqrt(r) difficulty + sqrt(1 - r) luck below a threshold, r = 0.7.

In the second world the photos change at retrain 125 (a new camera, another season): models trained before lose 6
points on the new photos, those trained after lose none.

Rules, the first two being what a home-made script and a condition step on a metric come to:

    stored number, new test set     the candidate's score on a fresh 160, against the champion's score of its own day
    one test set for ever           the same 160 each time; whether the champion is scored again makes no difference
    both scored, growing (ssclass)  `ssclass.retrain.gate.judge` on all held-out photos so far
    the same, only if p < .05       exact McNemar in addition

Columns: the true accuracy of the champion, mean over all retrains and at the end; what was reported for it at the end
less what is true; promotions, and how many of them made the champion worse.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import numpy as np
from scipy.stats import norm

from ssclass.params import GateParams
from ssclass.retrain.gate import judge
from ssclass.retrain.statistics import mcnemar_exact

RETRAINS, FIRST, ADDED, CHANGE, LOSS, ALIKE = 250, 160, 20, 125, 0.06, 0.7
GATE = GateParams()
Right = np.ndarray  # bool, one photo a place


class World:
    """Photos, their difficulty, and models that are right on some of them."""

    def __init__(self, seed: int, changes: bool) -> None:
        self.draw = np.random.default_rng(seed)
        self.changes = changes
        self.ability = self.draw.normal(0.92, 0.01, RETRAINS).clip(0.5, 0.99)
        self.seeds = self.draw.integers(2**63, size=RETRAINS)
        self.difficulty = self.draw.normal(size=FIRST + ADDED * RETRAINS)

    def accuracy(self, model: int, at: int) -> float:
        """True accuracy of a model on the photos of a time."""
        return float(self.ability[model] - LOSS * (self.changes and model < CHANGE <= at))

    def right(self, model: int, photos: int) -> Right:
        """Which of the first `photos` held-out photos a model has right."""
        luck = np.random.default_rng(self.seeds[model]).normal(size=len(self.difficulty))[:photos]
        return self._right(model, self.difficulty[:photos], luck, (np.arange(photos) - FIRST) // ADDED + 1)

    def fresh(self, model: int, at: int) -> Right:
        """The same on 160 photos that nobody has seen."""
        hard, luck = self.draw.normal(size=(2, FIRST))
        return self._right(model, hard, luck, np.full(FIRST, at))

    def _right(self, model: int, hard: np.ndarray, luck: np.ndarray, at: np.ndarray) -> Right:
        aim = self.ability[model] - LOSS * (self.changes & (model < CHANGE) & (at >= CHANGE))
        return np.asarray(np.sqrt(ALIKE) * hard + np.sqrt(1 - ALIKE) * luck < norm.ppf(aim))


Rule = Callable[[World, int, int, float], tuple[bool, float]]
"""(world, candidate, champion, the champion's number) to (promote?, the number reported from now on)."""


def stored(world: World, now: int, champion: int, number: float) -> tuple[bool, float]:
    """Compare the candidate's share with the number that was written down for the champion."""
    found = float(world.fresh(now, now).mean())
    return found > number, found


def both(growing: bool, limit: float = 1.0) -> Rule:
    """Compare the answers of both on the same photos."""

    def rule(world: World, now: int, champion: int, number: float) -> tuple[bool, float]:
        photos = FIRST + ADDED * now if growing else FIRST
        ours, theirs = world.right(now, photos), world.right(champion, photos)
        labels = np.zeros(photos, int)
        better = judge(labels, np.where(ours, 0, 1), np.where(theirs, 0, 1), GATE).promote
        if better and limit < 1:
            better = mcnemar_exact(int((ours & ~theirs).sum()), int((theirs & ~ours).sum())) < limit
        return better, float((ours if better else theirs).mean())

    return rule


RULES = {
    "stored number, new test set": stored,
    "one test set for ever": both(growing=False),
    "both scored, growing (ssclass)": both(growing=True),
    "the same, only if p < .05": both(growing=True, limit=0.05),
}


def life(world: World, rule: Rule) -> list[float]:
    """One champion after the other: mean true accuracy, the last one's, inflation, promotions, worse ones."""
    champion, number, promoted, worse, true = 0, float(world.right(0, FIRST).mean()), 0, 0, []
    for now in range(1, RETRAINS):
        better, found = rule(world, now, champion, number)
        if better:
            promoted += 1
            worse += world.accuracy(now, now) < world.accuracy(champion, now)
            champion = now
        if better or rule is not stored:
            number = found
        true.append(world.accuracy(champion, now))
    return [float(np.mean(true)), true[-1], number - true[-1], promoted, worse]


def main(repeats: int) -> None:
    """Print one table a world."""
    for changes in (False, True):
        print(f"\n{'the photos change half-way' if changes else 'the photos stay as they are'}, {repeats} repeats")
        print(f"{'rule':<32} true mean  at the end  reported - true  promotions  of them worse")
        for name, rule in RULES.items():
            found = [life(World(seed, changes), rule) for seed in range(repeats)]
            mean, end, inflation, promoted, worse = np.mean(found, axis=0)
            print(
                f"{name:<32} {mean:9.4f}  {end:10.4f}  {inflation:+15.4f}  {promoted:10.1f}  {worse / promoted:12.0%}",
                flush=True,
            )


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 100)
