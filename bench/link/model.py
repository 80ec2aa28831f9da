"""When things arrive over a link, in virtual time: no sockets, no clocks, no sleeping.

``LinkModel`` is one direction of packets: a queue in front of a link with a rate or a
trace, outages, loss, a delay and jitter.  ``StreamLink`` is a reliable ordered
stream (TCP, websocket) on top.  The emulators ask them when to deliver; the simulator
asks them instead of waiting.  Everything random comes from the seed.
"""

from __future__ import annotations

import math
import random
from bisect import bisect_right
from statistics import NormalDist
from typing import NamedTuple

from draftwire.bench.link.spec import DIRECTIONS, Jitter, LinkSpec, Outages
from draftwire.bench.link.traces import Trace, read_trace

TCP_IP = 52  # IPv4 and TCP with timestamps, for each segment
MSS = 1448  # what a segment carries of an MTU of 1500
_ACK_APART_S = 0.040  # Linux waits so long for data to carry an acknowledgement
_MAX_RTO_S = 120.0
_TRIES = 64  # back-off has long passed every outage that a spec can hold


class Delivery(NamedTuple):
    """What became of a packet."""

    arrival_s: float | None  # when its last bit arrives, or None when it never does
    departure_s: float  # when its last bit left the queue
    lost: str = ""  # ``""``, ``"loss"`` or ``"outage"``


class OutagePlan:
    """When the link is gone; both directions of a link share one plan.

    Args:
        outages: Fixed and random ones.
        seed: Of the random ones.
    """

    def __init__(self, outages: Outages, seed: int) -> None:
        self._fixed = outages.fixed
        self._every_s = outages.every_s
        self._length_s = outages.length_s
        self._rng = random.Random(f"{seed}:outages")
        self.any = outages.any
        self._made: list[tuple[float, float]] = []
        self._until = 0.0

    def end_s(self, t_s: float) -> float | None:
        """Return when the outage at ``t_s`` is over, or None when there is none."""
        while self._every_s is not None and self._until <= t_s:
            start = self._until + self._rng.expovariate(1 / self._every_s)
            self._until = start + self._rng.expovariate(1 / self._length_s)
            self._made.append((start, self._until))
        ends = [start + length for start, length in self._fixed if start <= t_s]
        at = bisect_right(self._made, (t_s, math.inf)) - 1  # they never overlap
        if at >= 0:
            ends.append(self._made[at][1])
        last = max(ends, default=t_s)
        return last if last > t_s else None


class LinkModel:
    """One direction of a link, for packets.

    The queue is first in, first out; what leaves it takes the time that the rate or
    the trace says; then come outages and loss, the delay and the jitter.  Packets never
    overtake each other: one that is held up holds up those behind it.

    Args:
        spec: The link.
        direction: ``"up"`` or ``"down"``.
        seed: Instead of the spec's own.
        outages: Shared with the other direction; made from the seed when left out.
    """

    def __init__(
        self,
        spec: LinkSpec,
        direction: str,
        seed: int | None = None,
        *,
        outages: OutagePlan | None = None,
    ) -> None:
        if direction not in DIRECTIONS:
            raise ValueError(f"direction {direction!r} is neither up nor down")
        seed = spec.seed if seed is None else seed
        self.spec = spec
        self.direction = direction
        self.delay_s = spec.delay_s(direction)
        self.outages = OutagePlan(spec.outages, seed) if outages is None else outages
        path, self._steady = spec.trace(direction), spec.bit_s(direction)
        self._trace = None if path is None else read_trace(path)
        if self._steady is not None:
            self._trace = Trace.constant(self._steady)
        self._now_s = 0.0
        self._free_s = 0.0
        self._last_arrival_s = 0.0
        self._loss_rng = random.Random(f"{seed}:{direction}:loss")
        self._bad = False
        self._sure = not (spec.loss or spec.bursts or self.outages.any)
        self._jitter = _JitterDraws(spec.jitter, direction, seed)

    @property
    def trace(self) -> Trace | None:
        """The rate over time, or None when there is no limit."""
        return self._trace

    def send(self, now_s: float, nbytes: int) -> Delivery:
        """Put a packet of ``nbytes`` (all headers counted) on the link, ``now_s`` after it
        came up.

        A ValueError (our bug) where time runs backwards or the packet is empty.
        """
        if now_s < self._now_s:
            raise ValueError(f"sent at {now_s}, after {self._now_s}")
        if nbytes < 1:
            raise ValueError(f"a packet of {nbytes} bytes")
        self._now_s = now_s
        start = max(now_s, self._free_s)
        if self._trace is None:
            departure = start
        elif self._steady is not None:
            departure = start + 8.0 * nbytes / self._steady
        else:
            departure = self._trace.finish(start, nbytes)
        self._free_s = departure
        lost = self._lost(departure)
        if lost:
            return Delivery(None, departure, lost)
        arrival = departure + self.delay_s
        if self._jitter.on:
            arrival += self._jitter.draw(departure)
        self._last_arrival_s = max(arrival, self._last_arrival_s)
        return Delivery(self._last_arrival_s, departure)

    def resend(self, t_s: float, nbytes: int) -> Delivery:
        """Say what would become of a packet at some later time, past the queue.

        For a stream's retransmissions, which are few and lie in the future of what is
        sent next.  Takes dice like `send`, but leaves the queue alone.
        """
        departure = t_s if self._trace is None else self._trace.finish(t_s, nbytes)
        lost = self._lost(departure)
        return Delivery(None if lost else departure + self.delay_s, departure, lost)

    def queued_bytes(self, now_s: float) -> int:
        """Return the bytes that wait for the link, or are on it, at ``now_s``: what the
        rate lets through until it is free.
        """
        if self._trace is None or self._free_s <= now_s:
            return 0
        until, since = map(self._trace.bits_until, (self._free_s, now_s))
        return round((until - since) / 8)

    def free_s(self) -> float:
        """Return when the queue will be empty if nothing more is sent."""
        return self._free_s

    def _lost(self, departure_s: float) -> str:
        if self._sure:
            return ""
        # The dice fall whether or not there is an outage: one change, one difference.
        lost = self._loss_rng.random() < self.spec.loss
        bursts = self.spec.bursts
        if bursts is not None:
            turn = self._loss_rng.random()
            self._bad = turn >= bursts.leave if self._bad else turn < bursts.enter
            hit = self._loss_rng.random() < bursts.loss
            lost = lost or (self._bad and hit)
        if self.outages.end_s(departure_s) is not None:
            return "outage"
        return "loss" if lost else ""


class _JitterDraws:
    """Correlated extra delays: a Gaussian walk through the quantiles of the kind."""

    def __init__(self, jitter: Jitter, direction: str, seed: int) -> None:
        self._jitter = jitter
        self.on = jitter.kind != "none" and direction in jitter.directions
        self._rng = random.Random(f"{seed}:{direction}:jitter")
        self._normal = NormalDist()
        self._z: float | None = None
        self._at_s = 0.0

    def draw(self, t_s: float) -> float:
        """Return the extra seconds of a packet that leaves at ``t_s``."""
        fresh = self._rng.gauss(0.0, 1.0)
        if self._z is None:
            self._z = fresh
        else:
            apart = max(0.0, t_s - self._at_s) / self._jitter.step_s
            kept = math.pow(self._jitter.correlation, apart)
            self._z = kept * self._z + math.sqrt(1 - kept * kept) * fresh
        self._at_s = max(t_s, self._at_s)
        return self._extra(self._z)

    def _extra(self, z: float) -> float:
        kind, spread = self._jitter.kind, self._jitter.spread_s
        if kind == "normal":
            return abs(z) * spread
        u = self._normal.cdf(z)
        if kind == "uniform":
            return 2 * spread * u
        if kind == "pareto":  # Lomax: mean scale / (exponent - 1)
            return 2 * spread * (math.pow(1 - min(u, 1 - 1e-6), -1 / 3) - 1)
        return _quantile(self._jitter.quantiles, u)


def _quantile(table: tuple[tuple[float, float], ...], u: float) -> float:
    """Return the ``u``-quantile: straight lines, and a power law for the tail."""
    for (p0, x0), (p1, x1) in zip(table, table[1:]):
        if u <= p1:
            if p0 < 0.5 or x0 <= 0 or x1 <= x0 or p1 >= 1:
                return x0 + (x1 - x0) * (u - p0) / (p1 - p0)
            share = math.log((1 - u) / (1 - p0)) / math.log((1 - p1) / (1 - p0))
            return x0 * math.exp(share * math.log(x1 / x0))
    return table[-1][1]


class StreamDelivery(NamedTuple):
    """What became of a message on a stream: it always arrives."""

    arrival_s: float  # when its last byte can be read
    wire_bytes: int  # what it cost, headers and retransmissions counted
    ack_bytes: int  # a bare acknowledgement the other way, when no data carries it
    retransmissions: int  # segments sent again


def segments(nbytes: int) -> list[int]:
    """Return the sizes on the wire of the segments that carry ``nbytes`` of a stream."""
    whole, rest = divmod(nbytes, MSS)
    return [MSS + TCP_IP] * whole + ([rest + TCP_IP] if rest or not whole else [])


def websocket_bytes(payload: int, *, client: bool) -> int:
    """Return the bytes of the TCP stream for one binary message, headers of it apart.

    Source:
        RFC 6455 section 5.2: 2, 4 or 10 bytes, 4 more for the mask of a client.
    """
    header = 2 if payload < 126 else 4 if payload < 65536 else 10
    return payload + header + (4 if client else 0)


def rto_s(rtt_s: float) -> float:
    """Return the time after which TCP sends a lost lone segment again.

    Source:
        RFC 6298 with Linux's floor of 200 ms on four deviations (``tcp_rto_min``), one
        timer tick and a quarter of the round trip for its variation: 0.31 s at 82 ms.
    """
    return 0.2 + 1.25 * rtt_s + 0.004


class StreamLink:
    """One direction of a reliable ordered stream over a link, in virtual time.

    A lost segment is sent again after a retransmission timeout, which doubles; when
    three segments of its message follow it, after a round trip.  What comes behind
    waits for it.  An outage loses everything that leaves the queue in it, so that the
    stream comes back at the first retransmission after its end.  A window that still
    grows is not modelled: long messages are a little too fast on long links.

    Args:
        spec: The link.
        direction: ``"up"`` (from the websocket client, masked) or ``"down"``.
        model: The packets' link, when several streams share one.
    """

    def __init__(
        self,
        spec: LinkSpec,
        direction: str,
        *,
        model: LinkModel | None = None,
    ) -> None:
        self.model = model or LinkModel(spec, direction)
        self._client = direction == "up"
        self._rtt_s = spec.rtt_s
        # Where nothing is random a message is as good as its segments, and cheaper.
        self._whole = not (spec.loss or spec.bursts or spec.outages.any) and (
            spec.jitter.kind == "none"
        )
        self._arrived_s = 0.0
        self._recovered_s = 0.0
        self._sent_s = -math.inf

    def send(self, now_s: float, payload: int) -> StreamDelivery:
        """Send one websocket message of ``payload`` bytes; ``now_s`` never falls."""
        return self.send_raw(now_s, websocket_bytes(payload, client=self._client))

    def send_raw(self, now_s: float, nbytes: int) -> StreamDelivery:
        """Send ``nbytes`` of the TCP stream as they are."""
        ack = TCP_IP if now_s - self._sent_s > _ACK_APART_S else 0
        self._sent_s = now_s
        if self._whole:
            sizes = [nbytes + TCP_IP * max(1, -(-nbytes // MSS))]
        else:
            sizes = segments(nbytes)
        total = again = 0
        for i, size in enumerate(sizes):
            found = self.model.send(now_s, size)
            total += size
            arrival = found.arrival_s
            if arrival is None:
                arrival, tries = self._recover(found, size, len(sizes) - 1 - i)
                total += size * tries
                again += tries
            self._arrived_s = max(self._arrived_s, arrival)
        return StreamDelivery(self._arrived_s, total, ack, again)

    def _recover(self, found: Delivery, size: int, behind: int) -> tuple[float, int]:
        """Return when a lost segment arrives after all, and how often it was resent."""
        timeout = rto_s(self._rtt_s)
        lost_s = found.departure_s
        if self._recovered_s > lost_s:  # behind a segment that is being recovered
            at = self._recovered_s + self._rtt_s
        elif behind >= 3 and found.lost == "loss":
            at = lost_s + self._rtt_s
        else:
            at = lost_s + timeout
            timeout *= 2
        for tries in range(1, _TRIES):
            resent = self.model.resend(at, size)
            if resent.arrival_s is not None:
                self._recovered_s = max(self._recovered_s, resent.departure_s)
                return resent.arrival_s, tries
            at += min(timeout, _MAX_RTO_S)
            timeout = min(2 * timeout, _MAX_RTO_S)
        # Loss above nine in ten, for ever: the connection would have been given up.
        self._recovered_s = max(self._recovered_s, at)
        return at + self.model.delay_s, _TRIES


class TwoWays:
    """Both directions of a link, for one connection after another.

    Args:
        spec: The link.
        seed: Instead of the spec's own.

    Attributes:
        models: Of the packets up and down.
    """

    def __init__(self, spec: LinkSpec, seed: int | None = None) -> None:
        self._spec = spec
        plan = OutagePlan(spec.outages, spec.seed if seed is None else seed)
        self.models = [LinkModel(spec, way, seed, outages=plan) for way in DIRECTIONS]

    def connection(self) -> list[StreamLink]:
        """Return a fresh reliable stream in each direction."""
        ways = zip(DIRECTIONS, self.models)
        return [StreamLink(self._spec, way, model=model) for way, model in ways]
