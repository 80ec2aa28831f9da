"""A link on a virtual clock: pauses, silence, pings; and the drafter's orders."""

import random

import numpy as np
import pytest

from draftwire.clock import VirtualClock
from draftwire.errors import BusyError, RefusedError, TransportError
from draftwire.runtime.drafter import Drafter
from draftwire.runtime.edge.actions import Draft
from draftwire.runtime.link import Link, LinkSettings
from draftwire.sampling import SamplingParams, make_proposer
from draftwire.transport.messages import Hello, Welcome
from draftwire.transport.traffic import Meter

HELLO = Hello("test", "", bytes(32), b"", 8)
WELCOME = Welcome("", "t", "1", "", bytes(32), b"", 8, 64, 255)


class Wire:
    def __init__(self, clock, events, answers):
        self.clock, self.events, self.answers = clock, events, answers
        self.meter, self.pings, self.closed = Meter(), [], False

    def send(self, message, stream=0):
        return 1

    def ping(self):
        self.pings.append(self.clock.now_s)
        if self.answers:
            self.clock.call_later(0.05, self.events.alive)
        return 58

    def close(self):
        self.closed = True


class Net:
    """Connects in 0.1 s, or fails at once with ``outcomes``; notes when it was asked."""

    def __init__(self, clock, outcomes=(), answers=True):
        self.clock, self.outcomes, self.answers = clock, list(outcomes), answers
        self.tried, self.wires = [], []

    def connect(self, hello, events, timeout_s):
        self.tried.append(self.clock.now_s)
        wire = Wire(self.clock, events, self.answers)
        self.wires.append(wire)
        error = self.outcomes.pop(0) if self.outcomes else None
        if error is None:
            self.clock.call_later(0.1, events.up, WELCOME)
        else:
            self.clock.post(events.down, error)
        return wire


class Owner:
    streams = ()

    def __init__(self):
        self.heard = []

    def link_up(self, link, welcome):
        self.heard.append("up")

    def link_message(self, link, message):
        self.heard.append(message)

    def link_lost(self, link, error):
        self.heard.append(error)

    def link_failed(self, link, error):
        self.heard.append("failed")


def make(outcomes=(), answers=True, seed=1, **settings):
    clock = VirtualClock()
    net, owner = Net(clock, outcomes, answers), Owner()
    link = Link(clock, net, HELLO, LinkSettings(**settings), owner, random.Random(seed))
    link.start()
    return clock, net, owner, link


def until(clock, seconds):
    clock.call_at(seconds, lambda: None)
    clock.run(lambda: clock.now_s >= seconds)


def gaps(times):
    return [b - a for a, b in zip(times, times[1:])]


def test_pauses_grow_and_are_jittered():
    down = [TransportError("down")] * 10
    found = [make(down, seed=seed) for seed in (1, 2)]
    for clock, net, _, _ in found:
        until(clock, 60.0)
        for i, gap in enumerate(gaps(net.tried[:9])):
            most = min(0.1 * 2**i, 5.0)
            assert 0.5 * most <= gap <= most
    # A fleet that lost the same verifier does not come back as one.
    one, other = (gaps(net.tried[:9]) for _, net, _, _ in found)
    assert all(abs(a - b) > 1e-6 for a, b in zip(one, other))


def test_a_bare_handshake_does_not_shorten_the_pauses():
    clock, net, _, link = make()
    for _ in range(8):
        until(clock, clock.now_s + 0.2)
        link.lose(TransportError("no room"))
        clock.run(lambda: link.up)
    assert gaps(net.tried)[-1] >= 2.5
    link.progress()  # a verdict does
    link.lose(TransportError("cut"))
    clock.run(lambda: link.up)
    assert gaps(net.tried)[-1] <= 0.2


def test_retry_after_is_kept_to():
    busy = BusyError("429")
    busy.retry_after_s = 7.0
    clock, net, _, _ = make([busy])
    until(clock, 30.0)
    (gap,) = gaps(net.tried)
    assert 7.0 <= gap <= 10.5  # a fleet does not come back as one


def test_a_refusal_is_final():
    clock, net, owner, link = make([RefusedError("401")])
    until(clock, 100.0)
    assert len(net.tried) == 1 and owner.heard == ["failed"] and link.failed
    assert link.state().state == "failed" and "401" in link.state().error


def test_a_link_that_sleeps_connects_when_it_is_woken():
    clock, net, owner, link = make()
    until(clock, 1.0)
    link.wake()  # it is up: nothing to do
    link.sleep()
    until(clock, 1000.0)
    assert net.wires[0].closed and len(net.tried) == 1 and not link.up
    asleep = link.state()
    assert (asleep.state, asleep.down_s, asleep.error) == ("asleep", 0.0, "")
    link.wake()
    until(clock, 1001.0)
    assert link.state().state == "up" and net.tried[1:] == [1000.0]
    link.lose(TransportError("cut"))
    until(clock, 1002.0)
    assert owner.heard[-1] == "up" and link.reconnects == 1


@pytest.mark.parametrize(("silence_s", "lost_s"), [(None, 1.0), (4.0, 4.0)])
def test_silence_is_noticed_while_an_answer_is_owed(silence_s, lost_s):
    clock, net, owner, link = make(answers=False, silence_s=silence_s)
    until(clock, 50.0)
    assert owner.heard == ["up"]  # nothing is owed: nothing is late
    link.owe(True)
    begun = clock.now_s
    clock.run(lambda: len(owner.heard) > 1)
    assert "no word" in str(owner.heard[1])
    assert clock.now_s - begun == pytest.approx(lost_s)
    assert net.wires[0].pings == [pytest.approx(begun + lost_s / 2)]
    assert net.wires[0].closed


def test_a_slow_verifier_that_answers_pings_is_not_lost():
    clock, net, owner, link = make(answers=True)
    until(clock, 1.0)
    link.owe(True)
    until(clock, 60.0)
    assert owner.heard == ["up"] and len(net.wires[0].pings) > 20


class Luck:
    """A model of dice that knows what it was fed."""

    def __init__(self):
        self.fed = []

    @property
    def length(self):
        return len(self.fed)

    def forward(self, tokens):
        self.fed += tokens
        return np.arange(8, dtype=np.float32)

    def rewind(self, length):
        del self.fed[length:]


def drafter(model):
    found = Drafter(model, 8)
    found.begin(1, make_proposer(SamplingParams(), 8))
    return found


def test_a_new_order_overtakes_the_old_one_within_a_step():
    found = drafter(Luck())
    found.submit(1, Draft(1, 0, (1, 2), 100))
    assert [found.step().drafts[0].branch for _ in range(3)] == [1, 1, 1]
    found.submit(1, Draft(2, 2, (5,), 2))
    assert [found.step().drafts[0].branch for _ in range(2)] == [2, 2]
    assert found.step() is None
    found.submit(1, Draft(3, 2, (5,), 100))
    assert found.step().drafts[0].branch == 3
    found.submit(1, Draft(4, 0, (), 0))
    assert found.step() is None, "cancelled within a token"


def test_a_long_prompt_is_read_in_steps_that_orders_overtake():
    model = Luck()
    found = drafter(model)
    found.submit(1, Draft(1, 0, (1,) * 1000, 1))
    assert found.step().proposal is None and model.length == 256
    found.submit(1, Draft(2, 0, (), 0))
    assert found.step() is None


def test_what_a_text_shares_with_the_one_before_is_not_read_again():
    model, fed = Luck(), []
    forward = model.forward
    model.forward = lambda tokens: (fed.append(len(tokens)), forward(tokens))[1]
    found = drafter(model)
    found.submit(1, Draft(1, 0, (1, 2, 3, 4, 5), 2))
    while found.step():
        pass
    assert fed == [5, 1] and model.fed == [1, 2, 3, 4, 5, 7]
    found.begin(2, make_proposer(SamplingParams(), 8))
    found.submit(2, Draft(1, 0, (1, 2, 3, 4, 5, 7, 7, 6), 1))
    found.step()
    assert fed == [5, 1, 2] and model.fed == [1, 2, 3, 4, 5, 7, 7, 6]
    found.begin(3, make_proposer(SamplingParams(), 8))
    found.submit(3, Draft(1, 0, (1, 2, 9), 1))
    found.step()
    assert fed[3:] == [1] and model.fed == [1, 2, 9]


def test_orders_of_another_stream_are_void():
    found = drafter(Luck())
    found.begin(2, make_proposer(SamplingParams(), 8))
    found.submit(1, Draft(9, 0, (1,), 5))
    assert found.step() is None
    found.submit(2, Draft(1, 0, (1,), 1))
    assert found.step().stream == 2
