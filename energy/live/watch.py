"""``draftwire energy watch``: rails, phases and the session, live in a terminal."""

from __future__ import annotations

import time
from typing import Any, Callable, Iterator, Sequence

from draftwire.energy.account.account import Account
from draftwire.energy.account.meter import Meter
from draftwire.energy.live.marks import MarkListener
from draftwire.energy.live.record import pull

BAR = 28
SPARK = " \u2581\u2582\u2583\u2584\u2585\u2586\u2587\u2588"


def frames(
    meter: Meter,
    marks: MarkListener,
    *,
    every_s: float = 0.5,
    seconds: float | None = None,
    sleep: Callable[[float], None] = time.sleep,
) -> Iterator[tuple[Account, str]]:
    """Yield the account and the text of each frame until the time (None: for ever) is
    over."""
    account = Account(meter, mirror=False).start("run")
    history: list[float] = []
    while True:
        sleep(every_s)
        pull(marks, account)
        elapsed_s = (meter.clock() - account.start_ns) * 1e-9
        if meter.last is not None and meter.last.watts[0] == meter.last.watts[0]:
            history = [*history[-59:], meter.last.watts[0]]
        yield account, render(meter, account, elapsed_s, history)
        if seconds is not None and elapsed_s >= seconds:
            return


def render(
    meter: Meter, account: Account, elapsed_s: float, history: Sequence[float] = ()
) -> str:
    """Return one frame as plain text."""
    source, last = meter.source, meter.last
    total = meter.projector.choice.total
    kind = " (modelled, not measured)" if source.kind == "modelled" else ""
    lines = [f"{source.name}{kind}, {meter.hz:g} Hz, {elapsed_s:.1f} s"]
    if meter.broken:
        lines.append(f"the sensor does not answer: {meter.broken}")
    if last is None:
        return "\n".join([*lines, "no sample yet"])
    rails = dict(zip(meter.projector.rails, last.watts[1:]))
    top = max([1e-9, *(abs(w) for w in rails.values() if w == w), *history])

    def bar(name: str, watt: float) -> str:
        filled = max(0, min(BAR, round(BAR * watt / top))) if watt == watt else 0
        power = f"{watt:7.2f} W {'#' * filled}" if watt == watt else f"{'-':>9}"
        return f"{name:<22}{power}"

    if total is None:
        lines.append(f"no total: {meter.projector.choice.why_none}")
    else:
        lines.append(bar(f"total, {total.scope}", last.watts[0]))
    for rail, watt in rails.items():
        lines.append(bar(f"{'+' if total and rail in total.rails else ' '} {rail}", watt))
    if history:
        low = min(0.0, *history)
        span = (max(history) - low) or 1.0
        marks = "".join(SPARK[int(8 * (w - low) / span)] for w in history)
        lines.append(f"{'last samples':<22}{marks}")
    joules = account.joules()
    lines.append(f"{'session':<22}{'-' if joules is None else f'{joules:.2f} J'}")
    for phase, power in account.watts_by_phase().items():
        text = "-" if power is None else f"{power:.2f} W"
        lines.append(f"{'  in ' + phase:<22}{text}")
    if meter.failed_reads:
        lines.append(f"{meter.failed_reads} reads failed")
    return "\n".join(lines)


def as_event(account: Account, meter: Meter) -> dict[str, Any]:
    """Return one line for ``--json``."""
    total = meter.projector.choice.total
    vector = [] if meter.last is None else meter.last.watts
    known = [watt if watt == watt else None for watt in vector]
    return {
        "schema": "draftwire.energy-watch/1",
        "total_w": known[0] if known else None,
        "scope": total and total.scope,
        "rails_w": dict(zip(meter.projector.rails, known[1:])),
        "energy_j": account.joules(),
        "watts_by_phase": account.watts_by_phase(),
        "source": meter.source.name,
    }
