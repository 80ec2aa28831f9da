"""Drives one stream's session: work to the scheduler, logits back, verdicts out.

Where the device wants them, what the target's early exits expect goes out while the
forward still runs: before its verdict, never after it.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Any, Awaitable, Callable, TypeVar

import numpy as np

from draftwire.errors import ProtocolError
from draftwire.transport.messages import Message
from draftwire.verifier.backends.base import SlotInput
from draftwire.verifier.streams import Stream
from draftwire.verifier.target_session import Work

if TYPE_CHECKING:
    from draftwire.verifier.service import VerifierService

__all__ = ["drive"]

Deliver = Callable[[Stream, "list[Message]"], Awaitable[None]]
_T = TypeVar("_T")

# Logits above this many numbers are judged in a helper thread: a full law over a large
# vocabulary takes milliseconds that all other devices would wait for.
_INLINE_LOGITS = 1 << 16


async def drive(
    stream: Stream,
    service: VerifierService,
    deliver: Deliver,
) -> None:
    """Run the stream's work until it is done.

    Args:
        stream: It has a slot, and nobody else drives it.
        service: For its counters.
        deliver: Sends what comes out.

    Raises:
        ProtocolError: The device broke the protocol.
        ModelError: The model failed.
        RefusedError: The scheduler takes no more work.
    """
    while not stream.session.done:
        work = stream.session.poll()
        if work is None:
            stream.unjudged = 0
            stream.wake.clear()
            await stream.wake.wait()
            continue
        stream.unjudged = max(0, stream.unjudged - len(work.evidence))
        await deliver(stream, await _run(stream, work, service, deliver))


async def _run(
    stream: Stream, work: Work, service: VerifierService, deliver: Deliver
) -> list[Message]:
    assert stream.slot is not None
    if work.start + len(work.tokens) > stream.served.backend.context:
        raise ProtocolError("drafts beyond the context of the target")
    glimpses = None
    if stream.exits and not work.prefill:
        glimpses = _Glimpses(stream, work, service, deliver)
    try:
        verified = await stream.served.scheduler.submit(
            SlotInput(stream.slot, work.start, work.tokens, work.rows),
            prefill=work.prefill,
            on_exit=None if glimpses is None else glimpses.hear,
        )
    except BaseException:
        if glimpses is not None:
            await glimpses.abandon()
        raise
    if glimpses is not None:
        await glimpses.close()
    if not work.prefill:
        service.verify_seconds.add(verified.compute_s)
        service.queue_seconds.add(verified.queue_s)

    def complete() -> list[Message]:
        return stream.session.complete(
            work,
            verified.rows,
            queue_s=verified.queue_s,
            compute_s=verified.compute_s,
        )

    async with stream.lock:
        return await _judged(complete, verified.rows)


async def _judged(judge: Callable[[], _T], rows: np.ndarray[Any, Any]) -> _T:
    """Return ``judge()``, from a helper thread when there are many logits."""
    if rows.size <= _INLINE_LOGITS:
        return judge()
    job = asyncio.get_running_loop().run_in_executor(None, judge)
    try:
        return await asyncio.shield(job)
    except asyncio.CancelledError:
        # The thread goes on: nobody else may use the session before its end.
        await asyncio.wait([job])
        raise


class _Glimpses:
    """Sends what the exits of one forward expect.

    Args:
        stream: Whose work it is.
        work: What the model runs.
        service: For its counters.
        deliver: Sends what comes out.
    """

    def __init__(
        self, stream: Stream, work: Work, service: VerifierService, deliver: Deliver
    ) -> None:
        self._stream = stream
        self._work = work
        self._service = service
        self._deliver = deliver
        self._heard: deque[tuple[int, np.ndarray[Any, Any]]] = deque()
        self._task: asyncio.Task[None] | None = None
        self._closed = False

    def hear(self, number: int, rows: np.ndarray[Any, Any]) -> None:
        """Take in an exit's logits."""
        self._heard.append((number, rows))
        if self._task is None or self._task.done():
            self._task = asyncio.ensure_future(self._send())

    async def close(self) -> None:
        """The verdict is there: what has not been looked at comes too late.

        Raises:
            ConnectionClosed: While sending a glimpse.
            ProtocolError: The block's evidence is not valid.
        """
        self._closed = True
        if self._task is not None:
            await self._task  # a frame on its way goes before the verdict

    async def abandon(self) -> None:
        """There will be no verdict."""
        self._closed = True
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
            if not self._task.cancelled():
                self._task.exception()  # the reader of the connection sees it too

    async def _send(self) -> None:
        stream = self._stream
        while self._heard and not self._closed:
            number, rows = self._heard.popleft()
            threshold = stream.served.backend.exits[number].threshold

            def glimpse() -> list[Message]:
                return stream.session.glimpse(self._work, rows, threshold)  # noqa: B023

            async with stream.lock:
                if self._closed:
                    return
                messages = await _judged(glimpse, rows)
            if messages and not self._closed:
                self._service.provisionals += len(messages)
                await self._deliver(stream, messages)
