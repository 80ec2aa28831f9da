"""One simulated device on one simulated verifier: the real sessions, virtual time.

The device's session, the verifier's session, the sampling scheme, the controller, the
codec and the energy account are those of a live run. Simulated are the clock, the time
that models take, and the link.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Callable, Protocol, Sequence

from draftwire.bench.link import LinkSpec, StreamLink
from draftwire.bench.link.model import OutagePlan
from draftwire.bench.sim.cloud import SimStream, SimVerifier, TargetModel
from draftwire.bench.sim.device import SimDrafter, StepCost
from draftwire.bench.sim.events import Loop
from draftwire.bench.sim.facts import Profile
from draftwire.bench.sim.schemes import Scheme
from draftwire.energy.account import Account
from draftwire.energy.sources.modelled import ModelSource
from draftwire.runtime.accounting import StreamAccount
from draftwire.runtime.actions import Action, Draft, Emit, Finished, Send
from draftwire.runtime.channel import Channel
from draftwire.runtime.controller import Controller, FixedLength
from draftwire.runtime.drafter import Model
from draftwire.runtime.edge_session import EdgeSession
from draftwire.runtime.mode import Mode
from draftwire.sampling import Proposal, SamplingParams, make_proposer
from draftwire.transport.bits import packed_size
from draftwire.transport.codec import Codec
from draftwire.transport.messages import Block, Bye, Message, Open, Opened
from draftwire.verifier.target_session import TargetSession

__all__ = ["Device", "Job", "Setting", "StreamResult"]

GREEDY = SamplingParams("greedy", 0.0)


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

    def target(self) -> TargetModel:
        """Return the target's model."""


@dataclass(frozen=True)
class Setting:
    """What all streams of a device share.

    Attributes:
        profile: What things take.
        scheme: How draft and target work together.
        link: Between them.
        make_controller: Called for each stream.
        tokens: Most tokens of a stream.
        vocab_size: Ids on the connection are below this.
        params: Sampling.
        seed: Of the link.
        decode: Decode every frame, instead of handing the message over: the same, and
            slower.
    """

    profile: Profile
    scheme: Scheme
    link: LinkSpec
    make_controller: Callable[[], Controller]
    tokens: int = 256
    vocab_size: int = 32000
    params: SamplingParams = GREEDY
    seed: int = 0
    decode: bool = False

    @property
    def mode(self) -> Mode:
        """The scheme's, without cutting where the profile says so."""
        mode = self.scheme.mode
        return replace(mode, cut=mode.cut and bool(self.profile["speculation.cut"]))


@dataclass
class StreamResult:
    """What one stream gave.

    Attributes:
        number: From 0.
        ids: Its text.
        finish: Why it ended.
        began_s: When the user asked.
        first_s: When the user saw the first token.
        first_tokens: How many tokens came with it.
        last_s: When the user saw the last token.
        edge: The device's session.
        forwards: Of the target, after the prompt was read.
        payload: Bytes up and down.
        wire: Bytes up and down with all headers and retransmissions.
        draft_s: Seconds of drafting.
        prefill_s: Seconds in which the draft read text.
        energy: The account's result.
    """

    number: int
    edge: EdgeSession
    began_s: float
    ids: list[int] = field(default_factory=list)
    finish: str = "cancelled"
    first_s: float | None = None
    first_tokens: int = 0
    last_s: float = 0.0
    forwards: int = 0
    payload: list[int] = field(default_factory=lambda: [0, 0])
    wire: list[int] = field(default_factory=lambda: [0, 0])
    draft_s: float = 0.0
    prefill_s: float = 0.0
    energy: dict[str, Any] = field(default_factory=dict)


class Device:
    """A board that runs stream after stream.

    Args:
        loop: The clock.
        setting: What it runs.
        verifier: Shared with other devices.
        jobs: Returns the job of stream ``i``, or None when there are no more.
        on_done: Called once, when it has no more to do.

    Attributes:
        results: Of the streams that have ended.
    """

    def __init__(
        self,
        loop: Loop,
        setting: Setting,
        verifier: SimVerifier,
        jobs: Callable[[int], Job | None],
        on_done: Callable[[], None] = lambda: None,
    ) -> None:
        self._loop = loop
        self._setting = setting
        self._verifier = verifier
        self._jobs = jobs
        self._on_done = on_done
        self._codec = Codec(setting.vocab_size)
        plan = OutagePlan(setting.link.outages, setting.seed)
        self._up, self._down = (
            StreamLink(setting.link, way, setting.seed, outages=plan)
            for way in ("up", "down")
        )
        self._near = setting.scheme.place == "device"
        cost = StepCost.of(setting.profile)
        if not self._near:
            cost = StepCost(setting.profile.seconds("cloud.draft_step_ms"))
        self._drafter = SimDrafter(loop, cost, setting.vocab_size, self._proposal)
        self._watts = setting.profile.watts()
        self._machine: EdgeSession | None = None
        self._cloud: SimStream | None = None
        self._job: Job | None = None
        self._account: StreamAccount | None = None
        self._number = -1
        self._channel = Channel()
        self.results: list[StreamResult] = []

    def start(self) -> None:
        """Begin the first stream."""
        self._next_stream()

    # ---- streams

    def _next_stream(self) -> None:
        self._number += 1
        job = self._jobs(self._number)
        if job is None:
            self._on_done()
            return
        setting = self._setting
        self._job, self._cloud = job, None
        self._controller = setting.make_controller()
        # As the live session: nobody looks at confidence where nothing asks for it.
        fixed = isinstance(self._controller, FixedLength)
        proposer = make_proposer(
            setting.params,
            setting.vocab_size,
            insight=not fixed or "outcomes" in setting.scheme.mode.preempt,
        )
        machine = EdgeSession(
            job.prompt,
            params=setting.params,
            proposer=proposer,
            controller=self._controller,
            max_new_tokens=setting.tokens,
            context=self._verifier.context,
            stop_ids=job.stop_ids,
            stream=self._number + 1,
            mode=setting.mode,
        )
        self._machine = machine
        self._result = StreamResult(self._number, machine, self._loop.now_s)
        self._drafter.begin(job.draft(), proposer)
        self._account = self._new_account()
        if self._near:
            self._apply(machine.start())
            return
        # The prompt goes up; everything else happens there.
        size = 2 + packed_size(len(job.prompt), self._codec.bits)
        arrival_s = self._carry(0, self._up, size)
        self._loop.at(arrival_s, lambda: self._apply(machine.start()))

    def _new_account(self) -> StreamAccount:
        model = None
        if self._watts:
            model = ModelSource(
                self._setting.profile.name,
                self._watts,
                origin=f"profile {self._setting.profile.name}, simulated",
                clock=self._loop.now_ns,
            )
        why = f"the profile {self._setting.profile.name} has no watts"
        return StreamAccount(Account(None, model=model, why=why, clock=self._loop.now_ns))

    def _finish(self, reason: str) -> None:
        result, machine = self._result, self._machine
        assert machine is not None and self._account is not None
        result.finish = reason
        result.draft_s, result.prefill_s = self._drafter.draft_s, self._drafter.prefill_s
        counts, account = machine.counts, self._account.account
        account.count(
            drafted=counts.drafted, accepted=counts.accepted, emitted=counts.tokens
        )
        result.energy = account.result()
        if self._cloud is not None:
            result.forwards = self._cloud.session.counts.forwards
            self._verifier.drop(self._cloud)
        self.results.append(result)
        self._machine = None
        # The user asks again at once; what the stream left behind is void.
        self._loop.at(max(self._loop.now_s, result.last_s), self._next_stream)

    # ---- events

    def _proposal(self, branch: int, proposal: Proposal) -> None:
        if self._account is not None:
            self._account.proposal()
        if self._machine is not None:
            self._controller.drafted_in(self._drafter.last_step_s)
            self._apply(self._machine.drafted(branch, proposal))

    def _received(self, number: int, message: Message) -> None:
        machine = self._machine
        if machine is None or number != self._number:
            return
        round_ = self._channel.received(self._loop.now_s, message)
        self._apply(machine.message(message))
        if round_ is not None:
            self._controller.measured(round_)
            if self._watts and self._account is not None:
                watts = self._account.account.watts_by_phase()
                self._controller.power(watts)

    def _apply(self, actions: Sequence[Action]) -> None:
        account = self._account
        assert account is not None
        finished = None
        for action in actions:
            if isinstance(action, Send):
                account.sending()
                self._send(action.message)
            elif isinstance(action, Draft):
                self._drafter.submit(action)
            elif isinstance(action, Emit):
                self._show(action)
            elif isinstance(action, Finished):
                finished = action.reason
        machine = self._machine
        if finished is not None:
            self._finish(finished)
        elif machine is not None:
            account.settle(drafting=machine.drafting, waiting=machine.waiting)

    def _show(self, emit: Emit) -> None:
        result = self._result
        fresh = [t.id for t in emit.tokens[emit.shown :]]
        seen_s = self._loop.now_s
        if not self._near:
            size = 2 + packed_size(len(fresh), self._codec.bits)
            seen_s = self._carry(1, self._down, size)
        if result.first_s is None:
            result.first_s, result.first_tokens = seen_s, len(fresh)
        result.last_s = seen_s
        result.ids += fresh

    # ---- the link

    def _carry(self, way: int, link: StreamLink, payload: int) -> float:
        found = link.send(self._loop.now_s, payload)
        result = self._result
        result.payload[way] += payload
        result.wire[way] += found.wire_bytes
        result.wire[1 - way] += found.ack_bytes
        return found.arrival_s

    def _send(self, message: Message) -> None:
        if isinstance(message, Open) and not self._setting.scheme.bonus:
            message = replace(message, bonus=False)
        frame = self._codec.encode(message)
        size = len(frame)
        if isinstance(message, Block) and message.tokens:
            size += self._setting.scheme.evidence_bytes(
                len(message.tokens), self._setting.profile
            )
        arrival_s, wire = self._loop.now_s, size
        if self._near:
            before = self._result.wire[0]
            arrival_s = self._carry(0, self._up, size)
            wire = self._result.wire[0] - before
        self._channel.sent(self._loop.now_s, message, wire)
        if self._setting.decode:
            message = self._codec.decode(frame)
        self._loop.at(arrival_s, self._arrived, self._number, message)

    def _answer(self, number: int, messages: Sequence[Message]) -> None:
        if number != self._number or self._machine is None:
            return
        for message in messages:
            frame = self._codec.encode(message)
            arrival_s = self._loop.now_s
            if self._near:
                arrival_s = self._carry(1, self._down, len(frame))
            if self._setting.decode:
                message = self._codec.decode(frame)
            self._loop.at(arrival_s, self._received, number, message)

    # ---- the verifier's end of the connection

    def _arrived(self, number: int, message: Message) -> None:
        if number != self._number or self._machine is None:
            return
        if isinstance(message, Open):
            assert self._job is not None
            session = TargetSession(
                message,
                vocab_size=self._setting.vocab_size,
                context=self._verifier.context,
                max_block=255,
            )
            self._cloud = SimStream(
                session, self._job.target(), partial(self._answer, number)
            )
            self._answer(number, [Opened(message.stream, bytes(8), bytes(16))])
        elif self._cloud is not None and isinstance(message, Block):
            answers = self._cloud.session.receive(message)
            if answers:
                self._answer(number, answers)
        elif isinstance(message, Bye):
            return
        if self._cloud is not None:
            self._verifier.wake(self._cloud)
