"""A link as a TCP proxy: needs no privilege, sees bytes and not packets.

Delay, jitter, rate, trace, queue and outages follow ``StreamLink``.  A lost packet
cannot be lost here: it is imitated as the stall that TCP would make of it.  The kernel
accepts a connection at once, so opening one costs no round trip, as it would over a
real link.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections import deque
from functools import partial
from typing import Any, Callable

from draftwire.bench.link.clock import Lateness, reset
from draftwire.bench.link.model import MSS, StreamLink, TwoWays
from draftwire.bench.link.spec import DIRECTIONS, LinkSpec

_QUEUE_BYTES = 256 * 1024  # how far a writer may run ahead of the link


class LinkProxy:
    """Listens on loopback and passes every connection on, as slowly as the link.

    Args:
        spec: The link; all connections share its rate.
        target: Host and port of the real server.
        make: Makes the socket that connects to it; None takes any.
        patience_s: For a connection to it.
    """

    def __init__(
        self,
        spec: LinkSpec,
        target: tuple[str, int],
        make: Callable[[], socket.socket] | None = None,
        patience_s: float = 10.0,
    ) -> None:
        self.spec = spec
        self.target = target
        self.patience_s = patience_s
        self._make = make
        self.port = 0
        self.compensation_s = 0.0  # one way; what the detour itself costs
        self.lateness = Lateness()
        self.counts: dict[str, Any] = {
            way: {"chunks": 0, "bytes": 0, "wire_bytes": 0, "stalls": 0}
            for way in DIRECTIONS
        }
        self.counts["connections"] = 0
        self.models = dict(zip(DIRECTIONS, TwoWays(spec).models))
        self.start_s = 0.0
        self._server: asyncio.AbstractServer | None = None
        self.sides: set[_Side] = set()
        self.waiting: set[asyncio.Task[None]] = set()

    async def start(self, listen_port: int = 0, door: socket.socket | None = None) -> int:
        """Listen, or take the connections of a ``door``; return the port. The link's time
        starts now.

        An OSError where the port is taken.
        """
        loop = asyncio.get_running_loop()
        where: dict[str, Any] = {"host": "127.0.0.1", "port": listen_port}
        where = where if door is None else {"sock": door}
        self._server = await loop.create_server(lambda: _Side(self, "up"), **where)
        self.port = self._server.sockets[0].getsockname()[1]
        self.start_s = loop.time()
        return self.port

    async def connect(self) -> _Side:
        """Return the other end of a new connection to the target.

        Raises:
            OSError: It does not come about.
        """
        loop = asyncio.get_running_loop()
        host, port = self.target
        if self._make is None:
            made = await loop.create_connection(lambda: _Side(self, "down"), host, port)
            return made[1]
        sock = self._make()
        try:
            sock.setblocking(False)
            await loop.sock_connect(sock, (host, port))
            made = await loop.create_connection(lambda: _Side(self, "down"), sock=sock)
        except BaseException:
            sock.close()
            raise
        return made[1]

    async def stop(self) -> None:
        """Stop listening and cut what is open."""
        if self._server is not None:
            self._server.close()
        for task in list(self.waiting):
            task.cancel()
        for side in list(self.sides):
            side.abort()
        await asyncio.sleep(0)

    def report(self) -> dict[str, Any]:
        """Return what has passed and how late it was."""
        return {**self.counts, "lateness": self.lateness.report()}


class _Side(asyncio.Protocol):
    """One end of a connection: what comes in here goes to the other end, later."""

    def __init__(self, proxy: LinkProxy, direction: str) -> None:
        self._proxy = proxy
        self._direction = direction
        self._loop = asyncio.get_running_loop()
        self._stream = StreamLink(proxy.spec, direction, model=proxy.models[direction])
        rate = proxy.models[direction].trace
        bytes_a_ms = 0.0 if rate is None else max(rate.rates) / 8e3
        # Segments one by one where the rate is felt, otherwise as they come.
        self._chunk = 2**18 if rate is None else MSS * max(1, int(bytes_a_ms / MSS))
        self._transport: asyncio.Transport | None = None
        self._other: _Side | None = None
        self._early = b""
        self._due: deque[tuple[float, Callable[[], None]]] = deque()
        self._choked = False  # by the other end's slow reader
        self._ahead = False  # of the link

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._proxy.sides.add(self)
        sock = transport.get_extra_info("socket")
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self._direction == "up":
            transport.pause_reading()
            self._proxy.counts["connections"] += 1
            task = self._loop.create_task(self._connect())
            self._proxy.waiting.add(task)
            task.add_done_callback(self._proxy.waiting.discard)

    async def _connect(self) -> None:
        proxy = self._proxy
        try:
            other = await asyncio.wait_for(proxy.connect(), proxy.patience_s)
        except (OSError, asyncio.TimeoutError):
            self.abort()
            return
        self._other, other._other = other, self
        if self._transport is None or self._transport.is_closing():
            other.abort()
        else:
            self._transport.resume_reading()
        if other._early:
            early, other._early = other._early, b""
            other.data_received(early)

    def data_received(self, data: bytes) -> None:
        if self._other is None:  # a server that speaks first
            self._early += data
            return
        now = self._loop.time()
        proxy, counts = self._proxy, self._proxy.counts[self._direction]
        at = now - proxy.start_s
        for i in range(0, len(data), self._chunk):
            piece = data[i : i + self._chunk]
            found = self._stream.send_raw(at, len(piece))
            counts["chunks"] += 1
            counts["bytes"] += len(piece)
            counts["wire_bytes"] += found.wire_bytes
            counts["stalls"] += found.retransmissions
            due = proxy.start_s + found.arrival_s - proxy.compensation_s
            self._later(max(now, due), partial(self._other.write, piece))
        model = proxy.models[self._direction]
        limit = proxy.spec.queue_bytes or _QUEUE_BYTES
        queued = model.queued_bytes(at)
        if queued > limit and not self._ahead:
            self._ahead = True
            self._flow()
            # Again when half of it has gone; a fair guess is enough.
            wait = (model.free_s() - at) * (1 - limit / 2 / queued)
            self._loop.call_later(max(wait, 0.001), self._caught_up)

    def eof_received(self) -> bool:
        self._end(lambda other: other.write_eof())
        return True  # the other direction goes on

    def connection_lost(self, exc: Exception | None) -> None:
        self._proxy.sides.discard(self)
        self._transport = None
        self._end(lambda other: other.close() if exc is None else other.abort())

    def _end(self, act: Callable[[_Side], None]) -> None:
        other = self._other
        if other is not None:
            now = self._loop.time()
            found = self._stream.send_raw(now - self._proxy.start_s, 0)
            self._later(self._proxy.start_s + found.arrival_s, lambda: act(other))

    def _later(self, due: float, act: Callable[[], None]) -> None:
        """Do something at its time, after everything that was put here before."""
        self._due.append((due, act))
        if len(self._due) == 1:
            self._drain()

    def _drain(self) -> None:
        """Do what is due; wake up a little early for the next, then wait for the rest."""
        lateness = self._proxy.lateness
        while self._due:
            due, act = self._due[0]
            now = self._loop.time()
            if now < due - 5e-6:
                early = due - lateness.lead_s
                if now < early:
                    self._loop.call_at(early, self._woke, early)
                else:
                    self._loop.call_at(due, self._drain)
                return
            self._due.popleft()
            lateness.done(now - due)
            act()

    def _woke(self, ordered: float) -> None:
        self._proxy.lateness.woke(self._loop.time() - ordered)
        self._drain()

    def write(self, data: bytes) -> None:
        """Send to this end."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(data)

    def write_eof(self) -> None:
        """Tell this end that nothing more comes."""
        if self._transport is not None and not self._transport.is_closing():
            with contextlib.suppress(OSError):
                self._transport.write_eof()

    def close(self) -> None:
        """Close this end after what was written."""
        if self._transport is not None:
            self._transport.close()

    def abort(self) -> None:
        """Reset this end."""
        reset(self._transport)

    def pause_writing(self, choked: bool = True) -> None:
        if self._other is not None:
            self._other._choked = choked
            self._other._flow()

    def resume_writing(self) -> None:
        self.pause_writing(choked=False)

    def _caught_up(self) -> None:
        self._ahead = False
        self._flow()

    def _flow(self) -> None:
        transport = self._transport
        if transport is None or transport.is_closing():
            return
        if self._choked or self._ahead:
            transport.pause_reading()
        else:
            transport.resume_reading()
