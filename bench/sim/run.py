"""A simulated device: the real driver on virtual ports, stream after stream.

Everything that carries a user's stream is what it is live: driver, link, both sessions,
sampling, controller, codec, energy account. Simulated are the clock, the time that models
take, and the network.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any, Callable, Mapping, Protocol, Sequence

from draftwire.bench.link import LinkSpec
from draftwire.bench.sim.cloud import SimVerifier, TargetModel
from draftwire.bench.sim.device import VirtualEngine
from draftwire.bench.sim.network import TwoWays, VirtualNetwork
from draftwire.clock import Clock
from draftwire.energy.account.account import Account, ModelSource
from draftwire.errors import DraftwireError
from draftwire.runtime.accounting import StreamAccount
from draftwire.runtime.drafter import Drafter, Model
from draftwire.runtime.driver import Driver, StreamRun, StreamSpec
from draftwire.runtime.edge.actions import Counts, Emit, Revise
from draftwire.runtime.edge.mode import Mode
from draftwire.runtime.options import insight
from draftwire.runtime.pacing.controller import Controller
from draftwire.runtime.report import stream_report
from draftwire.sampling import SamplingParams, make_proposer
from draftwire.transport.bits import id_bits, packed_size
from draftwire.transport.messages import Hello, Welcome

GREEDY = SamplingParams("greedy", 0.0)
_PATIENCE_S = 3600.0  # traces have holes, and what is measured must come to its end


class Job(Protocol):
    """What a stream is about: a prompt, and the two models for it."""

    @property
    def prompt(self) -> Sequence[int]:
        """Token ids, at least one."""

    @property
    def stop_ids(self) -> Sequence[int]:
        """Ids that end the text."""

    def draft(self) -> Model:
        """Return the draft's model, with an empty cache."""

    def target(self) -> TargetModel | None:
        """Return the target's model, or None where the backend needs no telling."""


@dataclass(frozen=True)
class Setting:
    """What all streams of a device share."""

    mode: Mode  # of the streams
    vocab_size: int  # ids on the connection are below this
    link: LinkSpec  # between device and verifier
    make_controller: Callable[[], Controller]  # called for each stream
    # seconds of a forward of the draft; None takes the time that it takes
    step: Callable[[int], float] | None
    # the draft is on the device; otherwise it is beside the target, and only text crosses
    # the link
    near: bool = True
    # of the board in each phase; nothing where nobody knows them
    watts: Mapping[str, float] = field(default_factory=dict)
    model: str = ""  # whose watts these are
    origin: str = ""  # where they come from, or why there are none
    tokens: int = 256  # most tokens of a stream
    draft_context: int | None = None  # longest sequence of the draft, or None
    params: SamplingParams = GREEDY  # sampling
    # bytes that a block of so many tokens carries beside the codec's
    extra: Callable[[int], int] = lambda tokens: 0
    rejected: int = 0  # bytes that a verdict carries where a draft was rejected
    # the target draws one more token after a block that is accepted whole
    bonus: bool = True
    seed: int = 0  # of the link
    # decode every frame, instead of handing the message over: the same, and slower
    decode: bool = False
    capabilities: tuple[str, ...] = ("resume", "exits")  # that the device names


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
    def finish(self) -> str:
        """Why it ended."""
        return self.over.finish

    @property
    def counts(self) -> Counts:
        """Totals of the stream."""
        return self.over.machine.counts

    @property
    def bytes(self) -> dict[str, int]:
        """Bytes up and down, as a report has them."""
        traffic = self.over.traffic
        found = [getattr(traffic, key) for key in _BYTES]
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
        setting: What it runs.
        verifier: Shared with other devices.
        jobs: Returns the job of stream ``i``, or None when there are no more.
        on_done: Called once, when it has no more to do, or when a stream has failed.

    Attributes:
        clock: The same.
        setting: Likewise.
        driver: The driver.
        job: Of the present stream.
        ways: The link.
        results: Of the streams that have ended.
    """

    def __init__(
        self,
        clock: Clock,
        setting: Setting,
        verifier: SimVerifier,
        jobs: Callable[[int], Job | None],
        on_done: Callable[[], None] = lambda: None,
    ) -> None:
        self.clock = clock
        self.setting = setting
        self._jobs = jobs
        self._on_done = on_done
        self._bits = id_bits(setting.vocab_size)
        self.ways = TwoWays(setting.link, setting.seed)
        self._text = None if setting.near else self.ways.connection()
        network = VirtualNetwork(
            clock,
            partial(verifier.attach, self._target, draft=self._draft),
            setting.vocab_size,
            self.ways if setting.near else None,
            setting.extra,
            rejected=setting.rejected,
            bonus=setting.bonus,
            decode=setting.decode,
        )
        drafter = Drafter(None, setting.vocab_size)
        engine = VirtualEngine(clock, drafter, setting.step)
        hello = Hello(
            "", "", bytes(32), b"", setting.vocab_size,
            capabilities=setting.capabilities,
        )  # fmt: skip
        rng = random.Random(setting.seed)
        self.driver = Driver(clock, network, drafter, engine, hello, rng=rng)
        engine.driver = self.driver
        self.job: Job | None = None
        self.results: list[StreamResult] = []

    def start(self) -> None:
        """Connect, and begin the first stream."""
        self.driver.connect(self._connected)

    def _connected(self, outcome: Welcome | DraftwireError) -> None:
        if isinstance(outcome, Welcome):
            self.clock.post(self._next_stream)
        else:  # an outage: the driver tries again
            self.driver.connect(self._connected)

    @property
    def running(self) -> StreamRun | None:
        """The present stream."""
        return next(iter(self.driver.streams.values()), None)

    def _target(self) -> TargetModel | None:
        assert self.job is not None
        return self.job.target()

    def _draft(self) -> Model:
        assert self.job is not None
        found = self.job.draft()
        assert found is not None
        return found

    def _next_stream(self) -> None:
        job = self.job = self._jobs(len(self.results))
        if job is None:
            self._on_done()
            return
        result = StreamResult(self, len(self.results), self.clock.now())
        if self.setting.near:
            self._open(job, result)
        else:  # the prompt goes up; everything else happens there
            came_s = self._carry(result, 0, len(job.prompt))
            self.clock.call_at(came_s, self._open, job, result)

    def _open(self, job: Job, result: StreamResult) -> None:
        setting, welcome = self.setting, self.driver.link.welcome
        assert welcome is not None  # a stream begins once there is a connection
        controller = setting.make_controller()
        asked = insight(controller, setting.mode)
        spec = StreamSpec(
            prompt=job.prompt,
            params=setting.params,
            proposer=make_proposer(
                setting.params,
                welcome.vocab_size,
                insight=asked,
                second="leaves" in welcome.capabilities,
            ),
            controller=controller,
            mode=setting.mode,
            max_new_tokens=setting.tokens,
            vocab_size=welcome.vocab_size,
            context=welcome.context,
            draft_context=setting.draft_context,
            stop_ids=job.stop_ids,
            account=self.started(self._account()),
            patience_s=_PATIENCE_S,
            model=job.draft(),
        )
        self.driver.open(spec, result)

    def _account(self) -> Account:
        setting, model = self.setting, None

        def now_ns() -> int:
            return round(self.clock.now() * 1e9)

        if setting.watts:
            model = ModelSource(setting.model, setting.watts, origin=setting.origin)
        return Account(None, model=model, why=setting.origin, clock=now_ns)

    def started(self, account: Account) -> StreamAccount:
        """Return the account of a new stream."""
        return StreamAccount(account)

    # ---- what a stream asks of its device

    def shown(self, result: StreamResult, tokens: int) -> float:
        """Return when the user sees ``tokens`` tokens that are text now."""
        if self._text is None:
            return self.clock.now()
        return self._carry(result, 1, tokens)

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
