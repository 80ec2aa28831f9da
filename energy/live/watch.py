"""``draftwire energy watch``: rails, phases and the session, live in a terminal."""

from __future__ import annotations

import time
from typing import Any, Callable, Iterator, Sequence

from draftwire.energy.account.account import Account
from draftwire.energy.account.meter import Meter
from draftwire.energy.live.marks import MarkListener
from draftwire.energy.live.record import TOKENS as COUNTS

__all__ = ["frames", "render"]

BAR = 28
SPARK = " \u2581\u2582\u2583\u2584\u2585\u2586\u2587\u2588"


def frames(
    meter: Meter,
    *,
    every_s: float = 0.5,
    seconds: float | None = None,
    marks: MarkListener | None = None,
    sleep: Callable[[float], None] = time.sleep,
) -> Iterator[tuple[Account, str]]:
    """Yield the account and the text of each frame until the time is over.

    Args:
        meter: A started meter.
        every_s: Between frames.
        seconds: How long; None goes on until the caller stops.
        marks: Phases that a program writes, when there is one.
        sleep: Waits.
    """
    account = Account(meter, mirror=False).start("run")
    begin = meter._clock()
    history: list[float] = []
    while True:
        sleep(every_s)
        for line in () if marks is None else marks.new():
            if "phase" in line:
                account.phase(line["phase"], line["t"])
            account.count(**{k: v for k, v in line["tokens"].items() if k in COUNTS})
        elapsed_s = (meter._clock() - begin) * 1e-9
        last = meter.last
        if last is not None and last.watts[0] == last.watts[0]:
            history.append(last.watts[0])
            del history[:-60]
        yield account, render(meter, account, elapsed_s, history)
        if seconds is not None and elapsed_s >= seconds:
            return


def render(
    meter: Meter, account: Account, elapsed_s: float, history: Sequence[float] = ()
) -> str:
    """Return one frame as plain text."""
    choice = meter.projector.choice
    source = meter.source
    kind = " (modelled, not measured)" if source.kind == "modelled" else ""
    lines = [f"{source.name}{kind}, {meter.hz:g} Hz, {elapsed_s:.1f} s"]
    last = meter.last
    if meter.broken:
        lines.append(f"the sensor does not answer: {meter.broken}")
    if last is None:
        return "\n".join([*lines, "no sample yet"])
    rails = dict(zip(meter.projector.rails, last.watts[1:]))
    top = max([1e-9, *(abs(w) for w in rails.values() if w == w), *history])
    total = choice.total
    in_total = set() if total is None else set(total.rails)
    if total is None:
        lines.append(f"no total: {choice.why_none}")
    else:
        lines.append(_row(f"total, {total.scope}", last.watts[0], top))
    for rail, watt in rails.items():
        sign = "+" if rail in in_total else " "
        lines.append(_row(f"{sign} {rail}", watt, top))
    if history:
        low, high = min(0.0, *history), max(history)
        span = (high - low) or 1.0
        marks = "".join(SPARK[int(8 * (w - low) / span)] for w in history)
        lines.append(f"{'last samples':<22}{marks}")
    joules = account.joules()
    spent = "-" if joules is None else f"{joules:.2f} J"
    lines.append(f"{'session':<22}{spent}")
    for phase, power in account.watts_by_phase().items():
        text = "-" if power is None else f"{power:.2f} W"
        lines.append(f"{'  in ' + phase:<22}{text}")
    if meter.failed_reads:
        lines.append(f"{meter.failed_reads} reads failed")
    return "\n".join(lines)


def _row(name: str, watt: float, top: float) -> str:
    if watt != watt:
        return f"{name:<22}{'-':>9}"
    filled = max(0, min(BAR, round(BAR * watt / top)))
    return f"{name:<22}{watt:7.2f} W {'#' * filled}"


def as_event(account: Account, meter: Meter) -> dict[str, Any]:
    """Return one line for ``--json``."""
    last = meter.last
    watts: dict[str, float | None] = {}
    total = None
    if last is not None:
        names = meter.projector.rails
        watts = {r: w if w == w else None for r, w in zip(names, last.watts[1:])}
        total = last.watts[0] if last.watts[0] == last.watts[0] else None
    return {
        "schema": "draftwire.energy-watch/1",
        "total_w": total,
        "scope": meter.projector.choice.total and meter.projector.choice.total.scope,
        "rails_w": watts,
        "energy_j": account.joules(),
        "watts_by_phase": account.watts_by_phase(),
        "source": meter.source.name,
    }
