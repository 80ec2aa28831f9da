"""A link of packets: two namespaces, two TUN devices, and this process between them.

Packets of real TCP connections wait, are paced, dropped and delivered as ``LinkModel``
says.  Works without netem; needs root and /dev/net/tun.

A program connects to a port of this machine; the relay, a process of its own, opens a
connection from one namespace to the other, across the emulated link, and from there on to
the server: TCP on the link is the kernel's own, sees real loss, and has real windows.
"""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import os
import select
import socket
import time
from typing import Any, Callable, Tuple

from draftwire.bench.link.clock import Lateness, fine_loop
from draftwire.bench.link.model import LinkModel, OutagePlan
from draftwire.bench.link.netns import Namespace, open_tun, set_address
from draftwire.bench.link.proxy import LinkProxy
from draftwire.bench.link.spec import DIRECTIONS, LinkSpec

NEAR, FAR = "10.213.7.1", "10.213.7.2"  # in private namespaces: nobody else sees them
_MAX_PACKET = 65536
_BATCH = 64
_CONNECT_S = 60.0  # a connection may be asked for in an outage

SocketMaker = Callable[[], socket.socket]
Address = Tuple[str, int]
Route = Tuple[socket.socket, socket.socket, Address, Address]
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

    ``near_socket`` makes a socket in the near namespace. Returns its process id, and a
    descriptor: it ends when that is closed.
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


class SpacesLink:
    """What both kinds of packet links are: two namespaces, and a relay at their ends.

    Attributes:
        spec: The link.
        ports: Of 127.0.0.1, one for each target.
    """

    def __init__(self, spec: LinkSpec) -> None:
        self.spec = spec
        self.near, self.far = Namespace(), Namespace()

    def open(self, targets: list[tuple[tuple[str, int], int]]) -> None:
        """Listen on both sides for each target and listening port; start the relay.

        Raises:
            OSError: A port is taken.
        """
        routes: list[Route] = []
        for target, listen_port in targets:
            here = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
            here.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            here.bind(("127.0.0.1", listen_port))
            here.listen(128)
            there = self.far.socket()
            there.bind((FAR, 0))
            there.listen(128)
            routes.append((here, there, there.getsockname(), target))
        self.ports = [route[0].getsockname()[1] for route in routes]
        self.relay, self._lifeline = fork_relay(routes, self.near.socket)
        for here, there, _, _ in routes:
            here.close()
            there.close()

    def alive(self) -> bool:
        """Return whether the relay still runs."""
        return os.waitpid(self.relay, os.WNOHANG) == (0, 0)

    def close(self) -> None:
        """End the relay; devices and namespaces go with their descriptors."""
        os.close(self._lifeline)
        os.waitpid(self.relay, 0)
        for space in (self.near, self.far):
            os.close(space.fd)


class TunLink(SpacesLink):
    """Carries packets between two namespaces; call `pump` until it returns.

    Args:
        spec: The link.
        targets: Where connections go in the end, each with the port to listen on.

    Raises:
        BoardError: No namespace or no TUN device is to be had.
        OSError: A port is taken.
    """

    def __init__(self, spec: LinkSpec, targets: list[tuple[tuple[str, int], int]]) -> None:
        super().__init__(spec)
        with self.near.inside():
            near_fd = open_tun("dw-near")
            set_address("dw-near", NEAR)
        with self.far.inside():
            far_fd = open_tun("dw-far")
            set_address("dw-far", FAR)
        self._ways = {near_fd: ("up", far_fd), far_fd: ("down", near_fd)}
        self.open(targets)
        self.compensation_s = 0.0
        self.lateness = Lateness()
        self.use(LinkSpec())

    def use(self, spec: LinkSpec) -> None:
        """Follow ``spec`` from now on: the link's time starts again at 0."""
        outages = OutagePlan(spec.outages, spec.seed)
        self.models = {way: LinkModel(spec, way, outages=outages) for way in DIRECTIONS}
        names = ("packets", "bytes", "queue", "loss", "outage")
        self.counts = {way: dict.fromkeys(names, 0) for way in DIRECTIONS}
        self.lateness = Lateness()
        self.start_s = time.monotonic()
        self._heap: list[tuple[float, int, str, int, bytes]] = []
        self._order = 0

    def report(self) -> dict[str, Any]:
        """Return what has passed, what was dropped and why, and how late it was."""
        return {**self.counts, "lateness": self.lateness.report()}

    def close(self) -> None:
        super().close()
        for fd in self._ways:
            os.close(fd)

    def pump(self, control_fd: int, control: Callable[[], bool]) -> None:
        """Carry packets until ``control``, called when ``control_fd`` can be read, returns
        False.
        """
        watched = [*self._ways, control_fd]
        while True:
            ordered = self._heap[0][0] - self.lateness.lead_s if self._heap else None
            now = time.monotonic()
            wait = None if ordered is None else max(0.0, ordered - now)
            ready, _, _ = select.select(watched, [], [], wait)
            if not ready and ordered is not None and wait:
                self.lateness.woke(time.monotonic() - ordered)
                rest = self._heap[0][0] - time.monotonic()
                if rest > 5e-6:
                    ready, _, _ = select.select(watched, [], [], rest)
            for fd in ready:
                if fd != control_fd:
                    self._take(fd)
            self._deliver()
            if control_fd in ready and not control():
                return

    def _take(self, fd: int) -> None:
        way, out = self._ways[fd]
        counts, model = self.counts[way], self.models[way]
        for _ in range(_BATCH):
            try:
                packet = os.read(fd, _MAX_PACKET)
            except BlockingIOError:
                return
            if packet[0] >> 4 != 4:
                continue  # the kernel's own IPv6 chatter
            at = time.monotonic() - self.start_s
            found = model.send(at, len(packet))
            counts["packets"] += 1
            counts["bytes"] += len(packet)
            if found.arrival_s is None:
                counts[found.lost] += 1
                continue
            # What the detour itself costs is taken off, but never more than the wait.
            due = self.start_s + max(at, found.arrival_s - self.compensation_s)
            self._order += 1
            heapq.heappush(self._heap, (due, self._order, way, out, packet))

    def _deliver(self) -> None:
        while self._heap:
            now = time.monotonic()
            due, _, way, fd, packet = self._heap[0]
            if due > now + 5e-6:
                return
            heapq.heappop(self._heap)
            self.lateness.done(now - due)
            try:
                os.write(fd, packet)
            except OSError:
                # The device takes no more just now: a packet lost, as on a real link.
                self.counts[way]["queue"] += 1
