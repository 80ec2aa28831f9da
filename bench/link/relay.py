"""The two ends of a link that joins private namespaces, as one process.

A program connects to a port of this machine; the relay opens a connection from one
namespace to the other, across the emulated link, and from there on to the server.
TCP on the link is the kernel's own: it sees real loss, and its windows are real.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from typing import Callable

from draftwire.bench.link.clock import fine_loop, reset

__all__ = ["Route", "fork_relay"]

_CONNECT_S = 60.0  # a connection may be asked for in an outage
_HIGH_WATER = 64 * 1024

SocketMaker = Callable[[], socket.socket]
Route = tuple[socket.socket, socket.socket, tuple[str, int], tuple[str, int]]
"""Listening here, listening at the far end, that end's address, the target."""


class _End(asyncio.Protocol):
    """One end of a pair; passes on what it gets, and how it ends."""

    def __init__(self) -> None:
        self.transport: asyncio.Transport | None = None
        self.other: _End | None = None
        self._early: list[bytes] = []
        self._eof = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        transport.set_write_buffer_limits(high=_HIGH_WATER)
        transport.get_extra_info("socket").setsockopt(
            socket.IPPROTO_TCP, socket.TCP_NODELAY, 1
        )

    def join(self, other: _End) -> None:
        """Pass on to ``other`` what came already, and all that comes."""
        self.other = other
        if self.transport is not None and not self.transport.is_closing():
            self.transport.resume_reading()
        early, self._early = self._early, []
        for data in early:
            self.data_received(data)
        if self._eof:
            self.eof_received()
        if self.transport is None or self.transport.is_closing():
            other.cut()

    def data_received(self, data: bytes) -> None:
        if self.other is None or self.other.transport is None:
            self._early.append(data)
        elif not self.other.transport.is_closing():
            self.other.transport.write(data)

    def eof_received(self) -> bool:
        self._eof = True
        if self.other is not None and self.other.transport is not None:
            with contextlib.suppress(OSError):
                self.other.transport.write_eof()
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        if self.other is not None:
            if exc is None and self.other.transport is not None:
                self.other.transport.close()
            else:
                self.other.cut()

    def cut(self) -> None:
        """Reset this end."""
        reset(self.transport)

    def pause_writing(self) -> None:
        if self.other is not None and self.other.transport is not None:
            self.other.transport.pause_reading()

    def resume_writing(self) -> None:
        if self.other is not None and self.other.transport is not None:
            if not self.other.transport.is_closing():
                self.other.transport.resume_reading()


async def _pass_on(
    accepted: socket.socket, make: SocketMaker, address: tuple[str, int]
) -> None:
    """Join an accepted connection to one that is opened for it."""
    loop = asyncio.get_running_loop()
    transport, near = await loop.connect_accepted_socket(_End, accepted)
    transport.pause_reading()  # nothing to pass it on to yet
    sock = make()
    sock.setblocking(False)
    try:
        await asyncio.wait_for(loop.sock_connect(sock, address), _CONNECT_S)
        _, far = await loop.create_connection(_End, sock=sock)
    except (OSError, asyncio.TimeoutError):
        sock.close()
        near.cut()
        return
    far.join(near)
    near.join(far)


async def _accept(
    listening: socket.socket, make: SocketMaker, address: tuple[str, int]
) -> None:
    loop = asyncio.get_running_loop()
    listening.setblocking(False)
    tasks: set[asyncio.Task[None]] = set()
    while True:
        accepted, _ = await loop.sock_accept(listening)
        accepted.setblocking(False)
        task = loop.create_task(_pass_on(accepted, make, address))
        tasks.add(task)
        task.add_done_callback(tasks.discard)


async def _serve(routes: list[Route], near_socket: SocketMaker) -> None:
    def plain() -> socket.socket:
        return socket.socket(socket.AF_INET, socket.SOCK_STREAM)

    doors = []
    for here, there, address, target in routes:
        doors.append(_accept(here, near_socket, address))
        doors.append(_accept(there, plain, target))
    await asyncio.gather(*doors)


def fork_relay(routes: list[Route], near_socket: SocketMaker) -> tuple[int, int]:
    """Start the relay as a child that ends with this process.

    Args:
        routes: What to listen on and where to pass it on to.
        near_socket: Makes a socket in the near namespace.

    Returns:
        Its process id, and a descriptor: it ends when that is closed.
    """
    watched, lifeline = os.pipe()
    child = os.fork()
    if child:
        os.close(watched)
        return child, lifeline
    status = 1
    try:  # the child never returns into its parent's code
        os.close(lifeline)
        # Not real-time like the packets' process: when two such processes wake each
        # other, the kernel moves its network work to an ordinary thread (ksoftirqd),
        # and on cores that are kept busy half of the round trips took 40 ms more.
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, 0, -20)
        loop = fine_loop()
        loop.add_reader(watched, loop.stop)
        serving = loop.create_task(_serve(routes, near_socket))
        serving.add_done_callback(lambda _: loop.stop())
        loop.run_forever()
        status = 0
    finally:
        os._exit(status)
