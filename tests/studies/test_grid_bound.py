"""The clairvoyant bound: against trying everything, and against what cannot beat it."""

import itertools
import random

import pytest
from schedules import await_time, least_time, race_time, rights

from studies.grid.bound import clairvoyant_s

PROFILES = ((25, 10), (72, 24), (145, 24))
RTTS = (10, 40, 80, 150)
RATES = (0.6, 0.8, 0.9)


def test_it_is_what_trying_everything_finds():
    rng = random.Random(5)
    for _ in range(60):
        right = [rng.random() < 0.75 for _ in range(rng.randint(1, 6))]
        draft, most = rng.randint(1, 3), rng.randint(1, 5)
        base, slope, free = rng.randint(1, 5), rng.choice((0, 0, 1)), rng.randint(1, 3)
        up, down = rng.randint(0, 3), rng.randint(0, 3)

        def cost(n, base=base, slope=slope, free=free):
            return base + slope * max(0, n - free)

        bound = clairvoyant_s(
            right, draft_s=draft, forward_s=cost, up_s=up, down_s=down, most=most
        )
        tried = least_time(right, draft, cost, up, down, most, horizon=200)
        assert bound == tried, (right, draft, base, slope, free, up, down, most)


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
            right,
            draft_s=draft,
            forward_s=lambda n: forward,
            up_s=rtt / 2,
            down_s=rtt / 2,
        ) / len(right)
        assert bound <= race_time(right, draft, forward, rtt) + 1e-9
        waits = [await_time(right, draft, forward, rtt, k) for k in range(1, 17)]
        assert bound <= min(waits) and bound <= forward


def test_a_forward_of_no_tokens_is_refused():
    with pytest.raises(ValueError):
        clairvoyant_s([True], draft_s=1, forward_s=lambda n: 1, up_s=0, down_s=0, most=0)
