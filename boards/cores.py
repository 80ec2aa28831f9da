"""Processor cores: which architecture, which kinds, how many of them are online."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, replace

from draftwire.boards.tree import Tree

_CPU = "sys/devices/system/cpu"

# Linux, arch/arm64/include/asm/cputype.h: implementer and part number of MIDR_EL1.
_PARTS = {
    (0x41, 0xC07): "Cortex-A7",
    (0x41, 0xC08): "Cortex-A8",
    (0x41, 0xC09): "Cortex-A9",
    (0x41, 0xC0F): "Cortex-A15",
    (0x41, 0xD03): "Cortex-A53",
    (0x41, 0xD04): "Cortex-A35",
    (0x41, 0xD05): "Cortex-A55",
    (0x41, 0xD07): "Cortex-A57",
    (0x41, 0xD08): "Cortex-A72",
    (0x41, 0xD09): "Cortex-A73",
    (0x41, 0xD0A): "Cortex-A75",
    (0x41, 0xD0B): "Cortex-A76",
    (0x41, 0xD0C): "Neoverse-N1",
    (0x41, 0xD0D): "Cortex-A77",
    (0x41, 0xD41): "Cortex-A78",
    (0x41, 0xD42): "Cortex-A78AE",
    (0x41, 0xD46): "Cortex-A510",
    (0x41, 0xD49): "Neoverse-N2",
    (0x41, 0xD4B): "Cortex-A78C",
    (0x41, 0xD4F): "Neoverse-V2",
    (0x41, 0xD80): "Cortex-A520",
    (0x41, 0xD81): "Cortex-A720",
    (0x41, 0xD85): "Cortex-X925",
    (0x41, 0xD87): "Cortex-A725",
    (0x41, 0xD83): "Neoverse-V3AE",
    (0x41, 0xD84): "Neoverse-V3",
    (0x4E, 0x003): "Denver 2",
    (0x4E, 0x004): "Carmel",
}
# Built to save power: a draft's one thread is slow there, and slows its siblings.
_SMALL = (
    "Cortex-A7",
    "Cortex-A35",
    "Cortex-A53",
    "Cortex-A55",
    "Cortex-A510",
    "Cortex-A520",
)
# ELF e_machine of the root's own programs.
_MACHINES = {62: "x86_64", 183: "aarch64", 40: "armv7l", 3: "i686", 243: "riscv64"}
_PROGRAMS = ("bin/sh", "usr/bin/env", "sbin/init", "bin/busybox")


@dataclass(frozen=True)
class Cluster:
    """Cores of one kind and one highest clock.

    Attributes:
        kind: E.g. ``"Cortex-A78AE"``; the processor's name on x86.
        governor: E.g. ``"schedutil"``, or "".
    """

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


def parse_list(text: str | None) -> tuple[int, ...]:
    """Return the numbers of a kernel list: ``"0-3,6"`` is 0, 1, 2, 3, 6.

    What is no such list gives no numbers: a broken file is no reason to stop.
    """
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
    for name in _PROGRAMS:
        head = (tree.data(name) or b"")[:20]
        if head[:4] == b"\x7fELF" and len(head) == 20:
            order = "little" if head[5] == 1 else "big"
            number = int.from_bytes(head[18:20], order)  # type: ignore[arg-type]
            return _MACHINES.get(number, f"ELF machine {number}")
    return ""


def clusters(tree: Tree) -> list[Cluster]:
    """Return the cores by kind, those of the lowest number first.

    A core that is offline has no clocks in sysfs, and may be missing from
    ``/proc/cpuinfo``: its kind is then that of the nearest core below it.
    """
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
        small=kind in _SMALL,
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
    return _PARTS.get((maker, part), f"implementer {maker:#x} part {part:#x}")


def quota_cores(tree: Tree) -> float | None:
    """Return how many cores a container may use, or None without a limit.

    Source:
        Linux, Documentation/admin-guide/cgroup-v2.rst: ``cpu.max`` is quota and period.
    """
    words = (tree.text("sys/fs/cgroup/cpu.max") or "").split()
    if len(words) == 2 and words[0].isdigit() and words[1].isdigit() and int(words[1]):
        return int(words[0]) / int(words[1])
    quota = tree.number("sys/fs/cgroup/cpu/cpu.cfs_quota_us")
    period = tree.number("sys/fs/cgroup/cpu/cpu.cfs_period_us")
    return quota / period if quota and period and quota > 0 else None
