"""What this machine is: board, system, cores, power mode, sensors, engines."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Mapping

from draftwire.boards.cores import Cluster, architecture, clusters, parse_list, quota_cores
from draftwire.boards.engines import Installed, find_engines, python_version
from draftwire.boards.install.facts import pythons_of
from draftwire.boards.profiles import Match, Profile, find_profile
from draftwire.boards.sensors import Sensor, find_sensors
from draftwire.boards.system import (
    L4t,
    Memory,
    PowerMode,
    heat,
    l4t,
    libc,
    memory,
    os_release,
    power_mode,
)
from draftwire.boards.tree import Tree

SCHEMA = "draftwire.detect/1"
_PMIC = "vcgencmd pmic_read_adc"


@dataclass(frozen=True)
class Detection:
    """All that is known of a machine; ``to_dict`` is the document of ``--json``."""

    tree: Tree
    match: Match
    variant: str
    arch: str
    l4t: L4t | None
    system: Mapping[str, str]
    kernel: str
    libc: str
    pythons: tuple[str, ...]
    memory: Memory
    clusters: tuple[Cluster, ...]
    quota: float | None
    mode: PowerMode | None
    heat_c: Mapping[str, float]
    sensors: tuple[Sensor, ...]
    engines: tuple[Installed, ...] | None
    container: bool
    warnings: tuple[str, ...] = ()

    @property
    def profile(self) -> Profile:
        return self.match.profile

    @property
    def online(self) -> tuple[int, ...]:
        """Numbers of the cores that run now."""
        return tuple(cpu for cluster in self.clusters for cpu in cluster.online)

    @property
    def title(self) -> str:
        """The board as people call it, with its variant."""
        return f"{self.profile.title} {self.variant}".rstrip()

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON takes it; null is what could not be known."""
        profile, mode = self.profile, self.mode
        why_none = f"the files are those of {self.tree.root}, nothing of them was run"
        why_none = "not asked for" if self.tree.host else why_none
        return {
            "schema": SCHEMA,
            "root": str(self.tree.root),
            "board": {
                "name": profile.name,
                "title": profile.title,
                "variant": self.variant or None,
                "generic": profile.generic,
                "how": self.match.how,
                "model": next(iter(self.tree.strings("proc/device-tree/model")), None),
                "profile": str(profile.path),
            },
            "soc": profile.soc or None,
            "arch": self.arch or None,
            "l4t": None
            if self.l4t is None
            else {"version": self.l4t.version, "jetpack_hint": self.l4t.jetpack or None},
            "os": self.system.get("PRETTY_NAME"),
            "kernel": self.kernel or None,
            "libc": self.libc or None,
            "container": self.container,
            "python": {
                "running": python_version() if self.tree.host else None,
                "executable": sys.executable if self.tree.host else None,
                "installed": list(self.pythons),
            },
            "memory": {
                "total_bytes": self.memory.total,
                "available_bytes": self.memory.available,
                "swap_bytes": self.memory.swap,
                "limit_bytes": self.memory.limit,
                "free_4mb_blocks": self.memory.free_4mb,
            },
            "cores": [_cluster(cluster) for cluster in self.clusters],
            "cores_online": len(self.online),
            "cores_quota": self.quota,
            "power_mode": None
            if mode is None
            else {
                "name": mode.name,
                "id": mode.number,
                "names": list(mode.names),
                "default": mode.default or None,
            },
            "heat_c": dict(self.heat_c),
            "sensors": [_sensor(sensor) for sensor in self.sensors],
            "totals": [
                {"scope": total.get("scope"), "rails": list(total.get("rails", ()))}
                for total in profile.rails.get("total", ())
            ],
            "engines": None
            if self.engines is None
            else [engine.to_dict() for engine in self.engines],
            "engines_why_null": "" if self.engines is not None else why_none,
            "quirks": list(profile.quirks),
            "warnings": list(self.warnings),
        }


def _cluster(cluster: Cluster) -> dict[str, Any]:
    found = dict(vars(cluster))
    cpus, found["online"] = list(found.pop("possible")), list(cluster.online)
    found["governor"] = cluster.governor or None
    return {**found, "cpus": cpus, "locked": cluster.locked}


def _sensor(sensor: Sensor) -> dict[str, Any]:
    names = ("driver", "path", "readable", "why_not")
    found = {name: getattr(sensor, name) for name in names}
    return {**found, "rails": list(sensor.rails)}


def detect(
    root: Path = Path("/"),
    profiles: Mapping[str, Profile] | None = None,
    *,
    board: str | None = None,
    engines: bool = True,
) -> Detection:
    """Look at a machine, or at the ``proc``, ``sys`` and ``etc`` of another below ``root``:
    then nothing is run, and nothing of this machine is reported. ``board`` overrides the
    profile that is found; ``engines``: whether to run a small model on each provider.
    ConfigError: ``board`` names no profile, or a profile is broken."""
    tree = Tree(root)
    match = find_profile(tree.root, profiles, board=board)
    profile = match.profile
    found = tuple(clusters(tree))
    ram = memory(tree)
    pmic = any(sensor.get("driver") == _PMIC for sensor in profile.raw.get("sensor", ()))
    variant = find_variant(tree, profile, ram, found)
    arch = architecture(tree)
    run = engines and tree.host
    version = (tree.text("proc/version") or "").split()
    kernel = version[2] if len(version) > 2 and version[0] == "Linux" else ""
    detection = Detection(
        tree=tree,
        match=match,
        variant=variant,
        arch=arch,
        l4t=l4t(tree) if profile.jetson or profile.generic else None,
        system=os_release(tree),
        kernel=os.uname().release
        if tree.host
        else tree.text("proc/sys/kernel/osrelease") or kernel,
        libc=libc(tree),
        pythons=tuple(pythons_of(tree.disk)),
        memory=ram,
        clusters=found,
        quota=quota_cores(tree),
        mode=power_mode(tree),
        heat_c=heat(tree),
        sensors=tuple(find_sensors(tree, pmic=pmic)),
        engines=tuple(find_engines(profile.prefer)) if run else None,
        container=tree.exists(".dockerenv") or tree.exists("run/.containerenv"),
    )
    return _with_warnings(detection)


def find_variant(
    tree: Tree, profile: Profile, ram: Memory, cores: tuple[Cluster, ...]
) -> str:
    """Return the board's variant, or "": by the device tree, then memory (what the
    firmware keeps is missing), then the number of cores."""
    strings = tree.strings("proc/device-tree/compatible")
    parts = [part for text in strings for part in text.split(",")[-1].split("+")]
    plain = [p[: -len("-super")] if p.endswith("-super") else p for p in parts]
    fit = [v for v in profile.variants if set(v.compatible) & set(plain)]
    fit = fit or list(profile.variants)
    if len(fit) > 1 and ram.total:
        size = ram.total / 1e9
        near = [v for v in fit if v.memory_gb and 0.7 <= size / v.memory_gb <= 1.1]
        fit = near or fit
    count = sum(len(cluster.possible) for cluster in cores)
    if len(fit) > 1:
        fit = [v for v in fit if v.cores == count] or fit
    name = fit[0].name if len(fit) == 1 else ""
    fast = any(text.endswith("-super") for text in strings) or any(
        "Super" in text for text in tree.strings("proc/device-tree/model")
    )
    return f"{name} Super".strip() if fast else name


def _with_warnings(found: Detection) -> Detection:
    profile, tree = found.profile, found.tree
    warnings = []
    if profile.generic:
        warnings.append(
            "this is no board that draftwire knows: the generic profile names no rails, "
            "no power modes and no quirks (`boards detect --profile --toml` starts "
            "your own)"
        )
    elif profile.arch and found.arch and profile.arch != found.arch:
        warnings.append(f"the profile is for {profile.arch}, this machine is {found.arch}")
    offline = [cpu for c in found.clusters for cpu in c.possible if cpu not in c.online]
    if offline:
        mode = found.mode.name if found.mode else None
        because = f" in the power mode {mode}" if mode else ""
        numbers = ", ".join(map(str, offline))
        warnings.append(f"cores {numbers} are offline{because}: threads must follow")
    if found.mode and found.mode.number is not None and found.mode.name is None:
        warnings.append(
            f"power mode {found.mode.number} has no name in /etc/nvpmodel.conf, and a "
            "number alone means another mode on another board"
        )
    known = {str(n) for modes in profile.modes for n in modes.get("names", ())}
    if found.mode and found.mode.number is not None and found.mode.name and known:
        if found.mode.name not in known:
            warnings.append(f"the profile does not know the power mode {found.mode.name}")
    online = parse_list(tree.text("sys/devices/system/cpu/online"))
    if not online and not found.clusters:
        warnings.append("neither sysfs nor /proc/cpuinfo names a processor core")
    rails = {rail for sensor in found.sensors for rail in sensor.rails}
    totals = profile.rails.get("total", ())
    wanted = [set(total.get("rails", ())) for total in totals]
    drivers = [sensor.get("driver") for sensor in profile.raw.get("sensor", ())]
    if wanted and drivers != [_PMIC] and not any(w <= rails for w in wanted):
        seen = ", ".join(sorted(rails)) or "none"
        first = " + ".join(totals[0].get("rails", ()))
        warnings.append(f"the board's total is {first}; rails found: {seen}")
    for engine in found.engines or ():
        if len(engine.packages) > 1:
            names = " and ".join(engine.packages)
            warnings.append(f"{names} overwrite each other's files: keep one")
    return replace(found, warnings=tuple(warnings))
