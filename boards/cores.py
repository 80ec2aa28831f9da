"""Processor cores: which architecture, which kinds, how many of them are online."""

from __future__ import annotations

import functools
import os
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from draftwire.boards.install.facts import elf_machine
from draftwire.boards.tree import Tree
from draftwire.io import read_toml

_CPU = "sys/devices/system/cpu"

# Programs that every root has of its own.
_PROGRAMS = ("bin/sh", "usr/bin/env", "sbin/init", "bin/busybox")


@dataclass(frozen=True)
class Cluster:
    """Cores of one kind (``"Cortex-A78AE"``; the processor's name on x86) and highest
    clock."""

    kind: str
    possible: tuple[int, ...]  # their numbers
    online: tuple[int, ...]  # those that run now
    max_hz: int | None = None  # highest clock of the hardware, or None
    cap_hz: int | None = None  # highest clock allowed now, or None
    min_hz: int | None = None  # lowest clock allowed now, or None
    now_hz: int | None = None  # the highest of their clocks now, or None
    governor: str = ""
    small: bool = False  # true for cores built to save power

    @property
    def locked(self) -> bool:
        """True when the lowest clock allowed is the highest (``jetson_clocks``)."""
        return self.min_hz is not None and self.min_hz == self.cap_hz


@functools.lru_cache(maxsize=1)
def facts() -> dict[str, Any]:
    """Return the tables of ``facts.toml``: cores, JetPack by L4T, systems of boards."""
    return read_toml(Path(__file__).with_name("facts.toml"))


def parse_list(text: str | None) -> tuple[int, ...]:
    """Return the numbers of a kernel list, ``"0-3,6"``; none for what is no such list."""
    numbers: list[int] = []
    for part in (text or "").split(","):
        match = re.fullmatch(r"\s*(\d{1,4})(?:-(\d{1,4}))?\s*", part)
        if match:
            first = int(match.group(1))
            numbers += range(first, int(match.group(2) or first) + 1)
    return tuple(sorted(set(numbers)))


def architecture(tree: Tree) -> str:
    """Return ``uname -m`` of the machine whose files these are, or ""."""
    if tree.host:
        return os.uname().machine
    cpuinfo = tree.text("proc/cpuinfo") or ""
    if re.search(r"^vendor_id\s*:", cpuinfo, re.M):
        return "x86_64"
    level = re.search(r"^CPU architecture\s*:\s*(\w+)", cpuinfo, re.M)
    programs = "" if level else _machine(tree)
    if level:  # a 64-bit kernel says 8 to 32-bit programs too
        return "armv7l" if level.group(1)[:1] in "67" else _machine(tree) or "aarch64"
    if not programs and tree.exists("proc/device-tree"):
        return "aarch64"
    return programs


def _machine(tree: Tree) -> str:
    found = (elf_machine(tree.disk, name) for name in _PROGRAMS)
    return next(filter(None, found), "")


def clusters(tree: Tree) -> list[Cluster]:
    """Return the cores by kind, lowest first; one that is offline may have no clocks and
    no kind, and then has that of the nearest below it."""
    possible = parse_list(tree.text(f"{_CPU}/possible"))
    present = parse_list(tree.text(f"{_CPU}/present")) or possible
    online = parse_list(tree.text(f"{_CPU}/online"))
    kinds = _kinds(tree)
    if not present:
        present = online or tuple(sorted(kinds))
    if not online:
        online = present
    found: list[Cluster] = []
    last = ""
    for cpu in present:
        last = kinds.get(cpu) or _midr(tree, cpu) or last
        one = _clock(tree, cpu, last, (cpu,) if cpu in online else ())
        for place, known in enumerate(found):
            same_clock = known.max_hz == one.max_hz or None in (known.max_hz, one.max_hz)
            if known.kind == one.kind and same_clock:
                found[place] = _joined(known, one)
                break
        else:
            found.append(one)
    return found


def _joined(known: Cluster, one: Cluster) -> Cluster:
    first = known if known.max_hz is not None else one
    clocks = [hz for hz in (known.now_hz, one.now_hz) if hz is not None]
    return replace(
        first,
        possible=(*known.possible, *one.possible),
        online=(*known.online, *one.online),
        now_hz=max(clocks) if clocks else None,
    )


def _clock(tree: Tree, cpu: int, kind: str, online: tuple[int, ...]) -> Cluster:
    folder = f"{_CPU}/cpu{cpu}/cpufreq"

    def hertz(name: str) -> int | None:
        value = tree.number(f"{folder}/{name}")
        return None if value is None else value * 1000

    return Cluster(
        kind=kind or "unknown",
        possible=(cpu,),
        online=online,
        max_hz=hertz("cpuinfo_max_freq"),
        cap_hz=hertz("scaling_max_freq"),
        min_hz=hertz("scaling_min_freq"),
        now_hz=hertz("scaling_cur_freq") if online else None,
        governor=tree.text(f"{folder}/scaling_governor") or "",
        small=kind in facts()["small"]["kinds"],
    )


def _kinds(tree: Tree) -> dict[int, str]:
    """Return the kind of each core in ``/proc/cpuinfo``."""
    kinds = {}
    for block in re.split(r"\n\s*\n", tree.text("proc/cpuinfo") or ""):
        fields = dict(re.findall(r"^([^:\n]+?)[ \t]*:[ \t]*(.*)$", block, re.M))
        number = fields.get("processor", "")
        if not number.isdigit():
            continue
        try:
            maker = int(fields["CPU implementer"], 16)
            part = int(fields["CPU part"], 16)
        except (KeyError, ValueError):
            kinds[int(number)] = " ".join(fields.get("model name", "").split())
        else:
            kinds[int(number)] = _named(maker, part)
    return kinds


def _midr(tree: Tree, cpu: int) -> str:
    name = f"{_CPU}/cpu{cpu}/regs/identification/midr_el1"
    try:
        value = int(tree.text(name) or "", 16)
    except ValueError:
        return ""
    return _named(value >> 24 & 0xFF, value >> 4 & 0xFFF)


def _named(maker: int, part: int) -> str:
    named = facts()["parts"].get(f"{maker:#x} {part:#x}")
    return named or f"implementer {maker:#x} part {part:#x}"


def quota_cores(tree: Tree) -> float | None:
    """Return how many cores a container may use (quota and period of ``cpu.max``), or
    None."""
    words = (tree.text("sys/fs/cgroup/cpu.max") or "").split()
    if len(words) == 2 and words[0].isdigit() and words[1].isdigit() and int(words[1]):
        return int(words[0]) / int(words[1])
    quota = tree.number("sys/fs/cgroup/cpu/cpu.cfs_quota_us")
    period = tree.number("sys/fs/cgroup/cpu/cpu.cfs_period_us")
    return quota / period if quota and period and quota > 0 else None
