"""``draftwire service top``: what the service of this board does now, in a terminal."""

from __future__ import annotations

import argparse
import contextlib
import time
from collections import deque
from typing import Any, Iterator, Mapping, Sequence

from draftwire.cli import _common
from draftwire.cli._screen import WIDTH, watch
from draftwire.cli.service import sentence
from draftwire.energy import load_tables
from draftwire.energy.account.meter import read_context
from draftwire.energy.sources.choose import open_meter
from draftwire.errors import SensorError, TransportError
from draftwire.runtime.service.client import ServiceClient

SCHEMA = "draftwire.service.top/1"
_BARS = " ▁▂▃▄▅▆▇█"
_PHASES = ("prefill", "draft", "wait")


def run(args: argparse.Namespace) -> int:
    """Show it until a key is pressed."""
    seen: deque[tuple[float, int]] = deque(maxlen=61)
    document: dict[str, Any] = {}
    with _watts() as watts:

        def draw(_: int) -> list[str]:
            try:
                with ServiceClient(args.socket, timeout=10) as service:
                    found = service.status()
            except TransportError:
                seen.clear()
                raise
            seen.append((time.monotonic(), found["written"]))
            speeds = _speeds(seen)
            document.update(status=found, power=watts(), board=read_context())
            document["tokens_per_s"] = speeds[-1] if speeds else None
            return render(document, speeds, time.strftime("%H:%M:%S"))

        watch(args, draw)
    _common.give_json(args, {"schema": SCHEMA, **document})
    return 0


@contextlib.contextmanager
def _watts() -> Iterator[Any]:
    """Yield what reads the power of now: watts, scope and source, or why there are none."""
    try:
        meter = open_meter(load_tables())
    except SensorError as error:
        why = str(error)
        yield lambda: {"watts": None, "why_null": why}
        return

    def read() -> dict[str, Any]:
        last, total = meter.last, meter.projector.choice.total
        known = last is not None and not meter.broken and last.watts[0] == last.watts[0]
        return {
            "watts": float(last.watts[0]) if known and last is not None else None,
            "scope": None if total is None else total.scope,
            "source": meter.source.name,
        }

    with meter:
        yield read


def _speeds(seen: Sequence[tuple[float, int]]) -> list[float]:
    pairs = zip(seen, list(seen)[1:])
    return [max(0.0, (b - a) / (t - s)) if t > s else 0.0 for (s, a), (t, b) in pairs]


def render(document: Mapping[str, Any], speeds: list[float], clock: str = "") -> list[str]:
    """Return the lines of the view, each of at most 80 columns."""
    found, work = document["status"], document["status"]["work"]
    streams, link = found["streams"], found["link"]
    head = f"draftwire {found['version']}   {sentence(found)}"
    room = WIDTH - len(clock) - 1
    head = head if len(head) <= room else head[: room - 1] + "…"
    lines = [f"{head:{room}} {clock}".rstrip()]
    down = f", down {link['down_s']:.0f} s" if link["down_s"] else ""
    lines += [
        f"link {link['state']}{down}   reconnects {link['reconnects']}   programs "
        f"{found['clients']}   memory {found['memory_mib'] or 0:.0f} MiB   up "
        f"{found['uptime_s'] / 3600:.1f} h",
        f"streams {streams['running']} running, {streams['waiting']} waiting, "
        f"{streams['finished']} finished, {streams['cancelled']} cancelled, "
        f"{streams['failed']} failed",
        "",
    ]
    if speeds:
        most = max(speeds) or 1.0
        bars = "".join(_BARS[round(8 * speed / most)] for speed in speeds[-50:])
        lines.append(f"tokens/s   {speeds[-1]:6.1f}  {bars}")
    tokens, rounds = work.get("tokens"), work.get("rounds")
    if tokens:
        parts = []
        if work.get("drafted"):
            parts.append(f"{100 * work['accepted'] / work['drafted']:.0f} % of the drafts")
        if rounds:
            parts.append(f"{work['accepted'] / rounds:.2f} a block")
        parts.append(f"{work['target_forwards'] / tokens:.2f} target forwards a token")
        lines.append("accepted   " + ", ".join(parts))
        up, down_bytes = (work.get(f"bytes_{way}_payload") for way in ("up", "down"))
        if up is not None and down_bytes is not None:
            lines.append(
                f"bytes      {up / tokens:.1f} up, {down_bytes / tokens:.1f} down a token"
            )
        total = work.get("seconds_total")
        if total:
            took = ((name, work.get(f"seconds_{name}", 0)) for name in _PHASES)
            shares = [f"{name} {100 * seconds / total:.0f} %" for name, seconds in took]
            lines.append("time       " + ", ".join(shares))
    power, board = document["power"], document["board"]
    if power["watts"] is None:
        why = (power.get("why_null") or "not known yet").partition(":")[0]
        lines.append(f"power      {why}")
    else:
        joules = ""
        if work.get("joule_tokens"):
            joules = f", {work['joules'] / work['joule_tokens']:.3g} J a token"
        scope = power["scope"] or "rails"
        lines.append(
            f"power      {power['watts']:.2f} W ({scope}, {power['source']}){joules}"
        )
    heat = board.get("heat_c") or {}
    parts = [f"{name} {value:.0f} °C" for name, value in list(heat.items())[:5]]
    for name in ("power_mode", "throttled"):
        if board.get(name) not in (None, "0x0"):
            parts.append(f"{name.replace('_', ' ')} {board[name]}")
    if parts:
        lines.append("board      " + ", ".join(parts))
    return [_common.plain(line)[:WIDTH].rstrip() for line in lines]
