"""TI INA3221 and INA238 behind sysfs: the power rails of Jetson boards.

Two shapes: NVIDIA's own driver up to L4T R32 (channels from 0, one power file) and the
mainline driver from R34 (channels from 1, voltage times current).  The INA238 of Thor
has its power in microwatt.

Source:
    Linux, Documentation/hwmon/ina3221.rst and ina238.rst; kernel 4.4 of L4T R32,
    drivers/staging/iio/meter/ina3221.c.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Mapping

from draftwire.energy.rails import Accuracy
from draftwire.energy.sources.base import (
    Clock,
    Finding,
    Reading,
    SysfsNumber,
    monotonic_ns,
    read_int,
    read_text,
    sensor_error,
)

__all__ = ["InaSource", "find_channels"]

# TI INA3221 data sheet: LSB of the shunt, its largest offset, and the gain error.
SHUNT_LSB_V = 40e-6
SHUNT_OFFSET_V = 80e-6
GAIN = 0.0025


@dataclass
class Channel:
    """One rail: either a power file, or a voltage and a current file."""

    rail: str
    chip: str
    folder: Path
    power: SysfsNumber | None
    power_scale: float
    voltage: SysfsNumber | None = None
    current: SysfsNumber | None = None
    shunt_ohm: float | None = None
    update_s: float | None = None

    def read(self) -> float:
        """Return watts."""
        if self.power is not None:
            return self.power.read() * self.power_scale
        assert self.voltage is not None and self.current is not None
        return self.voltage.read() * self.current.read() * 1e-6  # mV x mA

    def accuracy(self) -> Accuracy | None:
        """Return the data sheet's figures for this shunt, when the kernel tells it."""
        if self.shunt_ohm is None or self.voltage is None:
            return None
        try:
            volt = self.voltage.read() * 1e-3
        except (OSError, ValueError):
            return None
        amp = SHUNT_LSB_V / self.shunt_ohm
        return Accuracy(
            step_w=amp * volt,
            offset_w=SHUNT_OFFSET_V / self.shunt_ohm * volt,
            gain=GAIN,
            source=f"TI INA3221 data sheet, shunt {self.shunt_ohm * 1e3:g} mohm",
        )

    def close(self) -> None:
        """Close the files."""
        for number in (self.power, self.voltage, self.current):
            if number is not None:
                number.close()


class InaSource:
    """Every labelled rail behind an INA3221 or INA238.

    Args:
        root: Where ``sys`` lies; tests and recorded trees pass their own.
        clock: Nanoseconds, monotonic.

    Raises:
        SensorError: There is no such sensor, or none of its rails can be read.
    """

    kind = "measured"
    scope: str | None = None
    total: tuple[str, ...] = ()
    paced = False

    def __init__(self, root: Path = Path("/"), *, clock: Clock = monotonic_ns) -> None:
        self._clock = clock
        self._root = root
        self._channels, skipped = _readable(find_channels(root))
        if not self._channels:
            finding = probe(root)
            raise sensor_error("INA3221", root / "sys", finding.detail, finding.remedy)
        self.rails: tuple[str, ...] = tuple(
            _unique([channel.rail for channel in self._channels])
        )
        chips = sorted({channel.chip for channel in self._channels})
        self.name = "sysfs-" + "+".join(chips)
        self.notes: tuple[str, ...] = tuple(skipped)
        times = [c.update_s for c in self._channels if c.update_s is not None]
        self.update_s: float | None = max(times) if times else None
        self.accuracy: Mapping[str, Accuracy] = {
            rail: accuracy
            for rail, channel in zip(self.rails, self._channels)
            for accuracy in [channel.accuracy()]
            if accuracy is not None
        }

    def read(self) -> Reading:
        """Read every rail; one that fails is absent from the reading.

        Raises:
            SensorError: No rail could be read.
        """
        watts = {}
        problem: Exception | None = None
        start = self._clock()
        for rail, channel in zip(self.rails, self._channels):
            try:
                watts[rail] = channel.read()
            except (OSError, ValueError) as exc:  # hwmon moved, bus error, channel off
                channel.close()
                problem = exc
        if isinstance(problem, FileNotFoundError):
            self._rebind()
        end = self._clock()
        if not watts:
            raise sensor_error("every rail", self._channels[0].folder, problem)
        return Reading((start + end) // 2, watts)

    def _rebind(self) -> None:
        """Find the rails again: hwmon numbers move when a driver is bound anew."""
        moved = find_channels(self._root)
        for place, old in enumerate(self._channels):
            for new in moved:
                if (new.rail, new.chip) == (old.rail, old.chip):
                    old.close()
                    self._channels[place] = new
                    moved.remove(new)
                    break

    def close(self) -> None:
        """Close the sysfs files."""
        for channel in self._channels:
            channel.close()


def find_channels(root: Path) -> list[Channel]:
    """Return every labelled channel, readable or not, in the order of the chips."""
    channels = []
    seen: set[Path] = set()
    for pattern in (
        "sys/class/hwmon/hwmon*",
        "sys/bus/i2c/drivers/ina3221/*/hwmon/hwmon*",
        "sys/bus/i2c/drivers/ina238/*/hwmon/hwmon*",
    ):
        for folder in sorted(root.glob(pattern), key=_by_number):
            real = folder.resolve()
            chip = read_text(folder / "name") or ""
            if chip not in ("ina3221", "ina238") or real in seen:
                continue
            seen.add(real)
            channels += _ina238(folder) if chip == "ina238" else _mainline(folder)
    if not channels:
        pattern = "sys/bus/i2c/drivers/ina3221x/*/iio:device*"
        for folder in sorted(root.glob(pattern)):
            channels += _r32(folder)
    return channels


def probe(root: Path) -> Finding:
    """Tell whether the sensor is there and readable."""
    channels = find_channels(root)
    if not channels:
        return Finding("sysfs", False, "no INA3221 or INA238 with a labelled rail")
    good, _ = _readable(channels)
    names = ", ".join(channel.rail for channel in good)
    for channel in channels:
        channel.close()
    if good:
        return Finding("sysfs", True, f"{good[0].chip}: {names}")
    folder = channels[0].folder
    return Finding(
        "sysfs",
        False,
        f"rails are there, but {folder} cannot be read (permission)",
        f"sudo chmod -R a+r {folder.resolve()}",
    )


def _readable(channels: list[Channel]) -> tuple[list[Channel], list[str]]:
    good, skipped = [], []
    for channel in channels:
        try:
            channel.read()
        except (OSError, ValueError) as exc:
            channel.close()
            skipped.append(f"rail {channel.rail} left out: {exc}")
        else:
            good.append(channel)
    return good, skipped


def _mainline(folder: Path) -> list[Channel]:
    channels = []
    update_ms = read_int(folder / "update_interval")
    update_s: float | None = (
        None if update_ms is None else update_ms * 1e-3
    )  # all channels, averaged
    for number in (1, 2, 3):  # in4 to in7 are shunt voltages, not rails
        rail = read_text(folder / f"in{number}_label")
        if not rail or rail == "NC" or read_int(folder / f"in{number}_enable") == 0:
            continue
        shunt = read_int(folder / f"shunt{number}_resistor")  # micro-ohm
        channels.append(
            Channel(
                rail,
                "ina3221",
                folder,
                None,
                0.0,
                SysfsNumber(folder / f"in{number}_input"),
                SysfsNumber(folder / f"curr{number}_input"),
                shunt * 1e-6 if shunt else None,
                update_s,
            )
        )
    return channels


def _ina238(folder: Path) -> list[Channel]:
    label = read_text(folder / "in1_label") or read_text(folder / "power1_label")
    power = SysfsNumber(folder / "power1_input")
    return [Channel(label or "VIN", "ina238", folder, power, 1e-6)]


def _r32(folder: Path) -> list[Channel]:
    channels = []
    for number in (0, 1, 2):
        rail = read_text(folder / f"rail_name_{number}")
        if rail and rail != "NC":
            power = SysfsNumber(folder / f"in_power{number}_input")
            channels.append(Channel(rail, "ina3221x", folder, power, 1e-3))
    return channels


def _unique(names: list[str]) -> list[str]:
    """Number repeated names: a dict must not swallow a rail."""
    count: dict[str, int] = {}
    unique = []
    for name in names:
        count[name] = count.get(name, 0) + 1
        unique.append(name if count[name] == 1 else f"{name}#{count[name]}")
    return unique


def _by_number(path: Path) -> tuple[str, int]:
    digits = "".join(ch for ch in path.name if ch.isdigit())
    return (str(path.parent), int(digits or 0))
