"""The objective auto: what it takes, what its trials cost, and its ceiling of forwards."""

import random

import pytest

from draftwire.bench.sim import texts
from draftwire.bench.sim.facts import find
from draftwire.bench.sim.schemes import scheme_named
from draftwire.bench.sim.simulate import Plan, simulate
from draftwire.runtime.pacing.ways import ALONE, RACE, WAIT, Ceiling, Ways, race_gain


class Text:
    """Text that comes as fast as the way that is taken lets it."""

    def __init__(self, ways, takes, *, gain=0.5, wait_s=0.1, race=True, wait=True):
        self.ways, self.takes = ways, takes
        self.model = gain, wait_s
        self.may = {"race": race, "wait": wait}
        self.t_s, self.spent = 0.0, dict.fromkeys((ALONE, RACE, WAIT), 0.0)
        self.rng = random.Random(1)
        self.hits = 1, 2  # tokens of a race's verdict

    def write(self, tokens):
        ways, count = self.ways, 0
        while count < tokens:
            way = ways.choose(self.t_s, 0.05, **self.may)
            new = {ALONE: 1, RACE: self.rng.choice(self.hits), WAIT: 4}[way]
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


@pytest.mark.parametrize("begin", [1.0, 1.02, 1.1])
@pytest.mark.parametrize("gain", [0.0, 0.02, 0.15])
def test_an_unlucky_trial_is_not_believed_for_long(gain, begin):
    """A race is fastest, and begins with twenty tokens of drafts that are wrong."""
    takes = {ALONE: 0.025, RACE: begin * 0.025, WAIT: 0.05}
    text = Text(Ways(), takes, gain=gain, wait_s=0.05)
    text.hits = (1,)
    while text.ways.now == RACE and text.spent[RACE] < 20 * takes[RACE]:
        text.write(1)
    takes[RACE], text.hits = 0.85 * 0.025, (1, 2)
    text.ways.begin()
    text.write(150)
    began_s, spent_s = text.t_s, text.spent[RACE]
    text.write(450)
    assert text.ways.now == RACE
    assert (text.spent[RACE] - spent_s) / (text.t_s - began_s) > 0.9


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


@pytest.mark.parametrize("profile,rtt_ms,acceptance", [
    ("nano-a100", 80.0, 0.8), ("agx-a100-llama", 80.0, 0.6),
])  # fmt: skip
def test_a_text_that_begins_with_wrong_drafts_is_raced(
    profile, rtt_ms, acceptance, monkeypatch
):
    """In the simulator: it took up to 1.3 times as long as a race once."""
    chain = texts._chain

    def unlucky(*how):
        right = chain(*how)
        right[:30] = False
        return right

    monkeypatch.setattr(texts, "_chain", unlucky)
    facts = find(profile).replaced(
        "assumed", "a test", link__rtt_ms=rtt_ms, text__acceptance=acceptance
    )
    took = {
        name: simulate(Plan(facts, scheme_named(name), streams=1, tokens=400)).ms_per_token
        for name in ("cloud", "race", "auto")
    }
    assert took["race"] < took["cloud"]
    assert took["auto"] < 1.03 * took["race"]


def test_what_is_not_allowed_costs_no_trial_and_is_not_forgotten():
    takes = {ALONE: 0.003, RACE: 0.002, WAIT: 0.01}
    text = Text(Ways(), takes, wait_s=0.01, gain=0.3).write(300)
    text.may = {"race": False, "wait": True}
    for _ in range(3000):
        text.ways.news()
    assert text.write(3000).ways.now == WAIT
    text.may["race"] = True
    assert text.write(40).ways.now == RACE
