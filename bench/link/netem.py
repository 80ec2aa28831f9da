"""A link by the kernel's own netem, where there is one: two namespaces and a veth pair.

netem knows delay, rate, loss and a queue of packets; it knows no traces and no outages,
and its jitter reorders packets, so links with those go over TUN.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
from typing import Any

from draftwire.bench.link.netns import Namespace, set_address
from draftwire.bench.link.spec import DIRECTIONS, LinkSpec
from draftwire.bench.link.tun import FAR, NEAR, SpacesLink
from draftwire.errors import BoardError

_MTU = 1514  # what netem counts a full packet as, Ethernet header included


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
        _run(space, ["tc", "qdisc", "add", "dev", "lo", "root", "netem", "delay", "1ms"])
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


class NetemLink(SpacesLink):
    """A veth pair between two namespaces, slowed down by the kernel.

    Args:
        spec: The link.
        targets: Where connections go in the end, each with the port to listen on.

    Raises:
        BoardError: netem, ip or a namespace is not to be had.
        OSError: A port is taken.
    """

    def __init__(self, spec: LinkSpec, targets: list[tuple[tuple[str, int], int]]) -> None:
        super().__init__(spec)
        # A name with a slash is a path to `ip`; ours have no name but the descriptor.
        far = f"/proc/{os.getpid()}/fd/{self.far.fd}"
        pair = ["type", "veth", "peer", "name", "dw-far", "netns", far]
        _run(self.near, ["ip", "link", "add", "dw-near", *pair])
        with self.far.inside():
            set_address("dw-far", FAR)
        with self.near.inside():
            set_address("dw-near", NEAR)
        self.open(targets)

    def use(self, *, less_s: float = 0.0) -> None:
        """Slow the link down from now on.

        Raises:
            BoardError: The kernel refuses.
        """
        for way, space, device in zip(
            DIRECTIONS, (self.near, self.far), ("dw-near", "dw-far")
        ):
            words = netem_words(self.spec, way, less_s=less_s)
            _run(space, ["tc", "qdisc", "replace", "dev", device, "root", *words])

    def report(self) -> dict[str, Any]:
        """Return what the kernel counted for each direction."""
        found: dict[str, Any] = {}
        for way, space, device in zip(
            DIRECTIONS, (self.near, self.far), ("dw-near", "dw-far")
        ):
            text = _run(space, ["tc", "-s", "qdisc", "show", "dev", device])
            sent = re.search(r"Sent (\d+) bytes (\d+) pkts? \(dropped (\d+)", text)
            numbers = [None] * 3 if sent is None else [int(x) for x in sent.groups()]
            found[way] = dict(zip(("bytes", "packets", "loss"), numbers))
        return {**found, "lateness": {"count": 0, "median_us": None, "p99_us": None}}


def _run(space: Namespace, words: list[str]) -> str:
    """Run a command in a namespace."""
    try:
        with space.inside():
            done = subprocess.run(
                words, capture_output=True, text=True, timeout=10, check=False
            )
    except (OSError, subprocess.TimeoutExpired) as exc:
        raise BoardError(f"`{' '.join(words)}` did not run: {exc}") from exc
    if done.returncode:
        with contextlib.suppress(IndexError):
            raise BoardError(f"`{words[0]}` says: {done.stderr.strip().splitlines()[-1]}")
        raise BoardError(f"`{' '.join(words)}` failed")
    return done.stdout
