"""Batches the work of all sessions on one target into few forwards.

One asyncio task forms batches, one worker thread runs them. Between two forwards the
scheduler looks at everything that waits:

* *Blocks* (verifications, a few tokens each) go together, one per slot, oldest slot
  first and served slots to the back: round robin.
* *Prompts* are cut into chunks. While blocks and prompts both wait, they take turns, so
  that a block never waits for more than one chunk of somebody's long prompt.

A forward that fails is repeated one request at a time, so that only those that fail on
their own get the error. The scheduler itself goes on.

A request may listen to the target's early exits. Forwards with such requests go in parts,
and what an exit says reaches the event loop while the next part runs; what comes after
the forward's end is dropped. A forward whose every request has been withdrawn is broken
off between two parts.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import OrderedDict, deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Callable, NamedTuple, Sequence

import numpy as np

from draftwire.errors import DraftwireError, ModelError, RefusedError
from draftwire.verifier.backends.base import SlotInput, TargetBackend

log = logging.getLogger("draftwire.verifier")

__all__ = ["Counters", "OnExit", "Scheduler", "Verified"]

# Takes the number of an exit and its logits ``(rows, vocab)``, on the event loop.
OnExit = Callable[[int, "np.ndarray[Any, Any]"], None]


class Verified(NamedTuple):
    """Answer to one request.

    Attributes:
        rows: ``(rows, vocab)`` float32 logits.
        queue_s: Seconds spent waiting.
        compute_s: Seconds spent in forwards that carried this request.
    """

    rows: np.ndarray[Any, Any]
    queue_s: float
    compute_s: float


@dataclass
class Counters:
    """What a scheduler did so far.

    Attributes:
        forwards: Forwards run, of both kinds.
        prefill_forwards: Those among them that carried prompt chunks.
        requests: Requests answered.
        tokens: Tokens computed.
        failed: Requests that ended in an error.
        cancelled: Requests withdrawn before their answer.
        queue_s: Seconds that answered requests spent waiting, summed.
        compute_s: Seconds of the worker thread in forwards.
        batch_sizes: How many block forwards had this many sessions.
        exits_heard: Rows of an exit that were passed on in time.
        exits_late: Those that were dropped, because the forward had ended.
        broken_off: Forwards ended between two parts, for want of anybody to wait.
    """

    forwards: int = 0
    prefill_forwards: int = 0
    requests: int = 0
    tokens: int = 0
    failed: int = 0
    cancelled: int = 0
    queue_s: float = 0.0
    compute_s: float = 0.0
    batch_sizes: dict[int, int] = field(default_factory=dict)
    exits_heard: int = 0
    exits_late: int = 0
    broken_off: int = 0


class _BrokenOff(Exception):
    """Nobody waits for the running forward any more."""


class _Request:
    """One submitted input on its way through one or more forwards."""

    __slots__ = (
        "compute_s",
        "done",
        "future",
        "item",
        "on_exit",
        "prefill",
        "rows",
        "since",
    )

    def __init__(
        self,
        item: SlotInput,
        prefill: bool,
        since: float,
        future: asyncio.Future[Verified],
        on_exit: OnExit | None,
    ) -> None:
        self.item = item
        self.on_exit = on_exit
        self.prefill = prefill
        self.since = since
        self.future = future
        self.done = 0  # tokens computed
        self.rows: list[np.ndarray[Any, Any]] = []
        self.compute_s = 0.0


class _Ears:
    """Carries what exits say from the worker thread to the event loop.

    Args:
        requests: Of the forward, in its order.
        loop: Where they wait.
        counters: To book into.

    Attributes:
        over: True once the forward has ended.
    """

    def __init__(
        self,
        requests: Sequence[_Request],
        loop: asyncio.AbstractEventLoop,
        counters: Counters,
    ) -> None:
        self._requests = requests
        self._loop = loop
        self._counters = counters
        self.over = False

    def hear(self, number: int, rows: list[np.ndarray[Any, Any]]) -> None:
        """Take in an exit's logits, on the worker thread."""
        if all(request.future.done() for request in self._requests):
            raise _BrokenOff
        for request, logits in zip(self._requests, rows):
            # A part of a long block says nothing about the rest of it.
            if request.on_exit is not None and 0 < len(logits) == request.item.rows:
                try:
                    self._loop.call_soon_threadsafe(self._pass, request, number, logits)
                except RuntimeError:  # the loop has ended, and with it all that listen
                    raise _BrokenOff from None

    def _pass(self, request: _Request, number: int, logits: np.ndarray[Any, Any]) -> None:
        """Pass it on, on the event loop."""
        if self.over or request.future.done():
            self._counters.exits_late += 1
            return
        self._counters.exits_heard += 1
        assert request.on_exit is not None
        request.on_exit(number, logits)


class Scheduler:
    """Runs the forwards of one backend.

    Args:
        backend: The target.
        max_tokens: Most tokens in one forward, padding of ragged blocks included.
        max_batch: Most sessions in one forward; 1 is no batching.
        chunk: Most tokens of one prompt in one forward.
        max_waiting: Requests that may wait before new ones are refused.
        clock: Monotonic seconds.
    """

    def __init__(
        self,
        backend: TargetBackend,
        *,
        max_tokens: int = 512,
        max_batch: int = 64,
        chunk: int = 128,
        max_waiting: int = 1024,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        if not 1 <= chunk <= max_tokens:
            raise ValueError(f"{chunk=} must be within 1..{max_tokens=}")
        if max_batch < 1:
            raise ValueError(f"{max_batch=} is below 1")
        self.backend = backend
        self.counters = Counters()
        self._max_tokens = max_tokens
        self._max_batch = max_batch
        self._chunk = chunk
        self._max_waiting = max_waiting
        self._clock = clock
        # Each slot's requests in order; the order of the slots is that of service.
        self._queues: OrderedDict[int, deque[_Request]] = OrderedDict()
        self._waiting = 0
        self._prompt_last = False  # which kind the last forward served
        self._running: frozenset[int] = frozenset()  # slots in the current forward
        self._releasing: set[int] = set()  # to be released when it ends
        self._task: asyncio.Task[None] | None = None
        self._wake: asyncio.Event | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="draftwire-target")
        self._closed = False

    @property
    def waiting(self) -> int:
        """Requests that wait for a forward."""
        return self._waiting

    async def submit(
        self,
        item: SlotInput,
        *,
        prefill: bool = False,
        on_exit: OnExit | None = None,
    ) -> Verified:
        """Wait for the logits of ``item``; cancel the call to withdraw it.

        Args:
            item: Tokens of one slot.
            prefill: It is a prompt: it may be cut into chunks and yields to blocks.
            on_exit: Called on the event loop with what the target's early exits say,
                never after the forward has ended.

        Returns:
            Logits and where the time went.

        Raises:
            RefusedError: Too many requests wait, or the scheduler is closed.
            ModelError: The forward failed, or ``item`` does not fit its slot.
        """
        if self._closed:
            raise RefusedError("the verifier is shutting down")
        if self._waiting >= self._max_waiting:
            raise RefusedError(
                f"the verifier is busy: {self._max_waiting} requests wait",
                hint="try again later, or add a verifier",
            )
        if self._task is None:
            self._wake = asyncio.Event()
            self._task = asyncio.ensure_future(self._run())
        assert self._wake is not None
        loop = asyncio.get_running_loop()
        # A block too long for one forward would starve the others as a prompt would.
        prefill = prefill or len(item) > self._chunk
        if not self.backend.exits:
            on_exit = None
        request = _Request(item, prefill, self._clock(), loop.create_future(), on_exit)
        self._queues.setdefault(item.slot, deque()).append(request)
        self._waiting += 1
        self._wake.set()
        try:
            return await request.future
        except asyncio.CancelledError:
            self._withdraw(request)
            self.counters.cancelled += 1
            raise

    def release(self, slot: int) -> None:
        """Drop what waits for ``slot`` and give it back to the backend.

        A slot inside the running forward is given back when that forward ends, so that
        nobody else gets it while the worker thread still writes to it.
        """
        self._drop(list(self._queues.get(slot, ())), "the session has ended")
        if slot in self._running:
            self._releasing.add(slot)
        else:
            self.backend.release(slot)

    async def close(self) -> None:
        """Fail what waits, let the running forward end, stop the thread."""
        self._closed = True
        waiting = [request for queue in self._queues.values() for request in queue]
        self._drop(waiting, "the verifier is shutting down")
        if self._task is not None and self._wake is not None:
            self._wake.set()
            await self._task
        self._thread.shutdown(wait=True)

    async def _run(self) -> None:
        assert self._wake is not None
        while not self._closed:
            batch = self._next_batch()
            if batch:
                try:
                    await self._forward(batch)
                except Exception:
                    # A bug here must not leave every session waiting for ever.
                    log.exception("the scheduler failed in a forward")
                    self._drop(batch, "the verifier failed")
            else:
                self._wake.clear()
                await self._wake.wait()

    def _drop(self, requests: Sequence[_Request], why: str) -> None:
        for request in requests:
            self._withdraw(request)
            if not request.future.done():
                request.future.set_exception(RefusedError(why))
                request.future.exception()  # its waiter may be gone: do not log that

    def _next_batch(self) -> list[_Request]:
        """Choose the requests of the next forward, all of one kind."""
        heads = [queue[0] for queue in self._queues.values()]
        kinds = {request.prefill for request in heads}
        prompts = not self._prompt_last if len(kinds) == 2 else True in kinds
        self._prompt_last = prompts
        batch: list[_Request] = []
        widest = 0
        for request in heads:
            if request.prefill != prompts:
                continue
            if len(batch) == self._max_batch:
                break
            width = max(widest, self._width(request))
            # Ragged inputs are padded to the longest, so that is what costs.
            if batch and width * (len(batch) + 1) > self._max_tokens:
                break
            widest = width
            batch.append(request)
        for request in batch:  # served slots go to the back
            self._queues.move_to_end(request.item.slot)
        return batch

    def _width(self, request: _Request) -> int:
        return min(len(request.item) - request.done, self._chunk)

    async def _forward(self, batch: Sequence[_Request]) -> None:
        parts = [r.item.part(r.done, r.done + self._width(r)) for r in batch]
        self._running = frozenset(part.slot for part in parts)
        try:
            answers, seconds = await self._compute(batch, parts)
        finally:
            self._running = frozenset()
            for slot in sorted(self._releasing):
                self.backend.release(slot)
            self._releasing.clear()
        now = self._clock()
        for request, part, answer in zip(batch, parts, answers):
            request.compute_s += seconds
            self._advance(request, part, answer, now)

    async def _compute(
        self, batch: Sequence[_Request], parts: Sequence[SlotInput]
    ) -> tuple[list[np.ndarray[Any, Any] | DraftwireError], float]:
        """Run ``parts`` together, or after a failure one by one."""
        begin = self._clock()
        answers: list[np.ndarray[Any, Any] | DraftwireError]
        try:
            rows = await self._run_backend(batch, parts)
            if [len(r) for r in rows] != [part.rows for part in parts]:
                raise ModelError("the backend returned a wrong number of rows")
            answers = [*rows]
            self._count(parts)
        except _BrokenOff:
            self.counters.broken_off += 1
            answers = [RefusedError("nobody waits for it")] * len(parts)
        except Exception as error:  # noqa: BLE001 - engines raise their own classes
            if len(parts) == 1:
                answers = [self._failure(error)]
            else:
                pairs = zip(batch, parts)
                answers = [(await self._compute([r], [p]))[0][0] for r, p in pairs]
                return answers, self._clock() - begin
        seconds = self._clock() - begin
        self.counters.compute_s += seconds
        return answers, seconds

    async def _run_backend(
        self, batch: Sequence[_Request], parts: Sequence[SlotInput]
    ) -> list[np.ndarray[Any, Any]]:
        """Run one forward on the worker thread, in parts when somebody listens."""
        loop = asyncio.get_running_loop()
        forward = self.backend.forward
        listening = any(
            request.on_exit is not None and part.rows for request, part in zip(batch, parts)
        )
        if not listening:
            return await loop.run_in_executor(self._thread, forward, parts)
        ears = _Ears(batch, loop, self.counters)

        def run() -> list[np.ndarray[Any, Any]]:
            try:
                return forward(parts, on_exit=ears.hear)
            finally:
                ears.over = True

        return await loop.run_in_executor(self._thread, run)

    def _count(self, parts: Sequence[SlotInput]) -> None:
        counters = self.counters
        counters.forwards += 1
        counters.tokens += sum(len(part) for part in parts)
        if self._prompt_last:
            counters.prefill_forwards += 1
        else:
            sizes = counters.batch_sizes
            sizes[len(parts)] = sizes.get(len(parts), 0) + 1

    def _failure(self, error: Exception) -> DraftwireError:
        if isinstance(error, DraftwireError):
            return error
        return ModelError(
            f"a forward of target {self.backend.name} {self.backend.version} failed: "
            f"{type(error).__name__}: {error}"
        )

    def _advance(
        self,
        request: _Request,
        part: SlotInput,
        answer: np.ndarray[Any, Any] | DraftwireError,
        now: float,
    ) -> None:
        """Book one part of ``request``; answer it when that was the last."""
        if request.future.done():  # withdrawn or released while it ran
            return
        if isinstance(answer, DraftwireError):
            self._withdraw(request)
            self.counters.failed += 1
            request.future.set_exception(answer)
            return
        request.done += len(part)
        if part.rows:
            request.rows.append(answer)
        if request.done < len(request.item):
            return  # it stayed at the head of its slot's queue
        self._withdraw(request)
        rows = request.rows
        logits = rows[0] if len(rows) == 1 else np.concatenate(rows) if rows else answer
        queue_s = max(0.0, now - request.since - request.compute_s)
        self.counters.requests += 1
        self.counters.queue_s += queue_s
        request.future.set_result(Verified(logits, queue_s, request.compute_s))

    def _withdraw(self, request: _Request) -> None:
        queue = self._queues.get(request.item.slot)
        if queue is not None and request in queue:
            queue.remove(request)
            self._waiting -= 1
            if not queue:
                del self._queues[request.item.slot]
