"""What a power figure means nothing without: power mode, clocks, temperatures.

Read from files, so no root and no tool is needed; mode numbers differ between boards
and firmware, so modes go by name.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from draftwire.boards.system import heat, power_mode
from draftwire.boards.tree import Tree


def mode_name(root: Path = Path("/")) -> str | None:
    """Return the name of the present power mode, or None when there is none."""
    mode = power_mode(Tree(root))
    if mode is None or (mode.name is None and mode.number is None):
        return None
    return mode.name or f"id {mode.number}"


def read_context(root: Path = Path("/")) -> dict[str, Any]:
    """Return power mode, clocks and temperatures; what is not there is left out."""
    tree = Tree(root)
    caps, now, governors = [], [], set()
    for cpu in tree.find("sys/devices/system/cpu/cpu[0-9]*/cpufreq"):
        cap, current, low = (
            tree.number(f"{cpu}/scaling_{name}_freq") for name in ("max", "cur", "min")
        )
        governor = tree.text(f"{cpu}/scaling_governor")
        caps += [] if cap is None else [(cap, low)]
        now += [] if current is None else [current * 1000]
        governors |= {governor} if governor else set()
    throttled = tree.text("sys/devices/platform/soc/soc:firmware/get_throttled") or ""
    known = re.fullmatch(r"(0x)?[0-9a-fA-F]+", throttled)
    found = {
        "power_mode": mode_name(root),
        "cpu_cap_hz": max(cap for cap, _ in caps) * 1000 if caps else None,
        # jetson_clocks sets the lowest clock to the highest.
        "clocks_locked": all(cap == low for cap, low in caps) if caps else None,
        "cpu_hz": sorted(now, reverse=True) or None,
        "governor": "+".join(sorted(governors)) or None,
        "cpus_online": tree.text("sys/devices/system/cpu/online") or None,
        "heat_c": heat(tree) or None,
        # The low bits are now; bits 16 and up are since boot and stay set.
        "throttled": hex(int(throttled, 16) & 0xFFFF) if known else None,
    }
    return {name: value for name, value in found.items() if value is not None}
