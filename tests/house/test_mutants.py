"""Faults that once went unseen are seen now (``make slow``)."""

import mutants
import pytest


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("mutant", mutants.MUTANTS, ids=lambda m: m.name)
def test_a_planted_fault_is_seen(mutant):
    assert not mutants.survives(mutant)
