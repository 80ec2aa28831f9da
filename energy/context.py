"""What a power figure means nothing without: power mode, clocks, temperatures.

Read from files, so no root and no tool is needed; mode numbers differ between boards
and firmware, so modes go by name.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from draftwire.energy.sources.base import read_int, read_text

__all__ = ["Context", "power_mode", "power_modes", "read_context"]

_MODEL = re.compile(r"<\s*POWER_MODEL\s+ID=(\d+)\s+NAME=(\S+)\s*>")
_STATUS = re.compile(r"pmode:(\d+)")


def power_modes(root: Path = Path("/")) -> dict[int, str]:
    """Return the power modes of a Jetson by id, from ``/etc/nvpmodel.conf``."""
    text = read_text(root / "etc/nvpmodel.conf") or ""
    return {int(number): name for number, name in _MODEL.findall(text)}


def power_mode(root: Path = Path("/")) -> str | None:
    """Return the name of the present power mode, or None when there is none."""
    status = _STATUS.search(read_text(root / "var/lib/nvpmodel/status") or "")
    if status is None:
        return read_text(root / "sys/firmware/acpi/platform_profile")
    number = int(status.group(1))
    return power_modes(root).get(number, f"id {number}")


def read_context(root: Path = Path("/")) -> dict[str, Any]:
    """Return power mode, clocks and temperatures; what is not there is left out."""
    found: dict[str, Any] = {}
    mode = power_mode(root)
    if mode:
        found["power_mode"] = mode
    caps, now, governors = [], [], set()
    for cpu in root.glob("sys/devices/system/cpu/cpu[0-9]*/cpufreq"):
        cap, current = (
            read_int(cpu / "scaling_max_freq"),
            read_int(cpu / "scaling_cur_freq"),
        )
        low, governor = (
            read_int(cpu / "scaling_min_freq"),
            read_text(cpu / "scaling_governor"),
        )
        if cap is not None:
            caps.append((cap, low))
        if current is not None:
            now.append(current)
        if governor:
            governors.add(governor)
    if caps:
        found["cpu_cap_hz"] = max(cap for cap, _ in caps) * 1000
        # jetson_clocks sets the lowest clock to the highest.
        found["clocks_locked"] = all(cap == low for cap, low in caps)
    if now:
        found["cpu_hz"] = [value * 1000 for value in sorted(now, reverse=True)]
    if governors:
        found["governor"] = "+".join(sorted(governors))
    online = read_text(root / "sys/devices/system/cpu/online")
    if online:
        found["cpus_online"] = online
    heat = {}
    for zone in sorted(root.glob("sys/class/thermal/thermal_zone*")):
        value = read_int(zone / "temp")
        if value is not None and value > -200_000:
            heat[read_text(zone / "type") or zone.name] = value / 1000
    if heat:
        found["heat_c"] = heat
    throttled = read_text(root / "sys/devices/platform/soc/soc:firmware/get_throttled")
    if throttled:
        value = int(throttled, 16) if re.fullmatch(r"(0x)?[0-9a-fA-F]+", throttled) else 0
        # The low bits are now; bits 16 and up are since boot and stay set.
        found["throttled"] = hex(value & 0xFFFF)
    return found


class Context:
    """``read_context`` of one machine, as the meter calls it."""

    def __init__(self, root: Path = Path("/")) -> None:
        self.root = root

    def __call__(self) -> dict[str, Any]:
        return read_context(self.root)
