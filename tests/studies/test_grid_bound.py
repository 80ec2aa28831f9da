"""The clairvoyant bound: against trying everything, and against what cannot beat it."""

import itertools
import random

import numpy as np
import pytest
from schedules import await_time, least_time, race_time, rights

from draftwire.bench.sim.facts import find
from draftwire.bench.sim.schemes import scheme_named
from draftwire.bench.sim.simulate import Plan, simulate
from studies.grid.bound import clairvoyant_s
from studies.grid.grid import bound_ms, cell_of

PROFILES = ((25, 10), (72, 24), (145, 24))
RTTS = (10, 40, 80, 150)
RATES = (0.6, 0.8, 0.9)


def test_it_is_what_trying_everything_finds():
    rng = random.Random(5)
    for _ in range(90):
        right = [rng.random() < 0.75 for _ in range(rng.randint(1, 6))]
        draft, most = rng.randint(1, 3), rng.randint(1, 5)
        base, slope, free = rng.randint(1, 5), rng.choice((0, 0, 1)), rng.randint(1, 3)
        up, down, at_once = rng.randint(0, 3), rng.randint(0, 3), rng.randint(1, 3)

        def cost(n, base=base, slope=slope, free=free):
            return base + slope * max(0, n - free)

        game = {"up_s": up, "down_s": down, "most": most, "at_once": at_once}
        bound = clairvoyant_s(right, draft_s=draft, forward_s=cost, **game)
        tried = least_time(right, draft, cost, up, down, most, 200, at_once)
        assert bound == tried, (right, draft, base, slope, free, game)


def test_worked_by_hand():
    """Two right positions, then a wrong one: wait for both drafts, or begin at once?"""
    right = [True, True, False]

    def bound(forward, draft=10, way=5):
        return clairvoyant_s(
            right, draft_s=draft, forward_s=lambda n: forward, up_s=way, down_s=way
        )

    assert bound(100) == 2 * 10 + 5 + 100  # one forward for all three
    # By itself: 30. With one draft: 10 + 5 + 10, and then one more forward.
    assert bound(10) == 30
    assert bound(30, draft=10) == 20 + 5 + 30


def test_nothing_right_is_plain_decoding_and_all_right_is_drafting():
    cost = {"draft_s": 1.0, "up_s": 4.0, "down_s": 4.0}
    assert clairvoyant_s([False] * 50, forward_s=lambda n: 7.0, **cost) == 350
    fast = clairvoyant_s([True] * 1000, forward_s=lambda n: 7.0, **cost)
    assert 1000 <= fast <= 1000 + 4 + 2 * 7


@pytest.mark.parametrize("profile", PROFILES)
def test_no_scheme_beats_it(profile):
    forward, draft = profile
    for rtt, rate in itertools.product(RTTS, RATES):
        right = rights(rate, 2000, seed=3)
        bound = clairvoyant_s(
            right, draft_s=draft, forward_s=lambda n: forward, up_s=rtt / 2, down_s=rtt / 2
        ) / len(right)
        assert bound <= race_time(right, draft, forward, rtt) + 1e-9
        waits = [await_time(right, draft, forward, rtt, k) for k in range(1, 17)]
        assert bound <= min(waits) and bound <= forward


def test_a_forward_of_no_tokens_is_refused():
    with pytest.raises(ValueError):
        clairvoyant_s([True], draft_s=1, forward_s=lambda n: 1, up_s=0, down_s=0, most=0)


def test_drafts_beside_the_target_and_second_choices_bound_wider_games():
    rng = np.random.default_rng(5)
    right = (rng.random(200) < 0.7).tolist()
    second = [r or rng.random() < 0.5 for r in right]
    cost = {"forward_s": lambda n: 0.1, "up_s": 0.02, "down_s": 0.02, "draft_s": 0.03}
    one = clairvoyant_s(right, **cost)
    assert clairvoyant_s(second, **cost) < one
    assert clairvoyant_s(right, **cost, server_s=1e9) == pytest.approx(one)
    quick = [clairvoyant_s(right, **cost, server_s=s) for s in (0.03, 0.01, 0.001)]
    assert one > quick[0] > quick[1] > quick[2]
    # Free drafts beside the target: a forward takes 17 tokens or ends at a gate.
    forwards, at = 0, 0
    while at < len(right):
        gate = right.index(False, at) if False in right[at:] else len(right) - 1
        at, forwards = min(gate + 1, at + 17), forwards + 1
    least = clairvoyant_s(right, **cost, server_s=0.0)
    assert least == pytest.approx(0.1 * forwards)


@pytest.mark.parametrize("rate", [0.6, 0.9])
def test_hybrid_stays_above_the_bound_of_drafts_beside_the_target(rate):
    profile = cell_of(find("agx-a100-llama"), 10.0, rate)
    plan = Plan(profile, scheme_named("hybrid"), streams=1, tokens=200)
    stream = simulate(plan).streams[0]
    took_ms = 1e3 * (stream.last_s - stream.began_s) / 200
    assert bound_ms(plan, server=True) <= took_ms
    assert bound_ms(plan, server=True) < bound_ms(plan)
