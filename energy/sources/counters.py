"""What the kernel itself counts: batteries that discharge, and RAPL of x86 processors.

A battery is usable only while it discharges: on mains it sees none of what the board
draws.  RAPL's counters wrap at ``max_energy_range_uj``; a package contains its
sub-zones, so only packages are added up.

Source:
    Linux, Documentation/ABI/testing/sysfs-class-power (microwatt, microvolt,
    microampere) and Documentation/power/powercap/powercap.rst.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

from draftwire.energy.sources.base import (
    Clock,
    PowerSource,
    Reading,
    Response,
    SysfsNumber,
    read_int,
    read_text,
    unique,
)
from draftwire.errors import SensorError

ZONES = "sys/class/powercap/intel-rapl:*"


class BatterySource(PowerSource):
    """Power out of the batteries; a SensorError where none discharges."""

    name = scope = "battery"
    update_s = 1.0  # fuel gauges renew about once a second; some every 30 s
    notes = ("fuel gauges are slow and smoothed: good for minutes, not tokens",)

    def __init__(self, root: Path = Path("/"), *, clock: Clock | None = None) -> None:
        super().__init__(clock)
        self._batteries = {
            path.name: path
            for path in sorted((root / "sys/class/power_supply").glob("*"))
            if read_text(path / "type") == "Battery"
            and read_text(path / "scope") != "Device"  # not a mouse
        }
        if not self._batteries:
            raise SensorError("no battery")
        self.rails = self.total = tuple(self._batteries)
        self.read()

    def read(self) -> Reading:
        for path in self._batteries.values():
            status = read_text(path / "status") or "Unknown"
            if status != "Discharging":
                raise SensorError(
                    f"battery {path.name} is {status.lower()}, not discharging",
                    hint="unplug the supply, or take another source",
                )
        return self.gather({n: partial(_watts, p) for n, p in self._batteries.items()})


def _watts(path: Path) -> float:
    """Return the discharge; drivers disagree about the sign, so it is made positive."""
    micro = read_int(path / "power_now")
    if micro is not None:
        return abs(micro) * 1e-6
    volt, amp = read_int(path / "voltage_now"), read_int(path / "current_now")
    if volt is None or amp is None:
        raise ValueError(f"{path.name} tells no power")
    return abs(volt * amp) * 1e-12


class RaplSource(PowerSource):
    """Energy of each processor package; a SensorError where none may be read."""

    name = "rapl"
    scope = "package"
    update_s = 0.001  # the counters move about every millisecond
    # A counter is exact over the time between two reads, give or take its renewal.
    response = Response((0.0, 0.001), (0.0, 0.0), 0.001, "powercap: renewed each ms")
    notes = ("RAPL covers the processor package: no board, disk or display",)

    def __init__(self, root: Path = Path("/"), *, clock: Clock | None = None) -> None:
        super().__init__(clock)
        # Top zones only: ``intel-rapl:0``, not its part ``intel-rapl:0:0``.
        zones = [zone for zone in sorted(root.glob(ZONES)) if zone.name.count(":") == 1]
        names = unique([read_text(zone / "name") or zone.name for zone in zones])
        files = {rail: SysfsNumber(z / "energy_uj") for rail, z in zip(names, zones)}
        if not zones:
            raise SensorError("no intel-rapl zone (virtual machines have none)")
        self._files = files
        self._wrap = {
            r: read_int(z / "max_energy_range_uj") or 0 for r, z in zip(names, zones)
        }
        try:
            first = self.gather({rail: number.read for rail, number in files.items()})
        except SensorError as exc:
            raise SensorError(
                "counters are there, but only root may read them (CVE-2020-8694)",
                hint="sudo chmod a+r /sys/class/powercap/*/energy_uj",
            ) from exc
        self._last = {rail: int(count) for rail, count in first.watts.items()}
        self._joules = dict.fromkeys(self._last, 0.0)
        self._watts: dict[str, float] = {}
        self._then = first.t_ns
        self.rails = tuple(self._last)
        packages = tuple(rail for rail in self.rails if rail.startswith("package"))
        self.total = packages or self.rails

    def read(self) -> Reading:
        """Read the counters; power is the mean since the last read."""
        t_ns, now, _ = self.gather({rail: self._files[rail].read for rail in self.rails})
        elapsed_s = (t_ns - self._then) * 1e-9
        seen = {}
        for rail, value in now.items():
            step = int(value) - self._last[rail]
            self._last[rail] = int(value)
            if step < 0:  # the counter went round
                step += self._wrap[rail]
            if step < 0:  # or it was set back, and its range is not known
                continue
            self._joules[rail] += step * 1e-6
            seen[rail] = self._joules[rail]
            if elapsed_s > 0:
                self._watts[rail] = step * 1e-6 / elapsed_s
        self._then = t_ns
        return Reading(t_ns, dict(self._watts), seen)

    def close(self) -> None:
        for number in self._files.values():
            number.close()
