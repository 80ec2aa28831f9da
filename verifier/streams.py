"""Running streams, and those of lost links that wait for their device.

Plain code, called back by a scheduler: the same live and in virtual time. A
:class:`Stream` gives its session's work to the scheduler and the verdicts to whoever
holds it. A stream outlives its connection: when the link is lost the text stays, and the
KV slot too while nobody else needs it. A device that comes back with the stream's id and
secret goes on where it was. What waits is bounded in time, number and memory. Who holds
the most of it loses the oldest first, so that one device's lost links cannot push out
another's.
"""

from __future__ import annotations

import dataclasses
import hmac
import math
import secrets
import time
import weakref
from collections import Counter
from functools import partial
from typing import TYPE_CHECKING, Any, Callable, NamedTuple, Sequence, TypeVar

import numpy as np

from draftwire.errors import DraftwireError, ProtocolError, RefusedError
from draftwire.sampling.grammar import Compiled
from draftwire.tracing import begin_trace
from draftwire.transport.codec import CHECK_BYTES, check_of
from draftwire.transport.messages import (
    Block,
    Bye,
    Message,
    Open,
    Provisional,
    Resume,
    Resumed,
    Welcome,
)
from draftwire.verifier.backends.base import SlotInput
from draftwire.verifier.backends.streaming import Run, Step, keeps_streams
from draftwire.verifier.beside import Beside, Drafting
from draftwire.verifier.greeting import error_of
from draftwire.verifier.patience import Arrivals, Outlook
from draftwire.verifier.prefixes import Kept, Prefixes
from draftwire.verifier.registry import Served
from draftwire.verifier.rows import Lookup
from draftwire.verifier.scheduler import Feeder, Request, Verified
from draftwire.verifier.serving.accounts import Usage
from draftwire.verifier.serving.limits import FatalError, Limits, Refusal
from draftwire.verifier.tally import StreamCounts
from draftwire.verifier.target_session import TargetSession, Verdict, Work

if TYPE_CHECKING:
    from draftwire.clock import Timer
    from draftwire.verifier.dialogue import Dialogue

T = TypeVar("T")
_TOKEN_BYTES = 44  # a Python int, its place in a list, and one more to look it up
_PAIR_BYTES = 112  # a tuple, an int, a float and their place in a list
_STREAM_BYTES = 4096  # all else of a stream
_GRAMMAR_BYTES = 256 << 10  # of its grammar: two matchers, some 130 kB each
_NO_SECRET = secrets.token_bytes(16)  # compared with when there is no such stream
_ANEW = "open the stream again, with its prompt and text as the prompt"


class Terms(NamedTuple):
    """What holds on a connection."""

    served: Served
    usage: Usage  # of the device's account
    welcome: Welcome  # what the verifier has promised
    key: bytes = b""  # ids of its streams begin with this, or b""


class Stream:
    """A stream: its session, its slot, and the work that the target does for it."""

    def __init__(
        self,
        session: TargetSession,
        slot: int | None,  # its KV slot, or None where the engine keeps streams itself
        kept: KeptStreams,  # whose it is
        terms: Terms,  # of the connection that it was opened on
        request: Open,
    ) -> None:
        self.session = session
        self.number = 0  # on its connection
        self.slot = slot  # None when it was given back
        self.served, self.usage, welcome = terms[:3]
        self.vocab_size = welcome.vocab_size
        self.holder: Dialogue | None = None  # None while it waits for its device
        self.id = b""  # eight bytes that a device resumes by, or b"" when it cannot
        self.secret = b""  # sixteen bytes that prove whose stream it is
        self.parked_s = 0.0  # when its link was lost
        self._kept = kept
        self._prompt = len(request.prompt)
        self._size = _STREAM_BYTES + (_GRAMMAR_BYTES if session.costly else 0)
        self.reused = session.cached  # ids of the prompt that need not be read
        self._wants_exits = request.exits
        self._exits = False
        self._work: Work | None = None  # in a forward, until its verdict is out
        self._request: Request | None = None  # that carries it, or will
        self._arrivals = Arrivals()
        self._emitted = 0  # tokens when that was noted last
        self._hint: tuple[Provisional | None, float] = None, 0.0  # the last; when
        self._due_s = -math.inf  # when streaming would begin the next forward
        self._watch: Timer | None = None  # when progress is told
        self._said = (0.0, 0)  # when it was heard of last, and forwards by then
        self._unanswered = False  # a block came that nothing comes of
        self._failed = False  # what is in its slot may be the reason
        self._counted = 0  # in the account's running streams
        self._booked = StreamCounts()  # of its counts, what the tally has seen
        self._opened_s = self._first_s = kept.now()
        self._over = False  # the tally has seen its end
        attributes = {
            "gen_ai.system": "draftwire",
            "gen_ai.response.model": self.served.label,
            "gen_ai.usage.input_tokens": self._prompt,
            "draftwire.reused": self.reused,
            "draftwire.numerics": self.served.backend.numerics,
            "draftwire.account": self.usage.account.name,
        }
        self._trace = begin_trace("draftwire.verify", "SERVER", attributes, request.trace)

    @property
    def kept_bytes(self) -> int:
        """Memory of the text while the stream waits, about."""
        tokens = self._prompt + self.session.counts.emitted
        return self._size + _TOKEN_BYTES * tokens + _PAIR_BYTES * self.session.pairs

    def hold(self, holder: Dialogue | None) -> None:
        """Let ``holder`` have what comes out."""
        self.holder = holder
        if holder is not None:
            self._arrivals.pace = holder.pace
        self._book()

    def start(self, *, exits: bool = False, opened: bool = False) -> None:
        """Begin to work (``opened``), or go on; somebody holds the stream.

        ``exits``: what early exits expect may be sent.
        """
        self._exits = self._wants_exits and exits
        if opened and (end := self.session.begin()):
            self._deliver(end)
        else:
            self._guard(self._drive)

    def receive(self, block: Block) -> None:
        """Take in a block; what comes of it goes to the holder."""
        if self.holder is not None:  # else it has failed, or moved, meanwhile
            self._guard(self._receive, block)

    def stop(self) -> None:
        """End the work: what is on its way is void, the text stays."""
        self.session.detach(cached=self.slot is not None, forwards=self._withdraw())
        self.session.close()
        if self._watch is not None:
            self._watch.cancel()
            self._watch = None
        self._book()

    def goodbye(self) -> Bye:
        """Return the answer to a device that ends the stream."""
        counts = self.session.counts
        return Bye("ended", counts.forwards, counts.near_ties or None)

    def _withdraw(self) -> int:
        """Nobody waits for the work any more; return the forwards that it took."""
        request = self._request
        self._work = self._request = None
        if request is None:
            return 0
        request.withdraw()
        return request.forwards

    @property
    def _busy(self) -> bool:
        """The target has something to do for it."""
        return self._request is not None

    def seat(self) -> None:
        """See that the target has room for it, or raise a RefusedError."""
        if self.slot is None:
            self.slot = self._kept.slot_of(self.served)

    def release(self) -> None:
        """Give the slot back; the text has to be read again in another."""
        if self.slot is not None:
            self.served.release(self.slot)
            self.slot = None

    def leave(self) -> None:
        """The stream is over: its text and its slot may serve the next one."""
        self.session.close()
        if self.slot is not None:
            if self._remember():
                self.slot = None
            self.release()

    def _remember(self) -> bool:
        """Keep the text, and the slot with it, for the next stream."""
        session = self.session
        kept = Kept(self.served, self.usage, session.tokens, session.cached, self.slot)
        return not self._failed and self._kept.prefixes.leave(kept)

    def _book(self) -> None:
        """Add what the stream did since the last time to the totals."""
        running = int(self.holder is not None and not self.session.done)
        self.usage.streams += running - self._counted
        streams_of = self.usage.streams_of
        streams_of[self.served] += running - self._counted
        if not streams_of[self.served]:
            del streams_of[self.served]  # a target that has left is let go of
        self._counted = running
        before, tally = self._booked, self.served.tally
        self._booked = dataclasses.replace(self.session.counts)
        tally.book(self._booked, before)
        if self._booked.emitted and not before.emitted:
            self._first_s = self._kept.now()
            tally.first_s.add(self._first_s - self._opened_s)
        if self.session.finish:
            self.ended(self.session.finish.name.lower())

    def ended(self, how: str) -> None:
        """Count the stream's end, once; see :class:`Tally`."""
        if self._over:
            return
        self._over = True
        tally, now, counts = self.served.tally, self._kept.now(), self._booked
        tally.finished[how] += 1
        if self._trace is not None:
            attributes = {
                "gen_ai.usage.output_tokens": counts.emitted,
                "gen_ai.response.finish_reasons": [how],
                "draftwire.drafted": counts.drafted,
                "draftwire.accepted": counts.accepted,
                "draftwire.target_forwards": counts.forwards,
            }
            self._trace.end(attributes, how if how == "error" else "")
        tally.whole_s.add(now - self._opened_s)
        if counts.emitted > 1:
            tally.per_token_s.add((now - self._first_s) / (counts.emitted - 1))

    # ---- the work

    def _guard(self, step: Callable[..., T], *args: Any) -> T | None:
        """Do ``step``; its failure ends this stream, and no other."""
        try:
            return step(*args)
        except Exception as error:  # noqa: BLE001 - told, and logged where it is a bug
            holder, self._failed = self.holder, True
            self.ended("error")
            self._kept.forget(self)
            if holder is not None:
                holder.deliver(self, [error_of(error)])
            return None

    def _receive(self, block: Block) -> None:
        session, before = self.session, self.session.branch.overtaken
        found = session.receive(block)
        if block.tokens and not (block.instead or session.done):
            now_s, count = self._kept.now(), len(block.tokens)
            self._arrivals.block(now_s, block.epoch, block.base, count, session.epoch)
            self._late(before)
        if found:
            self._deliver(found)
        most = self._kept.limits.message_bytes
        if session.branch.unjudged > most:
            raise FatalError(
                "limit",
                f"{session.branch.unjudged} bytes of evidence wait for judgement, the "
                f"limit is {most}",
                "wait for verdicts before sending more",
            )
        self._drive()
        self._unanswered = session.idle and not block.more
        if self._unanswered:
            self._watch_over()

    def _late(self, before: tuple[int, int]) -> None:
        """Learn from drafts that came when the text had them already."""
        right, wrong = self.session.branch.overtaken
        self._arrivals.judged(right - before[0], wrong - before[1])

    def _drive(self) -> None:
        """Give the target what there is to do."""
        session, scheduler = self.session, self.served.driven
        if self._request is not None:
            scheduler.stir()
            return
        if session.done:
            return
        assert self.slot is not None
        done = partial(self._guard, self._ran)
        if session.judges:
            self._due_s = max(self._due_s, scheduler.clock.now())
            listen = partial(self._guard, self._heard) if self._exits else None
            self._request = scheduler.submit(
                self, slot=self.slot, on_exit=listen, done=done
            )
        else:
            work = self._work = session.poll()
            if work is None:
                return
            assert work.prefill
            item = SlotInput(self.slot, work.start, work.tokens, work.rows)
            self._request = scheduler.submit(item, prefill=True, done=done)
        self._watch_over()

    def make(self) -> SlotInput | None:
        """Return what is to be judged, now that a forward begins; None if nothing is."""
        return None if self._request is None else self._guard(self._make)

    def _make(self) -> SlotInput | None:
        session, scheduler = self.session, self.served.driven
        assert self.slot is not None
        if not session.judges:  # the device has taken back what it asked for
            self._request = None
            scheduler.clock.post(self._guard, self._drive)
            return None
        session.row_price, session.widest = scheduler.price.row, scheduler.chunk
        work = session.poll()
        assert work is not None and not work.prefill
        if work.start + len(work.tokens) > self.served.backend.context:
            raise ProtocolError("drafts beyond the context of the target")
        self._work = work
        # What made it late was not patience: streaming would have waited as well.
        self._due_s = max(self._due_s, scheduler.clock.now())
        sides = [(work.first + at, i) for at, ids in work.sides for i in range(len(ids))]
        leaves, chains = tuple([at for at, _ in sides]), tuple([i for _, i in sides])
        return SlotInput(self.slot, work.start, work.tokens, work.rows, leaves, chains)

    def outlook(self, now_s: float) -> Outlook | None:
        """Return what the stream could expect of a later forward, in a race."""
        session = self.session
        if not (session.racing and session.judges) or self.served.drafts is not None:
            return None
        length = session.counts.emitted
        saved = session.leaves.saved
        return self._arrivals.outlook(now_s, length, session.ready, self._due_s, saved)

    def drafting(self, streams: int) -> Drafting | None:
        """Return what is to be drafted beside the target before the next forward.

        ``streams`` wait for it.
        """
        scheduler = self.served.driven
        return self.session.drafting(scheduler.price, scheduler.step_s * streams)

    def _note_said(self) -> None:
        scheduler = self.served.scheduler
        self._said = scheduler.clock.now(), scheduler.counters.forwards

    def _watch_over(self) -> None:
        """See that something is said of the stream before long."""
        if self._watch is None:
            self._note_said()
            self._watch_on()

    def _watch_on(self) -> None:
        when = self._said[0] + self._kept.limits.progress_s
        self._watch = self.served.scheduler.clock.call_at(when, self._tell)

    def _tell(self) -> None:
        """Say that the target works, if it does and nothing else was said."""
        self._watch = None
        idle = self._unanswered and self.session.idle
        if self.holder is None or not (self._busy or idle):
            return
        scheduler = self.served.scheduler
        said_s, seen = self._said
        now, forwards = scheduler.clock.now(), scheduler.counters.forwards
        due = now >= said_s + self._kept.limits.progress_s - 1e-9
        if due and idle:
            self._deliver([self.session.progress(0)])
            return
        if due and forwards > seen:
            self._deliver([self.session.progress(forwards - seen)])
        elif due:
            self._said = now, seen  # a target that does not move says nothing
        self._watch_on()

    def _heard(self, number: int, rows: np.ndarray) -> None:
        """Take in an exit's logits."""
        work = self._work
        assert work is not None
        threshold = self.served.backend.exits[number].threshold
        job = partial(self.session.foresee, work, rows, threshold)
        self._judge(work, job, rows, self._foreseen)

    def _foreseen(self, work: Work, hint: Provisional | None) -> None:
        found = self.session.hint(work, hint)
        if found:
            self._hint = hint, self.served.driven.clock.now()
        self._kept.provisionals += len(found)
        self._deliver(found)

    def _ran(self, answer: Verified | DraftwireError) -> None:
        """Take in the logits."""
        if isinstance(answer, DraftwireError):
            raise answer
        work = self._work
        assert work is not None
        job = partial(self.session.judge, work, answer.rows)
        self._judge(work, job, answer.rows, self._judged, *answer[1:])

    def _judge(
        self,
        work: Work,
        job: Callable[[], T],
        rows: np.ndarray,
        done: Callable[..., None],
        *args: float,
    ) -> None:
        """Do a ``job`` about ``work``; ``done`` gets that, the result and ``args``."""

        def over(found: T | Exception) -> None:
            if work is not self._work:
                return  # the link was lost meanwhile, or a verdict came before a hint
            if isinstance(found, Exception):
                raise found
            done(work, found, *args)

        # A grammar may take long.
        weight = 1 << 30 if self.session.costly else rows.size
        self.served.driven.executor.judge(job, weight, partial(self._guard, over))

    def _judged(
        self, work: Work, verdict: Verdict, queue_s: float, compute_s: float
    ) -> None:
        assert self._request is not None
        forwards = self._request.forwards
        self._work = self._request = None
        before = self.session.branch.overtaken
        found = self.session.settle(
            work, verdict, queue_s=queue_s, compute_s=compute_s, forwards=forwards
        )
        if not work.prefill:
            self._learn(work, verdict, before)
            self._judged_so(work.drafted - work.found, queue_s, compute_s)
        elif self._trace is not None:
            told = {"draftwire.tokens": len(work.tokens), "draftwire.queue_s": queue_s}
            self._trace.step("draftwire.prefill", queue_s + compute_s, told)
        self._deliver(found)
        self._drive()

    def _judged_so(self, drafted: int, queue_s: float, compute_s: float) -> None:
        """Count one verification that the session has settled, before it is booked."""
        counts, tally = self.session.counts, self.served.tally
        accepted = counts.accepted - self._booked.accepted
        tally.judged(drafted, accepted)
        tally.verify_s.add(compute_s)
        tally.queue_s.add(queue_s)
        if self._trace is not None:
            told = {
                "draftwire.drafted": drafted,
                "draftwire.accepted": accepted,
                "draftwire.committed": counts.emitted - self._booked.emitted,
                "draftwire.queue_s": queue_s,
                "draftwire.compute_s": compute_s,
            }
            self._trace.step("draftwire.commit", queue_s + compute_s, told)

    def _learn(self, work: Work, verdict: Verdict, before: tuple[int, int]) -> None:
        """Note a verdict: what it says of the drafts, and of the time that is gained."""
        counts, scheduler = self.session.counts, self.served.driven
        sent, right = work.drafted - work.found, verdict.decision.accepted
        self._arrivals.judged(min(right, sent), int(right < sent))
        self._late(before)
        new = counts.emitted - self._emitted
        self._emitted = counts.emitted
        kept, token = min(right, sent), verdict.decision.token
        foretold = self._hint[0] == Provisional(work.epoch, work.sent(kept), token)
        told_s = self._hint[1] if foretold else None
        now_s, epoch = scheduler.clock.now(), self.session.epoch
        self._arrivals.commit(now_s, counts.emitted, epoch, told_s)
        # Streaming would have made these tokens one by one, each as quick as can be.
        self._due_s += new * scheduler.price.least_s

    def _deliver(self, messages: list[Message]) -> None:
        """Book what the stream did, release it when it is done, send ``messages``."""
        self._book()
        if self.session.done:
            self.leave()
        if messages and self.holder is not None:
            self._note_said()
            self._unanswered = False
            self.holder.deliver(self, messages)


class EngineStream(Stream):
    """A stream that the target's engine keeps: see :mod:`.backends.streaming`.

    Parked it has no run; one that goes on is opened anew with its text, which costs little
    where the engine keeps a cache of prefixes.
    """

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._run: Run | None = None
        self._runs = 0  # so far: what an old one says is void
        self.unread = False  # the engine has yet to read the prompt
        self._told = (0, 0, 0, 0)  # what the present one knows
        self._left = False

    @property
    def _busy(self) -> bool:
        return self._run is not None and not self.session.idle

    def seat(self) -> None:
        self._feeder.check_room()

    @property
    def _feeder(self) -> Feeder:
        feeder = self.served.scheduler
        assert isinstance(feeder, Feeder)
        return feeder

    def _let_go(self) -> Run | None:
        """The engine has the stream no more; return the run that it had."""
        run, self._run = self._run, None
        self._runs += 1  # what is on its way is of no use
        if run is not None:
            self.served.tally.slots -= 1
            self._feeder.streams.discard(self)
            self.unread = False
        return run

    def _withdraw(self) -> int:
        self._feeder.counters.cancelled += self.unread
        run = self._let_go()
        if run is not None:
            run.close()
        return 0

    def leave(self) -> None:
        """The stream is over; its ids stay, the cache is the engine's affair."""
        self._withdraw()
        if not self._left:
            self._left = True
            self._remember()

    def _drive(self) -> None:
        session, feeder = self.session, self._feeder
        if session.done:
            return
        push = session.offer()
        if self._run is None:
            self._told = (0, 0, 0, 0)
            self._run = feeder.backend.open(
                session.order(),
                feeder.clock,
                partial(self._stepped, self._runs),
                partial(self._ended, self._runs),
            )
            self.unread = True
            self.served.tally.slots += 1
            feeder.streams.add(self)
        # Within a branch drafts are only added: their end says which there are.
        told = push.epoch, push.base + len(push.drafts), push.asks, push.ahead
        before = self._told
        # An engine sees by itself that a branch has ended, and waits.
        if told != before and (push.drafts or not session.idle or told[3] != before[3]):
            self._told = told
            self._run.push(push)
        if self._busy:
            self._watch_over()

    def _stepped(self, number: int, step: Step) -> None:
        """Take in what the engine has decided."""
        if number == self._runs:
            self.unread &= not step.tokens
            self._feeder.count(step)
            self._guard(self._advance, step)

    def _advance(self, step: Step) -> None:
        found = self.session.advance(step)
        drafted = self.session.counts.drafted - self._booked.drafted
        self._judged_so(drafted, step.queue_s, step.compute_s)
        self._deliver(found)
        self._drive()

    def _ended(self, number: int, error: DraftwireError, again: bool) -> None:
        """The engine has let go of the stream, or has died."""
        if number == self._runs:
            self._feeder.counters.failed += not again
            self._let_go()
            self._guard(self._drive if again else partial(_fail, error))


def _fail(error: Exception) -> None:
    raise error


class KeptStreams:
    """Every stream that runs, and those that wait for their device."""

    session_class = TargetSession

    def __init__(self, limits: Limits, now: Callable[[], float] = time.monotonic) -> None:
        self.limits, self.now = limits, now
        self._known: dict[bytes, Stream] = {}
        self._parked: dict[bytes, Stream] = {}  # oldest first
        self._seated: weakref.WeakSet[Stream] = weakref.WeakSet()
        self.prefixes = Prefixes(limits.prefixes)
        self.kept_bytes = 0  # memory of the texts that wait, about
        self.opened = 0  # streams opened
        self.resumed = 0  # resumes granted
        self.refused = 0  # resumes refused
        self.expired = 0  # streams whose device did not come back in time
        self.evicted = 0  # streams that made room for others
        self.provisionals = 0  # hints of early exits sent

    def __len__(self) -> int:
        return len(self._parked)

    def slots(self, served: Served) -> int:
        """Return the KV slots of a target that are kept for devices to come back."""
        parked = self._parked.values()
        return sum(s.served is served and s.slot is not None for s in parked)

    def open(
        self, request: Open, terms: Terms, holder: Dialogue, grammar: Compiled | None = None
    ) -> Stream:
        """Return a new stream, not started yet; ``holder`` gets what comes of it.

        Lost devices' slots go when none is free.

        Raises:
            ConfigError: The request cannot be served.
            RefusedError: Every slot is in use, or the account has as many as it may.
        """
        served, usage = terms.served, terms.usage
        if request.prefix:
            request = self._whole(request, terms)
        self._check_share(terms)
        # What a request is refused for is said before a slot is looked for.
        session = self.session_class(
            request,
            terms.welcome,
            logit_error=served.backend.logit_error,
            # A grammar that forces its ids is guessed at less than it is known.
            lookup=None
            if grammar or keeps_streams(served.backend)
            else self.lookup_of(request.prompt, served),
            grammar=grammar,
            leaves=self.limits.leaves,
        )
        slot, reused = self.prefixes.take(usage, served, request.prompt)
        session.reuse(reused)
        kind = EngineStream if isinstance(served.scheduler, Feeder) else Stream
        stream = kind(session, slot, self, terms, request)
        stream.seat()
        if stream.slot is not None:
            if slot is None:
                stream.reused = self._share(stream, request.prompt)
                session.reuse(stream.reused)
            self._seated.add(stream)
        if "resume" in terms.welcome.capabilities:
            while not stream.id or stream.id in self._known:
                stream.id = terms.key + secrets.token_bytes(8 - len(terms.key))
            stream.secret = secrets.token_bytes(16)
            self._known[stream.id] = stream
        self.opened += 1
        stream.hold(holder)
        return stream

    def _running(self, terms: Stream | Terms) -> list[Stream]:
        """Return the streams with a slot of the same account on the same target."""
        return [
            stream
            for stream in self._seated
            if stream.served is terms.served and stream.usage is terms.usage
        ]

    def _share(self, stream: Stream, prompt: Sequence[int]) -> int:
        """Copy what another slot of the account holds of ``prompt``; return how much.

        A system prompt that many streams begin with is read once. It stays in the slots
        of those that use it, since an engine takes a stream's cache in one piece.
        """
        served, usage = stream.served, stream.usage
        assert stream.slot is not None
        if not self.limits.prefixes:
            return 0
        running = [
            (other.slot, other.session.tokens, other.session.cached)
            for other in self._running(stream)
            if other.slot is not None
        ]
        slot, n = self.prefixes.longest(usage, served, prompt, running)
        if not n or not served.driven.backend.share(slot, stream.slot, n):
            return 0
        self.prefixes.found += 1
        served.tally.prefix_hits += n
        served.tally.prefix_copied += n
        return n

    def lookup_of(self, prompt: Sequence[int], served: Served) -> Lookup | None:
        """Return what guesses for a new stream, or None."""
        most = self.limits.lookup
        if served.drafts is not None:
            return Beside(prompt, most, served.drafts)
        return Lookup(prompt, most) if most else None

    def resume(
        self, request: Resume, terms: Terms, holder: Dialogue
    ) -> tuple[Stream, Resumed]:
        """Hand a stream to the connection that its device has come back on.

        Returns:
            The stream, not started yet, and the answer to send.

        Raises:
            RefusedError: There is no such stream, no slot, or no share left.
        """
        stream = self._find(request, terms)
        before = stream.holder
        stream.stop()
        stream.hold(None)
        if before is not None and before is not holder:
            before.lose(stream)  # half open: its device is here
        session = stream.session
        try:
            if not session.done:
                self._check_share(terms)
                if stream.slot is None:
                    stream.seat()
                    stream.served.tally.rebuilds += 1
            answer = session.resume(request.position, request.text_hash)
        except RefusedError:
            if before is not None:
                self.park(stream)
            raise
        except ProtocolError as error:
            # It may hold a correction that it drew itself: let it open anew.
            self.forget(stream)
            self.refused += 1
            raise Refusal("stream", str(error), _ANEW) from None
        self._take(stream)
        stream.hold(holder)
        self.resumed += 1
        return stream, answer

    def park(self, stream: Stream) -> None:
        """Keep ``stream``, whose link is lost, until its device comes back."""
        if stream.id not in self._known:
            self.forget(stream)
            return
        stream.stop()
        stream.hold(None)
        stream.parked_s = self.now()
        self._parked[stream.id] = stream
        self.kept_bytes += stream.kept_bytes
        limits = self.limits
        while len(self) > limits.parked or self.kept_bytes > limits.parked_bytes:
            self.evicted += 1
            self.forget(self._next_victim())

    def forget(self, stream: Stream) -> None:
        """End ``stream`` for good."""
        self._take(stream)
        self._known.pop(stream.id, None)
        stream.ended("abort")
        stream.stop()
        stream.hold(None)
        stream.leave()

    def sweep(self) -> None:
        """Forget streams that have waited too long, or whose target has left."""
        now = self.now()
        self.prefixes.sweep()
        for stream in list(self._parked.values()):
            late = now - stream.parked_s > self.limits.resume_s
            if late or stream.served.retired:
                self.expired += 1
                self.forget(stream)

    def _next_victim(self) -> Stream:
        owners = Counter(id(stream.usage) for stream in self._parked.values())
        greediest = max(owners.values())
        theirs = [s for s in self._parked.values() if owners[id(s.usage)] == greediest]
        # Most devices have long seen the end of a stream that has ended.
        return next((s for s in theirs if s.session.done), theirs[0])

    def _take(self, stream: Stream) -> None:
        if self._parked.pop(stream.id, None) is not None:
            self.kept_bytes -= stream.kept_bytes

    def revoke(self) -> None:
        """Forget what is kept for devices whose token is not valid any more."""
        for stream in list(self._parked.values()):
            if stream.usage.revoked:
                self.forget(stream)
        self.prefixes.sweep()

    def _check_share(self, terms: Terms) -> None:
        served = terms.served
        terms.usage.check_share(served, served.backend.slots, self.now())

    def _find(self, request: Resume, terms: Terms) -> Stream:
        """Return the stream; what of this is wrong is nobody's business."""
        stream = self._known.get(request.id)
        secret = _NO_SECRET if stream is None else stream.secret
        if (
            not hmac.compare_digest(secret, request.secret)
            or stream is None
            or stream.served is not terms.served
            or stream.usage is not terms.usage
            or stream.vocab_size != terms.welcome.vocab_size
        ):
            self.refused += 1
            raise Refusal(
                "stream",
                "there is no such stream to resume: it is unknown here, its time is up, "
                "or it belongs to another target",
                _ANEW,
            )
        return stream

    def _whole(self, request: Open, terms: Terms) -> Open:
        """Return a request with the ids that it only names."""
        n, name = request.prefix_length, request.prefix

        def right(digest: bytes) -> bool:
            if len(name) == CHECK_BYTES:
                digest = check_of(dataclasses.replace(request, prefix=digest))
            return digest == name

        ids: list[int] = []
        if n and "prefix" in terms.welcome.capabilities:
            running = [stream.session.tokens for stream in self._running(terms)]
            ids = self.prefixes.named(terms.usage, terms.served, n, right, running)
        if not ids and (n or not right(b"")):
            raise Refusal(
                "prefix",
                f"the {n} ids that the open names, or its settings, are not here any more",
                "open with the whole prompt and all settings",
            )
        prompt = (*ids, *request.prompt)
        return dataclasses.replace(
            request, prompt=prompt, prefix=b"", prefix_length=0, brief=False
        )

    def slot_of(self, served: Served) -> int:
        """Take a KV slot of ``served``, of another stream where none is free.

        Raises:
            RefusedError: There is none, and none that may be taken from another stream.
        """
        while True:
            try:
                return served.allocate()
            except RefusedError:
                if not self._make_room(served):
                    raise

    def _make_room(self, served: Served) -> bool:
        """Free a slot: of an ended text, or of the stream that has waited longest."""
        if self.prefixes.give_up_slot(served):
            return True
        for stream in self._parked.values():
            if stream.served is served and stream.slot is not None:
                stream.release()
                stream.stop()
                served.tally.preemptions += 1
                return True
        return False
