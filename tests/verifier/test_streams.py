"""Streams in virtual time: devices that draft, lose links and come back, at random.

The scheduler, the streams and the sessions are those that serve; the target has a cache
that forgives nothing. Every history is a seed.
"""

from __future__ import annotations

import numpy as np
import pytest
from cached_target import CachedTarget

from draftwire.clock import VirtualClock
from draftwire.errors import RefusedError
from draftwire.packages import Exit
from draftwire.sampling import SamplingParams
from draftwire.transport.codec import Codec
from draftwire.transport.messages import (
    Block,
    Commit,
    Error,
    Open,
    Progress,
    Provisional,
    Resume,
    Welcome,
)
from draftwire.transport.text_hash import TextHash
from draftwire.verifier.executor import VirtualExecutor
from draftwire.verifier.registry import Served
from draftwire.verifier.scheduler import Request, Scheduler
from draftwire.verifier.serving.accounts import Account, Usage
from draftwire.verifier.serving.limits import Limits
from draftwire.verifier.streams import KeptStreams, Stream, Terms
from draftwire.verifier.target_session import TargetSession

V = 23
CAPABILITIES = ("resume", "exits")


class Slow(VirtualExecutor):
    """Judges beside what else happens, as a helper thread does."""

    def judge(self, job, size, done):
        later = 0.004 * (size % 5)
        self._clock.call_at(self._clock.now() + later, lambda: done(job()))


class Cloud:
    """A verifier without sockets."""

    def __init__(self, *, slow=False, exits=0, slots=2, limits=None):
        self.clock = VirtualClock()
        self.target = CachedTarget(V, slots=slots, exits=exits, wrong=frozenset({1}))
        cost = lambda parts, prefill: 0.01 + 0.001 * sum(map(len, parts))  # noqa: E731
        kind = Slow if slow else VirtualExecutor
        executor = kind(self.target, self.clock, cost, (0.3, 0.6)[:exits])
        scheduler = Scheduler(self.target, executor, self.clock, chunk=4, max_tokens=64)
        served = Served(self.target, scheduler, frozenset())
        self.usage = Usage(Account("", "everyone"))
        self.limits = limits or Limits()
        self.kept = KeptStreams(self.limits, self.clock.now)
        welcome = Welcome("", "", "", "", b"", b"", V, 60, 64, capabilities=CAPABILITIES)
        self.terms = Terms(served, self.usage, welcome)
        self.scheduler = scheduler
        self.ran = {}  # first token of the text: forwards that judged
        self.fails = lambda: False
        self.target.before = self.count

    def count(self, batch):
        for item in batch:
            held = self.target.content[item.slot]
            owner = int(item.tokens[0]) if item.start == 0 else held[0][0]
            self.ran[owner] = self.ran.get(owner, 0) + (item.rows > 0)
        if len(batch) > 1 and self.fails():
            raise MemoryError("too many")


class Link:
    """One connection of a device; what is on its way is lost when it breaks."""

    def __init__(self, device):
        self.device, self.alive, self.lost = device, True, False
        self.codec = Codec(V)

    def deliver(self, stream, messages):
        assert stream.holder is self or isinstance(messages[-1], Error)
        for message in messages:
            frame = self.codec.encode(message)
            self.device.later(self.arrive, frame)

    def arrive(self, frame):
        if self.alive:
            self.device.hear(self.codec.decode(frame).message)

    def lose(self, stream):
        assert stream.holder is None
        self.lost, self.alive = True, False


class Device:
    def __init__(self, cloud, name, rng, *, race, bonus, exits, k, luck, cuts, count):
        self.cloud, self.name, self.rng = cloud, name, rng
        self.k, self.luck, self.cuts = k, luck, cuts
        sampled = bool(rng.random() < 0.5)
        params = SamplingParams(
            "coupled" if sampled else "greedy", 0.9 * sampled, 0, 1.0, name
        )
        self.prompt = (name, *rng.integers(0, V, rng.integers(0, 12)).tolist())
        oracle = CachedTarget(V, slots=1)  # slots of the cloud hold ended texts
        self.wanted = oracle.text(self.prompt, params, count)
        self.wanted = self.wanted[: 60 - len(self.prompt)]
        self.request = Open(
            self.prompt,
            params.scheme,
            params.temperature,
            0,
            1.0,
            name,
            count,
            objective="latency" if race else "cost",
            bonus=bonus,
            exits=exits,
        )
        self.race = race
        self.text, self.forwards, self.finish = [], 0, None
        self.epoch, self.branches = 0, {}
        self.stream = self.link = None
        self.credentials = None
        self.up = self.down = 0.0  # arrival of the last frame, so that none overtakes
        self.hints = self.losses = 0
        self.later(self.connect)
        if cuts:
            cloud.clock.call_at(float(rng.exponential(0.15)), self.cut)

    def later(self, what, *args):
        self.down = max(self.down, self.cloud.clock.now() + 0.02 * self.rng.random())
        self.cloud.clock.call_at(self.down, what, *args)

    def connect(self):
        kept, link = self.cloud.kept, Link(self)
        try:
            if self.credentials is None:
                stream = kept.open(self.request, self.cloud.terms, link)
                self.credentials = stream.id, stream.secret
            else:
                text_hash = TextHash((*self.prompt, *self.text)).digest()
                resume = Resume(*self.credentials, len(self.text), text_hash)
                stream, answer = kept.resume(resume, self.cloud.terms, link)
                answer = link.codec.decode(link.codec.encode(answer)).message
                assert (
                    answer.text_hash
                    == TextHash((*self.prompt, *self.text, *answer.tokens)).digest()
                )
                self.text += answer.tokens
                self.epoch, self.forwards = answer.epoch, answer.forwards
                if answer.finish:
                    self.finish = answer.finish
        except RefusedError as error:
            assert "busy" in str(error)
            self.cloud.clock.call_at(self.cloud.clock.now() + 0.05, self.connect)
            return
        self.stream, self.link, self.branches = stream, link, {}
        stream.start(exits=True)
        if self.finish:
            self.bye()
        else:
            self.draft()

    def draft(self):
        held = len(self.text)
        if self.race and self.rng.random() < 0.3:
            return  # the target goes on by itself
        guess = self.wanted[held : held + int(self.rng.integers(self.k + 1))]
        guess = [g if self.rng.random() < self.luck else (g + 1) % V for g in guess]
        cut = int(self.rng.integers(len(guess) + 1))
        self.branches[self.epoch] = (held, guess)
        if 0 < cut < len(guess):
            self.send(
                Block(self.epoch, held, tuple(guess[:cut]), more=True, race=self.race)
            )
            self.send(Block(self.epoch, held + cut, tuple(guess[cut:]), race=self.race))
        else:
            self.send(Block(self.epoch, held, tuple(guess), race=self.race))

    def send(self, block):
        clock, link = self.cloud.clock, self.link
        self.up = max(self.up, clock.now() + 0.02 * self.rng.random())

        def arrive():
            if link.alive and self.stream.holder is link:
                self.stream.receive(link.codec.decode(link.codec.encode(block)).message)

        clock.call_at(self.up, arrive)

    def hear(self, message):
        if isinstance(message, Progress):
            assert message.activity == "idle"  # forwards are quick here
            return
        if isinstance(message, Provisional):
            _, guess = self.branches.get(message.epoch, (0, []))
            assert message.accepted <= len(guess)
            self.hints += 1
            return
        assert isinstance(message, Commit), message
        ran = message.forwards
        self.forwards = self.forwards + 1 if ran is None else ran
        base, guess = self.branches.get(message.epoch, (len(self.text), []))
        rest = guess[len(self.text) - base :]
        assert message.accepted <= len(rest)
        self.text += rest[: message.accepted]
        self.text += [] if message.token is None else [message.token]
        if message.text_hash:
            assert message.text_hash == TextHash((*self.prompt, *self.text)).digest()
        assert message.text_hash or not message.finish
        if message.finish:
            self.finish = message.finish
            if self.link.alive and self.rng.random() < 0.8:
                self.later(self.bye)
            else:
                self.drop()
            return
        base, guess = self.branches.get(self.epoch, (len(self.text), []))
        over = self.text[base:]
        if over[: len(guess)] != guess[: len(over)]:
            self.epoch = (self.epoch + 1) & 0xFF
        elif len(over) < len(guess):
            return  # the rest of the branch is under way
        if self.epoch not in self.branches or len(over) >= len(guess):
            self.draft()

    def bye(self):
        if self.stream.holder is self.link:
            self.cloud.kept.forget(self.stream)

    def cut(self):
        if self.finish or self.stream is None or not self.link.alive:
            return
        self.cuts -= 1
        self.drop()
        if self.cuts:
            wait = float(self.rng.exponential(0.15))
            self.cloud.clock.call_at(self.cloud.clock.now() + 0.1 + wait, self.cut)

    def drop(self):
        """Lose the link; the verifier sees it soon, or not before the device is back."""
        link, stream, self.losses = self.link, self.stream, self.losses + 1
        link.alive = False
        clock, rng = self.cloud.clock, self.rng

        def notice():
            if stream.holder is link:
                self.cloud.kept.park(stream)

        if rng.random() < 0.5:
            clock.call_at(clock.now() + 0.05 * rng.random(), notice)
        clock.call_at(clock.now() + 0.1 * rng.random(), self.connect)


def history(seed):
    rng = np.random.default_rng(seed)
    exits = int(rng.integers(3))
    cloud = Cloud(slow=bool(rng.random() < 0.5), exits=exits)
    cloud.fails = lambda: rng.random() < 0.1
    devices = [
        Device(
            cloud,
            name,
            np.random.default_rng((seed, name)),
            race=bool(rng.random() < 0.3),
            bonus=bool(rng.random() < 0.7),
            exits=bool(rng.random() < 0.5),
            k=int(rng.integers(1, 7)),
            luck=float(rng.choice([0.0, 0.6, 0.9, 1.0])),
            cuts=int(rng.choice([0, 1, 4])),
            count=int(rng.integers(1, 40)),
        )
        for name in range(int(rng.integers(1, 5)))
    ]
    for _ in range(100_000):
        if not cloud.clock._queue:
            break
        cloud.clock.run(lambda: True)
    for device in devices:
        assert device.text == device.wanted, seed
        assert device.finish, seed
        assert device.forwards == cloud.ran[device.name], seed
    assert not cloud.kept.knows_any() and not len(cloud.kept), seed
    assert cloud.kept.kept_bytes == 0 and cloud.usage.streams == 0, seed
    while cloud.kept.prefixes.give_up_slot(cloud.terms.served):
        pass
    assert [cloud.target.allocate() for _ in range(2)] == [0, 1], seed
    return cloud, devices


@pytest.mark.parametrize("start", range(0, 400, 100))
def test_histories(start):
    seen = {"hints": 0, "losses": 0, "broken": 0, "repeated": 0}
    for seed in range(start, start + 100):
        cloud, devices = history(seed)
        counters = cloud.scheduler.counters
        seen["hints"] += sum(d.hints for d in devices)
        seen["losses"] += sum(d.losses for d in devices)
        seen["broken"] += counters.broken_off
        seen["repeated"] += cloud.target.forwards > counters.forwards + counters.broken_off
    assert all(seen.values()), seen


def test_nothing_is_read_twice():
    """Undisturbed, the target is fed each token once, and once more without a bonus."""
    for bonus in (True, False):
        cloud = Cloud()
        devices = [
            Device(
                cloud,
                name,
                np.random.default_rng(name),
                race=False,
                bonus=bonus,
                exits=False,
                k=3,
                luck=0.8,
                cuts=0,
                count=30,
            )
            for name in range(2)
        ]
        cloud.clock.run()
        assert all(d.text == d.wanted for d in devices)
        judged = sum(cloud.ran.values())
        assert cloud.target.again == 0 if bonus else 0 < cloud.target.again < judged


def planted(monkeypatch, owner, name, change):
    right = getattr(owner, name)
    monkeypatch.setattr(owner, name, lambda *args, **named: change(right, *args, **named))


def one_more(right, self, *args, **named):
    found = right(self, *args, **named)
    self._cached += not self.done
    return found


def unclamped(right, self, work, decision, **named):
    found = right(self, work, decision, **named)
    if not work.prefill and not self.done:
        self._cached = work.start + len(work.tokens) - work.drafted + found[0].accepted
    return found


def keeps_cache(right, self, *, cached, forwards=0):
    return right(self, cached=True, forwards=forwards)


def forgets_forwards(right, self, *, cached, forwards=0):
    return right(self, cached=cached)


def stays(right, self):
    self._done = None  # withdrawn, and yet it runs


FAULTS = {
    "the cache is taken to hold one token more": (TargetSession, "settle", one_more),
    "the cache is taken to hold the last token": (TargetSession, "settle", unclamped),
    "a slot that was given back is taken to be full": (
        TargetSession,
        "detach",
        keeps_cache,
    ),
    "forwards of a lost link are not counted": (TargetSession, "detach", forgets_forwards),
    "withdrawn work runs": (Request, "withdraw", stays),
    "a slot is never given back": (Stream, "release", lambda right, self: None),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_found(fault, monkeypatch):
    planted(monkeypatch, *FAULTS[fault])
    with pytest.raises((AssertionError, ValueError, IndexError, RefusedError)):
        for seed in range(250):
            history(seed)


def test_whoever_comes_back_holds_the_stream_and_the_other_is_told():
    cloud = Cloud()
    rng = np.random.default_rng(1)
    quiet = dict(race=False, bonus=True, exits=False, k=2, luck=1.0, cuts=0, count=9)
    device = Device(cloud, 5, rng, **quiet)
    cloud.clock.run(lambda: len(device.text) > 2)
    first, stream = device.link, device.stream
    assert cloud.usage.streams == 1
    for link in (Link(device), Link(device)):
        resume = Resume(stream.id, stream.secret, len(device.text))
        found, answer = cloud.kept.resume(resume, cloud.terms, link)
        assert found is stream and stream.holder is link and first.lost
        assert cloud.usage.streams == 1 and answer.position == len(device.text)
        first = link
    wrong = Resume(stream.id, b"x" * 16, 0)
    with pytest.raises(RefusedError, match="no such stream"):
        cloud.kept.resume(wrong, cloud.terms, Link(device))
    assert stream.holder is link and not link.lost
    cloud.kept.park(stream)
    assert cloud.usage.streams == 0 and len(cloud.kept) == 1
    cloud.clock.call_at(cloud.clock.now() + 119, cloud.kept.sweep)
    cloud.clock.run()
    assert len(cloud.kept) == 1
    cloud.clock.call_at(cloud.clock.now() + 2, cloud.kept.sweep)
    cloud.clock.run()
    assert len(cloud.kept) == 0 and cloud.kept.expired == 1


def test_a_failure_is_told_once_ends_one_stream_and_spares_the_others():
    cloud = Cloud(slots=3)
    rows = {5: np.nan, 6: np.inf}
    right = cloud.target._feed

    def feed(item):
        found = right(item)
        first = cloud.target.content[item.slot][0][0]
        if first in rows and item.rows and item.start > 20:
            found[-1, 3] = rows[first]
        return found

    cloud.target._feed = feed
    told = {}
    quiet = dict(race=False, bonus=True, exits=False, k=2, luck=0.7, cuts=0, count=39)
    devices = [Device(cloud, n, np.random.default_rng(n), **quiet) for n in (4, 5, 6)]
    for device in devices:
        hear = device.hear

        def listen(message, hear=hear, device=device):
            if isinstance(message, Error):
                told.setdefault(device.name, []).append(message)
            else:
                hear(message)

        device.hear = listen
    cloud.clock.run()
    assert devices[0].text == devices[0].wanted
    assert sorted(told) == [5, 6]
    for device in devices[1:]:
        (error,) = told[device.name]
        assert (error.code, error.fatal) == ("internal", False)
        assert "target hashed v1" in error.message and "position" in error.message
        assert device.text == device.wanted[: len(device.text)]
    assert not cloud.kept.knows_any() and cloud.usage.streams == 0


def test_exits_are_those_of_packages():
    assert CachedTarget(exits=2).exits == (Exit(1, 0.0, 0.9), Exit(2, 0.0, 0.9))
