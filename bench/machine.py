"""What figures were measured on."""

from __future__ import annotations

import os
import platform
import time
from pathlib import Path
from typing import Any

from draftwire.boards.cores import clusters
from draftwire.boards.profiles import find_profile
from draftwire.boards.tree import Tree


def cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0))


def machine() -> dict[str, Any]:
    """Return board, processor, cores, load over a minute, system, Python and date."""
    match = find_profile()
    kinds = [f"{len(c.online)} x {c.kind or 'unknown'}" for c in clusters(Tree(Path("/")))]
    return {
        "board": match.profile.name,
        "board_how": match.how,
        "processor": ", ".join(kinds) or platform.machine(),
        "arch": platform.machine(),
        "cores": cores(),
        "load_1min": round(os.getloadavg()[0], 1),
        "system": platform.platform(terse=True),
        "python": platform.python_version(),
        "date": time.strftime("%Y-%m-%d"),
    }
