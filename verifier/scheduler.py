"""Batches the work of all streams on one target into few forwards.

Plain code that an executor and a clock call back: the same live and in virtual time.
Between two forwards the scheduler looks at everything that waits:

* *Blocks* (verifications, a few tokens each) go together, oldest slot first and served
  slots to the back: round robin.
* *Prompts* are cut into chunks. While blocks and prompts both wait, they take turns, so
  that a block never waits for more than one chunk of somebody's long prompt.

What happens at the same moment goes into the same forward. What a block's stream has got
meanwhile is taken when its forward begins; and where drafts are on their way that are
worth it, the forward is held back for them (:mod:`~draftwire.verifier.patience`). One that
fails is repeated one request at a time, so that only those that fail on their own get the
error.

A request may listen to the target's early exits. Forwards with such requests go in parts,
and what an exit says is passed on while the next part runs; what comes after the
forward's end is dropped. A forward whose every request has been withdrawn is broken off
between two parts.

An engine that keeps streams itself batches, pages and decodes on its own; what is left to
us there is how many streams it shall have at once, and what it did (:class:`Feeder`).
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Callable, NamedTuple, Sequence, Union

import numpy as np

from draftwire.clock import Clock
from draftwire.errors import DraftwireError, ModelError, RefusedError
from draftwire.verifier.backends.base import SlotInput, TargetBackend
from draftwire.verifier.backends.streaming import Step, StreamBackend
from draftwire.verifier.executor import Executor, Rows
from draftwire.verifier.patience import Outlook, Tables, hold_until
from draftwire.verifier.rows import ForwardPrice
from draftwire.verifier.tally import Counters

if TYPE_CHECKING:
    from draftwire.clock import Timer
    from draftwire.verifier.streams import EngineStream, Stream

# Takes the number of an exit and its logits ``(rows, vocab)``.
OnExit = Callable[[int, "np.ndarray"], None]


class Verified(NamedTuple):
    """Answer to one request."""

    rows: np.ndarray  # ``(rows, vocab)`` float32 logits
    queue_s: float  # seconds spent waiting
    compute_s: float  # seconds spent in forwards that carried this request


OnDone = Callable[[Union[Verified, DraftwireError]], None]


@dataclass(eq=False)
class Request:
    """One submitted input on its way through one or more forwards."""

    _scheduler: Scheduler
    slot: int
    source: Stream | None  # whose drafts it stands for, until its forward begins
    _item: SlotInput | None  # settled then, or from the beginning
    prefill: bool  # it may be cut, and yields to blocks
    on_exit: OnExit | None
    _done: OnDone | None  # None once it is answered, or withdrawn
    _since: float  # when it was submitted
    forwards: int = 0  # that were begun with it
    compute_s: float = 0.0
    _read: int = 0  # tokens computed
    _rows: list[np.ndarray] = field(default_factory=list)

    @property
    def item(self) -> SlotInput:
        """What it is, once that is settled."""
        assert self._item is not None
        return self._item

    def make(self) -> bool:
        """Settle what it is; False when it is not wanted any more."""
        if self.source is not None:
            self._item = self.source.make()
            self.source = self.source if self._item is None else None
        return self._item is not None

    def outlook(self, now_s: float) -> Outlook | None:
        """Return what it could expect of a later forward; None if it cannot wait."""
        return None if self.source is None else self.source.outlook(now_s)

    def width(self, most: int) -> int:
        """Return how many of its tokens go into a forward, at most ``most``."""
        return min(len(self.item) - self._read, most)

    def next_part(self, most: int) -> SlotInput:
        """Return what of it goes into a forward."""
        return self.item.part(self._read, self._read + self.width(most))

    def withdraw(self) -> None:
        """Take it back, unless it is answered: nobody waits for it any more."""
        if self._done is not None:
            self._done = None
            self._scheduler.counters.cancelled += 1
            self._scheduler.forget(self)

    def advance(self, part: SlotInput, rows: np.ndarray) -> Verified | None:
        """Book a part of it; return the answer when that was the last."""
        self._read += len(part)
        if part.rows:
            self._rows.append(rows)
        if self._read < len(self.item):
            return None
        whole = self._rows or [rows]
        queue_s = self._scheduler.clock.now() - self._since - self.compute_s
        logits = whole[0] if len(whole) == 1 else np.concatenate(whole)
        return Verified(logits, max(0.0, queue_s), self.compute_s)

    def answer(self, answer: Verified | DraftwireError) -> None:
        """Tell who waits for it."""
        done, self._done = self._done, None
        if done is not None:
            done(answer)


class Scheduler:
    """Decides what the next forward of one backend carries."""

    def __init__(
        self,
        backend: TargetBackend,
        executor: Executor,  # runs its forwards, and judgements
        clock: Clock,  # when, and in whose thread
        *,
        max_tokens: int = 512,  # in one forward, padding of ragged blocks included
        max_batch: int = 64,  # most streams in one forward; 1 is no batching
        chunk: int = 128,  # most tokens of one prompt in one forward
        max_waiting: int = 1024,  # requests that may wait before new ones are refused
        patience: bool = True,  # forwards may be held back for drafts
    ) -> None:
        if not 1 <= chunk <= max_tokens:
            raise ValueError(f"{chunk=} must be within 1..{max_tokens=}")
        if max_batch < 1:
            raise ValueError(f"{max_batch=} is below 1")
        self.backend, self.executor, self.clock = backend, executor, clock
        self.counters = Counters()
        self.price = ForwardPrice()
        # what a draft takes that is made beside the target; 0 before the first
        self.step_s = 0.0
        self.chunk = chunk
        self._max_tokens, self._max_batch = max_tokens, max_batch
        self._max_waiting = max_waiting
        # What waits for a forward, one a slot, in the order of service.
        self._queue: OrderedDict[int, Request] = OrderedDict()
        self._prompts = False  # the present forward, or else the last, is of prompts
        self._batch: list[Request] = []  # in the running forward
        self._parts: list[SlotInput] = []
        self._repeat: list[Request] = []  # of a forward that failed
        self._releasing: set[int] = set()  # slots to be released when it ends
        self._beginning = self._closed = False
        self._patience = patience
        # They are no affair of the thread that everybody waits for.
        self._tables = Tables(lambda job, done: executor.judge(job, 1 << 30, done))
        self._holding: Timer | None = None
        self._since_s = 0.0  # that the present hold lasts
        self.held_s = 0.0  # seconds that forwards were held back

    @property
    def waiting(self) -> int:
        """Requests that wait for a forward."""
        return len(self._queue)

    def submit(
        self,
        # tokens of one slot, or who has them when their forward begins
        item: SlotInput | Stream,
        *,
        slot: int = -1,  # of a stream
        prefill: bool = False,  # a prompt: may be cut into chunks and yields to blocks
        # called with what the target's early exits say, never after the forward has ended
        on_exit: OnExit | None = None,
        done: OnDone,
    ) -> Request:
        """Let the target run ``item``, of a slot for which nothing waits.

        ``done`` is called once, never inside this call, unless the request is withdrawn:
        with a :class:`RefusedError` when too many wait, the slot was released or the
        scheduler is closed, with a :class:`ModelError` when the forward failed or ``item``
        does not fit its slot. It must not raise.
        """
        # A block too long for one forward would starve the others as a prompt would.
        source, settled = (None, item) if isinstance(item, SlotInput) else (item, None)
        if settled is not None:
            prefill, slot = prefill or len(settled) > self.chunk, settled.slot
        on_exit = on_exit if self.backend.exits else None
        what = slot, source, settled, prefill, on_exit, done
        request = Request(self, *what, self.clock.now())
        if self._closed:
            self._refuse(request, "the verifier is shutting down")
        elif self.waiting >= self._max_waiting:
            self._refuse(
                request,
                f"the verifier is busy: {self._max_waiting} requests wait",
                "try again later, or add a verifier",
            )
        else:
            assert slot not in self._queue
            self._queue[slot] = request
            self._start()
        return request

    def release(self, slot: int) -> None:
        """Drop what waits for ``slot`` and give it back to the backend.

        A slot inside the running forward is given back when that forward ends, so that
        nobody else gets it while the engine still writes to it.
        """
        if slot in self._queue:
            self._drop(self._queue[slot], "the stream has ended")
        if any(request.slot == slot for request in self._batch):
            self._releasing.add(slot)
        else:
            self.backend.release(slot)

    @property
    def frees_a_slot(self) -> bool:
        """A slot comes back with the running forward."""
        return bool(self._releasing)

    def close(self) -> None:
        """Refuse what waits; the running forward ends by itself."""
        self._closed = True
        if self._holding is not None:
            self._holding.cancel()
        for request in tuple(self._queue.values()):
            self._drop(request, "the verifier is shutting down")
        self.executor.close()

    def _drop(self, request: Request, why: str) -> None:
        self.forget(request)
        self._refuse(request, why)

    def _refuse(self, request: Request, why: str, hint: str = "") -> None:
        self.clock.post(request.answer, RefusedError(why, hint=hint))

    def forget(self, request: Request) -> None:
        """Nobody waits for ``request`` any more."""
        if self._waits(request):
            del self._queue[request.slot]
        if request in self._batch and not any(map(self._waits, self._batch)):
            self.executor.break_off()

    def _waits(self, request: Request) -> bool:
        return self._queue.get(request.slot) is request

    # ---- a forward

    def _start(self) -> None:
        # What happens at the same moment goes into the same forward.
        if self._queue and not (self._batch or self._beginning or self._closed):
            self._beginning = True
            self.clock.post(self._begin)

    def stir(self) -> None:
        """More drafts have come: look again whether to hold the next forward back."""
        if self._holding is not None:
            self._start()

    def _begin(self, *, late: bool = False, drafted: bool = False) -> None:
        """Begin the next forward, unless it shall wait; ``late``: it has.

        ``drafted``: What is drafted beside the target has been.
        """
        self._beginning = False
        if self._batch or self._closed:
            return
        if self._holding is not None:
            self._holding.cancel()
        while self._repeat:
            request = self._repeat.pop(0)
            if self._waits(request):
                self._run([request])
                return
        heads = self._heads()
        now_s = self.clock.now()
        until_s = now_s if late else self._hold_until(heads, now_s)
        if until_s > now_s:
            self._since_s = now_s if self._holding is None else self._since_s
            self._holding = self.clock.call_at(until_s, partial(self._begin, late=True))
            return
        if self._holding is not None:
            self.held_s += now_s - self._since_s
            self._holding = None
        if not drafted:
            heads = heads[: self._max_batch]
            sources = [request.source for request in heads if request.source is not None]
            found = [source.drafting(len(heads)) for source in sources]
            jobs = [job for job in found if job is not None]
            if jobs:  # what comes meanwhile is taken when the forward begins
                self._beginning = True
                self.executor.draft(jobs, self._drafted)
                return
        batch = self._fitting(heads)
        if batch:
            self._run(batch)
        else:
            self._start()  # what was not wanted, or was longer than it seemed

    def _drafted(self, step_s: float) -> None:
        if step_s:
            self.step_s += (0.1 if self.step_s else 1.0) * (step_s - self.step_s)
        self._begin(late=True, drafted=True)

    def _heads(self) -> list[Request]:
        """Return whose turn it is, all of one kind."""
        kinds = {request.prefill for request in self._queue.values()}
        prompts = not self._prompts if len(kinds) == 2 else True in kinds
        return [r for r in self._queue.values() if r.prefill is prompts]

    def _hold_until(self, heads: Sequence[Request], now_s: float) -> float:
        """Return until when the next forward waits for drafts of ``heads``."""
        if not (self._patience and heads and self.price.seconds):
            return now_s
        if len(heads) < self.waiting or len(heads) > self._max_batch:
            return now_s  # others wait
        outlooks = []
        for request in heads:
            outlook = request.outlook(now_s)
            if outlook is None:
                return now_s
            outlooks.append(outlook)
        return hold_until(now_s, outlooks, self.price.seconds, self._tables)

    def _fitting(self, heads: Sequence[Request]) -> list[Request]:
        """Return the requests of the next forward: those of ``heads`` that fit."""
        batch: list[Request] = []
        widest = 0
        for request in heads:
            if len(batch) == self._max_batch:
                break
            if not request.make():
                self.forget(request)
                continue
            if not request.prefill and len(request.item) > self.chunk:
                request.prefill = True  # it would starve the others as a prompt would
                continue
            width = max(widest, request.width(self.chunk))
            # Ragged inputs are padded to the longest, so that is what costs.
            if batch and width * (len(batch) + 1) > self._max_tokens:
                break
            widest = width
            batch.append(request)
        for request in batch:  # served slots go to the back
            self._queue.move_to_end(request.slot)
            self._prompts = request.prefill
        return batch

    def _run(self, batch: list[Request]) -> None:
        self._batch = batch
        self._parts = [request.next_part(self.chunk) for request in batch]
        listening = False
        for request, part in zip(batch, self._parts):
            request.forwards += 1
            listening |= request.on_exit is not None and part.rows > 0
        heard = self._heard if listening else None
        self.executor.run(self._parts, self._prompts, heard, self._ran)

    def _heard(self, number: int, rows: Rows) -> None:
        for request, logits in zip(self._batch, rows):
            # A part of a long block says nothing about the rest of it.
            whole = 0 < len(logits) == request.item.rows
            late = self.executor.over or not self._waits(request)
            if request.on_exit is not None and whole and not late:
                request.on_exit(number, logits)

    def _ran(self, answer: Rows | BaseException, seconds: float) -> None:
        batch, parts = self._batch, self._parts
        self._batch, self._parts = [], []
        for slot in sorted(self._releasing):
            self.backend.release(slot)
        self._releasing.clear()
        self.counters.compute_s += seconds
        for request in batch:
            request.compute_s += seconds
        if not isinstance(answer, BaseException) and (
            [len(rows) for rows in answer] != [part.rows for part in parts]
        ):
            answer = ModelError("the backend returned a wrong number of rows")
        if isinstance(answer, BaseException):
            if len(batch) > 1:
                self._repeat += batch
            elif self._waits(batch[0]):
                self.forget(batch[0])
                self.counters.failed += 1
                batch[0].answer(self._failure(answer))
        else:
            self._count(parts, seconds)
            for request, part, rows in zip(batch, parts, answer):
                if self._waits(request) and (verified := request.advance(part, rows)):
                    self.forget(request)
                    request.answer(verified)
        self._start()

    def _count(self, parts: Sequence[SlotInput], seconds: float) -> None:
        counters, tokens = self.counters, sum(len(part) for part in parts)
        counters.forwards += 1
        counters.tokens += tokens
        if self._prompts:
            counters.prefill_forwards += 1
        else:
            self.price.add(tokens, seconds)
            counters.batch_sizes[len(parts)] += 1

    def _failure(self, error: BaseException) -> ModelError:
        if isinstance(error, ModelError):
            return error
        return ModelError(
            f"a forward of target {self.backend.name} {self.backend.version} failed: "
            f"{type(error).__name__}: {error}",
            hint=error.hint if isinstance(error, DraftwireError) else "",
        )


class Feeder:
    """Counts the streams of an engine that keeps them itself, and what it does."""

    held_s = 0.0  # it holds no forward back

    def __init__(self, backend: StreamBackend, clock: Clock) -> None:
        self.backend, self.clock = backend, clock
        self.counters = Counters()
        self.streams: set[EngineStream] = set()  # that the engine has
        self._forward = 0  # number of the last one
        self._shared = 0  # by so many streams
        self._closed = False

    @property
    def waiting(self) -> int:
        """Streams whose prompt the engine has not read yet."""
        return sum(stream.unread for stream in self.streams)

    def check_room(self) -> None:
        """Raise RefusedError unless the engine may have one more stream."""
        if self._closed:
            raise RefusedError("the verifier is shutting down")
        if len(self.streams) >= self.backend.slots:
            raise RefusedError(
                f"{len(self.streams)} streams run on target {self.backend.name} "
                f"{self.backend.version}, that is its limit",
                hint="try again later, or raise --slots",
            )

    def close(self) -> None:
        """End the engine."""
        if not self._closed:
            self._closed = True
            self.backend.close()

    def count(self, step: Step) -> None:
        """Count a step of a stream."""
        counters = self.counters
        counters.tokens += step.drafted + bool(step.tokens)
        if step.forward and step.forward == self._forward:
            counters.batch_sizes[self._shared] -= 1
            self._shared += 1
        else:
            self._forward, self._shared = step.forward, 1
            counters.forwards += 1
            counters.compute_s += step.compute_s
        counters.batch_sizes[self._shared] += 1
