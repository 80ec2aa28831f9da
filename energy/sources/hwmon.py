"""Power chips behind sysfs: the rails of Jetson boards, INA boards, Apple's SMC.

Three shapes: NVIDIA's own INA3221 driver up to L4T R32 (channels from 0, one power file
in milliwatt), hwmon with a power file (microwatt), and hwmon with a voltage and a
current (multiplied).  A rail is its chip, its device and its label: hwmon numbers move
when a driver is bound anew, so each file that is opened again is checked against them.

Source:
    Linux, Documentation/hwmon/{ina3221,ina238,ina2xx,macsmc-hwmon}.rst and
    sysfs-interface.rst; kernel 4.4 of L4T R32, drivers/staging/iio/meter/ina3221.c.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Container

from draftwire.energy.rails import Accuracy, Chip, load_chips
from draftwire.energy.sources.base import (
    UNKNOWN_RESPONSE,
    Clock,
    PowerSource,
    Reading,
    Response,
    SysfsNumber,
    read_int,
    read_text,
    unique,
)
from draftwire.errors import SensorError


@dataclass
class Channel:
    """One rail."""

    rail: str
    chip: str
    device: str
    folder: Path
    label: Path | None
    files: tuple[SysfsNumber, ...]  # power, or current and voltage
    scale: float = 1e-6  # of their product, to watts
    voltage: SysfsNumber | None = None
    shunt_ohm: float | None = None
    update_s: float | None = None
    averages: int | None = None

    def read(self) -> float:
        """Return watts; an OSError where the kernel says no, or another rail lies here."""
        if self.files[0].fd < 0 and not self._still_here():
            raise FileNotFoundError(f"{self.rail} is no longer at {self.folder}")
        try:
            return math.prod(number.read() for number in self.files) * self.scale
        except (OSError, ValueError):
            self.close()
            raise

    def _still_here(self) -> bool:
        if self.chip not in ("ina3221x", read_text(self.folder / "name")):
            return False
        return self.label is None or read_text(self.label) == self.rail

    def accuracy(self) -> Accuracy | None:
        """Return the data sheet's figures for this shunt, when it is known."""
        chip = load_chips().get(self.chip, Chip())
        ohm = chip.own_ohm or self.shunt_ohm
        try:
            volt = self.voltage.read() * 1e-3 if self.voltage is not None else 0.0
        except (OSError, ValueError):
            return None
        if not chip.lsb_uv or not ohm or volt <= 0:
            return None
        return Accuracy(*chip.figures(ohm, volt, len(self.files) == 1))

    def response(self) -> Response:
        """Return how late and how blurred its readings are."""
        window_s, u = load_chips().get(self.chip, Chip()).window_s, self.update_s
        if u is not None and u <= 0.2:
            how = f"update_interval of {self.chip}, {1e3 * u:.3g} ms"
            # Not averaged, a cycle is a shunt and a bus conversion of 1 to 3 channels,
            # and the current is that of its shunt's; averaged, it is all of the cycle.
            single = self.chip == "ina3221" and self.averages == 1
            window = (u / 6, u / 2) if single else (u / 2, u)
            return Response((0.0, 0.002), window, u, how)
        if window_s is not None:
            how = f"default of the {self.chip} driver"
            return Response((0.0, 0.002), (0.95 * window_s, 1.05 * window_s), 0.003, how)
        return UNKNOWN_RESPONSE

    def close(self) -> None:
        for number in (*self.files, *([self.voltage] if self.voltage else [])):
            number.close()


class HwmonSource(PowerSource):
    """Every rail behind a power chip; a SensorError where none can be read."""

    def __init__(self, root: Path = Path("/"), *, clock: Clock | None = None) -> None:
        super().__init__(clock)
        self._root = root
        good: list[Channel] = []
        channels = find_channels(root)
        for channel in channels:
            try:
                channel.read()
                good.append(channel)
            except (OSError, ValueError) as exc:
                self.notes += (f"rail {channel.rail} left out: {exc}",)
        if not channels:
            raise SensorError("no INA3221 or other power chip with a rail")
        if not good:
            folder = channels[0].folder
            why = f"rails are there, but {folder} cannot be read (permission)"
            raise SensorError(why, hint=f"sudo chmod -R a+r {folder.resolve()}")
        self._channels = dict(zip(unique([channel.rail for channel in good]), good))
        self.rails = tuple(self._channels)
        self.name = "sysfs-" + "+".join(sorted({channel.chip for channel in good}))
        times = [c.update_s for c in good if c.update_s is not None]
        self.update_s = max(times, default=None)
        responses = [channel.response() for channel in good]
        self.response = max(responses, key=lambda r: (r.unsure_s, r.reach_s))
        figures = {rail: channel.accuracy() for rail, channel in self._channels.items()}
        self.accuracy = {rail: known for rail, known in figures.items() if known}

    def read(self) -> Reading:
        """Read every rail; one that fails is absent from the reading."""
        try:
            return self.gather({rail: c.read for rail, c in self._channels.items()})
        finally:
            if isinstance(self.problem, FileNotFoundError):
                self._rebind()

    def _rebind(self) -> None:
        """Find the rails again, each by chip, device and label."""
        moved = find_channels(self._root)
        for rail, old in self._channels.items():
            alike = [c for c in moved if (c.rail, c.chip) == (old.rail, old.chip)]
            # Without a device's name (a tree of files), chip and label must do.
            same = [c for c in alike if c.device == old.device] or alike
            if same:
                old.close()
                self._channels[rail] = same[0]
                moved.remove(same[0])

    def close(self) -> None:
        for channel in self._channels.values():
            channel.close()


def hwmon_folders(root: Path, chips: Container[str]) -> list[Path]:
    """Return the hwmon folders of some chips, each once, in the order of the numbers."""

    def by_number(path: Path) -> tuple[str, int]:
        return str(path.parent), int("0" + "".join(filter(str.isdigit, path.name)))

    found: dict[Path, Path] = {}
    for pattern in ("sys/class/hwmon/hwmon*", "sys/bus/i2c/drivers/ina*/*/hwmon/hwmon*"):
        for folder in sorted(root.glob(pattern), key=by_number):
            if (read_text(folder / "name") or "") in chips:
                found.setdefault(folder.resolve(), folder)
    return list(found.values())


def find_channels(root: Path) -> list[Channel]:
    """Return every rail, readable or not, in the order of the chips."""
    channels = [c for folder in hwmon_folders(root, load_chips()) for c in _hwmon(folder)]
    if channels:
        return channels
    for folder in sorted(root.glob("sys/bus/i2c/drivers/ina3221x/*/iio:device*")):
        for number in (0, 1, 2):
            label = folder / f"rail_name_{number}"
            rail, device = read_text(label), folder.parent.name
            if rail and rail != "NC":
                power = (SysfsNumber(folder / f"in_power{number}_input"),)
                one = Channel(rail, "ina3221x", device, folder, label, power, 1e-3)
                channels.append(one)
    return channels


def _hwmon(folder: Path) -> list[Channel]:
    chip = read_text(folder / "name") or ""
    known = load_chips()[chip]
    device = (folder / "device").resolve().name if (folder / "device").exists() else ""
    update_ms = read_int(folder / "update_interval")  # 0: the driver does not know
    three = chip == "ina3221"  # its in4 to in7 are no rails
    channels = []
    for n in range(1, 4) if three else range(17):
        power, amp = folder / f"power{n}_input", folder / f"curr{n}_input"
        volt = folder / f"in{n if known.bus is None else known.bus}_input"
        whole = power.exists()
        kinds = ("power", "in", "curr") if whole else ("in", "curr")
        labels = [folder / f"{kind}{n}_label" for kind in kinds]
        label = next((path for path in labels if path.exists()), None)
        if label is None if three else not whole and not (volt.exists() and amp.exists()):
            continue
        rail = read_text(label) if label else known.label or (device and f"{chip}@{device}")
        if rail == "NC" or read_int(folder / f"in{n}_enable") == 0:
            continue
        shunts = (folder / f"shunt{n}_resistor", folder / "shunt_resistor")
        shunt = next((ohm for ohm in map(read_int, shunts) if ohm), None)
        voltage = SysfsNumber(volt) if not whole or volt.exists() else None
        files = [SysfsNumber(power if whole else amp)]
        files += [voltage] if voltage and not whole else []
        channels.append(
            Channel(
                rail or chip,
                chip,
                device,
                folder,
                label,
                tuple(files),
                voltage=voltage,
                shunt_ohm=shunt * 1e-6 if shunt else None,
                update_s=update_ms * 1e-3 if update_ms else None,
                averages=read_int(folder / "samples"),
            )
        )
    return channels
