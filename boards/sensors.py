"""Power sensors of a machine: which are there, what they name, who may read them.

Reading them for joules is the business of ``draftwire.energy``; here only presence and
rights count.
"""

from __future__ import annotations

import os
import re
import shlex
from dataclasses import dataclass
from typing import Sequence

from draftwire.boards.tree import Tree

RULE = "etc/udev/rules.d/90-draftwire-power.rules"
_INA = re.compile(r"ina[23]\d+(_u14)?$")  # as hwmon names them; all but one have one rail
_ONLY = {"ina238": "VIN", "ina260_u14": "SOM"}  # which is often not labelled
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
    found = [*_hwmon(tree), *_r32(tree), *_rapl(tree)]
    if pmic:
        found.append(_pmic(tree))
    if tree.exists("run/jtop.sock"):
        found.append(_jtop(tree))
    return found


def _hwmon(tree: Tree) -> list[Sensor]:
    found = []
    for folder in tree.find("sys/class/hwmon/hwmon*"):
        driver = tree.text(f"{folder}/name")
        if not driver or not _INA.match(driver):
            continue
        one = driver != "ina3221"
        rails, files = [], []
        for channel in (1,) if one else (1, 2, 3):  # in4 to in7 are shunt voltages
            rail = tree.text(f"{folder}/in{channel}_label")
            rail = rail or (_ONLY.get(driver, driver) if one else None)
            if not rail or rail == "NC" or tree.number(f"{folder}/in{channel}_enable") == 0:
                continue
            rails.append(rail)
            files.append(f"{folder}/{'power1' if one else f'curr{channel}'}_input")
        if rails:
            found.append(_sensor(tree, driver, folder, rails, files))
    return found


def _r32(tree: Tree) -> list[Sensor]:
    found = []
    for folder in tree.find("sys/bus/i2c/drivers/ina3221x/*/iio:device*"):
        names = {n: tree.text(f"{folder}/rail_name_{n}") for n in (0, 1, 2)}
        rails = {n: rail for n, rail in names.items() if rail and rail != "NC"}
        files = [f"{folder}/in_power{n}_input" for n in rails]
        if rails:
            found.append(_sensor(tree, "ina3221x", folder, list(rails.values()), files))
    return found


def _sensor(
    tree: Tree, driver: str, folder: str, rails: Sequence[str], files: Sequence[str]
) -> Sensor:
    reasons = [tree.why_unreadable(name) for name in files]
    # One channel that is switched off fails alone; the sensor is as good as its best.
    why = "" if "" in reasons else reasons[0]
    fix = _rule(driver) if why == "permission" else ""
    return Sensor(driver, f"/{folder}", tuple(rails), why, fix)


def _rule(driver: str) -> str:
    """Return the command that opens the sensor now and after every start."""
    subsystem = "i2c" if driver == "ina3221x" else "hwmon"
    match = f'SUBSYSTEM=="{subsystem}", ' + (
        'DRIVER=="ina3221x"' if subsystem == "i2c" else f'ATTR{{name}}=="{driver}"'
    )
    rule = f"{match}, RUN+=\"/bin/sh -c 'chmod -R a+r /sys%p'\""
    return (
        f"printf '%s\\n' {shlex.quote(rule)} | sudo tee -a /{RULE} "
        f"&& sudo udevadm control --reload && sudo udevadm trigger -c add -s {subsystem}"
    )


def _rapl(tree: Tree) -> list[Sensor]:
    found = []
    for zone in tree.find("sys/class/powercap/intel-rapl:*"):
        if zone.count(":") != 1:  # a part of the package, counted in it
            continue
        why = tree.why_unreadable(f"{zone}/energy_uj")
        name = tree.text(f"{zone}/name") or zone.rsplit("/", 1)[-1]
        fix = f"sudo chmod a+r /{zone}/energy_uj" if why == "permission" else ""
        found.append(Sensor("intel-rapl", f"/{zone}", (name,), why, fix))
    return found


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
    return [
        f"/{folder}/{name}"
        for folder in _RULE_FOLDERS
        for name in tree.names(folder)
        if name.endswith(".rules")
        and re.search(
            r"\bina[\d\[]|powercap|intel-rapl", tree.text(f"{folder}/{name}") or ""
        )
    ]
