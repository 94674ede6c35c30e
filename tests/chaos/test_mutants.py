"""The suite notices when a cure is taken out: one named test fails for each mutant."""

import pytest

from ssclass.settings import CHECKOUT
from tests.chaos.mutants import MUTANTS, Mutant, lives


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_what_a_mutant_replaces_is_there(mutant: Mutant):
    text = (CHECKOUT / mutant.file).read_text(encoding="utf-8")
    assert text.count(mutant.old) == 1
    file, _, name = mutant.test.partition("::")
    assert not name or f"def {name}(" in (CHECKOUT / file).read_text(encoding="utf-8")


@pytest.mark.slow
@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_mutant_is_noticed(mutant: Mutant):
    said = lives(mutant)
    assert said is None, f"{mutant.name} lives:\n{said}"
