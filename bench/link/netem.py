"""A link by the kernel's own netem, where there is one: two namespaces and a veth pair.

netem knows delay, rate, loss and a queue of packets; it knows no traces and no outages,
and its jitter reorders packets, so links with those go through the proxy.

A program connects to a port of this machine; a relay passes that on from one namespace to
the other, across the pair, and from there to the server: TCP on the link is the kernel's
own, sees real loss, and has real windows. Nothing here outlives its process, however it
ends: namespaces are held by file descriptors. Needs CAP_SYS_ADMIN and CAP_NET_ADMIN.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import shutil
import socket
import subprocess
from typing import Any, Iterator

from draftwire.bench.link.proxy import LinkProxy
from draftwire.bench.link.spec import DIRECTIONS, LinkSpec
from draftwire.errors import BoardError

_MTU = 1514  # what netem counts a full packet as, Ethernet header included
_CLONE_NEWNET = 0x40000000
_HERE = "/proc/thread-self/ns/net"
_DEVICES = {"up": "dw-near", "down": "dw-far"}  # by the direction that they slow down
_NEAR, _FAR = "10.213.7.1", "10.213.7.2"  # in private namespaces: nobody else sees them
_CONNECT_S = 60.0


class Namespace:
    """A network namespace, new and empty; the calling thread stays where it is.

    Raises:
        BoardError: The kernel does not allow it.
    """

    def __init__(self) -> None:
        with _coming_home():
            if ctypes.CDLL(None, use_errno=True).unshare(_CLONE_NEWNET):
                raise BoardError(
                    f"no network namespace: {os.strerror(ctypes.get_errno())}",
                    hint="run as root, or use --method proxy",
                )
            self.fd = os.open(_HERE, os.O_RDONLY | os.O_CLOEXEC)
            # The connection that times the detour, with no delay at all, would otherwise
            # teach the kernel a round trip of microseconds for those after it.
            with contextlib.suppress(OSError):  # an old kernel has one switch for all
                with open("/proc/sys/net/ipv4/tcp_no_metrics_save", "w") as switch:
                    switch.write("1\n")

    @contextlib.contextmanager
    def inside(self) -> Iterator[None]:
        """Put the calling thread into the namespace for the block."""
        with _coming_home():
            _enter(self.fd)
            yield

    def socket(self) -> socket.socket:
        """Return a TCP socket that lives in the namespace."""
        with self.inside():
            return socket.socket(socket.AF_INET, socket.SOCK_STREAM)

    def run(self, *words: str) -> str:
        """Run a command in it; return what it prints (BoardError: it fails)."""
        line = " ".join(words)
        try:
            with self.inside():
                done = subprocess.run(
                    words, capture_output=True, text=True, timeout=10, check=False
                )
        except (OSError, subprocess.TimeoutExpired) as exc:
            raise BoardError(f"`{line}` did not run: {exc}") from exc
        if done.returncode:
            said = done.stderr.strip().splitlines()
            why = f"`{words[0]}` says: {said[-1]}" if said else f"`{line}` failed"
            raise BoardError(why)
        return done.stdout


@contextlib.contextmanager
def _coming_home() -> Iterator[None]:
    """Bring the calling thread back to its namespace after the block."""
    home = os.open(_HERE, os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield
    finally:
        _enter(home)
        os.close(home)


def _enter(fd: int) -> None:
    if ctypes.CDLL(None, use_errno=True).setns(fd, _CLONE_NEWNET):
        number = ctypes.get_errno()
        raise BoardError(f"cannot enter a network namespace: {os.strerror(number)}")


def why_not_netem(spec: LinkSpec) -> str:
    """Return what of this link netem cannot do, or ``""``."""
    if spec.trace_up or spec.trace_down:
        return "netem replays no traces"
    if spec.outages.any:
        return "netem has no outages"
    if spec.jitter.kind != "none":
        return "netem's jitter reorders packets"
    return ""


def why_no_netem() -> str:
    """Return why netem cannot be had on this machine, or ``""`` when it can."""
    for tool in ("ip", "tc"):
        if shutil.which(tool) is None:
            return f"there is no `{tool}` (iproute2)"
    try:
        space = Namespace()
    except (BoardError, OSError) as exc:
        return str(exc)
    try:
        space.run(*"tc qdisc add dev lo root netem delay 1ms".split())
    except BoardError as exc:
        return f"the kernel has no netem: {exc}"
    finally:
        os.close(space.fd)
    return ""


def netem_words(spec: LinkSpec, direction: str, *, less_s: float = 0.0) -> list[str]:
    """Return the words after ``tc qdisc add dev X root`` for one direction.

    Args:
        spec: A link that `why_not_netem` has nothing against.
        direction: ``"up"`` or ``"down"``.
        less_s: Taken off the delay: what the detour itself costs, one way.

    Source:
        tc-netem(8): ``gemodel p r 1-h``, all in percent; ``limit`` counts packets.
    """
    delay_s = max(0.0, spec.delay_s(direction) - less_s)
    words = ["netem", "delay", f"{delay_s * 1e6:.0f}us"]
    if spec.bursts is not None:
        b = spec.bursts
        shares = [f"{100 * share:g}%" for share in (b.enter, b.leave, b.loss)]
        words += ["loss", "gemodel", *shares, f"{100 * spec.loss:g}%"]
    elif spec.loss:
        words += ["loss", "random", f"{100 * spec.loss:g}%"]
    rate = spec.bit_s(direction)
    if rate is not None:
        words += ["rate", f"{rate:.0f}bit", "-14"]  # no Ethernet on the link meant here
    waiting = 10000
    if spec.queue_bytes is not None:
        # netem holds the packets in flight in the same queue.
        flying = 0 if rate is None else delay_s * rate / 8 / _MTU
        waiting = max(1, round(spec.queue_bytes / _MTU + flying))
    return [*words, "limit", str(waiting)]


class NetemLink:
    """A veth pair between two namespaces, slowed down by the kernel, and its relay.

    Args:
        spec: The link; one that costs nothing is left to the pair itself.
        target: Where connections go in the end.

    Raises:
        BoardError: netem, ip or a namespace is not to be had.
    """

    def __init__(self, spec: LinkSpec, target: tuple[str, int]) -> None:
        self.spec, self.target = spec, target
        self.compensation_s = 0.0  # one way; what the detour itself costs
        self._near, self._far = Namespace(), Namespace()
        self._spaces = {"up": self._near, "down": self._far}
        # A name with a slash is a path to `ip`; ours have no name but the descriptor.
        far = f"/proc/{os.getpid()}/fd/{self._far.fd}"
        pair = f"type veth peer name dw-far netns {far}".split()
        self._near.run("ip", "link", "add", "dw-near", *pair)
        for space, device, at in (
            (self._near, "dw-near", _NEAR),
            (self._far, "dw-far", _FAR),
        ):
            space.run("ip", "address", "add", f"{at}/30", "dev", device)
            space.run("ip", "link", "set", device, "up")

    async def start(self, listen_port: int = 0) -> int:
        """Slow the pair down and listen on loopback; return the port.

        Raises:
            BoardError: The kernel refuses.
            OSError: The port is taken.
        """
        if self.spec != LinkSpec():
            for way, device in _DEVICES.items():
                words = netem_words(self.spec, way, less_s=self.compensation_s)
                space = self._spaces[way]
                space.run("tc", "qdisc", "replace", "dev", device, "root", *words)
        door = self._far.socket()
        door.bind((_FAR, 0))
        door.listen(128)
        # Each end of the relay is a proxy of a link that costs nothing.
        there = LinkProxy(LinkSpec(), self.target, patience_s=_CONNECT_S)
        await there.start(door=door)
        near = self._near.socket
        here = LinkProxy(LinkSpec(), door.getsockname(), near, _CONNECT_S)
        self._relay = (here, there)
        return await here.start(listen_port)

    def report(self) -> dict[str, Any]:
        """Return what the kernel counted for each direction."""
        found: dict[str, Any] = {}
        for way in DIRECTIONS:
            words = ("tc", "-s", "qdisc", "show", "dev", _DEVICES[way])
            text = self._spaces[way].run(*words)
            sent = re.search(r"Sent (\d+) bytes (\d+) pkts? \(dropped (\d+)", text)
            numbers = [None] * 3 if sent is None else [int(x) for x in sent.groups()]
            found[way] = dict(zip(("bytes", "packets", "loss"), numbers))
        return {**found, "lateness": {"count": 0, "median_us": None, "p99_us": None}}

    async def stop(self) -> None:
        """End the relay; devices and namespaces go with their descriptors."""
        for proxy in self._relay:
            await proxy.stop()
        for space in self._spaces.values():
            os.close(space.fd)
