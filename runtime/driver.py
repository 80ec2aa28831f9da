"""The driver: what stands between the state machines and the world.

One object, one thread, one thing at a time. It owns the streams of a session, the links
that carry them and the draft model that works for them, and knows neither sockets nor
threads: those are behind three ports (:mod:`draftwire.runtime.ports`). Live the ports are
an asyncio loop, websockets and a thread; in ``bench simulate``, in ``bench compare`` and
under the generated histories of the tests they are virtual, and this class is the same.

Nothing here blocks. Every event names its stream. An event is carried through to its end:
the machine's answer becomes messages in an outbox, orders for the draft model and text
for the sink. Whatever goes wrong on the way (a callback, an engine, a tokenizer, a
verifier that contradicts itself) ends that stream, with the error's own name and a word
of goodbye to the peer; the others go on.

A connection carries one stream at a time, so streams that run at once have a connection
each. They share the draft model: it works for the oldest; the others go on with the target
alone until it is their turn.
"""

from __future__ import annotations

import logging
import random
from collections import deque
from dataclasses import dataclass, field
from typing import Callable, Protocol, Sequence

from draftwire.clock import Clock, Timer
from draftwire.energy.budget import Budget
from draftwire.errors import (
    BusyError,
    ConfigError,
    DraftwireError,
    IncompatibleError,
    ProtocolError,
    RefusedError,
    TransportError,
    VerifierError,
)
from draftwire.runtime.accounting import StreamAccount
from draftwire.runtime.drafter import Drafter, Model, Step
from draftwire.runtime.edge.actions import Action, Draft, Emit, Finished, Revise, Send
from draftwire.runtime.edge.machine import EdgeSession, State
from draftwire.runtime.edge.mode import Mode
from draftwire.runtime.link import Link, LinkSettings
from draftwire.runtime.pacing.controller import Controller
from draftwire.runtime.pacing.decisions import Decisions
from draftwire.runtime.pacing.suffix_cache import SuffixCache
from draftwire.runtime.ports import EnginePort, Network
from draftwire.sampling import Proposer, SamplingParams
from draftwire.transport.client import to_exception
from draftwire.transport.messages import Block, Error, Hello, Message, Welcome
from draftwire.transport.traffic import Traffic

__all__ = ["Driver", "Sink", "StreamRun", "StreamSpec", "named"]

log = logging.getLogger("draftwire.session")

Event = Callable[[], Sequence[Action]]
_LOOK_AGAIN_S = 0.05


@dataclass
class StreamSpec:
    """What a stream is to be.

    Attributes:
        prompt: Token ids.
        params: Sampling.
        proposer: The device's half of the scheme.
        controller: How far to draft.
        mode: What to do while verdicts are out.
        max_new_tokens: At most so many tokens after the prompt.
        vocab_size: Ids on the connection are below this.
        context: Longest sequence of the target.
        draft_context: Longest sequence of the draft.
        stop_ids: Ids that end the text.
        account: Of its joules, started.
        budget: What it may spend, or None.
        deadline_s: Seconds from now, or None.
        offline: ``"wait"``, ``"draft"`` or ``"error"``.
        patience_s: Seconds without progress that it bears.
        cache: Text seen before, to draft from, or None.
        model: Its own draft model, where streams do not share one.
        explain: Tell the sink why each block left.
    """

    prompt: Sequence[int]
    params: SamplingParams
    proposer: Proposer
    controller: Controller
    mode: Mode
    max_new_tokens: int
    vocab_size: int
    context: int
    draft_context: int | None
    stop_ids: Sequence[int]
    account: StreamAccount
    budget: Budget | None = None
    deadline_s: float | None = None
    offline: str = "wait"
    patience_s: float = 30.0
    cache: SuffixCache | None = None
    model: Model | None = None
    explain: bool = False


class Sink(Protocol):
    """Where the text of a stream goes; called in the driver's thread."""

    def take(self, action: Emit | Revise) -> str | None:
        """Show text, or take some back; return why to end the stream now, or None."""

    def explain(self, line: str) -> None:
        """Tell why a block left."""

    def finished(self, run: StreamRun, error: DraftwireError | None) -> None:
        """The stream is over, and ``run`` will not change any more."""


@dataclass
class StreamRun:
    """One stream at work.

    Attributes:
        number: Its name on the wire and in every event.
        spec: What was asked for.
        machine: Its state machine.
        link: What carries it.
        decisions: What its controller sees.
        sink: Where its text goes.
        began_s: When it began, seconds of the clock.
        ended_s: When it ended.
        before: Traffic of its link before it.
        traffic: What crossed the network for it; set at the end.
        reconnects: Of its link, while it ran; set at the end.
        captured: What a capture of packets counted before it, up and down.
        welcome: Of the verifier that carried it last, or None.
        draft_s: Seconds of drafting.
        prefill_s: Seconds in which the draft read text.
        finish: Why it ended.
        warnings: Sentences for the user.
    """

    number: int
    spec: StreamSpec
    machine: EdgeSession
    link: Link
    decisions: Decisions
    sink: Sink
    began_s: float
    before: Traffic
    ended_s: float = 0.0
    traffic: Traffic = field(default_factory=Traffic)
    reconnects: int = 0
    captured: tuple[int, int] = (0, 0)
    welcome: Welcome | None = None
    draft_s: float = 0.0
    prefill_s: float = 0.0
    finish: str = "cancelled"
    warnings: list[str] = field(default_factory=list)
    reconnects_before: int = 0
    # Patience: since the last verdict, less the time in which nothing was owed.
    progress_s: float = 0.0
    free_s: float = 0.0
    free_since: float | None = None
    impatient: bool = False  # it ends as soon as the draft has no more to say
    faulted: bool = False  # the verifier failed since the last verdict
    deadline: Timer | None = None
    patience: Timer | None = None

    @property
    def over(self) -> bool:
        """True once it has ended."""
        return self.ended_s > 0.0 or self.machine.done

    def warn(self, sentence: str) -> None:
        """Add a sentence for the user, once."""
        if sentence not in self.warnings:
            self.warnings.append(sentence)


def named(error: BaseException, what: str) -> DraftwireError:
    """Return ``error`` as one of ours: its own, or one that says what failed."""
    if isinstance(error, DraftwireError):
        return error
    found = DraftwireError(
        f"{what} failed: {type(error).__name__}: {error}",
        hint="this is no fault of the link or of the verifier",
    )
    found.__cause__ = error
    return found


class Driver:
    """Drives the streams of one session.

    Args:
        clock: Where everything happens.
        network: Connects to the verifier.
        drafter: The draft model's work.
        engine: Runs its steps; it calls :meth:`stepped` and :meth:`engine_failed`.
        hello: What the device says first.
        settings: Of the links.
        rng: Jitter on the pauses between two tries.

    Attributes:
        primary: The link that is there for as long as the session.
        streams: What runs now, by number.
    """

    def __init__(
        self,
        clock: Clock,
        network: Network,
        drafter: Drafter,
        engine: EnginePort,
        hello: Hello,
        settings: LinkSettings | None = None,
        rng: random.Random | None = None,
    ) -> None:
        self._clock = clock
        self._network = network
        self._drafter = drafter
        self._engine = engine
        self._hello = hello
        self._settings = settings or LinkSettings()
        self._rng = rng or random.Random()
        self._first: Callable[[Welcome | DraftwireError], None] | None = None
        self._number = 0
        self.streams: dict[int, StreamRun] = {}
        self._carried: dict[Link, StreamRun] = {}
        self._spare: list[Link] = []  # links beside the primary one
        self._turn: deque[StreamRun] = deque()  # for the draft model; the first has it
        self._closed = False
        self.primary = self._new_link()

    # ---- from outside, in the clock's thread

    def connect(self, first: Callable[[Welcome | DraftwireError], None]) -> None:
        """Begin to connect.

        Args:
            first: Told once how the first try went; later ones follow by themselves.
        """
        self._first = first
        self.primary.start()

    def open(self, spec: StreamSpec, sink: Sink) -> int:
        """Begin a stream; return its number.

        Raises:
            ConfigError: The session is closed.
            DraftwireError: The link is not up, and the stream would not wait for it.
        """
        if self._closed:
            raise ConfigError("this session is closed")
        link = self._free_link()
        if (
            not link.up
            and link.error is not None
            and (spec.offline == "error" or (link.failed and spec.offline != "draft"))
        ):
            raise link.error
        self._number += 1
        now = self._clock.now()
        mine = not self._turn
        machine = EdgeSession(
            spec.prompt,
            params=spec.params,
            proposer=spec.proposer,
            controller=spec.controller,
            max_new_tokens=spec.max_new_tokens,
            context=spec.context,
            draft_context=spec.draft_context,
            stop_ids=spec.stop_ids,
            stream=self._number,
            guess_offline=spec.offline == "draft",
            mode=spec.mode,
        )
        machine.has_engine = mine
        if link.welcome is not None:
            machine.max_block = link.welcome.max_block
        decisions = Decisions(
            spec.controller,
            spec.params.scheme,
            spec.prompt,
            spec.proposer,
            spec.cache if mine else None,
        )
        run = StreamRun(
            self._number,
            spec,
            machine,
            link,
            decisions,
            sink,
            now,
            link.traffic(),
            welcome=link.welcome,
            reconnects_before=link.reconnects,
            progress_s=now,
        )
        self.streams[run.number] = run
        self._carried[link] = run
        self._turn.append(run)
        if mine:
            self._give_engine(run)
        else:
            run.warn(
                "the draft model was at work for another stream: this one began with the "
                "target alone"
            )
        if spec.deadline_s is not None:
            when = now + spec.deadline_s
            run.deadline = self._clock.call_at(when, self.stop, run.number, "deadline")
        run.patience = self._clock.call_at(now + spec.patience_s, self._patience, run)
        self._do(run, machine.start if link.up else machine.start_offline)
        if link.failed and not run.over:
            run.impatient = True
            self._check_guessed(run)
        return run.number

    def stop(self, number: int, reason: str) -> None:
        """End a stream: ``"cancelled"``, ``"deadline"``, ...; harmless when it is over."""
        run = self.streams.get(number)
        if run is not None:
            self._do(run, lambda: run.machine.stop(reason))

    def fail(self, number: int, error: DraftwireError) -> None:
        """End a stream with an error of this side."""
        run = self.streams.get(number)
        if run is not None:
            self._fail(run, error)

    def close(self) -> None:
        """End every stream, every connection and the engine."""
        self._closed = True
        for run in list(self.streams.values()):
            self.stop(run.number, "cancelled")
        for link in (self.primary, *self._spare):
            link.close()
        self._engine.close()
        if self._first is not None:
            self._tell_first(ConfigError("this session is closed"))

    # ---- events of the engine

    def stepped(self, step: Step, seconds: float) -> None:
        """The draft model has done a step, in so many seconds."""
        run = self.streams.get(step.stream)
        if run is None:
            return
        proposal = step.proposal
        if proposal is None or step.fed > 1:
            run.prefill_s += seconds
        else:
            run.draft_s += seconds
        if proposal is None:
            return

        def event() -> Sequence[Action]:
            run.spec.account.proposal()
            run.decisions.drafted(seconds, step.fed)
            return run.machine.drafted(step.branch, proposal)

        self._do(run, event, quiet=True)
        if run.impatient:
            self._check_guessed(run)

    def engine_failed(self, stream: int, error: BaseException) -> None:
        """The draft model failed at work for ``stream``."""
        run = self.streams.get(stream)
        if run is not None:
            self._fail(run, named(error, "the draft model"))

    # ---- events of a link

    def link_up(self, link: Link, welcome: Welcome) -> None:
        """There is a connection."""
        run = self._carried.get(link)
        self._tell_first(welcome)  # who opens a stream now finds the link up
        if run is None:
            return
        before = run.welcome
        if welcome.vocab_size != run.spec.vocab_size:
            self._fail(
                run,
                IncompatibleError(
                    f"the verifier's vocabulary has {welcome.vocab_size} ids now, this "
                    f"stream began with {run.spec.vocab_size}",
                    hint="begin it anew",
                ),
            )
            return
        if before is not None and _target(before) != _target(welcome):
            run.warn(
                f"the target changed from {_target(before)} to {_target(welcome)} after "
                f"{run.machine.counts.tokens} tokens"
            )
        run.welcome = welcome
        run.machine.max_block = welcome.max_block
        self._do(run, lambda: run.machine.link_up(resume=True))

    def link_message(self, link: Link, message: Message) -> None:
        """A message came."""
        run = self._carried.get(link)
        if isinstance(message, Error):
            self._peer_error(link, run, message)
        elif run is not None:
            self._verdict(run, message)

    def link_lost(self, link: Link, error: DraftwireError) -> None:
        """The connection is gone, or a try failed."""
        self._tell_first(error)
        run = self._carried.get(link)
        if run is None:
            if link is not self.primary:
                self._retire(link)
        elif run.spec.offline == "error":
            self._fail(run, error)
        elif run.machine.state is not State.LOST:
            run.spec.account.link_lost()
            self._do(run, run.machine.link_lost)

    def link_failed(self, link: Link, error: DraftwireError) -> None:
        """It makes no sense to try again."""
        self._tell_first(error)
        run = self._carried.get(link)
        if run is None:
            return
        if run.spec.offline != "draft":
            self._fail(run, error)
            return
        run.warn(f"the verifier cannot be had any more: {error}")
        if run.machine.state is not State.LOST:
            self._do(run, run.machine.link_lost)
        run.impatient = True
        self._check_guessed(run)

    def _verdict(self, run: StreamRun, message: Message) -> None:
        link, spec, decisions = run.link, run.spec, run.decisions
        before = run.machine.counts.tokens
        now = self._clock.now()

        def learn() -> Sequence[Action]:
            came = decisions.received(link.channel, now, message)
            account = spec.account
            if came and account.measures:
                decisions.power(account.account.watts_by_phase())
            if spec.budget is not None and spec.budget.exceeded():
                return run.machine.stop("budget")
            return ()

        self._do(run, lambda: run.machine.message(message))
        if run.machine.counts.tokens > before:
            run.progress_s, run.free_s = now, 0.0
            run.free_since = None if run.free_since is None else now
            run.faulted = False
            link.progress()
        if not run.over:
            self._do(run, learn, quiet=True)

    def _peer_error(self, link: Link, run: StreamRun | None, message: Error) -> None:
        """The verifier says that something is wrong."""
        error = to_exception(message)
        if isinstance(error, RefusedError) and not error.transient:
            error = BusyError(str(error), hint=error.hint)  # a limit: it may pass
        if run is None:
            if message.fatal:
                link.lose(error)
            return
        machine = run.machine
        if message.code == "session" and machine.state is State.RESUMING:
            self._do(run, lambda: machine.link_up(resume=False))
        elif isinstance(error, BusyError):
            link.lose(error)  # no room now: a later connection may find some
        elif isinstance(error, VerifierError) and not run.faulted:
            run.faulted = True  # once; again without a verdict between is an error
            run.warn(f"{error}: the stream was opened anew")
            if message.fatal:
                machine.opened = None
                link.lose(error)
            else:
                self._do(run, lambda: machine.link_up(resume=False))
        else:
            if not isinstance(error, DraftwireError):
                error = ProtocolError(str(error))
            self._fail(run, error)
            if message.fatal:
                link.lose(TransportError("the verifier ended the connection"))

    # ---- one event

    def _do(self, run: StreamRun, event: Event, *, quiet: bool = False) -> None:
        """Let one thing happen to a stream, and carry out what comes of it.

        Args:
            run: The stream.
            event: What happens.
            quiet: Where nothing comes of it, and the draft model goes on or still rests,
                the stream waits for what it waited for.
        """
        if run.over:
            return
        try:
            drafting = quiet and run.machine.drafting
            actions = event()
            if actions or not quiet or run.machine.drafting is not drafting:
                self._apply(run, actions)
        except ProtocolError as error:  # the peer contradicts itself: begin afresh
            self._fail(run, error)
            run.link.lose(error)
        except Exception as error:
            log.debug("stream %d failed", run.number, exc_info=True)
            self._fail(run, named(error, "the stream"))
        except BaseException as error:
            if isinstance(error, (KeyboardInterrupt, SystemExit, GeneratorExit)):
                raise
            # A panic of a Rust library derives from BaseException.
            self._fail(run, named(error, "the tokenizer"))

    def _apply(self, run: StreamRun, actions: Sequence[Action]) -> None:
        account, stop = run.spec.account, None
        finished: str | None = None
        for action in actions:
            if isinstance(action, Send):
                account.sending()
                self._send(run, action.message)
            elif isinstance(action, Draft):
                self._order(run, action)
            elif isinstance(action, Finished):
                finished = action.reason
            else:
                if isinstance(action, Emit):
                    run.decisions.emitted(action)
                stop = run.sink.take(action) or stop
        if finished is not None:
            self._finish(run, finished, None)
        elif stop is not None:
            self._apply(run, run.machine.stop(stop))
        else:
            self._settle(run)

    def _send(self, run: StreamRun, message: Message) -> None:
        link = run.link
        nbytes = link.send(message)
        link.channel.sent(self._clock.now(), message, nbytes)
        if run.spec.explain and isinstance(message, Block) and not message.more:
            run.sink.explain(run.spec.controller.explain())

    def _order(self, run: StreamRun, order: Draft) -> None:
        self._drafter.submit(run.number, order)
        self._engine.wake()

    def _settle(self, run: StreamRun) -> None:
        """Note what the stream waits for now."""
        machine, link = run.machine, run.link
        waiting = machine.waiting
        run.spec.account.settle(drafting=machine.drafting, waiting=waiting)
        link.owe(waiting)
        if waiting or not link.up:
            if run.free_since is not None:
                run.free_s += self._clock.now() - run.free_since
                run.free_since = None
        elif run.free_since is None:
            run.free_since = self._clock.now()

    # ---- the end of a stream

    def _fail(self, run: StreamRun, error: DraftwireError) -> None:
        """End a stream with ``error``; the peer is told that it is over."""
        if run.ended_s:
            return
        for action in [] if run.machine.done else run.machine.stop("error"):
            if isinstance(action, Send):
                run.link.send(action.message)
            elif isinstance(action, Draft):
                self._order(run, action)
        self._finish(run, "error", error)

    def _finish(self, run: StreamRun, reason: str, error: DraftwireError | None) -> None:
        link = run.link
        run.finish = reason
        run.ended_s = max(self._clock.now(), 1e-9)
        for timer in (run.deadline, run.patience):
            if timer is not None:
                timer.cancel()
        if run.machine.unverified:  # nobody shall take them for the target's
            self._warn_alone(run)
        run.traffic = link.traffic().minus(run.before)
        run.reconnects = link.reconnects - run.reconnects_before
        run.spec.account.close()
        if error is not None:
            log.info("stream %d ended with an error: %s", run.number, error)
        self.streams.pop(run.number, None)
        self._carried.pop(link, None)
        link.owe(False)
        held = bool(self._turn) and self._turn[0] is run
        self._turn.remove(run)
        if held and self._turn:
            self._give_engine(self._turn[0])
        if link is not self.primary:
            self._retire(link)
        run.sink.finished(run, error)

    # ---- patience

    def _patience(self, run: StreamRun) -> None:
        """Look whether a stream has gone without progress for too long."""
        if run.over:
            return
        now = self._clock.now()
        due = run.progress_s + run.spec.patience_s + run.free_s
        if run.free_since is not None:  # nothing is owed: the draft is at work
            due = max(due + now - run.free_since, now + _LOOK_AGAIN_S)
        if due > now + 1e-9:
            run.patience = self._clock.call_at(due, self._patience, run)
            return
        link = run.link
        error: DraftwireError | None = link.error
        if link.up or error is None:
            error = TransportError(
                f"the verifier has given no verdict for {run.spec.patience_s:g} s",
                hint="if it is only slow, allow it more with patience_s",
            )
        if run.spec.offline != "draft":
            self._fail(run, error)
            return
        link.lose(error)
        run.impatient = True
        self._check_guessed(run)

    def _check_guessed(self, run: StreamRun) -> None:
        """End a stream whose link does not come back once the draft has said all."""
        machine = run.machine
        if run.over or machine.state is not State.LOST:
            return
        # One that waits for the draft model says nothing yet, and shall say something.
        if machine.guessed_all:
            self._warn_alone(run)
            self.stop(run.number, "length")

    @staticmethod
    def _warn_alone(run: StreamRun) -> None:
        left = len(run.machine.unverified)
        run.warn(f"{left} tokens are the draft's alone: no verifier has judged them")

    # ---- links and the draft model

    def _new_link(self) -> Link:
        return Link(
            self._clock, self._network, self._hello, self._settings, self, self._rng
        )

    def _free_link(self) -> Link:
        if self.primary not in self._carried:
            return self.primary
        link = self._new_link()
        self._spare.append(link)
        link.start()
        return link

    def _retire(self, link: Link) -> None:
        """Close a link that no stream needs any more."""
        if link in self._spare:
            self._spare.remove(link)
            link.close()

    def _give_engine(self, run: StreamRun) -> None:
        """Let the draft model work for ``run``."""
        spec = run.spec
        self._drafter.begin(run.number, spec.proposer, run.decisions.cache, spec.model)
        if not run.machine.has_engine:
            self._do(run, lambda: run.machine.engine(mine=True))
            if run.impatient:
                self._check_guessed(run)

    def _tell_first(self, outcome: Welcome | DraftwireError) -> None:
        first, self._first = self._first, None
        if first is not None:
            first(outcome)


def _target(welcome: Welcome) -> str:
    return f"{welcome.target} {welcome.target_version}".strip()
