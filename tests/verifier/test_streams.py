"""Streams of a verifier in virtual time: what ends holds nothing, what is planted is found.

The histories are those of tests/helpers/world.py, whose target forgives nothing.
"""

from __future__ import annotations

import pytest
import world
from world import Plan, StreamPlan, quiet

from draftwire.errors import DraftwireError
from draftwire.verifier.streams import Stream
from draftwire.verifier.target_session import TargetSession


@pytest.fixture(autouse=True)
def silent():
    with quiet():
        yield


def history(seed):
    """Run a history; when all has ended and expired, nothing may be held."""
    found = world.check(world.draw_plan(world.Dice(seed)))
    clock = found.clock
    found.driver.close()
    for wire in found.wires:
        clock.call_later(30.0, wire.hang_up)  # as the verifier's pings have it
    for until_s in (clock.now_s + 60.0, clock.now_s + 200.0):
        clock.call_at(until_s, lambda: found.kept.sweep())  # another one after a restart
        clock.run(lambda until_s=until_s: clock.now_s >= until_s)
    kept = found.kept
    assert not kept._known and not len(kept) and kept.kept_bytes == 0, seed
    assert found.usage.streams == 0, seed
    while kept.prefixes.give_up_slot(found.served):
        pass
    slots = range(found.target.slots)
    assert [found.target.allocate() for _ in slots] == list(slots), seed


def test_what_has_ended_holds_nothing():
    for seed in range(60):
        history(seed)


def test_nothing_is_read_twice():
    """Undisturbed, the target is fed each token once."""
    streams = tuple(StreamPlan(prompt=(n, 2, 3), count=30, k=3) for n in range(2))
    found = world.check(Plan(streams, luck=0.8))
    assert found.target.fed > 60 and found.target.again == 0


def one_more(right, self, *args, **named):
    found = right(self, *args, **named)
    self.cached += not self.done
    return found


def unclamped(right, self, work, decision, **named):
    found = right(self, work, decision, **named)
    if not work.prefill and not self.done:
        self.cached = work.start + len(work.tokens) - work.drafted + found[0].accepted
    return found


FAULTS = {
    "the cache is taken to hold one token more": (TargetSession, "settle", one_more),
    "the cache is taken to hold the last token": (TargetSession, "settle", unclamped),
    "a slot is never given back": (Stream, "release", lambda right, self: None),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_found(fault, monkeypatch):
    owner, name, change = FAULTS[fault]
    right = getattr(owner, name)
    monkeypatch.setattr(owner, name, lambda *args, **named: change(right, *args, **named))
    with pytest.raises((AssertionError, ValueError, LookupError, DraftwireError)):
        for seed in range(400):
            history(seed)
