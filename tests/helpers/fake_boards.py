"""Roots of boards that nobody has here: the files a real one shows, written from data.

Every board is a line of ``fake_boards.json``, and every file is made in the shape that the
kernel and NVIDIA's tools give theirs; nothing is copied from a board.
"""

from __future__ import annotations

import json
import struct
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

# Implementer and part of MIDR_EL1 (Linux, arch/arm64/include/asm/cputype.h).
_PARTS = {
    "Cortex-A7": (0x41, 0xC07),
    "Cortex-A53": (0x41, 0xD03),
    "Cortex-A55": (0x41, 0xD05),
    "Cortex-A57": (0x41, 0xD07),
    "Cortex-A72": (0x41, 0xD08),
    "Cortex-A76": (0x41, 0xD0B),
    "Cortex-A78": (0x41, 0xD41),
    "Cortex-A78AE": (0x41, 0xD42),
    "Cortex-X925": (0x41, 0xD85),
    "Cortex-A725": (0x41, 0xD87),
    "Neoverse-V3AE": (0x41, 0xD83),
    "Denver 2": (0x4E, 0x003),
    "Carmel": (0x4E, 0x004),
}
_MACHINES = {"aarch64": 183, "armv7l": 40, "x86_64": 62}


def build(root: Path, fake: Fake) -> Path:
    """Write the files of ``fake`` below ``root``."""

    def put(name: str, text: str | bytes) -> Path:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    if fake.compatible:
        strings = b"".join(text.encode() + b"\0" for text in fake.compatible)
        put("proc/device-tree/compatible", strings)
        put("proc/device-tree/model", fake.model.encode() + b"\0")
    _system(put, root, fake)
    _cpus(put, fake)
    if fake.modes:
        _nvpmodel(put, root, fake)
    for number, rails in enumerate(fake.rails):
        _ina3221(put, fake.driver, number, rails)
    if fake.ina238:
        put("sys/class/hwmon/hwmon9/name", "ina238\n")
        for name, value in (("power1", 19_780_000), ("in1", 19_800), ("curr1", 999)):
            put(f"sys/class/hwmon/hwmon9/{name}_input", f"{value}\n")
    if fake.ina260:
        put("sys/class/hwmon/hwmon9/name", "ina260_u14\n")
        for name, value in (("power1", 7_100_000), ("in1", 5_050), ("curr1", 1_406)):
            put(f"sys/class/hwmon/hwmon9/{name}_input", f"{value}\n")
    if fake.dmi:
        put("sys/class/dmi/id/product_name", fake.dmi + "\n")
    # Not a power sensor: every board has one of these.
    put("sys/class/hwmon/hwmon0/name", "tmp451\n")
    put("sys/class/hwmon/hwmon0/temp1_input", "41000\n")
    zone = "sys/class/thermal/thermal_zone0"
    put(f"{zone}/type", "cpu-thermal\n")
    put(f"{zone}/temp", f"{int(fake.heat_c * 1000)}\n")
    put(f"{zone}/trip_point_0_type", "passive\n")
    put(f"{zone}/trip_point_0_temp", "99000\n")
    put("sys/class/thermal/thermal_zone1/type", "cv0-thermal\n")
    put("sys/class/thermal/thermal_zone1/temp", "-256000\n")  # switched off
    if fake.vcgencmd:
        put("usr/bin/vcgencmd", b"\x7fELF").chmod(0o755)
    if fake.throttled:
        put("sys/devices/platform/soc/soc:firmware/get_throttled", fake.throttled + "\n")
    return root


def _system(put, root: Path, fake: Fake) -> None:
    name = fake.os.split()[0].lower()
    put("usr/lib/os-release", f'PRETTY_NAME="{fake.os}"\nID={name}\n')
    (root / "etc").mkdir(exist_ok=True)
    (root / "etc/os-release").symlink_to("../usr/lib/os-release")
    version = f"GNU C Library (stuff) stable release version {fake.glibc}.\nCopyright"
    triplet = {"aarch64": "aarch64-linux-gnu", "x86_64": "x86_64-linux-gnu"}.get(
        fake.arch, "arm-linux-gnueabihf"
    )
    put(f"lib/{triplet}/libc.so.6", b"\x7fELF...\0" + version.encode() + b"\0")
    put(f"usr/bin/python{fake.python}", b"\x7fELF")
    head = b"\x7fELF" + bytes([2, 1, 1]) + bytes(9)
    put("bin/sh", head + struct.pack("<HH", 3, _MACHINES[fake.arch]))
    kib = fake.memory_kib
    put(
        "proc/meminfo",
        f"MemTotal:       {kib} kB\nMemFree:        {kib // 3} kB\n"
        f"MemAvailable:   {kib // 2} kB\nSwapTotal:      {kib // 4} kB\n",
    )
    free = "      1      2      3      4      5      6      7      8      9     10    321"
    put("proc/buddyinfo", f"Node 0, zone   Normal {free} \n")
    put("proc/version", "Linux version 5.15.148-fake (builder@nowhere) #1 SMP\n")
    if fake.l4t:
        major, revision = fake.l4t.split()
        put(
            "etc/nv_tegra_release",
            f"# {major} (release), REVISION: {revision}, GCID: 12345678, BOARD: generic, "
            "EABI: aarch64, DATE: Thu Jan  1 00:00:00 UTC 2026\n",
        )


def _cpus(put, fake: Fake) -> None:
    each = [(c.kind, c.max_khz) for c in fake.cores for _ in range(c.count)]
    online = [n for n in range(len(each)) if n not in fake.offline]
    cpu = "sys/devices/system/cpu"
    put(f"{cpu}/possible", f"0-{len(each) - 1}\n")
    put(f"{cpu}/present", f"0-{len(each) - 1}\n")
    put(f"{cpu}/online", ",".join(map(str, online)) + "\n")
    blocks = []
    for number, (kind, khz) in enumerate(each):
        maker, part = _PARTS.get(kind, (0, 0))
        if number in online:  # an offline core has no clocks and no line
            for name, value in (
                ("cpuinfo_max_freq", khz),
                ("scaling_max_freq", khz),
                ("scaling_min_freq", 115_200),
                ("scaling_cur_freq", khz // 2),
            ):
                put(f"{cpu}/cpu{number}/cpufreq/{name}", f"{value}\n")
            put(f"{cpu}/cpu{number}/cpufreq/scaling_governor", "schedutil\n")
            if fake.arch == "x86_64":
                blocks.append(
                    f"processor\t: {number}\nvendor_id\t: BrandX\nmodel name\t: {kind}\n"
                )
                continue
            level = 7 if fake.arch == "armv7l" else 8
            blocks.append(
                f"processor\t: {number}\nBogoMIPS\t: 62.50\n"
                "Features\t: fp asimd evtstrm aes\n"
                f"CPU implementer\t: {maker:#04x}\nCPU architecture: {level}\n"
                f"CPU variant\t: 0x1\nCPU part\t: {part:#05x}\nCPU revision\t: 0\n"
            )
        if fake.arch == "aarch64":
            midr = maker << 24 | 0xF << 16 | part << 4
            where = f"{cpu}/cpu{number}/regs/identification/midr_el1"
            put(where, f"{midr:#018x}\n")
    put("proc/cpuinfo", "\n".join(blocks))


def _nvpmodel(put, root: Path, fake: Fake) -> None:
    lines = []
    for number, name in enumerate(fake.modes):
        lines.append(f"< POWER_MODEL ID={number} NAME={name} >\nCPU_ONLINE CORE_0 1\n")
    lines.append(f"< PM_CONFIG DEFAULT={fake.default_mode} >\n")
    put("etc/nvpmodel/nvpmodel_board.conf", "\n".join(lines))
    # As on a board: an absolute link, which below another root must not lead outside.
    (root / "etc/nvpmodel.conf").symlink_to("/etc/nvpmodel/nvpmodel_board.conf")
    if fake.mode is not None:
        put("var/lib/nvpmodel/status", f"pmode:{fake.mode:04d} fmode:quiet\n")


def _ina3221(put, driver: str, number: int, rails: tuple[str, ...]) -> None:
    if driver == "ina3221x":  # NVIDIA's own, L4T R32: channels from 0, a power file
        folder = f"sys/bus/i2c/drivers/ina3221x/1-004{number}/iio:device{number}"
        for channel, rail in enumerate(rails):
            put(f"{folder}/rail_name_{channel}", f"{rail}\n")
            put(f"{folder}/in_power{channel}_input", "1234\n")
        return
    folder = f"sys/class/hwmon/hwmon{number + 3}"
    put(f"{folder}/name", "ina3221\n")
    for channel, rail in enumerate(rails, 1):
        put(f"{folder}/in{channel}_label", f"{rail}\n")
        put(f"{folder}/in{channel}_input", "5000\n")
        put(f"{folder}/curr{channel}_input", "400\n")
    put(f"{folder}/in7_label", "sum of shunt voltages\n")
