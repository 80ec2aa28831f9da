"""From a stream's events to the chunks that its user iterates over."""

from __future__ import annotations

import queue
import time
from typing import Any, Callable, Iterator

from draftwire.runtime.actions import Finished, Revise
from draftwire.runtime.options import Chunk
from draftwire.runtime.screen import Screen
from draftwire.runtime.stream_facts import StreamFacts

__all__ = ["chunks_of"]


def chunks_of(
    out: queue.Queue[Any],
    screen: Screen,
    facts: StreamFacts,
    deadline_s: float | None,
    stop: Callable[[str], None],
) -> Iterator[Chunk]:
    """Yield chunks until the stream ends.

    Args:
        out: Emit, Revise and Finished actions, or the exception that ends the stream.
        screen: Turns tokens into text.
        facts: Gets what the user saw, and why it ended.
        deadline_s: Seconds from ``facts.began`` after which to stop, or None.
        stop: Ends the stream from this side, with a reason.

    Raises:
        DraftwireError: The stream failed.
    """
    while True:
        left = None
        if deadline_s is not None:
            left = max(0.0, facts.began + deadline_s - time.perf_counter())
        try:
            event = out.get(timeout=left)
        except queue.Empty:
            stop("deadline")
            deadline_s = None
            continue
        now = time.perf_counter() - facts.began
        if isinstance(event, Exception):
            facts.finish = "error"
            raise event
        if isinstance(event, Finished):
            rest = screen.flush()
            facts.finish = event.reason
            facts.take(screen)
            yield Chunk(rest, (), now, event.reason, unverified=screen.unverified)
            return
        if isinstance(event, Revise):
            screen.revise(event.position)
            facts.take(screen)
            yield Chunk(
                "",
                (),
                now,
                unverified=screen.unverified,
                revision=event.position,
                kept_text=screen.text,
            )
            continue
        final = event.tokens[0].kind != "unverified"
        if final and facts.first_token_s is None:
            facts.first_token_s = now
        piece = screen.push(event)
        facts.take(screen)
        if screen.stopped and final:
            facts.finish = "stop"
            stop("stop")
            yield Chunk(piece, event.tokens, now, "stop")
            return
        yield Chunk(
            piece,
            event.tokens,
            now,
            verified=final,
            unverified=screen.unverified,
        )
