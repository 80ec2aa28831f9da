"""Our joules behind the interfaces of two tools that people already call.

``ZeusLike`` has the windows of ``zeus.monitor.ZeusMonitor`` (``begin_window``,
``end_window``, ``total_energy``); ``carbon_row`` has the columns of the file that
``codecarbon`` writes.  Neither package is needed.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Any

from draftwire.energy.account.meter import Meter, Window
from draftwire.energy.account.result import EnergyResult
from draftwire.errors import ConfigError, SensorError


@dataclass(frozen=True)
class Measurement:
    """A window as zeus has it (no discrete GPU was read), and our whole result."""

    time: float  # seconds
    soc_energy: dict[str, float]  # joules of the scope that was measured, by its name
    result: EnergyResult  # joules with source, scope and uncertainty
    gpu_energy: dict[int, float] = field(default_factory=dict)

    @property
    def total_energy(self) -> float:
        """Joules; where there are none a SensorError, and zeus would say 0."""
        if self.result.energy_j is None:
            raise SensorError(self.result.why_null)
        return self.result.energy_j


class ZeusLike:
    """Named windows over a running meter."""

    def __init__(self, meter: Meter) -> None:
        self.meter = meter
        self._open: dict[str, Window] = {}

    def begin_window(self, key: str, sync_execution: bool = True) -> None:
        """Open a window; a ConfigError if there is one of this name."""
        if key in self._open:
            raise ConfigError(f"the window {key!r} is open already")
        self._open[key] = self.meter.window(key)
        self._open[key].__enter__()

    def end_window(
        self, key: str, sync_execution: bool = True, cancel: bool = False
    ) -> Measurement:
        """Close a window and return what it took; a ConfigError if there is none."""
        window = self._open.pop(key, None)
        if window is None:
            raise ConfigError(f"no window {key!r} is open")
        window.__exit__(None, None, None)
        result = window.result
        soc = {} if result.energy_j is None else {str(result.scope): result.energy_j}
        return Measurement(result.duration_s, soc, result)


def carbon_row(
    result: EnergyResult, *, g_per_kwh: float, project: str = "draftwire"
) -> dict[str, Any]:
    """Return codecarbon's columns, None where not measured; the factor is the caller's."""
    kwh = None if result.energy_j is None else result.energy_j / 3.6e6
    kg = None if kwh is None else kwh * g_per_kwh / 1000
    seconds, parts = result.duration_s, ("cpu", "gpu", "ram")
    return {
        "timestamp": datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%S"),
        "project_name": project,
        "duration": seconds,
        "emissions": kg,
        "emissions_rate": kg / seconds if kg is not None and seconds else None,
        **{f"{part}_{what}": None for what in ("power", "energy") for part in parts},
        "energy_consumed": kwh,
        "tracking_mode": f"{result.source}, scope {result.scope}",
    }
