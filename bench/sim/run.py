"""A simulated device: the real driver on virtual ports, stream after stream.

Everything that carries a user's stream is what it is live: driver, link, both sessions,
sampling, controller, codec, energy account. Simulated are the clock, the time that models
take, and the network.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Callable, Mapping, Sequence

from draftwire.bench.link import LinkSpec
from draftwire.bench.link.model import TwoWays
from draftwire.bench.sim.cloud import ForwardCost, SimVerifier
from draftwire.bench.sim.device import Accelerator, VirtualEngine
from draftwire.bench.sim.facts import Profile
from draftwire.bench.sim.network import VirtualWire
from draftwire.bench.sim.schemes import Scheme
from draftwire.bench.sim.texts import Source, Synthetic, Text, parse_luck
from draftwire.clock import VirtualClock
from draftwire.energy.account.account import Account, ModelSource
from draftwire.errors import ConfigError, DraftwireError
from draftwire.packages import Parallel
from draftwire.runtime.accounting import StreamAccount
from draftwire.runtime.drafter import Drafter, Model
from draftwire.runtime.driver import Driver, StreamRun, StreamSpec
from draftwire.runtime.edge.actions import Counts, Emit, Revise
from draftwire.runtime.options import insight
from draftwire.runtime.pacing.controller import Controller, make_controller
from draftwire.runtime.pacing.parallel import ParallelPacing
from draftwire.runtime.ports import WireEvents
from draftwire.runtime.report import stream_report
from draftwire.sampling import SamplingParams, make_proposer
from draftwire.transport.bits import id_bits, packed_size
from draftwire.transport.messages import Hello, Welcome
from draftwire.verifier.backends.base import TargetBackend

GREEDY = SamplingParams("greedy", 0.0)
_NEVER_S = 86400.0  # a link that lets no connection pass for so long never will
_PATIENCE_S = 3600.0  # traces have holes, and what is measured must come to its end


@dataclass(frozen=True)
class Job:
    """What a stream is about: a prompt and its draft; the backend has the target."""

    prompt: Sequence[int]  # token ids, at least one
    draft: Callable[[], Model]  # returns the draft's model, its cache empty
    stop_ids: Sequence[int] = ()  # ids that end the text
    text: Text | None = None  # what is written, where that is known beforehand


def real_job(model: Model, prompt: Sequence[int], stop_ids: Sequence[int] = ()) -> Job:
    """Return a stream of a model that all streams share, one after another."""

    def draft() -> Model:
        model.rewind(0)
        return model

    return Job(prompt, draft, stop_ids)


@dataclass(frozen=True)
class Plan:
    """What to simulate."""

    profile: Profile  # what things take
    scheme: Scheme  # how draft and target work together
    link: LinkSpec | None = None  # none takes the profile's
    # where texts come from; None makes synthetic ones from the profile
    source: Source | None = None
    # block length of schemes that have one; None takes the profile's
    block: int | None = None
    # another length policy than the scheme's, which all streams share
    controller: Controller | None = None
    streams: int = 4  # how many, one after another, on each device
    tokens: int = 256  # of each stream
    hours: float | None = None  # end after so much virtual time, whatever `streams` says
    sessions: int = 1  # devices at the same time on one verifier
    # ... that are one gateway: they share its link and, where they draft, its accelerator
    gateway: bool = False
    seed: int = 1  # of everything random
    # decode every frame, instead of handing the message over: slower, and the same as long
    # as the wire rounds no number
    decode: bool = False
    # makes the job of stream ``i`` instead of `source`, for real models
    job: Callable[[int], Job] | None = None
    backend: TargetBackend | None = None  # their target
    # ids on the connection are below this; None takes the profile's
    vocabulary: int | None = None
    draft_context: int | None = None  # longest sequence of the draft, or None
    params: SamplingParams = GREEDY  # sampling
    real_time: bool = False  # wait for the clock
    own_pace: bool = False  # in real time: models take as long as they do here

    @property
    def the_link(self) -> LinkSpec:
        """The link that is asked for, or that the profile tells of."""
        profile = self.profile
        if self.link is not None:
            return self.link
        half = profile.seconds("link.rtt_ms") / 2
        up, down = (1e6 * profile[f"link.{way}_mbit_s"] for way in ("up", "down"))
        return LinkSpec(
            name=f"profile {profile.name}",
            delay_up_s=half,
            delay_down_s=half,
            up_bit_s=None if math.isinf(up) else up,
            down_bit_s=None if math.isinf(down) else down,
            source=profile.facts["link.rtt_ms"].source,
        )

    @property
    def texts(self) -> Source:
        """Where texts come from."""
        return synthetic_of(self.profile, self.seed) if self.source is None else self.source

    @property
    def ids(self) -> int:
        """What ids on the connection are below."""
        return self.vocabulary or int(self.profile["text.vocabulary"])

    @property
    def length(self) -> int:
        """Tokens of a block, of schemes that have some."""
        return self.scheme.block or self.block or int(self.profile["speculation.block"])

    @property
    def helps(self) -> frozenset[str]:
        """What the verifier does beside judging drafts; dice repeat nothing."""
        source, helps = self.source, self.scheme.helps
        repeats = source.repeats if isinstance(source, Synthetic) else source is not None
        return helps if repeats or self.job else helps - {"lookup"}

    @property
    def at_once(self) -> int:
        """Tokens that a forward of the device's draft says."""
        near = self.scheme.place == "device" and self.job is None
        return int(self.profile["draft.at_once"]) if near else 1

    @property
    def lanes(self) -> int:
        """Sequences that a forward of the device's draft goes on with."""
        near = self.scheme.place == "device" and self.at_once == 1
        return int(self.profile["draft.lanes"]) if near else 1

    @property
    def crowded(self) -> bool:
        """Whether several sessions share a board."""
        return self.gateway and self.sessions > 1

    def length_policy(self) -> Controller:
        """Return the length policy of a stream."""
        count = self.at_once
        named = self.scheme.policy(self.length, count)
        rule = self.controller or make_controller(named)
        if count == 1 or isinstance(rule, ParallelPacing):
            return rule
        chances = (self.profile["text.acceptance"],) * count
        return ParallelPacing(rule, Parallel((0,), count, chances))


def synthetic_of(profile: Profile, seed: int, **options: Any) -> Synthetic:
    """Return texts of dice with a profile's acceptance."""
    return Synthetic(
        parse_luck(repr(profile["text.acceptance"])),
        seed=seed,
        prompt_tokens=int(profile["text.prompt_tokens"]),
        **options,
    )


def cloud_step_s(profile: Profile) -> float:
    """Return what a step of the draft takes beside the target.

    Raises:
        ConfigError: The profile does not say.
    """
    step_s = profile.seconds("cloud.draft_step_ms")
    if math.isnan(step_s):
        raise ConfigError(
            f"the profile {profile.name} does not say what drafting in the cloud takes",
            hint="give cloud.draft_step_ms, or leave the scheme out",
        )
    return step_s


class StreamResult:
    """What a user sees of one stream, and when; the driver's sink.

    Attributes:
        number: From 0.
        began_s: When the user asked.
        ids: The text.
        seen: ``(t_s, tokens)`` each time that the user saw some.
        run: What the driver says of it, once it has ended.
        error: What it failed with, or None.
    """

    def __init__(self, device: Device, number: int, began_s: float) -> None:
        self._device: Device | None = device
        self.number = number
        self.began_s = began_s
        self.ids: list[int] = []
        self.seen: list[tuple[float, int]] = []
        self.run: StreamRun | None = None
        self.error: DraftwireError | None = None
        self._text = [0, 0, 0, 0]  # bytes that its text took, where only that is carried

    stopped = False  # nobody asks for stop strings

    def take(self, action: Emit | Revise) -> str | None:
        """Show text; guesses are not asked for, so nothing is ever taken back."""
        assert isinstance(action, Emit) and self._device is not None
        fresh = [token.id for token in action.tokens[action.shown :]]
        self.seen.append((self._device.shown(self, len(fresh)), len(fresh)))
        self.ids += fresh
        return None

    def explain(self, line: str) -> None:
        """Nobody asks."""

    def finished(self, run: StreamRun, error: DraftwireError | None) -> None:
        """The stream is over."""
        self.run, self.error = run, error
        device, self._device = self._device, None
        assert device is not None
        device.ended(self)

    def carried(self, way: int, payload: int, wire: int, ack: int) -> None:
        """Note text that crosses the network by itself, up (0) or down (1)."""
        self._text[way] += payload
        self._text[2 + way] += wire
        self._text[3 - way] += ack

    @property
    def first_s(self) -> float | None:
        """When the user saw the first token."""
        return self.seen[0][0] if self.seen else None

    @property
    def first_tokens(self) -> int:
        """How many tokens came with it."""
        return self.seen[0][1] if self.seen else 0

    @property
    def last_s(self) -> float:
        """When the user saw the last token."""
        return self.seen[-1][0] if self.seen else self.began_s

    @property
    def over(self) -> StreamRun:
        """What the driver says of the stream that has ended."""
        assert self.run is not None
        return self.run

    @property
    def counts(self) -> Counts:
        """Totals of the stream."""
        return self.over.machine.counts

    @property
    def bytes(self) -> dict[str, int]:
        """Bytes up and down, as a report has them."""
        found = [getattr(self.over.traffic, key) for key in _BYTES]
        return dict(zip(_BYTES, self._text if any(self._text) else found))

    @cached_property
    def energy(self) -> dict[str, Any]:
        """The account's result."""
        account, counts = self.over.spec.account.account, self.counts
        account.count(
            drafted=counts.drafted, accepted=counts.accepted, emitted=counts.tokens
        )
        return account.result()

    def report(self, draft: Mapping[str, Any], warnings: Sequence[str]) -> dict[str, Any]:
        """Return the run report, as a live stream has it, with the user's own times.

        Args:
            draft: Who it is.
            warnings: What a reader should know.
        """
        run, first_s = self.over, self.first_s
        assert run.welcome is not None
        self.energy  # noqa: B018  (counted once)
        report = stream_report(
            run,
            draft=draft,
            welcome=run.welcome,
            token_ids=self.ids,
            text=None,
            first_token_s=None if first_s is None else first_s - self.began_s,
            warnings=warnings,
        )
        seconds = report["seconds"]
        seconds["total"] = self.last_s - self.began_s
        busy_s = run.draft_s + run.prefill_s
        seconds["wait"] = max(0.0, seconds["total"] - busy_s)
        report["bytes"].update(self.bytes)
        report["bench"] = {
            "place": "cloud" if any(self._text) else "device",
            "prompt": self.number,
            "first_tokens": self.first_tokens,
            "last_token_s": seconds["total"],
        }
        return report


_BYTES = ("up_payload", "down_payload", "up_wire", "down_wire")


class Device:
    """A board that runs stream after stream with one driver.

    Args:
        clock: Where everything happens.
        plan: What it runs.
        verifier: Shared with other devices.
        jobs: Returns the job of stream ``i``, or None when there are no more.
        on_done: Called once, when it has no more to do, or when a stream has failed.
        number: Of the device, from 0; each has dice of its own.
        neighbour: Of the same gateway, or None: its link and, where the draft lives here,
            its accelerator are this one's too.

    Attributes:
        clock: The same.
        plan: Likewise.
        watts: Of the board in each phase; nothing where nobody knows them.
        near: The draft lives here, and not beside the target over a link of no length.
        attach: Gives the verifier's end of a new connection.
        driver: The driver.
        job: Of the present stream.
        ways: The link.
        accelerator: What its draft runs on.
        results: Of the streams that have ended.
    """

    def __init__(
        self,
        clock: VirtualClock,
        plan: Plan,
        verifier: SimVerifier,
        jobs: Callable[[int], Job | None],
        on_done: Callable[[], None] = lambda: None,
        number: int = 0,
        neighbour: Device | None = None,
    ) -> None:
        self.clock, self.plan = clock, plan
        self._jobs = jobs
        self._on_done = on_done
        profile, scheme, vocabulary = plan.profile, plan.scheme, plan.ids
        self._bits = id_bits(vocabulary)
        seed, link = plan.seed * 1009 + number, plan.the_link
        self.ways = TwoWays(replace(link, seed=link.seed + number), seed)
        self.near = scheme.place == "device"
        self.accelerator = Accelerator(clock)
        if neighbour is not None:
            self.ways = neighbour.ways
            if self.near:
                self.accelerator = neighbour.accelerator
        self.attach = verifier.attach
        self._text = None if self.near else self.ways.connection()
        drafter = Drafter(None, vocabulary)
        self.watts = {} if plan.own_pace or plan.crowded else profile.watts()
        step = None if plan.own_pace else ForwardCost.of_draft(profile)
        if not self.near:  # the board only waits
            watts = self.watts
            self.watts = dict.fromkeys(watts, watts["wait"]) if "wait" in watts else {}
            step = step and ForwardCost(cloud_step_s(profile))
        engine = VirtualEngine(
            clock, drafter, step, profile["draft.lane_part"], self.accelerator
        )
        helps = plan.helps
        named = {"leaves": "leaves" in helps, "beside": "draft" in helps}
        named["trees"] = "trees" in helps
        named["further"] = bool(helps & {"lookup", "leaves", "draft"})
        hello = Hello(
            "", "", bytes(32), b"", vocabulary,
            capabilities=("resume", "exits", *(name for name, on in named.items() if on)),
        )  # fmt: skip
        rng = random.Random(seed)
        self.driver = Driver(clock, self, drafter, engine, hello, rng=rng)
        engine.driver = self.driver
        cut = scheme.mode.cut and bool(profile["speculation.cut"])
        self._mode = replace(scheme.mode, cut=cut)
        self.job: Job | None = None
        self.results: list[StreamResult] = []

    def connect(self, hello: Hello, events: WireEvents, timeout_s: float) -> VirtualWire:
        """Begin to connect and to greet; see :class:`~draftwire.runtime.ports.Network`."""
        return VirtualWire(self, hello, events, timeout_s)

    def start(self) -> None:
        """Connect, and begin the first stream."""
        self.driver.connect(self._connected)

    def _connected(self, outcome: Welcome | DraftwireError) -> None:
        if isinstance(outcome, Welcome):
            self.clock.post(self._next_stream)
        elif self.clock.now() < _NEVER_S:  # an outage: the driver tries again
            self.driver.connect(self._connected)
        else:
            raise ConfigError(
                f"no connection in a day over {self.plan.the_link.name}: {outcome}",
                hint="a handshake must pass within its time: another rate, loss or outages",
            )

    @property
    def running(self) -> StreamRun | None:
        """The present stream."""
        return next(iter(self.driver.streams.values()), None)

    def _next_stream(self) -> None:
        job = self.job = self._jobs(len(self.results))
        if job is None:
            self._on_done()
            return
        result = StreamResult(self, len(self.results), self.clock.now())
        if self.near:
            self._open(job, result)
        else:  # the prompt goes up; everything else happens there
            came_s = self._carry(result, 0, len(job.prompt))
            self.clock.call_at(came_s, self._open, job, result)

    def _open(self, job: Job, result: StreamResult) -> None:
        plan, welcome = self.plan, self.driver.link.welcome
        assert welcome is not None  # a stream begins once there is a connection
        controller = plan.length_policy()
        spec = StreamSpec(
            prompt=job.prompt,
            params=plan.params,
            proposer=make_proposer(
                plan.params,
                welcome.vocab_size,
                insight=insight(controller, self._mode),
                second="leaves" in welcome.capabilities,
            ),
            controller=controller,
            mode=self._mode,
            max_new_tokens=plan.tokens,
            vocab_size=welcome.vocab_size,
            context=welcome.context,
            draft_context=plan.draft_context,
            stop_ids=job.stop_ids,
            account=self.started(self._account()),
            patience_s=_PATIENCE_S,
            model=job.draft(),
        )
        self.driver.open(spec, result)

    def _account(self) -> Account:
        name, model = self.plan.profile.name, None
        origin = f"profile {name} has no watts"
        if self.plan.crowded:
            origin = "one board drafts for several sessions: nobody has joules of its own"
        elif self.plan.own_pace:
            origin = "nothing runs on the device; its idle power is not metered"
        elif self.watts:
            origin = f"profile {name}, simulated"
            model = ModelSource(name, self.watts, origin=origin)
        clock = self.clock
        now_ns: Callable[[], int] = lambda: round(clock.now() * 1e9)  # noqa: E731
        return Account(None, model=model, why=origin, clock=now_ns)

    def started(self, account: Account) -> StreamAccount:
        """Return the account of a new stream."""
        return StreamAccount(account)

    # ---- what a stream asks of its device

    def shown(self, result: StreamResult, tokens: int) -> float:
        """Return when the user sees ``tokens`` tokens that are text now."""
        return self.clock.now() if self.near else self._carry(result, 1, tokens)

    def ended(self, result: StreamResult) -> None:
        """A stream is over; the user asks again when the last of it is seen."""
        self.results.append(result)
        if result.error is not None:
            self._on_done()
            return
        self.clock.call_at(max(self.clock.now(), result.last_s), self._next_stream)

    def _carry(self, result: StreamResult, way: int, tokens: int) -> float:
        assert self._text is not None
        payload = 2 + packed_size(tokens, self._bits)
        found = self._text[way].send(self.clock.now(), payload)
        result.carried(way, payload, found.wire_bytes, found.ack_bytes)
        return found.arrival_s
