"""``draftwire bench link check``: what an emulated link really does, beside the ideal.

The ideal is the model in virtual time; what is measured is a program like any other on
both ends of the emulator: ping-pong of 64 bytes, then bulk in each direction.
"""

from __future__ import annotations

import socket
import time
from typing import Any

from draftwire.bench.link.emulate import Emulator, emulate
from draftwire.bench.link.model import MSS, TCP_IP, LinkModel, TwoWays
from draftwire.bench.link.probe import PING, Server, exactly, pour, round_trips, swallow
from draftwire.bench.link.spec import DIRECTIONS, LinkSpec
from draftwire.bench.machine import machine
from draftwire.errors import ConfigError

SCHEMA = "draftwire.bench.link/1"
_FREE_BYTES = 16 * 2**20  # in bulk when the link has no rate
_LEAST_BYTES = 64 * 1024


def check_link(
    spec: LinkSpec,
    method: str = "auto",
    *,
    pings: int = 200,
    seconds: float = 4.0,
    calibrate: bool = True,
) -> dict[str, Any]:
    """Measure an emulated link and compare it with the model; return the document.

    ``pings`` round trips of 64 bytes, then bulk that takes ``seconds`` in each direction at
    the ideal rate; pings stop after three times as long. A ConfigError where a number is
    out of range, a BoardError where the method is not to be had here.
    """
    if pings < 2 or not 0 < seconds <= 600:
        raise ConfigError("too few pings, or seconds out of range")
    server = Server()
    try:
        with emulate(spec, server.port, method, calibrate=calibrate) as link:
            started = time.monotonic()
            trips = round_trips(link.url_port, pings, 3 * seconds)
            bulk = {way: _bulk(link, server, way, started, seconds) for way in DIRECTIONS}
            stats = link.stats()
            keys = ("method", "notes", "scheduling", "detour_us")
            about = {key: getattr(link, key) for key in keys}
    finally:
        server.close()
    rtt: dict[str, Any] = {"count": len(trips)}
    for which, values in (("ideal", _ideal_trips(spec, len(trips))), ("measured", trips)):
        for name, share in (("median", 0.5), ("p99", 0.99)):
            rtt[f"{name}_{which}"] = round(_at(values, share) * 1e3, 3)
    return {
        "schema": SCHEMA,
        "link": spec.to_dict(),
        **about,
        "machine": machine(),
        "rtt_ms": rtt,
        "bulk": bulk,
        "loss": {way: _loss(spec, stats[way]) for way in DIRECTIONS},
        "lateness": stats["lateness"],
        "stats": stats,
    }


def _ideal_trips(spec: LinkSpec, count: int) -> list[float]:
    """Return the sorted round trips of the model, as many as were measured."""
    up, down = TwoWays(spec).connection()
    now, trips = 0.0, []
    for _ in range(count):
        there = up.send_raw(now, PING).arrival_s
        back = down.send_raw(there, PING).arrival_s
        trips.append(back - now)
        now = back
    return sorted(trips)


def _bulk(
    link: Emulator, server: Server, way: str, started: float, seconds: float
) -> dict[str, Any]:
    """Send so much that it takes ``seconds`` at the ideal rate; return both rates."""
    trace = LinkModel(link.spec, way).trace
    wire_share = MSS / (MSS + TCP_IP)
    at = time.monotonic() - started
    if trace is None:
        count, ideal = _FREE_BYTES, None
    else:
        bits = trace.bits_until(at + seconds) - trace.bits_until(at)
        count = max(_LEAST_BYTES, int(bits / 8 * wire_share))
    with socket.create_connection(("127.0.0.1", link.url_port), timeout=60) as sock:
        try:
            if way == "up":
                sock.sendall(b"s")
                pour(sock, count)
                sock.shutdown(socket.SHUT_WR)
                sock.settimeout(60 + 6 * seconds)
                exactly(sock, 1)
                arrivals = server.arrivals
            else:
                sock.settimeout(60 + 6 * seconds)
                sock.sendall(b"p" + count.to_bytes(8, "big"))
                arrivals = swallow(sock, count)
                sock.sendall(b"!")
        except (OSError, TimeoutError) as exc:
            nothing = dict.fromkeys(("mbit_s_ideal", "mbit_s_measured"))
            return {"bytes": 0, **nothing, "why": str(exc)}
    first, got = arrivals[0][0], sum(size for _, size in arrivals)
    took = max(arrivals[-1][0] - first, 1e-9)
    got -= arrivals[0][1]
    if trace is not None:
        # What the same bytes would take alone, from when the first of them came.
        begin = first - started - link.spec.delay_s(way)
        ideal = trace.finish(begin, got / wire_share) - begin
    return {
        "bytes": got,
        "mbit_s_ideal": None if ideal is None else round(got * 8e-6 / ideal, 3),
        "mbit_s_measured": round(got * 8e-6 / took, 3),
    }


def _loss(spec: LinkSpec, counts: dict[str, Any]) -> dict[str, Any]:
    """Return the share asked for and the share that came, of packets or of chunks."""
    bursts = 0.0 if spec.bursts is None else spec.bursts.mean_loss
    asked = 1 - (1 - spec.loss) * (1 - bursts)
    names = ("chunks", "stalls") if "chunks" in counts else ("packets", "loss")
    sent, lost = (counts[name] for name in names)
    measured = None if not sent or lost is None else round(lost / sent, 5)
    return {"ideal": round(asked, 5), "measured": measured, "sent": sent}


def _at(values: list[float], share: float) -> float:
    return values[min(len(values) - 1, int(share * len(values)))]


def render(document: dict[str, Any]) -> list[tuple[str, Any, Any]]:
    """Return the rows of a table: what, ideal, measured."""
    rtt, late = document["rtt_ms"], document["lateness"]
    rows: list[tuple[str, Any, Any]] = [
        (f"round trip, {name}, ms", rtt[f"{name}_ideal"], rtt[f"{name}_measured"])
        for name in ("median", "p99")
    ]
    for way in DIRECTIONS:
        bulk, loss = document["bulk"][way], document["loss"][way]
        rows.append((f"{way}, Mbit/s", bulk["mbit_s_ideal"], bulk["mbit_s_measured"]))
        shares = (loss[name] for name in ("ideal", "measured"))
        asked, found = (None if share is None else 100 * share for share in shares)
        rows.append((f"{way}, lost, %", asked, found))
    for name in ("median", "p99"):
        rows.append((f"lateness, {name}, us", None, late[f"{name}_us"]))
    return rows
