"""RAPL: energy counters of x86 processors, for development machines.

The counters wrap at ``max_energy_range_uj``.  A package contains its sub-zones, so only
packages are added up.  ``psys``, where it is there, covers more than the packages.

Source:
    Linux, Documentation/power/powercap/powercap.rst.
"""

from __future__ import annotations

from pathlib import Path
from typing import Mapping

from draftwire.energy.sources.base import (
    Clock,
    Finding,
    PowerSource,
    Reading,
    Response,
    SysfsNumber,
    monotonic_ns,
    read_int,
    read_text,
    sensor_error,
)

__all__ = ["RaplSource"]

ZONES = "sys/class/powercap/intel-rapl:*"


class RaplSource(PowerSource):
    """Energy of each processor package.

    Args:
        root: Where ``sys`` lies.
        clock: Nanoseconds, monotonic.

    Raises:
        SensorError: There is no counter, or none may be read.
    """

    name = "rapl"
    scope = "package"
    update_s = 0.001  # the counters move about every millisecond
    # A counter is exact over the time between two reads, give or take its renewal.
    response = Response((0.0, 0.001), (0.0, 0.0), 0.001, "powercap: renewed each ms")

    def __init__(self, root: Path = Path("/"), *, clock: Clock = monotonic_ns) -> None:
        self._clock = clock
        self._files: dict[str, SysfsNumber] = {}
        self._wrap: dict[str, int] = {}
        self._last: dict[str, int] = {}
        self._joules: dict[str, float] = {}
        self._watts: dict[str, float] = {}
        self._then = 0
        problem: object = "there is no counter"
        for zone in _packages(root):
            number = SysfsNumber(zone / "energy_uj")
            rail = _free_name(read_text(zone / "name") or zone.name, self._files)
            try:
                self._last[rail] = number.read()
            except (OSError, ValueError) as exc:
                problem = exc
                number.close()
                continue
            self._files[rail] = number
            self._wrap[rail] = read_int(zone / "max_energy_range_uj") or 0
            self._joules[rail] = 0.0
        if not self._files:
            raise sensor_error("RAPL", root / ZONES, problem, probe(root).remedy)
        self._then = clock()
        self.rails = tuple(self._files)
        self.total = tuple(rail for rail in self.rails if rail.startswith("package"))
        self.total = self.total or self.rails
        self.notes = ("RAPL covers the processor package: no board, disk or display",)

    def read(self) -> Reading:
        """Read the counters; power is the mean since the last read."""
        start = self._clock()
        now: dict[str, int] = {}
        problem: object = None
        for rail, number in self._files.items():
            try:
                now[rail] = number.read()
            except (OSError, ValueError) as exc:
                problem = exc
        t_ns = (start + self._clock()) // 2
        if not now:
            raise sensor_error("RAPL", "energy_uj", problem)
        elapsed_s = (t_ns - self._then) * 1e-9
        lost: list[str] = []
        for rail, value in now.items():
            step = value - self._last[rail]
            self._last[rail] = value
            if step < 0:  # the counter went round
                step += self._wrap[rail]
            if step < 0:  # or it was set back, and its range is not known
                lost.append(rail)
                continue
            self._joules[rail] += step * 1e-6
            if elapsed_s > 0:
                self._watts[rail] = step * 1e-6 / elapsed_s
        self._then = t_ns
        seen = {rail: self._joules[rail] for rail in now if rail not in lost}
        return Reading(t_ns, dict(self._watts), seen)

    def close(self) -> None:
        """Close the counters."""
        for number in self._files.values():
            number.close()


def probe(root: Path = Path("/")) -> Finding:
    """Tell whether there are counters and whether they may be read."""
    zones = _packages(root)
    if not zones:
        detail = "no intel-rapl zone (virtual machines have none)"
        return Finding("rapl", False, detail)
    if any(read_int(zone / "energy_uj") is not None for zone in zones):
        return Finding("rapl", True, ", ".join(read_text(z / "name") or "" for z in zones))
    detail = "counters are there, but only root may read them (CVE-2020-8694)"
    return Finding("rapl", False, detail, "sudo chmod a+r /sys/class/powercap/*/energy_uj")


def _packages(root: Path) -> list[Path]:
    """Return top zones only: ``intel-rapl:0``, not its part ``intel-rapl:0:0``."""
    return [zone for zone in sorted(root.glob(ZONES)) if zone.name.count(":") == 1]


def _free_name(name: str, taken: Mapping[str, object]) -> str:
    return name if name not in taken else f"{name}#{len(taken) + 1}"
