"""The shipped driver and the shipped verifier core in virtual time, with faults at will.

Driver, links, drafter, both machines, codec, scheduler and stream registry are those that
run live. Virtual are the clock, the wire, and what models take. The target is a hash of
the text so far behind a real cache, the draft guesses it with some luck. A
:class:`Plan` says what happens in a history; ``check`` runs it and holds it to laws 1
and 2, and to liveness: a stream that can end ends, within patience.
"""

import contextlib
import logging
import random
from dataclasses import dataclass, replace
from functools import partial

import fake_engine
import grammars
import numpy as np
from cached_target import CachedTarget, FedDraft

from draftwire.bench.sim.device import VirtualEngine
from draftwire.bench.sim.network import _WayBack
from draftwire.clock import VirtualClock
from draftwire.energy.account.account import Account
from draftwire.errors import (
    BusyError,
    DraftwireError,
    IncompatibleError,
    ModelError,
    ProtocolError,
    RefusedError,
    TransportError,
    VerifierError,
)
from draftwire.packages import Parallel
from draftwire.runtime.accounting import StreamAccount
from draftwire.runtime.drafter import Drafter
from draftwire.runtime.driver import Driver, StreamSpec
from draftwire.runtime.edge.actions import Emit, Revise
from draftwire.runtime.edge.in_flight import common
from draftwire.runtime.edge.mode import Mode
from draftwire.runtime.link import LinkSettings
from draftwire.runtime.pacing.controller import FixedLength
from draftwire.runtime.pacing.parallel import ParallelPacing
from draftwire.sampling import SamplingParams, make_proposer
from draftwire.transport.codec import Codec
from draftwire.transport.messages import Error, Hello, Welcome
from draftwire.transport.traffic import Meter
from draftwire.verifier.beside import Drafts
from draftwire.verifier.dialogue import Dialogue
from draftwire.verifier.executor import VirtualExecutor
from draftwire.verifier.greeting import welcome_to
from draftwire.verifier.registry import Served
from draftwire.verifier.rows import Lookup
from draftwire.verifier.scheduler import Feeder, Scheduler
from draftwire.verifier.serving.accounts import Account as User
from draftwire.verifier.serving.accounts import Usage
from draftwire.verifier.serving.limits import Limits
from draftwire.verifier.streams import KeptStreams, Terms

VOCAB = 23
STOP_AND_WAIT = Mode(preempt=frozenset())
MECHANISMS = {
    "stop-and-wait": [STOP_AND_WAIT],
    "pipeline": [
        Mode.of(pipeline=2),
        Mode.of(pipeline=3, cut=True),
        Mode.of(pipeline=2, preempt="off", batch=2),
    ],
    "preempt": [
        Mode.of(preempt="guess"),
        Mode.of(preempt="exits"),
        Mode.of(preempt="guess,exits,outcomes"),
        Mode.of(pipeline=2, preempt="guess,exits"),
        Mode.of(pipeline=3, preempt="exits,outcomes", cut=True),
    ],
    "race": [
        Mode.of("latency"),
        Mode.of("latency", preempt="guess,exits"),
        Mode.of("latency", preempt="guess,exits,outcomes"),
        Mode.of("latency", batch=1),
    ],
    "auto": [
        Mode.of("auto"),
        Mode.of("auto", preempt="guess,exits,outcomes"),
        Mode.of("auto", pipeline=3, preempt="exits,outcomes", cut=True),
        Mode.of("auto", batch=2, max_forwards=0.5),
    ],
}
# What ours adds to them: a family, what its streams' mode has more, what the plan has.
ADDITIONS = {
    "race, patience": ("race", {}, {"holds": True}),
    "race, hush": ("race", {"preempt": frozenset({"guess", "exits", "outcomes"})}, {}),
    "leaves": (None, {}, {"leaves": 4}),
    "sides": ("race", {"preempt": frozenset({"guess", "outcomes"})}, {"leaves": 4}),
    "lookup": (None, {}, {"lookup": 4, "beside": False}),
    "outcomes": ("preempt", {"preempt": frozenset({"guess", "outcomes"})}, {}),
    "hybrid": ("race", {}, {"beside": True}),
    "the default": (
        "auto",
        {
            **{"pipeline": 1, "batch": 0, "cut": False, "max_forwards": 1.0},
            "preempt": frozenset({"guess", "exits", "outcomes"}),
        },
        {"holds": True, "leaves": 4, "lookup": 4, "beside": False},
    ),
}


# ---- what happens in a history


@dataclass(frozen=True)
class StreamPlan:
    """What one caller asks for."""

    at_s: float = 0.0
    prompt: tuple = (1,)
    follows: bool = False  # the prompt begins with the last text that has ended
    count: int = 20
    stops: tuple = ()
    sampled: bool = False
    top_p: float = 1.0
    shape: str = ""  # of SHAPES
    grammar: str = ""  # of grammars.NAMES
    forcing: bool = True
    logprobs: int = 0  # pairs for each token
    scheme: str = ""  # another than greedy and coupled, among the three likeliest
    seed: int = 0
    mode: Mode = STOP_AND_WAIT
    k: int = 4
    moody: int = 0  # seed of a controller that changes its mind; 0: a fixed length
    off: bool = False
    offline: str = "wait"
    patience_s: float = 30.0
    deadline_s: object = None
    cancel_s: object = None
    draft_context: int = 1 << 20


STREAM = StreamPlan()


@dataclass(frozen=True)
class Fault:
    """Something that goes wrong at a time, for a while where that makes sense."""

    at_s: float
    kind: str
    for_s: float = 0.0


@dataclass(frozen=True)
class Plan:
    """A history: the same plan gives the same history."""

    streams: tuple = (STREAM,)
    faults: tuple = ()
    connects: tuple = ()  # outcomes of the first tries; then all is well
    luck: float = 0.9
    context: int = 1 << 20
    delay_s: float = 0.02
    jitter: float = 1.0
    step_s: float = 0.005
    forward_s: float = 0.02
    shared: int = 0  # ids that every prompt begins with
    max_block: int = 255
    max_waiting: int = 255
    most: int = 16  # streams on a connection
    lookup: int = 0  # tokens that the verifier guesses behind the drafts
    leaves: int = 0  # second choices that a forward may judge; above 1 with drafts behind
    holds: bool = False  # forwards are held back by dice
    beside: bool = False  # the verifier drafts too
    seed: int = 0
    slow: bool = False  # verdicts take time, as on a helper thread
    salt: bytes = b""  # of the target; drawn when there is none
    parallel: int = 0  # tokens that the draft says in one forward; 0: one
    lanes: int = 1  # sequences that a forward of the draft goes on with


def _penalties(repetition, presence, frequency=0.0, **more):
    penalties = {"repetition_penalty": repetition, "presence_penalty": presence}
    return {**penalties, "frequency_penalty": frequency, **more}


# What depends on the text so far: drafts of a dead branch must leave no trace in it.
SHAPES = {
    "": {},
    "penalties": _penalties(1.3, 0.4, 0.7),
    "words": {"bad_words": ((5,), (1, 2), (7, 0, 4)), "logit_bias": ((2, 1.5), (9, -100))},
    "all": _penalties(0.8, -0.5, min_p=0.1, bad_words=((0, 0),), logit_bias=((0, 0.25),)),
}


GRAMMARS = sorted(grammars.NAMES) if grammars.HAVE else []


def rules_of(plan):
    """Return the grammar of a stream, or None."""
    return grammars.rules_of(plan.grammar, plan.stops, forcing=plan.forcing)


def params_of(plan):
    """Return the sampling of a stream."""
    # Banned words may be all that a grammar allows.
    shape = SHAPES["penalties" if plan.grammar and plan.shape else plan.shape]
    if plan.scheme:
        return SamplingParams(plan.scheme, 1.0, 3, 1.0, plan.seed, **shape)
    name, temperature = ("coupled", 0.9) if plan.sampled else ("greedy", 0.0)
    return SamplingParams(name, temperature, 0, plan.top_p, plan.seed, **shape)


def pairs_of(plan):
    """Return how many log-probabilities each token has: forced ones are not judged."""
    forced = plan.grammar and plan.forcing
    return 0 if plan.scheme == "separate" or forced else plan.logprobs


# What ends by itself, and must not end a stream.
PASSING = (
    *("cut", "swallow", "stall", "mute", "restart", "full", "jump", "frozen"),
    *("evict", "forget", "idle"),
)
# What must end a stream with its own name, or may.
FATAL = ("engine", "nan", "callback", "internal", "torn")
REFUSALS = {
    "502": lambda: BusyError("502"),
    "503": lambda: BusyError("503"),
    "reset": lambda: TransportError("reset"),
    "nonsense": lambda: ProtocolError("a captive portal"),
    "hang": lambda: TransportError("no answer in time"),
    "401": lambda: RefusedError("401"),
    "incompatible": lambda: IncompatibleError("another tokenizer"),
}
FINAL = ("401", "incompatible")


class Dice(random.Random):
    """Draws a plan from a seed."""

    whole = random.Random.randint

    def one_of(self, things):
        return self.choice(list(things))


def draw_stream(dice, mechanism, at_s, long):
    sampled = dice.one_of([False, False, True])
    offline = "wait" if long else dice.one_of(["wait", "wait", "draft", "error"])
    schemes = [""] * 12 + ["residual", "qs", "separate"]
    return StreamPlan(
        at_s=at_s,
        prompt=tuple(dice.whole(0, VOCAB - 1) for _ in range(dice.whole(1, 8))),
        count=dice.whole(1500, 1700) if long else dice.whole(1, dice.one_of([6, 12, 40])),
        stops=(3,) if dice.one_of([False, True]) and not long else (),
        sampled=sampled,
        top_p=dice.one_of([1.0, 0.8]) if sampled else 1.0,
        shape=dice.one_of([*[""] * 4, *SHAPES]),
        grammar=dice.one_of([*[""] * 14, *GRAMMARS]),
        forcing=dice.whole(0, 3) > 0,
        logprobs=dice.one_of([0, 0, 0, 1, 3]),
        scheme=dice.one_of(schemes) if mechanism != "race" and not long else "",
        seed=dice.whole(0, 1 << 30),
        mode=dice.one_of(MECHANISMS[mechanism]),
        k=dice.whole(1, 7),
        moody=dice.whole(1, 99) if dice.whole(0, 9) < 3 else 0,
        off=dice.one_of([False, True]),
        offline=offline,
        patience_s=120.0 if long else dice.one_of([30.0, 30.0, 3.0]),
        deadline_s=dice.whole(0, 99) / 50 + 0.01 if dice.whole(0, 9) == 0 else None,
        cancel_s=dice.whole(0, 99) / 50 if dice.whole(0, 9) == 0 else None,
        draft_context=dice.whole(2, 40) if dice.whole(0, 9) == 0 else 1 << 20,
    )


def draw_plan(dice, mechanism=None, long=False):
    """Return a random plan of a family, or of one of ADDITIONS."""
    if mechanism in ADDITIONS:
        family, mode, more = ADDITIONS[mechanism]
        plan = draw_plan(dice, family, long)
        streams = (replace(s, mode=replace(s.mode, **mode)) for s in plan.streams)
        return replace(plan, streams=tuple(streams), **more)
    if mechanism is None:
        mechanism = dice.one_of(sorted(MECHANISMS))
    forward_s = dice.one_of([0.002, 0.02, 0.1])
    span = 40 * (forward_s + 0.05)
    streams = [draw_stream(dice, mechanism, 0.0, long)]
    for _ in range(dice.one_of([0, 0, 0, 0, 0, 1, 1, 3, 5])):
        at_s = dice.whole(0, 100) / 100 * span
        streams.append(draw_stream(dice, mechanism, at_s, False))
    context = dice.one_of([1 << 20, 1 << 20, 60]) if not long else 1 << 20
    shared = dice.one_of([0, 0, 120]) if len(streams) > 1 and context > 60 else 0
    if shared:  # a conversation: every prompt begins as all the others do
        system = tuple(dice.whole(0, VOCAB - 1) for _ in range(shared))
        streams = [
            replace(s, prompt=(*system, *s.prompt), follows=dice.one_of([False, True]))
            for s in streams
        ]
    faults = []
    for _ in range(dice.one_of([0, 0, 1, 2, 5])):
        kinds = [*PASSING, *PASSING, "retarget", *FATAL]
        kind = dice.one_of(["stall", "mute", "swallow"] if long else kinds)
        at_s = dice.whole(0, 100) / 100 * span
        faults.append(Fault(at_s, kind, dice.whole(0, 50) / 10))
    connects = ()
    if dice.whole(0, 9) < 3 and not long:
        words = [*REFUSALS, "ok", "ok", "ok"]
        connects = ("ok", *(dice.one_of(words) for _ in range(dice.whole(1, 4))))
        if connects[1:] and not faults:
            faults.append(Fault(dice.whole(0, 100) / 100 * span, "cut"))
    plan = Plan(
        streams=tuple(streams),
        faults=tuple(sorted(faults, key=lambda f: f.at_s)),
        connects=connects,
        luck=dice.one_of([0.5, 0.8] if long else [0.0, 0.5, 0.9, 1.0]),
        context=context,
        shared=shared,
        delay_s=dice.one_of([0.0, 0.02, 0.2]),
        jitter=dice.one_of([0.0, 1.0, 3.0]),
        # A draft that runs far ahead makes a long history slow, and no longer.
        step_s=dice.one_of([0.02, 0.05] if long else [0.0, 0.005, 0.05]),
        forward_s=forward_s,
        max_block=dice.one_of([255, 255, 255, 5]),
        max_waiting=dice.one_of([255, 255, 5, 9]),
        most=dice.one_of([16, 16, 16, 1, 2]),
        lookup=dice.one_of([0, 4]),
        holds=dice.one_of([False, True]),
        seed=dice.whole(0, 1 << 30),
        leaves=dice.one_of([0, 1, 4]),
        beside=dice.one_of([False, True]),
        slow=dice.one_of([False, True]),
    )
    parallel = (0, 0, 3, 5)[plan.seed % 4]
    lanes = 1 if parallel else (1, 2, 4)[plan.seed // 4 % 3]
    return replace(plan, parallel=parallel, lanes=lanes)


# ---- the device's side


class LuckyDraft(FedDraft):
    """A draft model with a cache: right with some luck, and checked at every position."""

    def __init__(self, world, lanes=1):
        super().__init__(self.guess)
        self.world = world
        self.beside = [LuckyDraft(world) for _ in range(1, lanes)]

    def wide(self, tokens):
        lanes = (self, *self.beside)
        return {number: lanes[number].forward([one]) for number, one in tokens.items()}

    def guess(self, fed):
        world = self.world
        if self.not_numbers():
            return np.full(VOCAB, np.nan, np.float32)
        if world.rng.random() < world.plan.luck:
            return world.target.rows_after(fed)
        if world.plan.leaves and world.rng.random() < 0.5:  # the second choice is right
            row = world.target.rows_after(fed)
            row[world.rng.randrange(VOCAB)] = row.max() + 1
            return row
        noise = world.rng.random() + np.arange(VOCAB) * 2.7
        return (np.sin(noise * 7.1) * 2).astype(np.float32)

    def not_numbers(self):
        fault, self.world.engine_fault = self.world.engine_fault, None
        if fault == "engine":
            raise RuntimeError("planted: the engine fails")
        return fault == "nan"


class LuckyParallel(LuckyDraft):
    """One that says several tokens in a forward; a mask is no id of the connection."""

    mask_ids = (VOCAB,)

    def __init__(self, world):
        super().__init__(world)
        self.parallel = Parallel(self.mask_ids, world.plan.parallel)

    def forward(self, tokens):
        assert VOCAB not in tokens
        return np.append(super().forward(tokens), np.float32(99.0))

    def ahead(self, tokens, count):
        assert 1 <= count <= self.world.plan.parallel
        rows = [self.forward(tokens)]
        text = len(self.fed)
        for _ in range(count - 1):
            rows.append(self.forward([int(rows[-1][:VOCAB].argmax())]))
        self.rewind(text)
        return np.stack(rows)


class LuckyLookup(Lookup):
    """Text of a hash repeats nothing: this one guesses, with the luck of the plan."""

    def __init__(self, world, prompt):
        super().__init__(prompt, world.plan.lookup)
        self.world = world

    def find(self, drafts, price=0.0):
        world, fed = self.world, [*self._text, *drafts]
        found = []
        for _ in range(world.rng.randint(0, world.plan.lookup)):
            token = int(np.argmax(world.target.rows_after(fed)))
            if world.rng.random() >= world.plan.luck:
                token = world.rng.randrange(VOCAB)
            found.append(token)
            fed.append(token)
        return found


class Neighbour(LuckyDraft):
    """A draft beside the target: it may fail for good."""

    def not_numbers(self):
        if self.world.rng.random() < 0.002:
            raise RuntimeError("planted: the draft beside the target fails")


class Slow(VirtualExecutor):
    """Judges beside what else happens."""

    def judge(self, job, size, done):
        later = super().judge
        self._clock.call_later(0.004 * (size % 5), lambda: later(job, size, done))


class Holding(Scheduler):
    """Holds forwards back by dice: where patience pays is not where it might break."""

    def __init__(self, world, *args, **options):
        super().__init__(*args, **options)
        self._world = world

    def _hold_until(self, heads, now_s):
        outlooks = [request.outlook(now_s) for request in heads]
        if None in outlooks or self._world.rng.random() < 0.5:
            return now_s
        return now_s + self._world.rng.random() * self._world.plan.forward_s


class Insight:
    """Makes some proposals sure of themselves, and names other candidates."""

    def __init__(self, proposer, rng):
        self._proposer, self._rng = proposer, rng
        self.pack, self.correct = proposer.pack, proposer.correct

    def propose(self, logits, position):
        proposal = self._proposer.propose(logits, position)
        if self._rng.random() < 0.9:
            other = proposal.runner_up
            other = self._rng.randrange(VOCAB) if other is None else other
            proposal = proposal._replace(confidence=self._rng.random(), runner_up=other)
        return proposal


class Moody(FixedLength):
    """A controller that changes its mind, and is off at times."""

    def __init__(self, k, seed, off):
        super().__init__(k)
        self.rng, self.k, self.off = random.Random(seed), k, off

    def limit(self):
        return self.rng.randint(0 if self.off else 1, self.k)

    def enough(self, block):
        return self.rng.random() < 0.1

    def races(self, may):  # with the objective auto it changes its mind at any moment
        return may and self.rng.random() < 0.6


class Watched(StreamAccount):
    """Is told after every event of a stream; looks whether a draft was forgotten."""

    def __init__(self, world):
        super().__init__(Account(None, why="virtual", clock=world.clock.now_ns))
        self._streams = world.driver.streams

    def settle(self, *, drafting, waiting):
        super().settle(drafting=drafting, waiting=waiting)
        for run in self._streams.values():
            none_lies_between(run.machine)


def none_lies_between(machine):
    """Assert that every draft is with the verifier, or in the block that leaves next.

    One that lay between them would be judged late, once another one took it along. What
    an exit has said the verdict brings; once another exit denies that, the verdict decides
    where the block in hand begins.
    """
    main, said = machine._lines.main, tuple(machine._preemption._exit_said)
    if said and common(main.ids, said) < min(len(main.ids), len(said)):
        return
    sent = common(main.ids, machine._wire.tokens)
    known = max(sent, main.assumed + 1, len(said))
    assert machine._hand.start <= known, "a draft is neither sent nor in hand"


class Reader:
    """What a user sees, held to law 2 as it comes."""

    stopped = False  # by a stop string

    def __init__(self):
        self.shown, self.guessed, self.told, self.completed = [], [], [], []
        self.over = False

    def take(self, action):
        assert not self.over, "text after the end"
        if isinstance(action, Revise):
            keep = action.position - len(self.shown)
            assert 0 <= keep < len(self.guessed), "revises what was not shown"
            del self.guessed[keep:]
            return
        assert isinstance(action, Emit)
        ids, kinds = [t.id for t in action.tokens], {t.kind for t in action.tokens}
        if "unverified" in kinds:
            assert kinds == {"unverified"}
            self.guessed += ids
            return
        if "completed" in kinds:
            self.completed = ids
            return
        seen, fresh = ids[: action.shown], ids[action.shown :]
        assert self.guessed[: len(seen)] == seen
        del self.guessed[: len(seen)]
        assert not (fresh and self.guessed)
        self.shown += ids
        self.told += [t.logprobs for t in action.tokens]


class Recorder(Reader):
    """The user of a stream of a world, whose callback may fail."""

    def __init__(self, world, plan):
        super().__init__()
        self.world, self.plan, self.prompt = world, plan, plan.prompt
        self.run = self.error = self.number = None

    def take(self, action):
        if self.world.callback_fault:
            self.world.callback_fault = False
            raise ZeroDivisionError("planted: a callback fails")
        super().take(action)

    def explain(self, line):
        pass

    def finished(self, run, error):
        assert self.run is None, "ended twice"
        self.over, self.run, self.error = True, run, error


# ---- the wire


class VirtualWire:
    """One connection: frames in order, after any delay; every fault of a link."""

    def __init__(self, world, hello, events):
        self.world, self.events, self.hello = world, events, hello
        self.meter = Meter()
        self.near = self.far = True  # this end lives; the other one does
        self.swallowed = self.greeted = False
        self.dialogue = None
        self.codec = self.far_codec = Codec()
        self._up_s = self._down_s = 0.0
        self._held = []  # frames that a frozen verifier has yet to read

    # -- the device's end

    def send(self, message, stream=0):
        if not self.near:
            return 0
        frame = self.codec.encode(message, stream)
        self.meter.sent(stream, len(frame), len(frame) + 60)
        self._up_s = max(self._up_s, self.world.clock.now_s + self.world.delay())
        self.world.clock.call_at(self._up_s, self._arrive, frame)
        return len(frame) + 60

    def ping(self):
        if not self.near:
            return 0
        if self.far and not self.swallowed:
            at_s = max(self._up_s, self.world.clock.now_s + self.world.delay())
            at_s = max(at_s + self.world.delay(), self.world.frozen_until)
            self.world.clock.call_at(at_s, self._pong)
        return 58

    def _pong(self):
        if self.near and not self.swallowed:
            self.events.alive()

    def close(self):
        self.near = False
        if not self.swallowed:
            self.world.clock.call_later(self.world.delay(), self.hang_up)

    # -- the verifier's end

    def _arrive(self, frame):
        self._held.append(frame)
        self._thaw()

    def _thaw(self):
        """Take what has come, in order, once the verifier reads again."""
        world = self.world
        while self._held:
            if world.clock.now_s < world.frozen_until:
                world.clock.call_at(world.frozen_until, self._thaw)
                return
            frame = self._held.pop(0)
            if self.far and not self.swallowed and self.dialogue is not None:
                found = self.far_codec.decode(frame)
                self.dialogue.take(found.message, found.stream)

    def answer(self, message, stream=0):
        frame = self.far_codec.encode(message, stream)
        if isinstance(message, Welcome):
            self.far_codec = Codec.of(message)
        if not self.far:
            return
        self._down_s = max(self._down_s, self.world.clock.now_s + self.world.delay())
        self.world.clock.call_at(self._down_s, self._came, frame)

    def _came(self, frame):
        if self.near and not self.swallowed:
            found = self.codec.decode(frame)
            self.meter.came(found.stream, len(frame), len(frame) + 60)
            if isinstance(found.message, Welcome):
                self.codec, self.greeted = Codec.of(found.message), True
                self.events.up(found.message)
            else:
                self.events.message(found)

    def hang_up(self):
        """The verifier's end is gone, or sees that the device's is."""
        if self.far:
            self.far = False
            if self.dialogue is not None:
                self.dialogue.lost()
            if not self.swallowed:
                self.world.clock.call_later(self.world.delay(), self.down)

    def down(self, error=None):
        if self.near:
            self.near = False
            self.events.down(error or TransportError("the link is gone"))

    def cut(self):
        """Lose the link, with every frame that is on its way."""
        self.down()
        if self.far:
            self.far = False
            if self.dialogue is not None:
                self.dialogue.lost()

    def stall(self, seconds):
        """Nothing sent now arrives for a while; what is sent waits."""
        self._up_s = max(self._up_s, self.world.clock.now_s + seconds)

    # -- the beginning

    def begin(self, outcome, timeout_s):
        clock, delay = self.world.clock, self.world.delay()
        if outcome in REFUSALS:
            wait = timeout_s if outcome == "hang" else delay
            clock.call_later(wait, self.down, REFUSALS[outcome]())
        else:
            clock.call_later(timeout_s, self._late)
            clock.call_later(3 * delay, self._greet)

    def _late(self):
        if not self.greeted:
            self.down(TransportError("no welcome in time"))
            self.close()

    def _greet(self):
        world = self.world
        if not (self.near and self.far):
            return
        if world.clock.now_s < world.frozen_until:
            world.clock.call_at(world.frozen_until, self._greet)
            return
        self.dialogue = world.dialogue(self)
        self.dialogue.take(self.hello, None)


class World:
    """One device, one verifier, and what a plan does to them."""

    def __init__(self, plan):
        self.plan = plan
        self.rng = random.Random(plan.seed)
        self.clock = VirtualClock()
        self.salt = plan.salt or self.rng.getrandbits(64).to_bytes(8, "big")
        self.salts = [self.salt]
        self.connects = list(plan.connects)
        self.wires = []
        self.frozen_until = self.mute_until = self.full_until = 0.0
        self.engine_fault = None
        self.callback_fault = False
        self.internal = 0
        self.fresh_verifier()
        self.draft = LuckyParallel(self) if plan.parallel else LuckyDraft(self, plan.lanes)
        self.drafter = Drafter(self.draft, VOCAB)
        self.engine = VirtualEngine(self.clock, self.drafter, self.step_s)
        can = ["resume", "exits", "prefix", "brief", "processors", "logprobs", "grammar"]
        can += ["further"] if plan.lookup or plan.leaves or plan.beside else []
        can += [name for name in ("leaves", "beside") if getattr(plan, name)]
        can += ["trees"] if plan.leaves > 1 else []
        tokenizer = bytes.fromhex(self.target.family.tokenizer)
        hello = Hello("world", "", tokenizer, b"", VOCAB, b"", "", tuple(can))
        link, dice = LinkSettings(timeout_s=5.0), random.Random(plan.seed)
        ports = self.clock, self, self.drafter, self.engine
        self.driver = self.engine.driver = Driver(*ports, hello, link, dice)
        self.first = None
        self.sinks = []

    def delay(self):
        plan = self.plan
        return plan.delay_s * (1 + plan.jitter * self.rng.random())

    def step_s(self, tokens):
        return self.plan.step_s * self.rng.uniform(0.2, 2.0)

    # -- ports of the driver

    def connect(self, hello, events, timeout_s):
        wire = VirtualWire(self, hello, events)
        self.wires.append(wire)
        wire.begin(self.connects.pop(0) if self.connects else "ok", timeout_s)
        return wire

    # -- the verifier

    def fresh_verifier(self):
        plan = self.plan
        context = min(plan.context, 2048)
        self.target = CachedTarget(
            VOCAB, slots=8, context=context, salt=self.salt, exits=2, wrong={plan.seed % 3}
        )
        self.target.before = self.strain
        allocate = self.target.allocate
        self.target.allocate = lambda: self.crowded() or allocate()
        kind = Slow if plan.slow else VirtualExecutor
        executor = kind(self.target, self.clock, lambda *_: self.cost(), [1 / 3, 2 / 3])
        executor.draft_s = plan.step_s
        kind = partial(Holding, self) if plan.holds else Scheduler
        scheduler = kind(self.target, executor, self.clock, max_batch=4, chunk=16)
        self.serve(scheduler)

    def serve(self, scheduler):
        plan = self.plan
        self.target.version = str(len(self.salts))
        self.served = Served(self.target, scheduler, frozenset())
        if plan.beside:
            self.served.drafts = Drafts(partial(Neighbour, self), VOCAB, 60)
        waiting = max(plan.max_block, plan.max_waiting)
        limits = Limits(
            block=plan.max_block, waiting=waiting, streams=plan.most, leaves=plan.leaves
        )
        self.kept = KeptStreams(limits, self.clock.now)
        if not plan.beside:
            self.kept.lookup_of = lambda prompt, served: LuckyLookup(self, prompt)
        self.usage = Usage(User("", "everyone"))

    def crowded(self):
        if self.clock.now_s < self.full_until:
            raise RefusedError("planted: every slot is in use")

    def strain(self, batch):
        """Faults inside the target."""
        if self.internal and any(item.rows for item in batch):
            self.internal -= 1
            raise ValueError("planted: the target fails")

    def cost(self):
        late = max(0.0, self.mute_until - self.clock.now_s)
        return late + self.plan.forward_s * self.rng.uniform(0.5, 1.5)

    def greet(self, hello):
        welcome = welcome_to(hello, self.served, self.kept.limits)
        return Terms(self.served, self.usage, welcome)

    def dialogue(self, wire):
        return Dialogue(self.kept, self.greet, _WayBack(wire))

    # -- faults

    def strike(self, fault):
        kind, until = fault.kind, self.clock.now_s + fault.for_s
        live = [w for w in self.wires if w.near and w.dialogue is not None]
        if kind == "cut":
            for wire in live[:1]:
                wire.cut()
        elif kind == "torn":  # a frame that nobody can read
            for wire in live[:1]:
                wire.hang_up()
                wire.down(ProtocolError("garbage"))
        elif kind == "swallow":
            for wire in live:
                wire.swallowed = True
        elif kind == "stall":
            for wire in live:
                wire.stall(fault.for_s)
        elif kind == "mute":
            self.mute_until = until
        elif kind == "frozen":
            self.frozen_until = max(self.frozen_until, until)
        elif kind == "full":
            self.full_until = until
        elif kind in ("restart", "retarget"):
            if kind == "retarget" and len(self.salts) == 1:
                self.salt = self.rng.getrandbits(64).to_bytes(8, "big")
                self.salts.append(self.salt)
            self.fresh_verifier()
            for wire in self.wires:
                if wire.far:
                    wire.dialogue = None
                    wire.hang_up()
        elif kind == "idle":  # it is shown out, as one that has been silent for long
            for wire in live:
                wire.dialogue.leave(Error("limit", "no message for 300 seconds"), park=True)
        elif kind == "evict":
            while self.kept.prefixes.give_up_slot(self.served):
                pass
        elif kind == "forget":
            while self.kept.prefixes._kept:
                self.kept.prefixes._drop(self.kept.prefixes._kept[0])
        elif kind == "jump":
            self.clock.jump(fault.for_s)
        elif kind in ("engine", "nan"):
            self.engine_fault = kind
        elif kind == "callback":
            self.callback_fault = True
        elif kind == "internal":
            self.internal += 1

    # -- streams

    def open(self, plan):
        ended = [s for s in self.sinks if s.run is not None]
        sink = Recorder(self, plan)
        self.sinks.append(sink)
        if plan.follows and ended:
            longer = (*ended[-1].prompt, *ended[-1].shown, *plan.prompt)
            if len(longer) < self.target.context - 1:
                sink.prompt = longer
        params = params_of(plan)
        controller = (
            Moody(plan.k, plan.moody, plan.off) if plan.moody else FixedLength(plan.k)
        )
        if self.plan.parallel:
            controller = ParallelPacing(controller, self.draft.parallel)
        spec = StreamSpec(
            prompt=sink.prompt,
            params=params,
            proposer=Insight(
                make_proposer(params, VOCAB, second=bool(self.plan.leaves)), self.rng
            ),
            controller=controller,
            mode=plan.mode,
            max_new_tokens=plan.count,
            vocab_size=VOCAB,
            context=self.target.context,
            draft_context=max(plan.draft_context, 2),
            stop_ids=plan.stops,
            account=Watched(self),
            deadline_s=plan.deadline_s,
            offline=plan.offline,
            patience_s=plan.patience_s,
            grammar=rules_of(plan),
            logprobs=pairs_of(plan),
        )
        try:
            sink.number = self.driver.open(spec, sink)
        except DraftwireError as error:
            sink.error = error
            return sink
        if plan.cancel_s is not None:
            self.clock.call_later(plan.cancel_s, self.driver.stop, sink.number, "cancelled")
        return sink

    def run(self):
        """Let the plan happen; every stream has ended afterwards."""
        clock, plan = self.clock, self.plan
        self.driver.connect(lambda outcome: setattr(self, "first", outcome))
        for stream in plan.streams:
            clock.call_at(stream.at_s, self.open, stream)
        for fault in plan.faults:
            clock.call_at(fault.at_s, self.strike, fault)
        last = max(f.at_s + f.for_s for f in (*plan.faults, Fault(0.0, "")))
        last = max(last, *(s.at_s for s in plan.streams)) if plan.streams else last
        work = sum(s.count for s in plan.streams) * (4 * plan.forward_s + 0.9)
        horizon = last + work + 150.0

        def over():
            assert clock.now_s < horizon, "a stream goes on for ever"
            ready = len(self.sinks) == len(plan.streams)
            return ready and all(s.run or s.error for s in self.sinks)

        assert clock.run(over), "nothing happens any more, and a stream has not ended"


class EngineWorld(World):
    """The same with a target whose engine keeps streams itself."""

    def fresh_verifier(self):
        plan = self.plan
        context = min(plan.context, 2048)
        self.target = fake_engine.FakeEngine(
            self.clock,
            self.rng,
            vocab_size=VOCAB,
            context=context,
            salt=self.salt,
            step_s=plan.forward_s,
            most=1 + plan.seed % 7,
            odd=(0, 5, 30)[plan.seed % 3],
        )
        self.target.mute_until, self.target.full_until = self.mute_until, self.full_until
        self.target.trouble = self.strain
        self.serve(Feeder(self.target, self.clock))

    def strain(self, runs):
        if self.internal:
            self.internal -= 1
            raise ValueError("planted: the target fails")

    def strike(self, fault):
        if fault.kind == "death":
            self.target.die(fault.for_s)
            return
        if fault.kind in ("restart", "retarget"):
            self.target.down = True
        super().strike(fault)
        self.target.mute_until, self.target.full_until = self.mute_until, self.full_until


def bearable(plan, stream):
    """Tell whether nothing in ``plan`` may end ``stream`` with an error."""
    trouble = [f for f in plan.faults if f.kind in FATAL]
    final = any(c in FINAL for c in plan.connects)
    down = sum(f.for_s for f in plan.faults)
    many = sum(f.kind in ("restart", "retarget", "swallow") for f in plan.faults)
    patient = stream.patience_s > down + 12.0 * len(plan.connects) + 4.0 * many + 6.0
    return not (trouble or final) and patient and stream.offline != "error"


def explained(error, plan):
    """Tell whether ``plan`` has what a stream may end with ``error`` for."""
    kinds = {f.kind for f in plan.faults} | set(plan.connects)
    reasons = {
        # Of the link, whatever befell it; a slow one takes three seconds to greet.
        TransportError: kinds or plan.delay_s >= 0.2,
        BusyError: kinds & {"full", "502", "503", "idle"},
        ProtocolError: kinds & {"torn", "nonsense"},
        VerifierError: kinds & {"internal"},
        RefusedError: kinds & {"401"},
        IncompatibleError: kinds & {"incompatible"},
        ModelError: kinds & {"nan"},
        DraftwireError: kinds & {"engine", "callback"},
    }
    return bool(reasons.get(type(error)))


def is_text(shown, plan, world, count):
    """Tell whether ``shown`` is target-only text, of one target and then another."""
    params = params_of(plan)
    context = world.target.context

    def by(salt, before):
        prompt = [*plan.prompt, *before]
        left = min(count - len(before), context - len(prompt))
        if left <= 0 or (before and before[-1] in plan.stops):
            return list(before)
        target = CachedTarget(VOCAB, slots=1, context=context, salt=salt)
        how = {"stops": plan.stops, "written": len(before), "rules": rules_of(plan)}
        text = target.text(prompt, params, left, **how)
        return [*before, *text]

    whole = by(world.salts[0], [])
    if len(world.salts) == 1:
        return shown == whole[: len(shown)], len(whole)
    for n in range(len(shown) + 1):
        if shown[:n] != whole[:n]:
            break
        other = by(world.salts[1], shown[:n])
        if shown == other[: len(shown)]:
            return True, len(other)
    return shown == whole[: len(shown)], len(whole)


def check(plan, kind=World):
    """Run a history, and assert what must hold; return its world."""
    if kind is EngineWorld:  # its target knows no processors
        plain = (replace(s, shape="", grammar="", logprobs=0) for s in plan.streams)
        plan = replace(plan, streams=tuple(plain))
    world = kind(plan)
    world.run()
    for stream, sink in zip(plan.streams, sorted_sinks(world)):
        verdict(world, replace(stream, prompt=sink.prompt), sink)
    return world


def sorted_sinks(world):
    order = {id(plan): i for i, plan in enumerate(world.plan.streams)}
    return sorted(world.sinks, key=lambda sink: order[id(sink.plan)])


def check_logprobs(world, plan, sink):
    """Assert that every token came with what the target thinks of it."""
    each = pairs_of(plan)
    if not each:
        assert not any(sink.told)
        return
    for at, pairs in enumerate(sink.told):
        before = [*plan.prompt, *sink.shown[:at]]
        row = world.target.rows_after(before).astype(float)
        row -= np.log(np.exp(row).sum())
        best = sorted(range(VOCAB), key=lambda i: (-row[i], i))[: each - 1]
        assert [i for i, _ in pairs] == [sink.shown[at], *best]
        assert all(abs(row[i] - x) < 1e-5 for i, x in pairs)


def verdict(world, plan, sink):
    """Assert the laws for one stream."""
    right, length = is_text(sink.shown, plan, world, plan.count)
    if plan.scheme:  # its text is one of many: here each token comes once, and all come
        right, length = True, min(plan.count, world.target.context - len(plan.prompt))
        if plan.stops and sink.shown and sink.shown[-1] in plan.stops:
            length = len(sink.shown)
        length = len(sink.shown) if complete(plan, sink.shown) else length
    if plan.grammar:
        keeps_to_it(plan, sink.shown)
    assert right, (sink.shown, "is not the target's text")
    if len(world.salts) == 1:
        check_logprobs(world, plan, sink)
    run = sink.run
    easy = bearable(world.plan, plan)
    if run is None:
        assert not easy and sink.error is not None, sink.error
        return
    committed = list(run.machine.committed)
    assert committed[: len(sink.shown)] == sink.shown
    if not isinstance(getattr(sink.error, "__cause__", None), ZeroDivisionError):
        assert run.machine.counts.tokens == len(sink.shown) == len(committed)
    counts = run.machine.counts
    assert counts.accepted <= counts.drafted and counts.leaves_right <= counts.leaves
    judged = zip(counts.accepted_by_position, counts.judged_by_position)
    assert all(a <= j for a, j in judged)
    if run.finish in ("length", "stop"):
        alone = any("the draft's alone" in w for w in run.warnings)
        if not alone:
            assert not sink.guessed and len(sink.shown) == length
        else:
            assert plan.offline == "draft" and not easy
        text = [*sink.shown, *sink.guessed]
        ended = bool(text) and text[-1] in plan.stops
        assert run.finish == ("stop" if ended or complete(plan, text) else "length")
    elif run.finish == "error":
        assert not easy and explained(sink.error, world.plan), repr(sink.error)
    elif run.finish == "deadline":
        if plan.grammar and (sink.completed or counts.completed):
            whole = [*sink.shown, *sink.guessed, *sink.completed]
            guide = rules_of(plan).guide(0)
            guide.follow(whole)
            assert guide.length == len(whole) and guide.content, "it is not whole"
        assert plan.deadline_s is not None
        assert run.ended_s - run.began_s <= plan.deadline_s + jumps(world.plan) + 1e-6
    else:
        assert run.finish == "cancelled" and plan.cancel_s is not None
    anew = any("opened anew" in w for w in run.warnings)
    assert not anew or any(f.kind == "internal" for f in world.plan.faults)
    bound = run.progress_s + plan.patience_s + run.free_s + jumps(world.plan) + 0.2
    if plan.offline == "draft":
        bound += 60.0  # the draft may still have much to say
    assert run.ended_s <= bound + 1e-6, "it outlived its patience"


def keeps_to_it(plan, shown):
    """Assert that ``shown`` may begin a text of the plan's grammar."""
    guide = rules_of(plan).guide(0)
    text = shown[:-1] if shown and shown[-1] in plan.stops else shown
    guide.follow(text)
    assert guide.length == len(text), "the grammar does not allow this"
    assert text == shown or guide.content, "it ended in the middle"


def complete(plan, shown):
    """Tell whether a grammar has nothing that could follow ``shown``."""
    if not plan.grammar:
        return False
    guide = rules_of(plan).guide(0)
    guide.follow(shown)
    path = guide.path()
    return guide.length == len(shown) and path.ended and not path.ids


def jumps(plan):
    return sum(f.for_s for f in plan.faults if f.kind == "jump")


def simpler(plan):
    """Yield plans with a little less in them."""
    for many in ("faults", "streams", "connects"):
        held = getattr(plan, many)
        for i in range(len(held)):
            if len(held) > (many == "streams"):
                yield replace(plan, **{many: held[:i] + held[i + 1 :]})
    yield replace(plan, jitter=0.0)
    plain = ("moody", "cancel_s", "deadline_s", "shape", "grammar", "logprobs", "stops")
    for i, stream in enumerate(plan.streams):
        changes = [{name: getattr(STREAM, name)} for name in plain]
        changes += [{"sampled": False, "top_p": 1.0}, {"forcing": False}]
        for change in ({"count": max(1, stream.count // 2)}, *changes):
            less = (*plan.streams[:i], replace(stream, **change), *plan.streams[i + 1 :])
            yield replace(plan, streams=less)


def engine_plan(plan, dice):
    """Return a plan for an engine that keeps streams itself: it dies now and then."""
    streams = tuple(replace(s, scheme="") for s in plan.streams)
    faults = list(plan.faults)
    for _ in range(dice.one_of([0, 0, 1, 2])):
        faults.append(Fault(dice.whole(0, 100) / 50, "death", dice.whole(0, 30) / 10))
    faults = tuple(sorted(faults, key=lambda f: f.at_s))
    return replace(plan, streams=streams, faults=faults)


def check_history(seed, mechanism=None, long=False, kind=World):
    """Run the history that ``seed`` names; say the simplest plan that fails as it does."""
    dice = Dice(seed)
    plan = draw_plan(dice, mechanism, long)
    if kind is EngineWorld:
        plan = engine_plan(plan, dice)
    try:
        return check(plan, kind)
    except Exception as error:
        found, less = plan, plan
        while less is not None:
            found = less
            less = next(
                (p for p in simpler(found) if p != found and fails(p, kind, error)), None
            )
        raise AssertionError(f"seed {seed}: {error!r}\nsimplest: {found}") from error


def fails(plan, kind, error):
    """Tell whether ``plan`` fails as another one did."""
    try:
        check(plan, kind)
    except Exception as other:  # noqa: BLE001 - whatever it was
        return type(other) is type(error)
    return False


def one(*faults, connects=(), others=(), plan=None, kind=World, **stream):
    """Run one stream, and ``others``; return what its user saw, and the world."""
    stream = {"prompt": (1, 2, 3), "count": 40, "patience_s": 30.0, **stream}
    streams = (StreamPlan(**stream), *others)
    found = check(Plan(streams, faults, connects, **(plan or {})), kind)
    return found.sinks[0], found


@contextlib.contextmanager
def quiet():
    """Log nothing: links are lost by the thousand."""
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)
