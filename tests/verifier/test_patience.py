"""Patience: a forward waits for drafts where that pays, and no token is ever late by it."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from cached_target import CachedTarget

from draftwire.bench.link import LinkSpec
from draftwire.bench.sim.facts import find
from draftwire.bench.sim.schemes import scheme_named
from draftwire.bench.sim.simulate import Plan, simulate
from draftwire.bench.sim.texts import Synthetic, parse_luck
from draftwire.clock import VirtualClock
from draftwire.runtime.edge.rest import Hush
from draftwire.verifier.backends.base import SlotInput
from draftwire.verifier.executor import VirtualExecutor
from draftwire.verifier.patience import Arrivals, Outlook, Table, Tables
from draftwire.verifier.patience import hold_until as held
from draftwire.verifier.scheduler import Scheduler

FREE = {
    "cloud__read_ms_per_token": 0.0,
    "draft__read_ms_per_token": 0.0,
    "link__up_mbit_s": math.inf,
    "link__down_mbit_s": math.inf,
}


def seen(plan: Plan, scheme: str) -> list[list[float]]:
    """Return when each token of each stream was seen, from when its user asked."""
    outcome = simulate(replace(plan, scheme=scheme_named(scheme)))
    return [
        [at - stream.began_s for at, count in stream.seen for _ in range(count)]
        for stream in outcome.streams
    ]


@pytest.mark.parametrize("seed", range(12))
def test_no_token_is_later_than_by_streaming(seed):
    """Exactly, whatever draft, pace and link, as long as a forward takes what it takes."""
    rng = np.random.default_rng(seed)
    forward_ms = float(rng.choice([25.0, 72.0, 145.0]))
    step_ms = forward_ms / float(rng.choice([1.5, 3.0, 6.0, 12.0, 27.0]))
    profile = find("nano-a100").replaced(
        "assumed", "a test", cloud__forward_ms=forward_ms, draft__step_ms=step_ms, **FREE
    )
    luck = rng.choice(["0.3", "0.6", "0.9", "markov:0.8:0.5", "regimes:0.95:0.2:20"])
    source = Synthetic(parse_luck(str(luck)), seed=seed, repeats=float(seed % 2) / 2)
    link = LinkSpec.parse(f"{rng.choice([4, 10, 40, 150])}ms")
    plan = Plan(
        profile, scheme_named("cloud"), link=link, source=source, streams=2, tokens=250
    )
    streaming = seen(plan, "cloud")
    for scheme in ("race+patience", "race+patience+lookup", "ours"):
        for ours, cloud in zip(seen(plan, scheme), streaming):
            assert len(ours) == len(cloud)
            late = max(a - b for a, b in zip(ours, cloud))
            assert late <= 1e-9, f"{scheme}: a token came {1e3 * late:.3f} ms late"


def test_it_pays_where_forwards_are_long_and_the_trip_is_short():
    profile = find("agx-a100-qwen").replaced(
        "assumed", "a test", link__rtt_ms=10.0, text__acceptance=0.7, **FREE
    )
    plan = Plan(profile, scheme_named("cloud"), streams=1, tokens=600)
    race = simulate(replace(plan, scheme=scheme_named("race")))
    ours = simulate(replace(plan, scheme=scheme_named("race+patience")))
    assert ours.ms_per_token < 0.97 * race.ms_per_token
    assert ours.forwards < race.forwards


# ---- the rule


def test_leaves_make_a_forward_over_drafts_worth_waiting_for():
    """A rejection costs less where its leaf may be right: the pace is higher, and so is
    the worth of waiting for drafts that come soon."""
    bare, leafy = (Table(0.6, 6.0, 1.4, 1, leaf) for leaf in (0.0, 0.65))
    assert leafy.rate > 1.1 * bare.rate
    gains = [table.at(0, 1.4) - table.at(0, 1.4)[0] for table in (bare, leafy)]
    assert max(gains[1]) > max(gains[0]) + 0.1


def test_the_table_knows_the_pace_of_simple_streams():
    always = Table(0.3, 2.0, 400.0, 1)  # the drafts never come in time
    assert always.rate == pytest.approx(1 / 2.0, rel=0.03)
    quick = Table(0.975, 27.0, 2.0, 1)
    assert quick.rate > 5 / 27.0
    assert quick.rate <= 1.0, "the device makes one token a step"


def test_a_table_counts_what_comes_at_once_as_a_whole():
    """Of drafts that come eight at a time and are nearly always right, three more are
    worth their wait at sixteen in hand, and forty in hand are worth more than sixteen."""
    table = Table(0.975, 27.0, 3.0, 8)
    gains = table.at(16, 0.5) - table.at(16, 0.5)[0]
    assert gains.argmax() >= 3
    assert table.at(40, 0.5)[0] > table.at(16, 0.5)[0] + 5


def hold_until(now_s, streams, forward_s):
    return held(now_s, streams, forward_s, Tables(lambda job, done: done(job())))


def test_a_table_that_is_not_made_yet_holds_nobody():
    jobs = []
    tables = Tables(lambda job, done: jobs.append((job, done)))
    assert held(1.0, [outlook()], 0.14, tables) == 1.0 and len(jobs) == 1
    assert held(1.0, [outlook()], 0.14, tables) == 1.0 and len(jobs) == 1
    jobs[0][1](jobs[0][0]())
    assert held(1.0, [outlook()], 0.14, tables) > 1.02


def outlook(**changed):
    soon = {"acceptance": 0.8, "ready": 0, "next_s": 1.02, "step_s": 0.02}
    more = {"back_s": 0.05, "batch": 1.0, "due_s": math.inf}
    return Outlook(**{**soon, **more, **changed})


def test_it_waits_for_what_is_near_and_not_for_what_is_far():
    assert hold_until(1.0, [outlook()], 0.14) > 1.02
    assert hold_until(1.0, [outlook(next_s=1.5)], 0.14) == 1.0, "longer than a forward"
    assert hold_until(1.0, [outlook(next_s=math.inf)], 0.14) == 1.0
    assert hold_until(1.0, [outlook(ready=12)], 0.14) == 1.0, "there is enough to judge"


def test_it_waits_on_credit_alone():
    assert hold_until(1.0, [outlook(due_s=1.0)], 0.14) == 1.0
    assert hold_until(1.0, [outlook(due_s=1.01)], 0.14) == 1.0, "not so long"
    assert hold_until(1.0, [outlook(due_s=1.021)], 0.14) == 1.021
    neighbour = outlook(due_s=0.9, next_s=math.inf)
    assert hold_until(1.0, [outlook(), neighbour], 0.14) == 1.0, "its neighbour has none"


def test_it_waits_no_longer_than_they_are_ever_late():
    """A little more patience costs little, and a forward without them costs a forward."""
    assert hold_until(1.0, [outlook()], 0.14) == pytest.approx(1.06), "1.04, and half of it"
    assert hold_until(1.0, [outlook(late_s=0.05)], 0.14) == pytest.approx(1.09)
    assert hold_until(1.0, [outlook(late_s=0.05, due_s=1.05)], 0.14) == 1.05
    assert hold_until(1.0, [outlook(late_s=9.0)], 0.14) == pytest.approx(1.14)


def test_a_batch_weighs_everybody():
    alone = hold_until(1.0, [outlook()], 0.14)
    rich = outlook(ready=14, next_s=math.inf)
    assert alone > 1.0
    assert hold_until(1.0, [outlook(), *[rich] * 30], 0.14) == 1.0


def test_arrivals_are_foreseen():
    seen = Arrivals()
    seen.commit(1.0, 5, 3)
    for i in range(6):  # the device began behind token 5, 46 ms after the news
        seen.block(1.046 + 0.024 * i, 3, 5 + i, 1, 3)
    found = seen.outlook(1.17, 5, 6, 2.0)
    assert found.next_s == pytest.approx(1.19) and found.step_s == pytest.approx(0.024)
    assert found.back_s == pytest.approx(0.046)
    seen.commit(1.2, 8, 4)  # a draft was wrong: it begins anew
    seen.block(1.21, 3, 11, 1, 4)  # was on its way
    assert seen.outlook(1.21, 8, 0, 2.0).next_s == pytest.approx(1.246)
    seen.commit(1.22, 9, 4)  # and another token meanwhile: the second draft is of use
    assert seen.outlook(1.22, 9, 0, 2.0).next_s == pytest.approx(1.266)
    assert seen.outlook(1.3, 9, 0, 2.0).next_s == math.inf, "it pauses, or is gone"


def test_an_exit_that_foretold_a_rejection_was_the_news():
    """The device began anew when it heard of that, unless it did not believe it."""
    seen = Arrivals()
    seen.commit(1.0, 5, 0)
    seen.block(1.046, 0, 5, 1, 0)
    seen.block(1.07, 0, 6, 1, 0)
    seen.commit(1.2, 7, 1, told_s=1.17)
    assert seen.outlook(1.2, 7, 0, 2.0).next_s == pytest.approx(1.216)
    seen.block(1.216, 1, 5, 3, 1)  # its text was not longer yet when it turned
    assert seen.outlook(1.216, 7, 1, 2.0).back_s == pytest.approx(0.046)
    seen.commit(1.4, 9, 2, told_s=1.3)  # what was foretold would have come by now
    assert seen.outlook(1.4, 9, 0, 2.0).next_s == pytest.approx(1.446)


@pytest.mark.parametrize("scheme, rate", [("race", 0.9), ("ours", 0.6)])
def test_a_race_judges_what_fits_one_forward(scheme, rate, monkeypatch):
    """Drafts so far ahead that they would take a second forward wait for the next; behind a
    second choice that was right two ids of the text are to be read."""
    profile = find("agx-a100-llama@5.4").replaced(
        "assumed", "a test", link__rtt_ms=10.0, text__acceptance=rate, draft__at_once=8,
        **FREE,
    )  # fmt: skip
    monkeypatch.setattr(Hush, "until_s", lambda self, now_s, step_s, ahead: now_s)
    plan = Plan(profile, scheme_named(scheme), streams=1, tokens=400)
    counts = simulate(plan).streams[0].counts
    assert counts.forwards == counts.rounds


def test_how_soon_a_device_begins_anew_is_what_it_mostly_takes():
    """What it had prepared is there at once, what waits for its draft later: the forward
    waits for either."""
    seen, now_s = Arrivals(), 1.0
    for epoch, back_s in enumerate((0.072, 0.034, 0.034, 0.01, 0.034)):
        seen.commit(now_s, 5 * epoch + 5, epoch)
        seen.block(now_s + back_s, epoch, 5 * epoch + 5, 4, epoch)
        seen.block(now_s + back_s + 0.02, epoch, 5 * epoch + 9, 1, epoch)
        now_s += 0.2
    seen.commit(now_s, 40, 9)
    found = seen.outlook(now_s, 40, 0, 9.0)
    assert found.back_s == pytest.approx(0.034)
    assert found.next_s == pytest.approx(now_s + 0.034)
    assert found.late_s == pytest.approx(0.02 + 0.072 - 0.034), "and a step at work"


def test_what_a_device_drafts_besides_is_no_measure_of_its_pace():
    """Outcomes that it prepares make holes of several steps; one of them that comes true
    brings many drafts at once."""
    seen, now_s, tip = Arrivals(), 1.0, 5
    seen.commit(now_s, 5, 3)
    for i in range(20):
        now_s += 0.045 if i % 4 == 3 else 0.005
        count = 6 if i % 5 == 4 else 1
        seen.block(now_s, 3, tip, count, 3)
        tip += count
    found = seen.outlook(now_s, 5, tip - 5, 9.0)
    assert found.step_s == pytest.approx(0.005) and found.batch == 1
    assert found.next_s == pytest.approx(now_s + 0.005)


def test_the_next_stream_of_a_connection_knows_the_pace():
    """It begins its holds at once, where the first one had to learn what they bring."""
    profile = find("agx-a100-llama@5.4").replaced(
        "assumed", "a test", link__rtt_ms=10.0, text__acceptance=0.95, **FREE
    )
    plan = Plan(profile, scheme_named("race+patience"), streams=6, tokens=150)
    one_after_another = [max(times) for times in seen(plan, "race+patience")]
    source = plan.texts

    class Alone:
        def text(self, index, tokens):
            return source.text(5, tokens)

    (alone,) = seen(replace(plan, streams=1, source=Alone()), "race+patience")
    assert one_after_another[5] < max(alone)


def test_second_choices_go_up_where_bytes_take_no_time():
    """In a race their worth is time: nearly every draft brings one over a fast link, few
    over one where two bytes take as long as they may save."""
    profile = find("agx-a100-llama").replaced(
        "assumed", "a test", text__acceptance=0.9, **FREE
    )
    plan = Plan(profile, scheme_named("race+leaves"), streams=2, tokens=200)

    def share(link: LinkSpec) -> float:
        counts = [s.counts for s in simulate(replace(plan, link=link)).streams]
        return sum(c.leaves for c in counts) / sum(c.drafted for c in counts)

    assert share(LinkSpec.parse("40ms")) > 0.9
    assert share(LinkSpec.parse("40ms,up=2kbit")) < 0.6


def test_a_device_that_was_overtaken_is_foreseen():
    seen = Arrivals()
    seen.commit(1.0, 5, 0)
    seen.block(1.046, 0, 5, 1, 0)
    seen.block(1.07, 0, 6, 1, 0)
    seen.commit(1.1, 9, 0)  # two tokens that it has not sent yet
    assert seen.outlook(1.1, 9, 0, 2.0).next_s == pytest.approx(1.142)
    seen.block(1.11, 0, 7, 1, 1)  # and one of its own that contradicts them
    assert seen.outlook(1.11, 9, 0, 2.0).next_s == pytest.approx(1.146)


# ---- in the scheduler


class Waits:
    """A source that would like to wait for what comes at a given time."""

    def __init__(self, lab, slot, next_s, due_s=math.inf):
        self.lab, self.slot, self.next_s, self.due_s = lab, slot, next_s, due_s
        self.made_s = None

    def make(self):
        self.made_s = self.lab.clock.now()
        return SlotInput(self.slot, 0, np.zeros(1, np.int64), 1)

    def drafting(self, streams):
        return None

    def outlook(self, now_s):
        if self.next_s is None:
            return None
        next_s = self.next_s if now_s < self.next_s else math.inf
        return Outlook(0.8, 0, next_s, 0.02, 0.05, 1.0, self.due_s)


class Lab:
    def __init__(self):
        self.clock = VirtualClock()
        self.backend = CachedTarget()
        executor = VirtualExecutor(self.backend, self.clock, lambda parts, prefill: 0.14)
        self.scheduler = Scheduler(self.backend, executor, self.clock)
        for _ in range(4):
            self.backend.allocate()
        self.ask(Waits(self, 0, None))  # so that it knows what a forward takes
        self.clock.run()
        self.start_s = self.clock.now()

    def ask(self, source):
        self.scheduler.submit(source, slot=source.slot, done=lambda answer: None)
        return source


def test_a_forward_is_held_until_the_drafts_have_come_or_are_late():
    lab = Lab()
    held = lab.ask(Waits(lab, 1, lab.start_s + 0.03))
    lab.clock.run()
    assert lab.start_s + 0.03 <= held.made_s <= lab.start_s + 0.1
    assert lab.scheduler.held_s == pytest.approx(held.made_s - lab.start_s)

    lab = Lab()
    held = lab.ask(Waits(lab, 1, lab.start_s + 0.03))
    lab.clock.call_at(lab.start_s + 0.01, lambda: setattr(held, "next_s", math.inf))
    lab.clock.call_at(lab.start_s + 0.01, lab.scheduler.stir)
    lab.clock.run()
    assert held.made_s == pytest.approx(lab.start_s + 0.01), "they came early"


def test_nobody_waits_who_cannot_or_while_others_do():
    for other in (None, math.inf):
        lab = Lab()
        first = lab.ask(Waits(lab, 1, lab.start_s + 0.03, math.inf))
        second = lab.ask(Waits(lab, 2, other, lab.start_s))
        lab.clock.run()
        assert first.made_s == second.made_s == lab.start_s
    lab = Lab()
    first = lab.ask(Waits(lab, 1, lab.start_s + 0.03))
    prompt = SlotInput(2, 0, np.zeros(3, np.int64), 0)
    lab.scheduler.submit(prompt, prefill=True, done=lambda answer: None)
    lab.clock.run()
    assert first.made_s <= lab.start_s + 0.15
