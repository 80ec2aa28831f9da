"""A battery that tells its own discharge, in ``/sys/class/power_supply``.

Usable only while it discharges: on mains the battery sees none of what the board draws.

Source:
    Linux, Documentation/ABI/testing/sysfs-class-power (microwatt, microvolt,
    microampere).
"""

from __future__ import annotations

from pathlib import Path

from draftwire.energy.sources.base import (
    Clock,
    Finding,
    PowerSource,
    Reading,
    monotonic_ns,
    read_int,
    read_text,
    sensor_error,
)
from draftwire.errors import SensorError

__all__ = ["BatterySource"]

FOLDER = "sys/class/power_supply"


class BatterySource(PowerSource):
    """Power out of the battery or batteries.

    Args:
        root: Where ``sys`` lies.
        clock: Nanoseconds, monotonic.

    Raises:
        SensorError: No battery, or it does not discharge.
    """

    name = "battery"
    scope = "battery"
    update_s = 1.0  # fuel gauges renew about once a second; some every 30 s

    def __init__(self, root: Path = Path("/"), *, clock: Clock = monotonic_ns) -> None:
        self._clock = clock
        self._batteries = _batteries(root)
        if not self._batteries:
            raise sensor_error("a battery", root / FOLDER, "there is none")
        self.rails = tuple(path.name for path in self._batteries)
        self.total = self.rails
        self.notes = ("fuel gauges are slow and smoothed: good for minutes, not tokens",)
        self.read()

    def read(self) -> Reading:
        """Read every battery.

        Raises:
            SensorError: One charges or is full: its reading is not what the board
            draws.
        """
        start = self._clock()
        watts = {}
        for path in self._batteries:
            status = read_text(path / "status") or "Unknown"
            if status != "Discharging":
                raise SensorError(
                    f"battery {path.name} is {status.lower()}, not discharging",
                    hint="unplug the supply, or take another source",
                )
            power = _watts(path)
            if power is not None:
                watts[path.name] = power
        if not watts:
            raise sensor_error("a battery", self._batteries[0], "no power or current file")
        return Reading((start + self._clock()) // 2, watts)


def probe(root: Path = Path("/")) -> Finding:
    """Tell whether a battery discharges here."""
    batteries = _batteries(root)
    if not batteries:
        return Finding("battery", False, "no battery")
    for path in batteries:
        status = read_text(path / "status") or "Unknown"
        if status != "Discharging":
            return Finding("battery", False, f"{path.name} is {status.lower()}")
        if _watts(path) is None:
            return Finding("battery", False, f"{path.name} tells no power")
    return Finding("battery", True, ", ".join(path.name for path in batteries))


def _batteries(root: Path) -> list[Path]:
    found = []
    for path in sorted((root / FOLDER).glob("*")):
        scope = read_text(path / "scope")
        if read_text(path / "type") == "Battery" and scope != "Device":  # not a mouse
            found.append(path)
    return found


def _watts(path: Path) -> float | None:
    """Return the discharge; drivers disagree about the sign, so it is made positive."""
    micro = read_int(path / "power_now")
    if micro is not None:
        return abs(micro) * 1e-6
    volt, amp = read_int(path / "voltage_now"), read_int(path / "current_now")
    return None if volt is None or amp is None else abs(volt * amp) * 1e-12
