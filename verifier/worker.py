"""Drives one stream's session: work to the scheduler, logits back, verdicts out."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Awaitable, Callable

from draftwire.errors import ProtocolError
from draftwire.transport.messages import Message
from draftwire.verifier.backends.base import SlotInput
from draftwire.verifier.streams import Stream
from draftwire.verifier.target_session import Work

if TYPE_CHECKING:
    from draftwire.verifier.service import VerifierService

__all__ = ["drive"]

# Logits above this many numbers are judged in a helper thread: a full law over a large
# vocabulary takes milliseconds that all other devices would wait for.
_INLINE_LOGITS = 1 << 16


async def drive(
    stream: Stream,
    service: VerifierService,
    deliver: Callable[[Stream, list[Message]], Awaitable[None]],
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
        await deliver(stream, await _run(stream, work, service))


async def _run(stream: Stream, work: Work, service: VerifierService) -> list[Message]:
    assert stream.slot is not None
    if work.start + len(work.tokens) > stream.served.backend.context:
        raise ProtocolError("drafts beyond the context of the target")
    verified = await stream.served.scheduler.submit(
        SlotInput(stream.slot, work.start, work.tokens, work.rows),
        prefill=work.prefill,
    )
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
        if verified.rows.size <= _INLINE_LOGITS:
            return complete()
        job = asyncio.get_running_loop().run_in_executor(None, complete)
        try:
            return await asyncio.shield(job)
        except asyncio.CancelledError:
            # The thread goes on: nobody else may use the session before its end.
            await asyncio.wait([job])
            raise
