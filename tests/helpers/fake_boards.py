"""Roots of boards that nobody has here: the files a real one shows, written from data.

Every board is a line of ``fake_boards.json``, and every file is made in the shape that the
kernel and NVIDIA's tools give theirs; nothing is copied from a board.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Cores:
    """Some cores of one kind, in the order of their numbers."""

    kind: str
    count: int
    max_khz: int = 1_500_000


@dataclass(frozen=True)
class Fake:
    """One board, and what detection must say of it."""

    profile: str
    title: str
    compatible: tuple[str, ...] = ()
    model: str = ""
    arch: str = "aarch64"
    os: str = "Ubuntu 22.04.5 LTS"
    glibc: str = "2.35"
    python: str = "3.10"
    l4t: str = ""  # "R36 REVISION 4.3"
    memory_kib: int = 4_000_000
    cores: tuple[Cores, ...] = (Cores("Cortex-A76", 4),)
    offline: tuple[int, ...] = ()
    modes: tuple[str, ...] = ()
    mode: int | None = None
    default_mode: int = 0
    rails: tuple[tuple[str, ...], ...] = ()  # channels of each INA3221
    driver: str = "ina3221"
    ina238: bool = False
    ina260: bool = False
    dmi: str = ""
    vcgencmd: bool = False
    throttled: str = ""
    heat_c: float = 45.5


def _fake(row: dict[str, Any]) -> Fake:
    """Return a board whose fields are a line's, all others the defaults."""
    if "cores" in row:
        row["cores"] = tuple(Cores(*kind) for kind in row["cores"])
    if "rails" in row:
        row["rails"] = tuple(map(tuple, row["rails"]))
    return Fake(**{k: tuple(v) if isinstance(v, list) else v for k, v in row.items()})


_LINES = json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8"))
BOARDS = {name: _fake(row) for name, row in _LINES.items()}
