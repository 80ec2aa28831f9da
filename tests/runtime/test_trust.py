"""Early exits against the draft: who is believed, and that it pays in simulation."""

from __future__ import annotations

import math
import random
from statistics import median

import pytest

from draftwire.bench.sim.facts import find
from draftwire.bench.sim.schemes import scheme_named
from draftwire.bench.sim.simulate import Plan, simulate
from draftwire.runtime.pacing.trust import Seconds, Trust


def contradicted(trust, agreement, times, seed=7):
    """Yield the odds, level doubt given, after each contradiction by such an exit."""
    dice = random.Random(seed)
    while times:
        p = dice.choice([0.5, 0.8, 0.95])
        draft, exit = dice.random() < p, dice.random() < agreement
        if draft is not exit:
            trust.judged(trust.doubt(p), exit, draft)
            times -= 1
            yield trust.odds(1.0)


@pytest.mark.parametrize("agreement", [0.3, 0.6, 0.9])
def test_what_an_exit_is_worth_is_learned_however_sure_the_draft_is(agreement):
    """By Bayes: of contradictions, the draft is right in ``p (1 - e)`` and the exit in
    ``(1 - p) e``, where the one is right with ``p`` and the other with ``e``."""
    odds = list(contradicted(Trust(), agreement, 20_000))[1000:]
    assert median(odds) == pytest.approx(agreement / (1 - agreement), rel=0.15)


def test_what_an_exit_has_earned_fades():
    """The target may be replaced under a session, and its exits with it."""
    trust = Trust()
    assert list(contradicted(trust, 0.9, 5000))[-1] > 4
    assert list(contradicted(trust, 0.1, 1000))[-1] < 0.5


def test_a_new_exit_is_believed_against_a_draft_that_doubts_itself():
    trust = Trust()
    assert trust.odds(trust.doubt(0.2)) > 1 > trust.odds(trust.doubt(0.5))
    assert trust.odds(trust.doubt(1.0)) > 0 and trust.doubt(0.0) < math.inf
    assert trust.doubt(None) == 1.0


def test_it_pays_in_simulation_and_drafts_that_are_mostly_right_lose_nothing():
    def ms(scheme, rate):
        profile = find("agx-a100-llama").replaced(
            "assumed", "a test", link__rtt_ms=40.0, text__acceptance=rate, draft__lanes=4,
            cloud__read_ms_per_token=0.0, draft__read_ms_per_token=0.0,
            link__up_mbit_s=math.inf, link__down_mbit_s=math.inf,
        )  # fmt: skip
        plan = Plan(profile, scheme_named(scheme), streams=2, tokens=300)
        return simulate(plan).ms_per_token

    assert ms("ours", 0.6) < 0.97 * ms("ours-no-exits", 0.6)
    assert ms("ours", 0.95) < 1.03 * ms("ours-no-exits", 0.95)


def test_second_choices_that_bring_less_than_they_should_are_left_out_for_a_while():
    seconds = Seconds()
    assert seconds.share == 1.0
    for _ in range(40):
        seconds.sent(0.3)
        seconds.judged(False)
    assert seconds.share < 0.4
    for _ in range(40):
        seconds.sent(0.3)
        seconds.judged(True)
    assert seconds.share > 0.9
    for _ in range(40):
        seconds.sent(0.3)
        seconds.judged(False)
    for _ in range(300):  # none is sent: they are tried again
        seconds.judged(False)
    assert seconds.share > 0.8
