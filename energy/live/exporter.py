"""Live power for Prometheus: one page of text, and Grafana's dashboard for it."""

from __future__ import annotations

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Callable

from draftwire.energy.account.account import Account
from draftwire.energy.account.meter import Meter
from draftwire.energy.reports.text import prometheus
from draftwire.errors import ConfigError

__all__ = ["dashboard", "live_metrics", "serve"]


def live_metrics(meter: Meter, account: Account, board: str | None = None) -> str:
    """Return the metrics of this moment in the Prometheus text format."""
    choice, last = meter.projector.choice, meter.last
    labels = {
        "source": meter.source.name,
        "kind": meter.source.kind,
        "scope": choice.total.scope if choice.total else "",
        "board": board or "",
    }
    rails, total = [], None
    if last is not None and not meter.broken:
        total = last.watts[0] if last.watts[0] == last.watts[0] else None
        known = [w if w == w else None for w in last.watts[1:]]
        rails = [
            ({**labels, "rail": rail}, watt)
            for rail, watt in zip(meter.projector.rails, known)
        ]
    integral = account._integral
    covered = None if integral is None else integral.joules[0] - integral.hole_j
    holes = None if integral is None else integral.hole_s[0]
    return prometheus(
        {
            "power_watts": ("gauge", "Power of the total", [(labels, total)]),
            "power_rail_watts": ("gauge", "Power of a rail", rails),
            "energy_joules_total": (
                "counter", "Energy of what samples cover", [(labels, covered)]
            ),
            "energy_uncovered_seconds_total": (
                "counter", "Time that no sample covers", [(labels, holes)]
            ),
            "energy_failed_reads_total": (
                "counter", "Reads that gave nothing", [(labels, meter.failed_reads)]
            ),
            "energy_sensor_up": (
                "gauge", "Whether the sensor answers", [(labels, int(not meter.broken))]
            ),
        }
    )  # fmt: skip


def serve(
    meter: Meter,
    address: str,
    *,
    seconds: float | None = None,
    board: str | None = None,
    say: Callable[[str], None] = print,
    ready: Callable[[int], None] = lambda port: None,
) -> None:
    """Serve ``/metrics`` until the time is over or Ctrl-C.

    Args:
        meter: A started meter.
        address: ``HOST:PORT`` or ``:PORT``; port 0 takes any.
        seconds: How long, or None.
        board: Name of the board, for the labels.
        say: Gets the address in a sentence.
        ready: Gets the port.

    Raises:
        ConfigError: The address cannot be used.
    """
    host, colon, port = address.rpartition(":")
    if not colon or not port.isdigit():
        raise ConfigError(f"--http {address}", hint="HOST:PORT, for example :9477")
    account = Account(meter, clock=meter._clock, mirror=False).start("run")

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:  # noqa: N802
            found = self.path.split("?")[0] == "/metrics"
            text = live_metrics(meter, account, board) if found else "see /metrics\n"
            self.send_response(200 if found else 404)
            self.send_header("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
            self.send_header("Content-Length", str(len(text.encode())))
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, *args: Any) -> None:
            """Scrapes are not worth a line."""

    try:
        server = ThreadingHTTPServer((host, int(port)), Handler)
    except (OSError, OverflowError) as exc:
        raise ConfigError(f"cannot serve at {address}: {exc}") from exc
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    say(f"metrics at http://{host or '0.0.0.0'}:{server.server_port}/metrics")
    ready(server.server_port)
    try:
        threading.Event().wait(seconds)
    except KeyboardInterrupt:
        pass
    finally:
        server.shutdown()
        server.server_close()
        account.result()


def dashboard() -> str:
    """Return a Grafana dashboard of these metrics, as JSON."""
    return Path(__file__).with_name("grafana.json").read_text(encoding="utf-8")
