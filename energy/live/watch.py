"""What the meter sees now: rails, phases and the session in a terminal (``draftwire energy
watch``), a page of text for Prometheus (``--http``), and Grafana's dashboard for it."""

from __future__ import annotations

import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Callable, Iterator, Sequence

from draftwire.energy.account.account import Account
from draftwire.energy.account.meter import Meter
from draftwire.energy.files.recording import Recorder
from draftwire.energy.live.marks import MarkListener
from draftwire.energy.live.record import pull
from draftwire.energy.reports.text import prometheus
from draftwire.errors import ConfigError

EVERY_S = 0.5
BAR = 28
SPARK = " \u2581\u2582\u2583\u2584\u2585\u2586\u2587\u2588"


def frames(
    meter: Meter, marks: MarkListener, seconds: float | None = None
) -> Iterator[tuple[Account, str]]:
    """Yield the account and the text of each frame until the time (None: for ever) is
    over."""
    account = Account(meter, mirror=False).start("run")
    nowhere = Recorder(None, meter.source, meter.projector)
    history: list[float] = []
    while True:
        time.sleep(EVERY_S)
        pull(marks, account, nowhere)
        elapsed_s = (meter.clock() - account.start_ns) * 1e-9
        if meter.last is not None and meter.last.watts[0] == meter.last.watts[0]:
            history = [*history[-59:], meter.last.watts[0]]
        yield account, render(meter, account, elapsed_s, history)
        if meter.source.over or (seconds is not None and elapsed_s >= seconds):
            return


def render(
    meter: Meter, account: Account, elapsed_s: float, history: Sequence[float] = ()
) -> str:
    """Return one frame as plain text."""
    source, choice = meter.source, meter.projector.choice
    total, (watt, *rails) = choice.total, _now(meter) or [None]
    kind = " (modelled, not measured)" if source.kind == "modelled" else ""
    lines = [f"{source.name}{kind}, {meter.hz:g} Hz, {elapsed_s:.1f} s"]
    if meter.broken:
        lines.append(f"the sensor does not answer: {meter.broken}")
    if meter.last is None:
        return "\n".join([*lines, "no sample yet"])
    named = dict(zip(meter.projector.rails, rails))
    top = max([1e-9, *(abs(w) for w in named.values() if w is not None), *history])

    def row(name: str, text: str) -> None:
        lines.append(f"{name:<22}{text}")

    def bar(name: str, watt: float | None) -> None:
        filled = max(0, min(BAR, round(BAR * (watt or 0.0) / top)))
        row(name, f"{'-':>9}" if watt is None else f"{watt:7.2f} W {'#' * filled}")

    if total is None:
        lines.append(f"no total: {choice.why_none}")
    else:
        bar(f"total, {total.scope}", watt)
    for rail, power in named.items():
        bar(f"{'+' if total and rail in total.rails else ' '} {rail}", power)
    if history:
        low = min(0.0, *history)
        span = (max(history) - low) or 1.0
        row("last samples", "".join(SPARK[int(8 * (w - low) / span)] for w in history))
    joules = account.joules()
    row("session", "-" if joules is None else f"{joules:.2f} J")
    for phase, mean in account.watts_by_phase().items():
        row(f"  in {phase}", "-" if mean is None else f"{mean:.2f} W")
    if meter.failed_reads:
        lines.append(f"{meter.failed_reads} reads failed")
    return "\n".join(lines)


def _now(meter: Meter) -> list[float | None]:
    """Return the last sample, None where a signal could not be read; or nothing."""
    vector = [] if meter.last is None else meter.last.watts
    return [watt if watt == watt else None for watt in vector]


def as_event(account: Account, meter: Meter) -> dict[str, Any]:
    """Return one line for ``--json``."""
    total, known = meter.projector.choice.total, _now(meter)
    return {
        "schema": "draftwire.energy-watch/1",
        "total_w": known[0] if known else None,
        "scope": total and total.scope,
        "rails_w": dict(zip(meter.projector.rails, known[1:])),
        "energy_j": account.joules(),
        "watts_by_phase": account.watts_by_phase(),
        "source": meter.source.name,
    }


def live_metrics(meter: Meter, account: Account, board: str | None = None) -> str:
    """Return the metrics of this moment in the Prometheus text format."""
    total, source, integral = meter.projector.choice.total, meter.source, account.integral
    labels = {"source": source.name, "kind": source.kind}
    labels.update(scope=total.scope if total else "", board=board or "")
    known = [] if meter.broken else _now(meter)
    named = zip(meter.projector.rails, known[1:])
    rails = [({**labels, "rail": rail}, watt) for rail, watt in named]

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
