"""Which source to take, and why.

The order: what the user names; sysfs (the board's own rails, 20 Hz, no process); the Pi
5 PMIC; jtop (where sysfs cannot be reached, as in a container); tegrastats (a process
and text for the numbers of sysfs); RAPL; a discharging battery.  A GPU alone is no
total of a device, so NVML is taken only by name.  The stated model is never chosen by
itself, and neither is a meter on the bench (``serial:PORT``, ``ppk2:PORT,VOLTS``,
``joulescope``) or a recording (``replay:FILE``, which ``generate --energy`` takes too).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Callable, Sequence

from draftwire.energy.account.meter import DEFAULT_HZ, Meter, read_context
from draftwire.energy.files.recording import ReplaySource
from draftwire.energy.rails import RailTable, Total, TotalChoice, choose_total
from draftwire.energy.sources import counters, hwmon, jetson
from draftwire.energy.sources.base import (
    UNKNOWN_RESPONSE,
    PowerSource,
    finite,
    response_of,
)
from draftwire.errors import ConfigError, SensorError

# By name: how it is opened, and why it is taken when nobody names one.
_SOURCES: dict[str, tuple[Callable[[Path], PowerSource], str]] = {
    "sysfs": (hwmon.HwmonSource, "the board's own sensors, read without any other process"),
    "pmic": (lambda _: counters.PmicSource(), "the power chip of the Raspberry Pi 5"),
    "jtop": (
        lambda _: jetson.JtopSource(),
        "sysfs has no rail here, but the jtop service answers",
    ),
    "tegrastats": (
        lambda _: jetson.TegrastatsSource(),
        "sysfs has no rail here, but tegrastats can be started",
    ),
    "rapl": (counters.RaplSource, "no board sensor; the processor's own counters"),
    "battery": (counters.BatterySource, "no sensor but a battery that discharges"),
    "nvml": (lambda _: counters.NvmlSource(), ""),
    "gpu": (counters.GpuSource, ""),
}
# Opening these has effects.
_LOOK = {"jtop": jetson.find_jtop, "tegrastats": jetson.find_tegrastats}
_BENCH = ("serial", "ppk2", "joulescope", "replay")


@dataclass(frozen=True)
class Finding:
    """Whether a source is there, and how to make it so."""

    source: str  # name of the source
    usable: bool  # true when ``choose_source`` could take it
    detail: str  # what was found, or what is missing
    remedy: str = ""  # one command that would make it readable, or ""


@dataclass(frozen=True)
class Chosen:
    """An open source, its total, and why it was taken."""

    source: PowerSource
    choice: TotalChoice
    why: str


def find_sources(root: Path = Path("/")) -> list[Finding]:
    """Look for every source, in the order of choice; nothing is left open."""
    findings = []
    for name, (opened, why) in _SOURCES.items():
        try:
            if name in _LOOK:
                detail = _LOOK[name](root)
            else:
                source = opened(root)
                source.close()
                only = "" if why else "; the GPU only"
                detail = f"{source.name}: {', '.join(source.rails)}{only}"
            findings.append(Finding(name, True, detail))
        except SensorError as exc:
            findings.append(Finding(name, False, str(exc), exc.hint))
    return findings


def choose_source(
    tables: Sequence[RailTable],
    *,
    name: str = "auto",
    board: str | None = None,
    rails: Sequence[str] | None = None,
    scope: str | None = None,
    root: Path = Path("/"),
) -> Chosen:
    """Open the best source of this machine, or the one of a ``name`` in the module's
    docstring. ConfigError: no such source; SensorError: nothing can be read, and what
    would change that."""
    kind, _, rest = name.partition(":")
    if kind in _BENCH:
        source, why = _named(kind, rest), "named by the user"
    elif name in _SOURCES:
        source, why = _SOURCES[name][0](root), "named by the user"
    elif name == "auto":
        source, why = _best(root)
    else:
        known = ", ".join(("auto", *_SOURCES, *(f"{kind}:..." for kind in _BENCH)))
        raise ConfigError(f"no power source {name!r}", hint=f"there is: {known}")
    return Chosen(source, total_of(source, tables, board, rails, scope), why)


def _best(root: Path) -> tuple[PowerSource, str]:
    whys, hint = [], ""
    for name, (opened, why) in _SOURCES.items():
        try:
            if name in _LOOK and why:
                _LOOK[name](root)
            if why:
                return opened(root), why
        except SensorError as exc:
            whys.append(f"{name}: {exc}")
            hint = hint or exc.hint
    raise SensorError(
        f"no power source on this machine: {'; '.join(whys)}",
        hint=hint or "use a USB meter and `draftwire energy report`",
    )


def _named(kind: str, rest: str) -> PowerSource:
    if kind == "replay":
        path, _, speed = rest.partition(",")
        if not finite(speed or "1") or float(speed or 1) < 0:
            raise ConfigError(f"replay:{rest}", hint="replay:FILE or replay:FILE,SPEED")
        return ReplaySource(Path(path), speed=float(speed or 1))
    from draftwire.energy.sources import bench

    if kind == "serial":
        return bench.LineMeter(rest)
    return bench.Ppk2Source(rest) if kind == "ppk2" else bench.JoulescopeSource()


def total_of(
    source: PowerSource,
    tables: Sequence[RailTable],
    board: str | None = None,
    rails: Sequence[str] | None = None,
    scope: str | None = None,
) -> TotalChoice:
    """Return the total of a source: its own, or by the rail tables."""
    if isinstance(source, ReplaySource):
        return source.recording.total_of(rails, scope)
    if source.scope is not None and not rails:
        if scope not in (None, source.scope):
            raise ConfigError(f"no scope {scope!r} here", hint=f"there is: {source.scope}")
        return TotalChoice(Total(source.scope, tuple(source.total)), how="the source")
    return choose_total(source.rails, tables, board=board, user_rails=rails, scope=scope)


def open_meter(
    tables: Sequence[RailTable],
    *,
    hz: float = DEFAULT_HZ,
    root: Path = Path("/"),
    **choice: Any,
) -> Meter:
    """Open the best source (``choice``: as for ``choose_source``); return a meter, not yet
    started. SensorError: there is none."""
    from draftwire.energy.live.pulse import known_response

    chosen = choose_source(tables, root=root, **choice)
    source, table = chosen.source, chosen.choice.table
    known = known_response(source.name)
    if known is None and source.response is UNKNOWN_RESPONSE and table is not None:
        known = response_of(table.response)
    source.response = known or source.response
    return Meter(source, chosen.choice, hz=hz, context=partial(read_context, root))
