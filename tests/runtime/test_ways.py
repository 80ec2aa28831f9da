"""The objective auto: what it takes, what its trials cost, and its ceiling of forwards."""

import random

import pytest

from draftwire.runtime.pacing.ways import ALONE, RACE, WAIT, Ceiling, Ways, race_gain


class Text:
    """Text that comes as fast as the way that is taken lets it."""

    def __init__(self, ways, takes, *, gain=0.5, wait_s=0.1, race=True, wait=True):
        self.ways, self.takes = ways, takes
        self.model = gain, wait_s
        self.may = {"race": race, "wait": wait}
        self.t_s, self.spent = 0.0, dict.fromkeys((ALONE, RACE, WAIT), 0.0)
        self.rng = random.Random(1)

    def write(self, tokens):
        ways, count = self.ways, 0
        while count < tokens:
            way = ways.choose(self.t_s, 0.05, **self.may)
            new = {ALONE: 1, RACE: self.rng.choice((1, 2)), WAIT: 4}[way]
            took = new * self.takes[way] * self.rng.uniform(0.9, 1.1)
            self.t_s += took
            self.spent[way] += took
            ways.passed(self.t_s, new)
            ways.modelled(*self.model, self.takes[ALONE])
            count += new
        return self

    def slower(self):
        best = min(self.takes, key=self.takes.get)
        return 1 - self.spent[best] / sum(self.spent.values())


@pytest.mark.parametrize("best", [ALONE, RACE, WAIT])
def test_the_fastest_way_is_found_and_kept(best):
    takes = dict.fromkeys((ALONE, RACE, WAIT), 0.02)
    takes[best] = 0.012
    hope = {"gain": 0.4 if best == RACE else 0.1, "wait_s": takes[WAIT]}
    assert Text(Ways(), takes, **hope).write(4000).slower() < 0.05


@pytest.mark.parametrize("gain,wait_s", [(0.5, 0.002), (0.2, 0.001), (0.9, 0.01)])
def test_models_that_promise_too_much_cost_little(gain, wait_s):
    """Both drafting ways are twice as slow as streaming, and said to be far faster."""
    takes = {ALONE: 0.003, RACE: 0.006, WAIT: 0.006}
    text = Text(Ways(), takes, gain=gain, wait_s=wait_s).write(3000)
    early, spent = sum(text.spent.values()), dict(text.spent)
    text.write(12_000)
    later = sum(text.spent.values()) - early
    assert (text.spent[ALONE] - spent[ALONE]) / later > 0.95
    assert text.slower() < 0.08, "from the first token on"


def test_a_way_that_becomes_fast_is_found_again():
    takes = {ALONE: 0.003, RACE: 0.006, WAIT: 0.01}
    text = Text(Ways(), takes, gain=0.3, wait_s=0.01).write(1000)
    assert text.ways.now == ALONE
    takes[RACE] = 0.0015
    text.ways.news()
    assert text.write(2500).ways.now == RACE


def test_only_what_is_allowed_is_taken():
    takes = {ALONE: 0.003, RACE: 0.002, WAIT: 0.01}
    text = Text(Ways(), takes, race=False).write(100)
    assert set(k for k, v in text.spent.items() if v) == {WAIT}
    text.may = {"race": True, "wait": False}
    text.spent[WAIT] = 0.0
    assert text.write(200).spent[WAIT] == 0.0


@pytest.mark.parametrize("most", [0.3, 0.5, 0.8])
def test_the_ceiling_holds(most):
    ceiling, rng = Ceiling(most), random.Random(2)
    tokens = forwards = raced = 0
    while tokens < 3000:
        racing = ceiling.races
        new = rng.choice((1, 1, 1, 2)) if racing else rng.choice((3, 5))
        raced += new if racing else 0
        tokens, forwards = tokens + new, forwards + 1
        ceiling.passed(new, 1)
    assert forwards / tokens <= most * 1.01
    assert raced > 0, "what is left over is raced with"
    assert all(Ceiling(1.0).races for _ in range(3))


def test_what_a_race_should_gain():
    assert race_gain(0.9, 0.03, 0.02, 0.04) == 0.0, "a draft slower than the target"
    assert race_gain(0.85, 0.001, 0.003, 0.04) < 0.05, "a fast target far away"
    near = race_gain(0.8, 0.024, 0.145, 0.01)
    assert 0.5 < near < 0.8
    assert race_gain(0.8, 0.024, 0.145, 0.2) < near
