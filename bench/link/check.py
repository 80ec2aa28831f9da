"""``draftwire bench link check``: what an emulated link really does, beside the ideal.

The ideal is the model in virtual time; what is measured is a program like any other on
both ends of the emulator: ping-pong of 64 bytes, then bulk in each direction.
"""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from typing import Any

from draftwire.bench.link.emulate import Emulator, emulate
from draftwire.bench.link.model import MSS, TCP_IP, LinkModel, OutagePlan, StreamLink
from draftwire.bench.link.spec import DIRECTIONS, LinkSpec
from draftwire.bench.machine import machine
from draftwire.errors import ConfigError

__all__ = ["SCHEMA", "check_link", "render"]

SCHEMA = "draftwire.bench.link/1"
_PING = 64
_FREE_BYTES = 16 * 2**20  # in bulk when the link has no rate
_LEAST_BYTES = 64 * 1024
_BLOCK = bytes(65536)


class _Server(threading.Thread):
    """Echoes, swallows or pours: the first byte of a connection says which."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self._door = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._door.getsockname()[1]
        self.arrivals: list[tuple[float, int]] = []

    def run(self) -> None:
        """Serve until the door is closed."""
        while True:
            try:
                link, _ = self._door.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(link,), daemon=True).start()

    def close(self) -> None:
        """Let nobody in any more."""
        with contextlib.suppress(OSError):
            self._door.shutdown(socket.SHUT_RDWR)
        self._door.close()

    def _serve(self, link: socket.socket) -> None:
        link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with link, contextlib.suppress(OSError):
            what = link.recv(1)
            if what == b"e":
                while data := link.recv(4096):
                    link.sendall(data)
            elif what == b"s":
                self.arrivals = _swallow(link, None)
                link.sendall(b"!")
            elif what == b"p":
                _pour(link, int.from_bytes(_exactly(link, 8), "big"))
                link.recv(1)


def _exactly(link: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        piece = link.recv(count - len(data))
        if not piece:
            raise OSError("the other end closed the connection")
        data += piece
    return data


def _swallow(link: socket.socket, count: int | None) -> list[tuple[float, int]]:
    """Read ``count`` bytes, or to the end; return what came when."""
    got, arrivals = 0, []
    while count is None or got < count:
        piece = len(link.recv(65536))
        if not piece:
            break
        got += piece
        arrivals.append((time.monotonic(), piece))
    return arrivals


def _pour(link: socket.socket, count: int) -> None:
    while count > 0:
        link.sendall(_BLOCK[: min(count, len(_BLOCK))])
        count -= len(_BLOCK)


def check_link(
    spec: LinkSpec,
    method: str = "auto",
    *,
    pings: int = 200,
    seconds: float = 4.0,
    calibrate: bool = True,
) -> dict[str, Any]:
    """Measure an emulated link and compare it with the model.

    Args:
        spec: The link.
        method: As for `emulate`.
        pings: Round trips of 64 bytes, one after another.
        seconds: How long bulk should take in each direction at the ideal rate; pings
            stop after three times as long.
        calibrate: As for `emulate`.

    Returns:
        A document of schema `SCHEMA`.

    Raises:
        ConfigError: A number is out of range.
        BoardError: The method is not to be had here.
    """
    if pings < 2 or not 0 < seconds <= 600:
        raise ConfigError("too few pings, or seconds out of range")
    server = _Server()
    server.start()
    try:
        with emulate(spec, server.port, method, calibrate=calibrate) as link:
            started = time.monotonic()
            trips = _pings(link.url_port, pings, 3 * seconds)
            bulk = {way: _bulk(link, server, way, started, seconds) for way in DIRECTIONS}
            stats = link.stats()
            document = {
                "schema": SCHEMA,
                "link": spec.to_dict(),
                "method": link.method,
                "notes": link.notes,
                "scheduling": link.scheduling,
                "detour_us": link.detour_us,
            }
    finally:
        server.close()
    ideal = _ideal_trips(spec, len(trips))
    return {
        **document,
        "machine": machine(),
        "rtt_ms": {
            "count": len(trips),
            **{
                f"{name}_{which}": round(_at(values, share) * 1e3, 3)
                for which, values in (("ideal", ideal), ("measured", trips))
                for name, share in (("median", 0.5), ("p99", 0.99))
            },
        },
        "bulk": bulk,
        "loss": {way: _loss(spec, stats[way]) for way in DIRECTIONS},
        "lateness": stats["lateness"],
        "stats": stats,
    }


def _pings(port: int, count: int, most_s: float) -> list[float]:
    """Return the sorted round trips, seconds; at least two."""
    trips: list[float] = []
    with socket.create_connection(("127.0.0.1", port), timeout=120) as link:
        link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        link.sendall(b"e")
        link.sendall(bytes(_PING))  # the way is open before the first that counts
        _exactly(link, _PING)
        end = time.monotonic() + most_s
        while len(trips) < count and (len(trips) < 2 or time.monotonic() < end):
            start = time.perf_counter()
            link.sendall(bytes(_PING))
            _exactly(link, _PING)
            trips.append(time.perf_counter() - start)
    return sorted(trips)


def _ideal_trips(spec: LinkSpec, count: int) -> list[float]:
    """Return the sorted round trips of the model, as many as were measured."""
    outages = OutagePlan(spec.outages, spec.seed)
    up, down = (StreamLink(spec, way, outages=outages) for way in DIRECTIONS)
    now, trips = 0.0, []
    for _ in range(count):
        there = up.send_raw(now, _PING).arrival_s
        back = down.send_raw(there, _PING).arrival_s
        trips.append(back - now)
        now = back
    return sorted(trips)


def _bulk(
    link: Emulator, server: _Server, way: str, started: float, seconds: float
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
                _pour(sock, count)
                sock.shutdown(socket.SHUT_WR)
                sock.settimeout(60 + 6 * seconds)
                _exactly(sock, 1)
                arrivals = server.arrivals
            else:
                sock.settimeout(60 + 6 * seconds)
                sock.sendall(b"p" + count.to_bytes(8, "big"))
                arrivals = _swallow(sock, count)
                sock.sendall(b"!")
        except (OSError, TimeoutError) as exc:
            return {
                "bytes": 0,
                "mbit_s_ideal": None,
                "mbit_s_measured": None,
                "why": str(exc),
            }
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
    if "chunks" in counts:
        sent, lost = counts["chunks"], counts["stalls"]
    else:
        sent, lost = counts["packets"], counts["loss"]
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
        asked, found = (
            None if loss[name] is None else 100 * loss[name]
            for name in ("ideal", "measured")
        )
        rows.append((f"{way}, lost, %", asked, found))
    for name in ("median", "p99"):
        rows.append((f"lateness, {name}, us", None, late[f"{name}_us"]))
    return rows
