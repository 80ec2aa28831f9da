"""Facts of a Linux machine, read from its files: system, memory, power mode, heat."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any, Mapping

from draftwire.boards.cores import facts
from draftwire.boards.install.facts import glibc_of
from draftwire.boards.tree import Tree

_RELEASE = re.compile(r"#\s*R(\d+)\s*\(release\),\s*REVISION:\s*([\d.]+)")
_PACKAGE = re.compile(r"^Package: nvidia-l4t-core$.*?^Version: (\d+\.[\d.]+)", re.M | re.S)
_MODE = re.compile(r"<\s*POWER_MODEL\s+ID=(\d+)\s+NAME=(\S+)\s*>")
_STATUS = re.compile(r"pmode:(\d+)")
_RATHER_HOT_K = 5.0  # below the first trip point that slows the machine

# Raspberry Pi, get_throttled: the low bits are now, those 16 higher since boot.
_PI_BITS = ["under-voltage", "the clock is capped", "throttled"]
_PI_BITS += ["the soft temperature limit is reached"]


@dataclass(frozen=True)
class L4t:
    """NVIDIA's Linux for Tegra."""

    version: str  # ``"36.4.3"``
    jetpack: str  # jetPack versions that come with it, a hint, or ""


@dataclass(frozen=True)
class Memory:
    """How much memory there is, in bytes; None is what nobody tells."""

    total: int | None = None  # of the machine, without what the firmware keeps
    available: int | None = None  # what new work can have without swapping
    swap: int | None = None  # swap space
    limit: int | None = None  # what a container may have, or None
    free_4mb: int | None = None


@dataclass(frozen=True)
class PowerMode:
    """The power mode of a Jetson (nvpmodel), or the platform profile of a PC."""

    name: str | None  # ``"MAXN_SUPER"``; None when it cannot be known by name
    number: int | None = None  # nvpmodel's id, which means another mode on another board
    names: tuple[str, ...] = ()  # all modes, in the order of their ids
    default: str = ""  # the mode that the board starts with, or ""
    ids: Mapping[str, int] = field(default_factory=dict)  # nvpmodel's id of each mode


def os_release(tree: Tree) -> dict[str, str]:
    """Return ``/etc/os-release`` as a dict; empty without one."""
    text = tree.text("etc/os-release") or tree.text("usr/lib/os-release") or ""
    found = re.findall(r"^([A-Z_]+)=\"?(.*?)\"?$", text, re.M)
    return dict(found)


def l4t(tree: Tree) -> L4t | None:
    """Return the L4T release, or None where there is none."""
    match = _RELEASE.search(tree.text("etc/nv_tegra_release") or "")
    if match:
        version = f"{match.group(1)}.{match.group(2)}"
    else:  # not in every container; the package is
        package = _PACKAGE.search(_status(tree))
        if package is None:
            return None
        version = package.group(1)
    version = version.rstrip(".")
    parts, known = version.split("."), facts()["jetpack"]
    jetpack = known.get(".".join(parts[:2])) or known.get(parts[0], "")
    return L4t(version, jetpack)


def _status(tree: Tree) -> str:
    """Return dpkg's status file, which is longer than what ``Tree`` reads."""
    try:
        with open(tree.path("var/lib/dpkg/status"), "rb") as file:
            data = file.read(32 << 20)
    except OSError:
        return ""
    place = data.find(b"Package: nvidia-l4t-core\n")
    return data[place : place + 4096].decode("utf-8", "replace") if place >= 0 else ""


def libc(tree: Tree) -> str:
    """Return e.g. ``"glibc 2.35"``, ``"musl"``, or "" when it is not found."""
    version = glibc_of(tree.disk)
    return f"glibc {version}" if version else "musl" * bool(tree.find("lib/ld-musl-*"))


def memory(tree: Tree) -> Memory:
    """Return how much memory there is."""
    text = tree.text("proc/meminfo") or ""
    found = {k: int(v) << 10 for k, v in re.findall(r"^(\w+):\s+(\d+) kB$", text, re.M)}
    limit = tree.number("sys/fs/cgroup/memory.max")
    if limit is None:
        limit = tree.number("sys/fs/cgroup/memory/memory.limit_in_bytes")
    keys = ("MemTotal", "MemAvailable", "SwapTotal")
    total, available, swap = (found.get(key) for key in keys)
    if limit is not None and (total is None or limit >= total):
        limit = None  # the kernel's word for "no limit"
    return Memory(total, available, swap, limit, _free_4mb(tree))


def _free_4mb(tree: Tree) -> int | None:
    """Count free blocks of order 10, which are 4 MB at pages of 4 KB."""
    rows = (tree.text("proc/buddyinfo") or "").splitlines()
    counts = [row.split()[4:] for row in rows if row.startswith("Node")]
    if not counts or any(len(c) < 11 or not c[10].isdigit() for c in counts):
        return None
    return sum(int(c[10]) for c in counts)


def power_mode(tree: Tree) -> PowerMode | None:
    """Return the present power mode by name, from files that need no root; an id means
    another mode on every board, so without this system's table it stays an id."""
    text = tree.text("etc/nvpmodel.conf") or ""
    modes = {int(number): name for number, name in _MODE.findall(text)}
    status = _STATUS.search(tree.text("var/lib/nvpmodel/status") or "")
    names = tuple(name for _, name in sorted(modes.items()))
    start = re.search(r"<\s*PM_CONFIG\s+DEFAULT=(\d+)\s*>", text)
    default = modes.get(int(start.group(1)), "") if start else ""
    ids = {name: number for number, name in modes.items()}
    if status is not None:
        number = int(status.group(1))
        return PowerMode(modes.get(number), number, names, default, ids)
    if modes:
        return PowerMode(None, None, names, default, ids)
    profile = tree.text("sys/firmware/acpi/platform_profile")
    choices = (tree.text("sys/firmware/acpi/platform_profile_choices") or "").split()
    return PowerMode(profile, None, tuple(choices)) if profile else None


def heat(tree: Tree) -> dict[str, float]:
    """Return the temperature of each zone in degrees Celsius."""
    found = {}
    for zone in tree.find("sys/class/thermal/thermal_zone*"):
        value = tree.number(f"{zone}/temp")
        if value is not None and -50_000 < value < 200_000:  # -256 C: switched off
            found[tree.text(f"{zone}/type") or zone.rsplit("/", 1)[-1]] = value / 1000
    return found


def throttling(tree: Tree) -> dict[str, Any]:
    """Return what slows the machine: sentences for ``now`` and ``since_boot``, and whether
    anything tells (``known``)."""
    now: list[str] = []
    before: list[str] = []
    known = False
    flags = tree.text("sys/devices/platform/soc/soc:firmware/get_throttled")
    if flags and re.fullmatch(r"(0x)?[0-9a-fA-F]{1,8}", flags):
        known = True
        value = int(flags, 16)
        now += [words for bit, words in enumerate(_PI_BITS) if value >> bit & 1]
        higher = enumerate(_PI_BITS, 16)
        before += [words for bit, words in higher if value >> bit & 1]
    for name in tree.find("sys/class/hwmon/hwmon*/oc*_event_cnt"):
        known = True
        count = tree.number(name)  # over-current and under-voltage of a Jetson
        if count:
            before.append(f"{name.rsplit('/', 1)[-1][:-10]}: {count} over-current events")
    for name in tree.find("sys/class/hwmon/hwmon*/curr*_m*_alarm"):
        known = True
        if tree.number(name) == 1:
            rail = name.rsplit("/", 1)[-1].split("_")[0]
            now.append(f"{rail} of {name.split('/')[3]} is above its limit")
    for zone in tree.find("sys/class/thermal/thermal_zone*"):
        known = True
        now += _near_trip(tree, zone)
    return {"known": known, "now": now, "since_boot": before}


def _near_trip(tree: Tree, zone: str) -> list[str]:
    value = tree.number(f"{zone}/temp")
    if value is None or not -50_000 < value < 200_000:
        return []
    for name in tree.find(f"{zone}/trip_point_*_type"):
        limit = tree.number(name[: -len("_type")] + "_temp")
        if tree.text(name) not in ("passive", "hot") or not limit or limit <= 0:
            continue
        if value >= limit - _RATHER_HOT_K * 1000:
            label = tree.text(f"{zone}/type") or zone.rsplit("/", 1)[-1]
            at = f"{label} is at {value / 1000:.0f} C"
            if value >= limit:
                return [f"{at}, above its limit of {limit / 1000:.0f} C"]
            return [f"{at}, it slows down at {limit / 1000:.0f} C"]
    return []
