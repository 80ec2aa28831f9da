"""Our joules behind the interfaces of two tools that people already call.

``ZeusLike`` has the windows of ``zeus.monitor.ZeusMonitor`` (``begin_window``,
``end_window``, ``total_energy``); ``carbon_row`` has the columns of the file that
``codecarbon`` writes.  Neither package is needed.
"""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

from draftwire.energy.account.integral import EnergyResult
from draftwire.energy.account.meter import Meter, Window
from draftwire.errors import ConfigError, SensorError

# codecarbon 3, output_methods/emissions_data.py, in its order.
CARBON = (
    "timestamp project_name run_id experiment_id duration emissions emissions_rate "
    "cpu_power gpu_power ram_power cpu_energy gpu_energy ram_energy energy_consumed "
    "water_consumed country_name country_iso_code region cloud_provider cloud_region os "
    "python_version codecarbon_version cpu_count cpu_model gpu_count gpu_model longitude "
    "latitude ram_total_size tracking_mode cpu_utilization_percent "
    "gpu_utilization_percent ram_utilization_percent ram_used_gb on_cloud pue wue"
).split()
_PARTS = {"package": "cpu", "gpu": "gpu"}  # scopes that are a part by their own name


@dataclass(frozen=True)
class Measurement:
    """A window as zeus has it, and our whole result: a scope is a processor, a GPU or
    else the system on chip."""

    time: float  # seconds
    result: EnergyResult  # joules with source, scope and uncertainty

    def _of(self, part: str) -> dict[int, float]:
        r = self.result
        if r.energy_j is None or _PARTS.get(str(r.scope)) != part:
            return {}
        known = [r.by_rail[rail] for rail in r.rails if rail in r.by_rail]
        return dict(enumerate(known or [r.energy_j]))

    @property
    def gpu_energy(self) -> dict[int, float]:
        return self._of("gpu")

    @property
    def cpu_energy(self) -> dict[int, float] | None:
        return self._of("cpu") or None

    dram_energy: None = None  # nothing here measures it alone

    @property
    def soc_energy(self) -> dict[str, float]:
        """Joules of the scope that was measured, by its name."""
        r = self.result
        known = r.energy_j is not None and r.scope not in _PARTS
        return {str(r.scope): self.total_energy} if known else {}

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
        self._open[key] = self.meter.window(key).open()

    def end_window(
        self, key: str, sync_execution: bool = True, cancel: bool = False
    ) -> Measurement:
        """Close a window and return what it took; a ConfigError if there is none."""
        if key not in self._open:
            raise ConfigError(f"no window {key!r} is open")
        window = self._open.pop(key)
        window.stop()
        result = window.finish()
        if cancel:
            result = EnergyResult(key, why_null="the window was cancelled")
        return Measurement(result.duration_s, result)


def carbon_row(
    result: EnergyResult, *, g_per_kwh: float, project: str = "draftwire"
) -> dict[str, Any]:
    """Return codecarbon's columns, None where not known; the factor is the caller's."""
    kwh = None if result.energy_j is None else result.energy_j / 3.6e6
    kg = None if kwh is None else kwh * g_per_kwh / 1000
    seconds, part = result.duration_s, _PARTS.get(str(result.scope))
    own = {f"{part}_power": result.mean_w, f"{part}_energy": kwh} if part else {}
    return {
        **dict.fromkeys(CARBON),
        "timestamp": datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%S"),
        "project_name": project,
        "duration": seconds,
        "emissions": kg,
        "emissions_rate": kg / seconds if kg is not None and seconds else None,
        **own,
        "energy_consumed": kwh,
        "os": platform.platform(),
        "python_version": platform.python_version(),
        "cpu_count": os.cpu_count(),
        "tracking_mode": f"{result.source}, scope {result.scope}",
    }
