"""Reading that yields: frames go to the parser in turn, each connection within its budget.

The bytes of a connection wait here and not in the parser. Whoever has something to be
read gets a turn of few frames; who has had turns and still has more waits behind those
who come, and all those who wait take at most half of the time. Every frame counts: pings
and fragments, blocks of dead branches, what belongs to no stream. What is over the budget
of a connection or of its token is not read, so the network slows the sender down.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from typing import TYPE_CHECKING, Any

from websockets.asyncio.server import ServerConnection

from draftwire.verifier.serving.limits import Limits, Rate

if TYPE_CHECKING:
    from draftwire.verifier.serving.accounts import Usage

TURN_FRAMES = 16
TURN_BYTES = 64 << 10  # of one large frame: 0.1 ms to unmask
FRAGMENTS = 4096  # of one message
LONGEST_S = 0.002  # that reading holds up everything else


class Intake:
    """Whose turn it is."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self._coming: deque[Reader] = deque()
        self._waiting: deque[Reader] = deque()  # those who had a turn and have more
        self._rest = 0.0  # when one of those may have another
        self._next: asyncio.Handle | None = None
        self._soon = False

    def want(self, reader: Reader) -> None:
        """Let ``reader`` have a turn soon."""
        if not reader.queued:
            reader.queued = True
            self._coming.append(reader)
            self._plan()

    def _plan(self) -> None:
        soon = bool(self._coming)
        if self._next is not None:
            if self._soon or not soon:
                return
            self._next.cancel()
        loop = asyncio.get_running_loop()
        self._soon = soon
        if soon:
            self._next = loop.call_soon(self._turn)
        else:
            self._next = loop.call_later(self._rest - time.perf_counter(), self._turn)

    def _turn(self) -> None:
        self._next = None
        begin = now = time.perf_counter()
        # What has come meanwhile is read together, so that it shares a forward.
        for _ in range(len(self._coming)):
            self._serve(self._coming)
            now = time.perf_counter()
            if now - begin > LONGEST_S:
                break
        if self._waiting and now >= self._rest:
            self._serve(self._waiting)
            end = time.perf_counter()
            self._rest = 2 * end - now
        if self._coming or self._waiting:
            self._plan()

    def _serve(self, queue: deque[Reader]) -> None:
        reader = queue.popleft()
        if reader.turn():
            self._waiting.append(reader)
        else:
            reader.queued = False


class Reader(ServerConnection):
    """A server connection of websockets whose bytes wait for their turn.

    ``account_usage`` is of the device's account, once that is known.
    """

    def __init__(self, intake: Intake, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.account_usage: Usage | None = None
        self.queued = False
        self._intake = intake
        self._start(intake.limits)

    def _start(self, limits: Limits) -> None:
        self.frames = 0
        self._bytes = bytearray()
        self._left = 0  # bytes of the frame that the parser is in
        self._fragments = 0
        self._full = False  # as many messages wait as may
        self._stopped = False  # the transport does not read
        self._pause: asyncio.TimerHandle | None = None  # the budget is used up
        self._frame_rate = Rate(limits.frames_per_s, limits.frames_per_s / 2)
        burst = max(2.0 * limits.bytes_per_s, 2.0 * limits.message_bytes)
        self._byte_rate = Rate(limits.bytes_per_s, burst)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the place of the queue's own way to stop the transport."""
        super().connection_made(transport)
        transport.max_size = TURN_BYTES  # type: ignore[attr-defined]
        self.recv_messages.pause = self._queue_full
        self.recv_messages.resume = self._queue_free

    def data_received(self, data: bytes) -> None:
        """Keep ``data`` until its turn."""
        self._bytes += data
        self._go_on()

    def eof_received(self) -> None:
        """The peer sends no more: a last turn, then the end."""
        self.turn()
        super().eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget what was not read."""
        if self._pause is not None:
            self._pause.cancel()
        self._bytes.clear()
        super().connection_lost(exc)

    def resume_writing(self) -> None:
        """What was sent has been read: read on."""
        super().resume_writing()
        self._go_on()

    def _queue_full(self) -> None:
        self._full = True

    def _queue_free(self) -> None:
        self._full = False
        self._go_on()

    def _go_on(self) -> None:
        stop = len(self._bytes) >= TURN_BYTES
        if stop is not self._stopped:
            self._stopped = stop
            self.transport.pause_reading() if stop else self.transport.resume_reading()
        if self._bytes and self._pause is None:
            self._intake.want(self)

    def turn(self) -> bool:
        """Give the parser what a turn may hold; return whether there is more to give."""
        # Answers to pings that nobody reads would pile up.
        held = self._full or self.paused or self._pause is not None
        if held or self.transport.is_closing():
            return False
        size, frames = self._next()
        if not size:
            return False
        now, usage = self.loop.time(), self.account_usage
        wait = max(
            self._frame_rate.take(frames, now),
            self._byte_rate.take(size, now),
            0.0 if usage is None else usage.frame_rate.take(frames, now),
        )
        if wait:
            self._pause = self.loop.call_later(wait, self._covered)
        self.frames += frames
        data = bytes(self._bytes[:size])
        del self._bytes[:size]
        self.parse(data)
        self._go_on()
        return bool(self._bytes) and self._pause is None and not self._full

    def charge(self, frames: int) -> None:
        """Count what costs more than a frame: it is paid for before the next turn."""
        now, usage = self.loop.time(), self.account_usage
        self._frame_rate.take(frames, now)
        if usage is not None:
            usage.frame_rate.take(frames, now)

    def parse(self, data: bytes) -> None:
        """Give ``data`` to the parser of websockets."""
        super().data_received(data)

    def send_data(self) -> None:
        """Write the answers of a turn as one, and not each by itself."""
        writes = self.protocol.data_to_send()
        joined = len(writes) > 1 and all(writes)  # b"" among them is the end
        self.protocol.writes = [b"".join(writes)] if joined else writes
        super().send_data()

    def _covered(self) -> None:
        self._pause = None
        self._go_on()

    def _next(self) -> tuple[int, int]:
        """Return how many bytes make a turn, and how many frames begin in them.

        Source: RFC 6455, section 5.2.
        """
        data = self._bytes
        if self.request is None:
            end = data.find(b"\r\n\r\n")
            return (len(data) if end < 0 else end + 4), 1
        at = min(self._left, len(data), TURN_BYTES)
        self._left -= at
        frames = 0
        while not self._left and frames < TURN_FRAMES and at < TURN_BYTES:
            head = data[at : at + 14]
            if len(head) < 2:
                break
            kind, size = head[0] & 0x8F, head[1] & 0x7F
            if size > 125:
                wide = 2 if size == 126 else 8
                if len(head) < 2 + wide:
                    break
                size = wide + int.from_bytes(head[2 : 2 + wide], "big")
            size += 2 + (head[1] >> 5 & 4)
            if not kind & 0x08:  # no control frame
                self._fragments = 0 if kind & 0x80 else self._fragments + 1
                if self._fragments > FRAGMENTS:
                    self.transport.abort()
                    return 0, 0
            frames += 1
            here = min(size, len(data) - at, TURN_BYTES)
            at, self._left = at + here, size - here
        return at, frames
