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
from pathlib import Path
from typing import Any, Callable, Sequence

from draftwire.energy.account.context import Context
from draftwire.energy.account.meter import DEFAULT_HZ, Meter
from draftwire.energy.rails import RailTable, Total, TotalChoice, choose_total
from draftwire.energy.sources import (
    battery,
    hwmon,
    jtop,
    nvml,
    pmic,
    rapl,
    tegrastats,
)
from draftwire.energy.sources.base import (
    UNKNOWN_RESPONSE,
    Finding,
    PowerSource,
    response_of,
)
from draftwire.energy.sources.replay import ReplaySource
from draftwire.errors import ConfigError, SensorError

__all__ = ["Chosen", "ORDER", "choose_source", "find_sources", "open_meter"]

ORDER = ("sysfs", "pmic", "jtop", "tegrastats", "rapl", "battery")


@dataclass(frozen=True)
class Chosen:
    """A source, its total, and what was not taken.

    Attributes:
        source: The open source.
        choice: Which rails make the total.
        why: One sentence.
        passed_over: Sources that were asked before it, and why not.
    """

    source: PowerSource
    choice: TotalChoice
    why: str
    passed_over: tuple[Finding, ...] = ()


def find_sources(root: Path = Path("/")) -> list[Finding]:
    """Look for every source, in the order of choice; nothing is left open."""
    findings = []
    for name in (*ORDER, "nvml", "gpu"):
        findings.append(_PROBES[name](root))
    return findings


def choose_source(
    tables: Sequence[RailTable],
    *,
    name: str = "auto",
    board: str | None = None,
    rails: Sequence[str] | None = None,
    scope: str | None = None,
    root: Path = Path("/"),
    need_total: bool = False,
) -> Chosen:
    """Open the best source of this machine.

    Args:
        tables: Rail tables of all boards (``load_tables``).
        name: ``auto``, or one of ``ORDER`` or ``nvml``.
        board: Name of this board's profile, when it is known.
        rails: Rails to add up, when nobody else knows.
        scope: The total to take, on boards with more than one.
        root: Where ``sys``, ``proc`` and ``run`` lie.
        need_total: Refuse a source whose total nobody knows.

    Raises:
        ConfigError: No such source.
        SensorError: Nothing can be read; the message says what would change that.
    """
    kind, _, rest = name.partition(":")
    if kind in _NAMED:
        source = _NAMED[kind](rest)
        choice = total_of(source, tables, board=board, rails=rails, scope=scope)
        return Chosen(source, choice, "named by the user")
    names = ORDER if name == "auto" else (name,)
    if name != "auto" and name not in _OPENERS:
        known = ", ".join(("auto", *_OPENERS, *(f"{one}:..." for one in _NAMED)))
        raise ConfigError(f"no power source {name!r}", hint=f"there is: {known}")
    passed: list[Finding] = []
    for candidate in names:
        finding = _PROBES[candidate](root)
        if not finding.usable and name == "auto":
            passed.append(finding)
            continue
        try:
            source = _OPENERS[candidate](root)
        except SensorError as exc:
            if name != "auto":
                raise
            passed.append(Finding(candidate, False, str(exc), exc.hint))
            continue
        choice = total_of(source, tables, board=board, rails=rails, scope=scope)
        if need_total and choice.total is None:
            source.close()
            raise SensorError(f"{source.name}: {choice.why_none}")
        why = "named by the user" if name != "auto" else _WHY[candidate]
        return Chosen(source, choice, why, tuple(passed))
    remedies = [f.remedy for f in passed if f.remedy]
    raise SensorError(
        "no power source on this machine: "
        + "; ".join(f"{f.source}: {f.detail}" for f in passed),
        hint=remedies[0] if remedies else "use a USB meter and `draftwire energy import`",
    )


def total_of(
    source: PowerSource,
    tables: Sequence[RailTable],
    *,
    board: str | None = None,
    rails: Sequence[str] | None = None,
    scope: str | None = None,
) -> TotalChoice:
    """Return the total of a source: its own, or by the rail tables."""
    if isinstance(source, ReplaySource) and not rails and scope is None:
        return source.recording.choice
    if source.scope is not None and not rails:
        return TotalChoice(Total(source.scope, tuple(source.total)), how="the source")
    return choose_total(source.rails, tables, board=board, user_rails=rails, scope=scope)


def open_meter(
    tables: Sequence[RailTable],
    *,
    hz: float = DEFAULT_HZ,
    root: Path = Path("/"),
    **choice: Any,
) -> Meter:
    """Open the best source and return a meter that is not started yet.

    Args:
        tables: Rail tables of all boards.
        hz: Samples a second.
        root: Where ``sys``, ``proc`` and ``run`` lie.
        choice: As for ``choose_source``.

    Raises:
        SensorError: Nothing can be read.
    """
    chosen = choose_source(tables, root=root, **choice)
    from draftwire.energy.live.calibrate import known_response

    source, table = chosen.source, chosen.choice.table
    known = known_response(source.name)
    if known is None and source.response is UNKNOWN_RESPONSE and table is not None:
        known = response_of(table.response)
    if known is not None:
        source.response = known
    return Meter(chosen.source, chosen.choice, hz=hz, context=Context(root))


_PROBES: dict[str, Callable[[Path], Finding]] = {
    "sysfs": hwmon.probe,
    "pmic": lambda root: pmic.probe(),
    "jtop": jtop.probe,
    "tegrastats": lambda root: tegrastats.probe(),
    "rapl": rapl.probe,
    "battery": battery.probe,
    "nvml": lambda root: nvml.probe(),
    "gpu": hwmon.probe_gpu,
}
_OPENERS: dict[str, Callable[[Path], PowerSource]] = {
    "sysfs": hwmon.HwmonSource,
    "pmic": lambda root: pmic.PmicSource(),
    "jtop": lambda root: jtop.JtopSource(),
    "tegrastats": lambda root: tegrastats.TegrastatsSource(),
    "rapl": rapl.RaplSource,
    "battery": battery.BatterySource,
    "nvml": lambda root: nvml.NvmlSource(),
    "gpu": hwmon.GpuSource,
}


def _bench(kind: str) -> Callable[[str], PowerSource]:
    def opened(rest: str) -> PowerSource:
        from draftwire.energy.sources import serial_meters as meters

        if kind == "serial":
            return meters.LineMeter(rest)
        return meters.Ppk2Source(rest) if kind == "ppk2" else meters.JoulescopeSource()

    return opened


_NAMED: dict[str, Callable[[str], PowerSource]] = {
    **{kind: _bench(kind) for kind in ("serial", "ppk2", "joulescope")},
    "replay": lambda rest: _replay(rest),
}


def _replay(text: str) -> PowerSource:
    path, _, speed = text.partition(",")
    try:
        return ReplaySource(Path(path), speed=float(speed or 1.0))
    except ValueError as exc:
        raise ConfigError(
            f"replay:{text}", hint="replay:FILE or replay:FILE,SPEED"
        ) from exc


_WHY = {
    "sysfs": "the board's own sensors, read without any other process",
    "pmic": "the power chip of the Raspberry Pi 5",
    "jtop": "sysfs has no rail here, but the jtop service answers",
    "tegrastats": "sysfs has no rail here, but tegrastats can be started",
    "rapl": "no board sensor; the processor's own counters",
    "battery": "no sensor but a battery that discharges",
}
