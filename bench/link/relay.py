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

from draftwire.bench.link.clock import fine_loop
from draftwire.bench.link.proxy import LinkProxy
from draftwire.bench.link.spec import LinkSpec

_CONNECT_S = 60.0  # a connection may be asked for in an outage

SocketMaker = Callable[[], socket.socket]
Route = tuple[socket.socket, socket.socket, tuple[str, int], tuple[str, int]]
"""Listening here, listening at the far end, that end's address, the target."""


async def _serve(routes: list[Route], near_socket: SocketMaker) -> None:
    """Two relays a route, each a proxy of a link that costs nothing."""
    for here, there, address, target in routes:
        near = LinkProxy(LinkSpec(), address, near_socket, _CONNECT_S)
        await near.start(door=here)
        await LinkProxy(LinkSpec(), target, patience_s=_CONNECT_S).start(door=there)
    await asyncio.Event().wait()


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
