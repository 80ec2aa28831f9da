"""Power chips behind sysfs: the rails of Jetson boards, INA boards, Apple's SMC, GPUs.

Three shapes: NVIDIA's own INA3221 driver up to L4T R32 (channels from 0, one power file
in milliwatt), hwmon with a power file (microwatt), and hwmon with a voltage and a
current (multiplied).  A rail is its chip, its device and its label: hwmon numbers move
when a driver is bound anew, so each file that is opened again is checked against them.

Source:
    Linux, Documentation/hwmon/{ina3221,ina238,ina2xx,amdgpu,macsmc-hwmon}.rst and
    sysfs-interface.rst; kernel 4.4 of L4T R32, drivers/staging/iio/meter/ina3221.c.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from draftwire.energy.rails import Accuracy
from draftwire.energy.sources.base import (
    UNKNOWN_RESPONSE,
    Clock,
    Finding,
    PowerSource,
    Reading,
    Response,
    SysfsNumber,
    monotonic_ns,
    read_int,
    read_text,
    sensor_error,
    unique,
)

__all__ = ["GpuSource", "HwmonSource", "find_channels"]


class _Chip(NamedTuple):
    """What a chip's data sheet says: LSB and largest offset of the shunt, gain."""

    lsb_v: float = 0.0
    offset_v: float = 0.0
    gain: float | None = None
    window_s: float | None = None  # that its driver averages over, when it does not say
    label: str = ""  # of its only channel, often without one


# TI data sheets (shunt LSB, shunt offset, gain error, all maxima); the INA238 driver
# averages 16 times three conversions of 1052 us (INA238_ADC_CONFIG_DEFAULT, 0xfb6a).
CHIPS = {
    "ina3221": _Chip(40e-6, 80e-6, 0.0025),
    "ina238": _Chip(5e-6, 5e-6, 0.001, 0.0505, "VIN"),
    "ina237": _Chip(5e-6, 50e-6, 0.003, 0.0505),
    "ina228": _Chip(0.3125e-6, 1e-6, 0.0005, 0.0505),
    "ina219": _Chip(10e-6, 100e-6, 0.005),
    "ina220": _Chip(10e-6, 100e-6, 0.005),
    "ina226": _Chip(2.5e-6, 10e-6, 0.001),
    "ina230": _Chip(2.5e-6, 50e-6, 0.005),
    "ina231": _Chip(2.5e-6, 50e-6, 0.005),
    "ina260": _Chip(),
    "ina260_u14": _Chip(label="SOM"),  # Kria KV260, through iio-hwmon
    "ina233": _Chip(),
    "ina234": _Chip(),
    "macsmc_hwmon": _Chip(),
    "scmi_sensors": _Chip(),
}
GPUS = ("amdgpu", "i915", "xe")


@dataclass
class Channel:
    """One rail: either a power file, or a voltage and a current file."""

    rail: str
    chip: str
    device: str
    folder: Path
    label: Path | None
    power: SysfsNumber | None
    power_scale: float
    voltage: SysfsNumber | None = None
    current: SysfsNumber | None = None
    shunt_ohm: float | None = None
    update_s: float | None = None
    averages: int | None = None

    @property
    def key(self) -> tuple[str, str, str]:
        """What it is, wherever it lies."""
        return self.chip, self.device, self.rail

    def read(self) -> float:
        """Return watts.

        Raises:
            OSError: The kernel says no, or another rail lies here now.
        """
        first = self.power or self.current
        if first is not None and first.fd < 0 and not self._still_here():
            raise FileNotFoundError(f"{self.rail} is no longer at {self.folder}")
        if self.power is not None:
            return self.power.read() * self.power_scale
        assert self.voltage is not None and self.current is not None
        return self.voltage.read() * self.current.read() * 1e-6  # mV x mA

    def _still_here(self) -> bool:
        if self.chip not in ("ina3221x", read_text(self.folder / "name")):
            return False
        return self.label is None or read_text(self.label) == self.rail

    def accuracy(self) -> Accuracy | None:
        """Return the data sheet's figures for this shunt, when the kernel tells it."""
        chip = CHIPS.get(self.chip)
        if chip is None or not chip.lsb_v or not self.shunt_ohm or self.voltage is None:
            return None
        try:
            volt = self.voltage.read() * 1e-3
        except (OSError, ValueError):
            return None
        return Accuracy(
            step_w=chip.lsb_v / self.shunt_ohm * volt,
            offset_w=chip.offset_v / self.shunt_ohm * volt,
            gain=chip.gain,
            source=f"TI {self.chip.upper()} data sheet, shunt "
            f"{self.shunt_ohm * 1e3:g} mohm, without its tolerance",
        )

    def response(self) -> Response:
        """Return how late and how blurred its readings are."""
        chip = CHIPS.get(self.chip, _Chip())
        if self.update_s is not None and self.update_s <= 0.2:
            u = self.update_s
            how = f"update_interval of {self.chip}, {1e3 * u:.3g} ms"
            # Not averaged, a cycle is a shunt and a bus conversion of 1 to 3 channels,
            # and the current is that of its shunt's; averaged, it is all of the cycle.
            single = self.chip == "ina3221" and self.averages == 1
            window = (u / 6, u / 2) if single else (u / 2, u)
            return Response((0.0, 0.002), window, u, how)
        if chip.window_s is not None:
            spread = 0.05 * chip.window_s
            window = (chip.window_s - spread, chip.window_s + spread)
            return Response(
                (0.0, 0.002), window, 0.003, f"default of the {self.chip} driver"
            )
        return UNKNOWN_RESPONSE

    def close(self) -> None:
        """Close the files."""
        for number in (self.power, self.voltage, self.current):
            if number is not None:
                number.close()


class HwmonSource(PowerSource):
    """Every rail behind a power chip.

    Args:
        root: Where ``sys`` lies; tests and recorded trees pass their own.
        clock: Nanoseconds, monotonic.

    Raises:
        SensorError: There is no such sensor, or none of its rails can be read.
    """

    def __init__(self, root: Path = Path("/"), *, clock: Clock = monotonic_ns) -> None:
        self._clock = clock
        self._root = root
        self._channels, skipped = _readable(find_channels(root))
        if not self._channels:
            finding = probe(root)
            raise sensor_error("a power chip", root / "sys", finding.detail, finding.remedy)
        self.rails = unique([channel.rail for channel in self._channels])
        chips = sorted({channel.chip for channel in self._channels})
        self.name = "sysfs-" + "+".join(chips)
        self.notes = tuple(skipped)
        times = [c.update_s for c in self._channels if c.update_s is not None]
        self.update_s = max(times) if times else None
        responses = [channel.response() for channel in self._channels]
        self.response = max(responses, key=lambda r: (r.unsure_s, r.reach_s))
        self.accuracy = {
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
        """Find the rails again, each by chip, device and label."""
        moved = find_channels(self._root)
        for place, old in enumerate(self._channels):
            same = [c for c in moved if c.key == old.key]
            # Without a device's name (a tree of files), chip and label must do.
            same = same or [c for c in moved if c.rail == old.rail and c.chip == old.chip]
            if same:
                old.close()
                self._channels[place] = same[0]
                moved.remove(same[0])

    def close(self) -> None:
        """Close the sysfs files."""
        for channel in self._channels:
            channel.close()


class GpuSource(PowerSource):
    """A GPU's own power or energy, where its driver tells it: amdgpu, i915, xe.

    Args:
        root: Where ``sys`` lies.
        clock: Nanoseconds, monotonic.

    Raises:
        SensorError: No such GPU.
    """

    scope = "gpu"

    def __init__(self, root: Path = Path("/"), *, clock: Clock = monotonic_ns) -> None:
        self._clock = clock
        self._power: dict[str, SysfsNumber] = {}
        self._energy: dict[str, SysfsNumber] = {}
        for folder in _folders(root, GPUS):
            rail = f"{read_text(folder / 'name')}{len(self._power) + len(self._energy)}"
            for name, into in (
                ("energy1_input", self._energy),
                ("power1_average", self._power),
                ("power1_input", self._power),
            ):
                if read_int(folder / name) is not None:
                    into[rail] = SysfsNumber(folder / name)
                    break
        if not self._power and not self._energy:
            raise sensor_error("a GPU", root / "sys/class/hwmon", "no amdgpu, i915 or xe")
        self._before: dict[str, tuple[int, int]] = {}
        self.rails = (*self._power, *self._energy)
        self.total = self.rails
        self.name = "gpu-sysfs"
        self.notes = ("GPU only: no host",)

    def read(self) -> Reading:
        """Read every GPU; energy counters give the mean power since the last read."""
        t_ns = self._clock()
        watts = {}
        for rail, number in self._power.items():
            try:
                watts[rail] = number.read() * 1e-6
            except (OSError, ValueError):
                number.close()
        for rail, number in self._energy.items():
            try:
                now = number.read()
            except (OSError, ValueError):
                number.close()
                continue
            then_ns, before = self._before.get(rail, (t_ns, now))
            if t_ns > then_ns and now >= before:
                watts[rail] = (now - before) * 1e3 / (t_ns - then_ns)
            self._before[rail] = t_ns, now
        if not watts and self._power:
            raise sensor_error("a GPU", "sysfs", "it does not answer")
        return Reading(t_ns, watts)

    def close(self) -> None:
        """Close the files."""
        for number in (*self._power.values(), *self._energy.values()):
            number.close()


def _folders(root: Path, chips: object) -> list[Path]:
    """Return the hwmon folders of some chips, each once, in the order of the numbers."""
    found, seen = [], set()
    for pattern in ("sys/class/hwmon/hwmon*", "sys/bus/i2c/drivers/ina*/*/hwmon/hwmon*"):
        for folder in sorted(root.glob(pattern), key=_by_number):
            real = folder.resolve()
            if real not in seen and read_text(folder / "name") in chips:  # type: ignore[operator]
                seen.add(real)
                found.append(folder)
    return found


def find_channels(root: Path) -> list[Channel]:
    """Return every rail, readable or not, in the order of the chips."""
    channels: list[Channel] = []
    for folder in _folders(root, CHIPS):
        channels += _hwmon(folder)
    if not channels:
        pattern = "sys/bus/i2c/drivers/ina3221x/*/iio:device*"
        for folder in sorted(root.glob(pattern)):
            channels += _r32(folder)
    return channels


def probe(root: Path) -> Finding:
    """Tell whether the sensor is there and readable."""
    channels = find_channels(root)
    if not channels:
        return Finding("sysfs", False, "no INA3221 or other power chip with a rail")
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


def probe_gpu(root: Path) -> Finding:
    """Tell whether a GPU tells its power."""
    names = [read_text(folder / "name") or "" for folder in _folders(root, GPUS)]
    if not names:
        return Finding("gpu", False, "no amdgpu, i915 or xe under sysfs")
    return Finding("gpu", True, f"{', '.join(names)}; the GPU only")


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


def _hwmon(folder: Path) -> list[Channel]:
    chip = read_text(folder / "name") or ""
    known = CHIPS[chip]
    device = (folder / "device").resolve().name if (folder / "device").exists() else ""
    update_ms = read_int(folder / "update_interval")
    update_s = update_ms * 1e-3 if update_ms else None  # 0: the driver does not know
    most = 3 if chip == "ina3221" else 16  # in4 to in7 of the INA3221 are no rails
    channels = []
    for n in range(0 if chip != "ina3221" else 1, most + 1):
        power = folder / f"power{n}_input"
        volt, amp = folder / f"in{n}_input", folder / f"curr{n}_input"
        if chip in ("ina219", "ina220", "ina226", "ina230", "ina231", "ina260"):
            volt = folder / "in1_input"  # in0 is the shunt's voltage
        whole = power.exists()
        label = next(
            (
                path
                for kind in (("power", "in", "curr") if whole else ("in", "curr"))
                for path in [folder / f"{kind}{n}_label"]
                if path.exists()
            ),
            None,
        )
        if not whole and not (volt.exists() and amp.exists()) and label is None:
            continue
        if not whole and chip != "ina3221" and not (volt.exists() and amp.exists()):
            continue
        rail = read_text(label) if label else known.label or (device and f"{chip}@{device}")
        if chip == "ina3221" and label is None:
            continue
        if rail == "NC" or read_int(folder / f"in{n}_enable") == 0:
            continue
        shunt = read_int(folder / f"shunt{n}_resistor") or read_int(
            folder / "shunt_resistor"
        )
        channels.append(
            Channel(
                rail or chip,
                chip,
                device,
                folder,
                label,
                SysfsNumber(power) if whole else None,
                1e-6,
                SysfsNumber(volt) if not whole or volt.exists() else None,
                None if whole else SysfsNumber(amp),
                shunt * 1e-6 if shunt else None,
                update_s,
                read_int(folder / "samples"),
            )
        )
    return channels


def _r32(folder: Path) -> list[Channel]:
    channels = []
    for number in (0, 1, 2):
        label = folder / f"rail_name_{number}"
        rail = read_text(label)
        if rail and rail != "NC":
            power = SysfsNumber(folder / f"in_power{number}_input")
            device = folder.parent.name
            channels.append(Channel(rail, "ina3221x", device, folder, label, power, 1e-3))
    return channels


def _by_number(path: Path) -> tuple[str, int]:
    digits = "".join(ch for ch in path.name if ch.isdigit())
    return (str(path.parent), int(digits or 0))
