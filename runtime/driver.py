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

One connection carries all streams of a session. They share the draft model as well: it
works for the oldest; the others go on with the target alone until it is their turn.
"""

from __future__ import annotations

import logging
import random
from collections import deque
from dataclasses import dataclass, field, replace
from typing import Callable, Protocol, Sequence

from draftwire.clock import Clock, Timer
from draftwire.energy.account.account import Budget
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
from draftwire.runtime.edge.in_flight import common
from draftwire.runtime.edge.machine import EdgeSession, State
from draftwire.runtime.edge.mode import Mode
from draftwire.runtime.edge.rest import Hush
from draftwire.runtime.link import Link, LinkSettings
from draftwire.runtime.pacing.controller import Controller
from draftwire.runtime.pacing.decisions import Decisions
from draftwire.runtime.pacing.suffix_cache import SuffixCache
from draftwire.runtime.ports import EnginePort, Network
from draftwire.runtime.traced import StreamTrace
from draftwire.sampling import Proposer, SamplingParams, shape_for
from draftwire.sampling.grammar import Rules
from draftwire.transport.answers import to_exception
from draftwire.transport.bits import id_bits
from draftwire.transport.messages import (
    Block,
    Bye,
    Commit,
    Error,
    Finish,
    Frame,
    Grammar,
    Hello,
    Message,
    Open,
    Progress,
    Provisional,
    Welcome,
)
from draftwire.transport.traffic import Traffic

log = logging.getLogger("draftwire.session")

Event = Callable[[], Sequence[Action]]
_LOOK_AGAIN_S = 0.05
_COMPLETING_S = 0.02
_TEXTS = 8  # that the verifier is taken to hold still
_WORTH = 64  # bytes of ids: fewer are sent as quickly as they are named
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.1, 5.0  # before a verifier without room is asked again
_SOON_S, _HOLDS = 0.5, 20  # room within this is waited for, so many times, by everyone


@dataclass
class StreamSpec:
    """What a stream is to be."""

    prompt: Sequence[int]  # token ids
    params: SamplingParams  # sampling
    proposer: Proposer  # the device's half of the scheme
    controller: Controller  # how far to draft
    mode: Mode  # what to do while verdicts are out
    max_new_tokens: int  # at most so many tokens after the prompt
    vocab_size: int  # ids on the connection are below this
    context: int  # longest sequence of the target
    account: StreamAccount  # of its joules, started
    draft_context: int | None = None  # longest sequence of the draft
    stop_ids: Sequence[int] = ()  # ids that end the text
    budget: Budget | None = None  # what it may spend, or None
    deadline_s: float | None = None  # seconds from now, or None
    offline: str = "wait"  # ``"wait"``, ``"draft"`` or ``"error"``
    patience_s: float = 30.0  # seconds without progress that it bears
    cache: SuffixCache | None = None  # text seen before, to draft from, or None
    model: Model | None = None  # its own draft model, where streams do not share one
    explain: bool = False  # tell the sink why each block left
    grammar: Rules | None = None  # what the text keeps to, or None
    trace: StreamTrace | None = None  # its span, or None
    logprobs: int = 0  # pairs that are wanted for each new token


class Sink(Protocol):
    """Where the text of a stream goes; called in the driver's thread."""

    @property
    def stopped(self) -> bool: ...  # a stop string was met, be it in guesses
    # Show text, or take some back; return why to end the stream now, or None.
    def take(self, action: Emit | Revise) -> str | None: ...
    def explain(self, line: str) -> None: ...  # why a block left
    # The stream is over, and ``run`` will not change any more.
    def finished(self, run: StreamRun, error: DraftwireError | None) -> None: ...


@dataclass
class StreamRun:
    """One stream at work."""

    number: int  # its name in every event
    spec: StreamSpec  # what was asked for
    machine: EdgeSession  # its state machine
    link: Link  # what carries it
    decisions: Decisions  # what its controller sees
    sink: Sink  # where its text goes
    began_s: float  # when it began, seconds of the clock
    before: tuple[Traffic, Traffic]  # of the link before it, and of frames of streams
    wire: int | None = None  # its number on the present connection, if it has one
    own: Traffic = field(default_factory=Traffic)  # of its frames on connections it left
    ended_s: float = 0.0  # when it ended
    traffic: Traffic = field(default_factory=Traffic)  # that crossed for it; at the end
    reconnects: int = 0  # of its link, while it ran; set at the end
    captured: tuple[int, int] = (0, 0)  # what a capture counted before it, up and down
    welcome: Welcome | None = None  # of the verifier that carried it last, or None
    draft_s: float = 0.0  # seconds of drafting
    prefill_s: float = 0.0  # seconds in which the draft read text
    finish: str = "cancelled"  # why it ended
    warnings: list[str] = field(default_factory=list)  # sentences for the user
    reconnects_before: int = 0
    # Patience: since the last verdict, less the time in which nothing was owed.
    progress_s: float = 0.0
    free_s: float = 0.0
    free_since: float | None = None
    impatient: bool = False  # it ends as soon as the draft has no more to say
    faulted: bool = False  # the verifier failed since the last verdict
    pause_s: float = _FIRST_PAUSE_S  # before it asks a full verifier again
    holds: int = 0  # how often it was told that there is no room
    hush: Hush = field(default_factory=Hush)
    quiet: Timer | None = None  # the board waits for news
    step_s: float = 0.0  # of the draft's last forward
    held: Timer | None = None  # it will ask again
    busy: BusyError | None = None  # why
    asked: bool = False  # the verifier knows of it, by its present number
    whole: bool = False  # what its open left out was not there: it leaves nothing out now
    deadline: Timer | None = None
    patience: Timer | None = None

    @property
    def over(self) -> bool:
        return self.ended_s > 0.0 or self.machine.done

    def warn(self, sentence: str) -> None:
        """Add a sentence for the user, once."""
        if sentence not in self.warnings:
            self.warnings.append(sentence)


def closed() -> ConfigError:
    """Return what who asks a closed session is told."""
    hint = "open another one; one from before a fork stays with the parent"
    return ConfigError("this session is closed", hint=hint)


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
    """Drives the streams of one session on ``link``; ``rng`` puts jitter on its pauses."""

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
        self._drafter = drafter
        self._engine = engine
        self._rng = rng or random.Random()
        self._first: Callable[[Welcome | DraftwireError], None] | None = None
        self._number = 0
        self.streams: dict[int, StreamRun] = {}
        # Numbers in use on this connection; None: its end is awaited from the verifier.
        self._wires: dict[int, StreamRun | None] = {}
        # Streams that the verifier owes an answer; -1 - number where that is a goodbye.
        self._owing: set[int] = set()
        self._told: set[bytes] = set()  # grammars that this connection's verifier has
        self._texts: deque[tuple[int, ...]] = deque(maxlen=_TEXTS)  # of ended streams
        self._turn: deque[StreamRun] = deque()  # for the draft model; the first has it
        self._closed = False
        self.link = Link(clock, network, hello, settings or LinkSettings(), self, self._rng)

    # ---- from outside, in the clock's thread

    def connect(self, first: Callable[[Welcome | DraftwireError], None]) -> None:
        """Begin to connect; ``first`` is told once how the first try went."""
        self._first = first
        self.link.start()

    def open(self, spec: StreamSpec, sink: Sink) -> int:
        """Begin a stream; return its number. A DraftwireError where the link is not up and
        the stream would not wait for it, or the session is closed."""
        if self._closed:
            raise closed()
        link = self.link
        hopeless = spec.offline == "error" or (link.failed and spec.offline != "draft")
        if hopeless and not link.up and link.error is not None:
            raise link.error
        link.wake()
        self._number += 1
        now = self._clock.now()
        mine = not self._turn
        plain = spec.grammar is None and not spec.params.shaped
        machine = EdgeSession(spec, self._drafter.lanes(spec.model) if plain else 1)
        machine.has_engine = mine
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
            (link.traffic(), link.framed()),
            welcome=link.welcome,
            reconnects_before=link.reconnects,
            progress_s=now,
        )
        self.streams[run.number] = run
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
            if spec.grammar is not None:  # to complete what is there takes a moment
                when -= min(_COMPLETING_S, 0.1 * spec.deadline_s)
            run.deadline = self._clock.call_at(when, self.stop, run.number, "deadline")
        run.patience = self._clock.call_at(now + spec.patience_s, self._patience, run)
        begun = link.up and self._number_of(run)
        self._do(run, machine.start if begun else machine.start_offline)
        if link.failed and not run.over:
            run.impatient = True
            self._check_guessed(run)
        return run.number

    def stop(self, number: int, reason: str) -> None:
        """End a stream: ``"cancelled"``, ``"deadline"``, ...; harmless when it is over."""
        run = self.streams.get(number)
        if run is not None:
            self._do(run, lambda: run.machine.stop(reason))

    def close(self) -> None:
        """End every stream, every connection and the engine."""
        self._closed = True
        for run in list(self.streams.values()):
            self.stop(run.number, "cancelled")
        self.link.close()
        self._engine.close()
        if self._first is not None:
            self._tell_first(closed())

    # ---- events of the engine

    def stepped(self, step: Step, seconds: float) -> None:
        """The draft model has done a step, in so many seconds."""
        run = self.streams.get(step.stream)
        if run is None:
            return
        if not step.drafts:
            run.prefill_s += seconds
            return
        if step.fed > 1 + step.masks:
            run.prefill_s += seconds
        else:
            run.draft_s += seconds

        def event() -> Sequence[Action]:
            run.spec.account.proposal()
            run.decisions.drafted(step, seconds)
            machine = run.machine
            machine.more = step.masks if step.fed else machine.more - 1
            if step.fed:
                run.step_s = seconds
            if run.spec.mode.hush and machine.more <= 0:
                self._hush(run)
            drafted = machine.drafted
            return [a for d in step.drafts for a in drafted(d.branch, d.proposal, d.lane)]

        self._do(run, event, quiet=True)
        if run.impatient:
            self._check_guessed(run)

    def _hush(self, run: StreamRun) -> None:
        machine, now = run.machine, self._clock.now()
        if run.quiet is not None:
            run.quiet.cancel()
            run.quiet = None
        until = run.hush.until_s(now, run.step_s, machine.ahead + 1)
        machine.hushed = until > now
        if machine.hushed:
            run.quiet = self._clock.call_at(until, self._speak, run)

    def _speak(self, run: StreamRun) -> None:
        run.machine.hushed, run.quiet = False, None
        self._do(run, run.machine.go_on)

    def engine_failed(self, stream: int, error: BaseException) -> None:
        """The draft model failed at work for ``stream``."""
        run = self.streams.get(stream)
        if run is not None:
            self._fail(run, named(error, "the draft model"))

    # ---- events of the link

    def link_up(self, link: Link, welcome: Welcome) -> None:
        self._tell_first(welcome)  # who opens a stream now finds the link up
        self._admit()

    def link_message(self, link: Link, frame: Frame) -> None:
        stream, message = frame.stream, frame.message
        if stream is None:
            self._end_of_connection(message)
        elif stream in self._wires:  # else it was on its way to a stream that is over
            run = self._wires[stream]
            finish = getattr(message, "finish", Finish.NOT_YET)
            if isinstance(message, (Bye, Error)) or finish is not Finish.NOT_YET:
                self._free(stream)  # it is the last one that the verifier says of it
            if run is not None and isinstance(message, Error):
                self._peer_error(run, message)
            elif run is not None:
                self._verdict(run, message, stream)
            if stream not in self._wires:
                self._admit(freed=not isinstance(message, Error))

    def link_lost(self, link: Link, error: DraftwireError) -> None:
        """The connection is gone, or a try failed."""
        self._tell_first(error)
        for run in self._all_lost():
            if run.spec.offline == "error":
                self._fail(run, error)
            else:
                self._lose(run)

    def link_failed(self, link: Link, error: DraftwireError) -> None:
        """It makes no sense to try again."""
        self._tell_first(error)
        for run in self._all_lost():
            if run.spec.offline != "draft":
                self._fail(run, error)
                continue
            run.warn(f"the verifier cannot be had any more: {error}")
            self._lose(run)
            run.impatient = True
            self._check_guessed(run)

    def _all_lost(self) -> list[StreamRun]:
        """Let no stream have a number any more; return those that run."""
        self._told.clear()
        for number in list(self._wires):
            self._free(number)
        return list(self.streams.values())

    def _lose(self, run: StreamRun) -> None:
        """Let a stream do without the verifier for now."""
        if not run.over and run.machine.state is not State.LOST:
            run.spec.account.link_lost()
            if run.spec.trace is not None:
                run.spec.trace.lost()
            self._do(run, run.machine.link_lost)
        elif not run.over:
            self._settle(run)

    # ---- numbers on the connection

    def _number_of(self, run: StreamRun) -> bool:
        """Give ``run`` the lowest free number; False when it has to wait for one."""
        welcome = self.link.welcome
        assert welcome is not None
        number = next(n for n in range(len(self._wires) + 1) if n not in self._wires)
        if number >= welcome.streams:
            run.warn(f"the verifier carries {welcome.streams} streams at once: it waited")
            return False
        self._wires[number] = run
        if "prefix" in welcome.capabilities and not run.machine.committed:
            run.machine.held = self._known_of(run, welcome)
        run.wire, run.welcome, run.asked = number, welcome, False
        run.machine.limits(welcome.max_block, welcome.room, welcome.capabilities)
        return True

    def _known_of(self, run: StreamRun, welcome: Welcome) -> int:
        """Return how many ids of a stream's prompt begin a text that the verifier has."""
        if run.whole:
            return 0
        prompt = run.spec.prompt
        texts: list[Sequence[int]] = [*self._texts]
        if "brief" in welcome.capabilities:  # it takes those of running streams as well
            texts += [one.spec.prompt for one in self._opened() if one is not run]
        most = max((common(text, prompt) for text in texts), default=0)
        most = min(most, len(prompt) - 1)
        return most if most * id_bits(welcome.vocab_size) >= 8 * _WORTH else 0

    def _opened(self) -> list[StreamRun]:
        """Return the streams that the verifier has at work."""
        return [one for one in self._wires.values() if one and one.machine.opened]

    def _free(self, number: int) -> None:
        """A number is free again; the stream that had it may still run."""
        run = self._wires.pop(number)
        if run is None:
            self._owe(-1 - number, False)
        share = self.link.take_share(number)
        if run is not None:
            run.own, run.wire = run.own.plus(share), None

    def _admit(self, *, freed: bool = False) -> None:
        """Let every stream that has no number go on, as far as there are some; one that was
        told that there is no room, too, where a neighbour has just ``freed`` some."""
        for run in list(self.streams.values()):
            if not self.link.up or self._closed:
                return
            if freed and run.held is not None:
                run.held.cancel()
                run.held = None
            if run.wire is None and run.held is None and not run.over:
                self._go_on(run)

    def _go_on(self, run: StreamRun, *, resume: bool = True) -> None:
        """Take a stream up again on the present connection."""
        welcome, before = self.link.welcome, run.welcome
        assert welcome is not None
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
        needs = {
            "processors": run.spec.params.processed,
            "logprobs": run.spec.logprobs,
            "grammar": run.spec.grammar is not None,
        }
        for name, needed in needs.items():
            if needed and name not in welcome.capabilities:
                what = f"the verifier does not know {name}, which this stream asks for"
                hint = (
                    "update the verifier, or do without; a grammar needs llguidance there"
                )
                self._fail(run, IncompatibleError(what, hint=hint))
                return
        if not self._number_of(run):
            self._settle(run)
            return
        if before is not None and _target(before) != _target(welcome):
            run.warn(
                f"the target changed from {_target(before)} to {_target(welcome)} after "
                f"{run.machine.counts.tokens} tokens"
            )
        self._do(run, lambda: run.machine.link_up(resume=resume))

    def _verdict(self, run: StreamRun, message: Message, stream: int) -> None:
        link, spec, decisions = self.link, run.spec, run.decisions
        before, right = run.machine.counts.tokens, run.machine.counts.right
        judged = sum(run.machine.counts.judged_by_position)
        branch, sent = run.machine.out
        now = self._clock.now()

        def learn() -> Sequence[Action]:
            came = decisions.received(link.channel, now, message, stream)
            if spec.trace is not None:
                spec.trace.heard(message)
            account = spec.account
            if came and account.measures:
                decisions.power(account.account.watts_by_phase())
            if spec.budget is not None and spec.budget.exceeded():
                return run.machine.stop("budget")
            return ()

        run.machine.hushed &= not isinstance(message, (Commit, Provisional))
        self._do(run, lambda: run.machine.message(message))
        if isinstance(message, Commit) and spec.mode.hush:
            counts, took_s = run.machine.counts, message.queue_s + message.compute_s
            stands = run.machine.out[0] == branch
            right, ready = counts.right - right, sent > counts.tokens - before
            judged = sum(counts.judged_by_position) - judged
            run.hush.verdict(now, took_s, right, stands, ready, judged)
        spoke = run.machine.counts.tokens > before
        if spoke:
            run.faulted, run.pause_s = False, _FIRST_PAUSE_S
            link.progress()
        if spoke or (isinstance(message, Progress) and message.work > 0):
            run.progress_s, run.free_s = now, 0.0
            run.free_since = None if run.free_since is None else now
        if not run.over:
            self._do(run, learn, quiet=True)

    def _peer_error(self, run: StreamRun, message: Error) -> None:
        """The verifier says that something is wrong with a stream, and ended it."""
        error, machine = _meaning(message), run.machine
        if message.code == "stream" and machine.state is State.RESUMING:
            self._go_on(run, resume=False)
        elif message.code == "prefix" and not run.whole:
            if run.machine.counts.unsent:
                self._texts.clear()  # another verifier, or one that needed the room
            run.whole = True
            self._go_on(run, resume=False)
        elif message.code == "grammar" and self._told:
            self._told.clear()  # it had to make room: tell it again
            self._go_on(run, resume=False)
        elif isinstance(error, BusyError):
            self._hold(run, error)
        elif self._forgives(run, error):
            self._go_on(run, resume=False)
        else:
            self._fail(run, error)

    def _end_of_connection(self, message: Message) -> None:
        """The verifier ends the connection, and says why."""
        if not isinstance(message, Error):
            error: DraftwireError = ProtocolError(
                f"the verifier sent a {type(message).__name__.lower()} after the greeting"
            )
        else:
            error = _meaning(message)
        for run in list(self.streams.values()):
            if self._forgives(run, error):
                run.machine.opened = None
            elif not isinstance(error, TransportError):
                self._fail(run, error)
        if not self.streams and getattr(message, "code", "") == "limit":
            self._all_lost()
            self.link.sleep()  # it is for who asks next
        else:
            self.link.lose(error)

    @staticmethod
    def _forgives(run: StreamRun, error: DraftwireError) -> bool:
        """The verifier failed: once between two verdicts a stream begins anew."""
        if run.faulted or not isinstance(error, VerifierError):
            return False
        run.faulted = True
        run.warn(f"{error}: the stream was opened anew")
        return True

    def _hold(self, run: StreamRun, error: BusyError) -> None:
        """There is no room for a stream: ask again after a while."""
        run.holds += 1
        soon = error.retry_after_s is not None and error.retry_after_s < _SOON_S
        if run.spec.offline == "error" and not (soon and run.holds <= _HOLDS):
            self._fail(run, error)
            return
        pause = run.pause_s * self._rng.uniform(0.5, 1.0)
        run.pause_s = min(2 * run.pause_s, _LONGEST_PAUSE_S)
        if error.retry_after_s is not None:  # a fleet shall not come back as one
            pause = max(pause, error.retry_after_s * self._rng.uniform(1.0, 1.5))

        def again() -> None:
            run.held = None
            self._admit()

        run.busy = error
        run.held = self._clock.call_at(self._clock.now() + pause, again)
        self._lose(run)

    # ---- one event

    def _do(self, run: StreamRun, event: Event, *, quiet: bool = False) -> None:
        """Let one thing happen to a stream, and carry out what comes of it; a ``quiet`` one
        of which nothing comes leaves it waiting for what it waited for."""
        if run.over:
            return
        try:
            drafting = quiet and run.machine.drafting
            actions = event()
            if actions or not quiet or run.machine.drafting is not drafting:
                self._apply(run, actions)
        except ProtocolError as error:  # the peer contradicts itself: begin afresh
            self._fail(run, error)
            self.link.lose(error)
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
        link = self.link
        if run.wire is None:
            return  # a goodbye to a verifier that knows nothing of the stream
        rules, run.asked = run.spec.grammar, True
        if isinstance(message, Open):
            message = replace(message, brief=not run.whole)
            grammar = None if rules is None else rules.compiled.grammar
            if rules is not None and grammar and grammar.digest not in self._told:
                self._told.add(grammar.digest)  # once on a connection
                text = grammar.text.encode("utf-8")
                link.send(Grammar(grammar.format, text, rules.compiled.mark), run.wire)
        if run.spec.trace is not None:
            message = run.spec.trace.sending(message, run.welcome)
        link.send(message, run.wire)
        block = message if isinstance(message, Block) else None
        if run.spec.explain and block and not (block.more or block.instead):
            run.sink.explain(run.spec.controller.explain())

    def _order(self, run: StreamRun, order: Draft) -> None:
        self._drafter.submit(run.number, order)
        self._engine.wake()

    def _settle(self, run: StreamRun) -> None:
        """Note what the stream waits for now."""
        machine, link = run.machine, self.link
        waiting = machine.waiting
        run.spec.account.settle(drafting=machine.drafting, waiting=waiting)
        self._owe(run.number, waiting)
        # One that waits for a number or a slot waits for its neighbours that have one, and
        # not for the verifier.
        queued = link.up and run.wire is None and (run.held is None or self._opened())
        if waiting or (machine.state is State.LOST and not queued):
            if run.free_since is not None:
                run.free_s += self._clock.now() - run.free_since
                run.free_since = None
        elif run.free_since is None:
            run.free_since = self._clock.now()

    def _owe(self, number: int, owing: bool) -> None:
        """Note whether the verifier owes an answer, or a goodbye (-1 - its number)."""
        (self._owing.add if owing else self._owing.discard)(number)
        self.link.owe(bool(self._owing))

    # ---- the end of a stream

    def _fail(self, run: StreamRun, error: DraftwireError) -> None:
        """End a stream with ``error``; the peer is told that it is over."""
        if run.ended_s:
            return
        try:
            for action in [] if run.machine.done else run.machine.stop("error"):
                if isinstance(action, Send):
                    self._send(run, action.message)
                elif isinstance(action, Draft):
                    self._order(run, action)
        finally:  # whoever iterates waits for nothing but this
            self._finish(run, "error", error)

    def _finish(self, run: StreamRun, reason: str, error: DraftwireError | None) -> None:
        link = self.link
        run.finish = reason
        run.ended_s = max(self._clock.now(), 1e-9)
        if run.free_since is not None:
            run.free_s += run.ended_s - run.free_since
            run.free_since = None
        for timer in (run.deadline, run.patience, run.held, run.quiet):
            if timer is not None:
                timer.cancel()
        if run.machine.counts.completed:
            run.warn(
                f"the deadline came before the structure was whole: the last "
                f"{run.machine.counts.completed} tokens only complete it"
            )
        if run.machine.unverified:  # nobody shall take them for the target's
            self._warn_alone(run)
        if run.welcome is not None and run.machine.counts.forwards:
            self._texts.append((*run.spec.prompt, *run.machine.committed))
        if run.wire is not None and not run.asked:
            self._free(run.wire)
        elif run.wire is not None:  # we said goodbye: the verifier will say it too
            self._wires[run.wire] = None
            self._owing.add(-1 - run.wire)
            run.own = run.own.plus(link.take_share(run.wire))
        total, framed = run.before
        others = link.framed().minus(framed).minus(run.own)
        run.traffic = link.traffic().minus(total).minus(others)
        run.reconnects = link.reconnects - run.reconnects_before
        run.spec.account.close()
        if run.spec.trace is not None:
            run.spec.trace.finished(run, error)
        if error is not None:
            log.info("stream %d ended with an error: %s", run.number, error)
        self.streams.pop(run.number, None)
        self._owe(run.number, False)
        held = bool(self._turn) and self._turn[0] is run
        self._turn.remove(run)
        if held and self._turn:
            self._give_engine(self._turn[0])
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
        link = self.link
        error: DraftwireError | None = link.error
        if run.held is not None and run.busy is not None:
            error = run.busy
        elif link.up or error is None:
            error = TransportError(
                f"the verifier has given no verdict for {run.spec.patience_s:g} s",
                hint="if it is only slow, allow it more with patience_s",
            )
        if run.spec.offline != "draft":
            self._fail(run, error)
            return
        if len(self.streams) == 1 or not link.up:
            link.lose(error)
        self._lose(run)
        run.impatient = True
        self._check_guessed(run)

    def _check_guessed(self, run: StreamRun) -> None:
        """End a stream whose link does not come back once the draft has said all."""
        machine = run.machine
        if run.over or machine.state is not State.LOST:
            return
        # One that waits for the draft model says nothing yet, and shall say something.
        reason = "stop" if run.sink.stopped else machine.guessed_all
        if reason is not None:
            self._warn_alone(run)
            self.stop(run.number, reason)

    @staticmethod
    def _warn_alone(run: StreamRun) -> None:
        left = len(run.machine.unverified)
        run.warn(f"{left} tokens are the draft's alone: no verifier has judged them")

    # ---- the draft model

    def _give_engine(self, run: StreamRun) -> None:
        spec, rules = run.spec, run.spec.grammar
        guide = None if rules is None else rules.guide(len(spec.prompt))
        self._drafter.begin(
            run.number,
            spec.proposer,
            run.decisions.cache,
            spec.model,
            shape_for(spec.params, spec.vocab_size, len(spec.prompt), guide),
            guide,
            run.machine.last_draft,
        )
        if not run.machine.has_engine:
            self._do(run, lambda: run.machine.engine(mine=True))
            if run.impatient:
                self._check_guessed(run)

    def _tell_first(self, outcome: Welcome | DraftwireError) -> None:
        first, self._first = self._first, None
        if first is not None:
            first(outcome)


def _meaning(message: Error) -> DraftwireError:
    """Return what a stream makes of the verifier's error: a limit may pass."""
    error = to_exception(message)
    if isinstance(error, RefusedError) and not error.transient:
        return BusyError(str(error), hint=error.hint)  # of a code that is not known here
    return error


def _target(welcome: Welcome) -> str:
    return f"{welcome.target} {welcome.target_version}".strip()
