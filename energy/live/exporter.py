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


def live_metrics(meter: Meter, account: Account, board: str | None = None) -> str:
    """Return the metrics of this moment in the Prometheus text format."""
    choice, last, source = meter.projector.choice, meter.last, meter.source
    scope = choice.total.scope if choice.total else ""
    labels = {"source": source.name, "kind": source.kind, "scope": scope}
    labels["board"] = board or ""
    vector = [] if last is None or meter.broken else last.watts
    known = [watt if watt == watt else None for watt in vector]
    rails = [
        ({**labels, "rail": rail}, watt)
        for rail, watt in zip(meter.projector.rails, known[1:])
    ]
    integral = account.integral

    def one(kind: str, text: str, value: float | None) -> tuple[str, str, Any]:
        return kind, text, [(labels, value)]

    seen = None if integral is None else integral.joules[0] - integral.hole_j
    unseen = None if integral is None else integral.hole_s[0]
    counts = "Energy of what samples cover", "Time that no sample covers"
    up, failed = "Whether the sensor answers", "Reads that gave nothing"
    return prometheus(
        {
            "power_watts": one("gauge", "Power of the total", known[0] if known else None),
            "power_rail_watts": ("gauge", "Power of a rail", rails),
            "energy_joules_total": one("counter", counts[0], seen),
            "energy_uncovered_seconds_total": one("counter", counts[1], unseen),
            "energy_failed_reads_total": one("counter", failed, meter.failed_reads),
            "energy_sensor_up": one("gauge", up, int(not meter.broken)),
        }
    )


def serve(
    meter: Meter,
    address: str,
    *,
    seconds: float | None = None,
    board: str | None = None,
    say: Callable[[str], None] = print,
    ready: Callable[[int], None] = lambda port: None,
) -> None:
    """Serve ``/metrics`` until the time is over or Ctrl-C; a ConfigError for a bad
    address."""
    host, colon, port = address.rpartition(":")
    if not colon or not port.isdigit():
        raise ConfigError(f"--http {address}", hint="HOST:PORT, for example :9477")
    account = Account(meter, clock=meter.clock, mirror=False).start("run")

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
    threading.Thread(target=server.serve_forever, daemon=True).start()
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
