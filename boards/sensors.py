"""Power sensors of a machine: which are there, what they name, who may read them.

A rail of a power chip has one of three shapes: NVIDIA's own INA3221 driver up to L4T R32
(channels from 0, one power file in milliwatt), hwmon with a power file (microwatt), and
hwmon with a voltage and a current.  Reading them for joules is the business of
``draftwire.energy``; here only presence and rights count.

Source:
    Linux, Documentation/hwmon/{ina3221,ina238,ina2xx,macsmc-hwmon}.rst and
    sysfs-interface.rst; kernel 4.4 of L4T R32, drivers/staging/iio/meter/ina3221.c.
"""

from __future__ import annotations

import functools
import os
import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Container, Iterator, NamedTuple

from draftwire.boards.tree import Tree
from draftwire.io import read_toml

RULE = "etc/udev/rules.d/90-draftwire-power.rules"
R32 = "ina3221x"  # NVIDIA's own driver
_RULE_FOLDERS = ("etc/udev/rules.d", "run/udev/rules.d", "lib/udev/rules.d")


@dataclass(frozen=True)
class Sensor:
    """One power sensor, e.g. ``"ina3221"``."""

    driver: str
    path: str  # its folder or file
    rails: tuple[str, ...]  # what it measures, as the board names it
    why_not: str = ""  # why it cannot be read, or ""
    fix: str = ""  # one command that changes that, or ""

    @property
    def readable(self) -> bool:
        """True when a reading succeeded."""
        return not self.why_not


def find_sensors(tree: Tree, *, pmic: bool = False) -> list[Sensor]:
    """Return the power sensors; ``pmic``: the board has the power chip of a Pi 5."""
    found = [*_chips(tree), *_rapl(tree)]
    if pmic:
        found.append(_pmic(tree))
    if tree.exists("run/jtop.sock"):
        found.append(_jtop(tree))
    return found


def _chips(tree: Tree) -> Iterator[Sensor]:
    by_folder: dict[str, list[Rail]] = {}
    for rail in power_rails(tree):
        by_folder.setdefault(rail.folder, []).append(rail)
    for folder, rails in by_folder.items():
        driver = rails[0].driver
        whys = [[tree.why_unreadable(name) for name in rail.files] for rail in rails]
        reasons = [next(filter(None, why), "") for why in whys]
        # One channel that is switched off fails alone; the sensor is as good as its best.
        why = "" if "" in reasons else reasons[0]
        fix = _rule(driver) if why == "permission" else ""
        yield Sensor(driver, f"/{folder}", tuple(rail.name for rail in rails), why, fix)


class Rail(NamedTuple):
    """One rail of a power chip, and where it is: names below the root."""

    name: str  # its label; else its chip, with the device that this is
    driver: str  # as it calls itself, e.g. ``"ina3221"``
    folder: str
    channel: int  # its number there
    device: str  # what the driver is bound to, or "" in a tree that does not tell
    label: str  # the file that holds its name, or ""
    files: tuple[str, ...]  # of its power, or of its voltage and current
    voltage: str = ""  # the file of its voltage, or ""


@functools.lru_cache(maxsize=1)
def chips() -> dict[str, dict[str, Any]]:
    """Return the tables of ``chips.toml`` by the names that drivers give the chips."""
    raw = read_toml(Path(__file__).with_name("chips.toml"))
    whole = {name: {**raw.get(one.get("like"), {}), **one} for name, one in raw.items()}
    return {n: {k: v for k, v in one.items() if k != "like"} for n, one in whole.items()}


def power_rails(tree: Tree) -> list[Rail]:
    """Return every rail behind a power chip, readable or not, in the order of the chips."""
    found = [r for folder in hwmon_folders(tree, chips()) for r in _hwmon(tree, folder)]
    for folder in tree.find(f"sys/bus/i2c/drivers/{R32}/*/iio:device*"):
        device = folder.split("/")[-2]
        for n in (0, 1, 2):
            label, power = f"{folder}/rail_name_{n}", f"{folder}/in_power{n}_input"
            name = tree.text(label)
            if name and name != "NC":
                found.append(Rail(name, R32, folder, n, device, label, (power,)))
    return found


def hwmon_folders(tree: Tree, names: Container[str]) -> list[str]:
    """Return the hwmon folders of some chips, each once, in the order of the numbers."""
    found: dict[Path, str] = {}
    for pattern in ("sys/class/hwmon/hwmon*", "sys/bus/i2c/drivers/ina*/*/hwmon/hwmon*"):
        for folder in tree.find(pattern):
            if tree.text(f"{folder}/name") in names:
                found.setdefault(tree.path(folder).resolve(), folder)
    return list(found.values())


def _hwmon(tree: Tree, folder: str) -> Iterator[Rail]:
    driver = tree.text(f"{folder}/name") or ""
    known, three = chips()[driver], driver == "ina3221"  # its in4 to in7 are no rails
    link = f"{folder}/device"
    device = tree.path(link).resolve().name if tree.exists(link) else ""
    for n in range(1, 4) if three else range(17):
        power, amp = f"{folder}/power{n}_input", f"{folder}/curr{n}_input"
        volt = f"{folder}/in{known.get('bus', n)}_input"
        whole = tree.exists(power)
        kinds = ("power", "in", "curr") if whole else ("in", "curr")
        labels = [f"{folder}/{kind}{n}_label" for kind in kinds]
        label = next(filter(tree.exists, labels), "")
        both = tree.exists(volt) and tree.exists(amp)
        if not label if three else not (whole or both):
            continue
        name = tree.text(label) if label else known.get("label")
        name = name or (f"{driver}@{device}" if device and not label else driver)
        if name == "NC" or tree.number(f"{folder}/in{n}_enable") == 0:
            continue
        voltage = volt if not whole or tree.exists(volt) else ""
        files = (power,) if whole else (amp, volt)
        yield Rail(name, driver, folder, n, device, label, files, voltage)


def _rule(driver: str) -> str:
    """Return the command that opens the sensor now and after every start."""
    subsystem = "i2c" if driver == R32 else "hwmon"
    match = f'SUBSYSTEM=="{subsystem}", ' + (
        'DRIVER=="ina3221x"' if subsystem == "i2c" else f'ATTR{{name}}=="{driver}"'
    )
    rule = f"{match}, RUN+=\"/bin/sh -c 'chmod -R a+r /sys%p'\""
    return (
        f"printf '%s\\n' {shlex.quote(rule)} | sudo tee -a /{RULE} "
        f"&& sudo udevadm control --reload && sudo udevadm trigger -c add -s {subsystem}"
    )


def rapl_zones(tree: Tree) -> dict[str, str]:
    """Return the names of the processor packages by zone, without what is counted in one:
    ``intel-rapl:0``, not its part ``intel-rapl:0:0``."""
    zones = tree.find("sys/class/powercap/intel-rapl:*")
    return {
        zone: tree.text(f"{zone}/name") or zone.rsplit("/", 1)[-1]
        for zone in zones
        if zone.count(":") == 1
    }


def _rapl(tree: Tree) -> Iterator[Sensor]:
    for zone, name in rapl_zones(tree).items():
        why = tree.why_unreadable(f"{zone}/energy_uj")
        fix = f"sudo chmod a+r /{zone}/energy_uj" if why == "permission" else ""
        yield Sensor("intel-rapl", f"/{zone}", (name,), why, fix)


def _pmic(tree: Tree) -> Sensor:
    tool = tree.find("usr/bin/vcgencmd") or tree.find("opt/vc/bin/vcgencmd")
    if not tool:
        why, fix = "vcgencmd is not installed", "sudo apt-get install raspi-utils"
    elif not tree.host:
        why, fix = "", ""
    else:
        why = tree.why_unreadable("dev/vcio")
        if why == "permission":
            fix = "sudo usermod -aG video $USER && echo 'now log in again'"
        else:  # a device that is opened, not read
            why, fix = "", ""
    path = f"/{tool[0]}" if tool else "/usr/bin/vcgencmd"
    return Sensor("vcgencmd pmic_read_adc", path, ("PMIC rails",), why, fix)


def _jtop(tree: Tree) -> Sensor:
    path = tree.path("run/jtop.sock")
    why, fix = "", ""
    if tree.host and not os.access(path, os.R_OK | os.W_OK):
        why = "permission"
        fix = "sudo usermod -aG jtop $USER && echo 'now log in again'"
    return Sensor("jtop", "/run/jtop.sock", ("by jtop",), why, fix)


def open_to_all(tree: Tree) -> list[str]:
    """Return the udev rules that speak of a power sensor."""
    words = "|".join([r"\bina[\d\[]", "powercap", "intel-rapl", *chips()])
    return [
        f"/{folder}/{name}"
        for folder in _RULE_FOLDERS
        for name in tree.names(folder)
        if name.endswith(".rules") and re.search(words, tree.text(f"{folder}/{name}") or "")
    ]
