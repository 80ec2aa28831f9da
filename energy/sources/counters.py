"""What kernel, firmware and drivers themselves tell, without the board's power chips:
batteries that discharge, RAPL of x86 processors, GPUs, the Raspberry Pi 5's ADC.

A battery is usable only while it discharges: on mains it sees none of what the board
draws.  RAPL's counters wrap at ``max_energy_range_uj``; a package contains its
sub-zones, so only packages are added up.  On a Jetson NVIDIA's management library loads
and every power query answers "not supported": that is not 0 W, it is no source.  The
ADC's sum misses USB and the 5 V path: ``EXT5V`` has a voltage and no current.

Source:
    Linux, Documentation/ABI/testing/sysfs-class-power (microwatt, microvolt,
    microampere), Documentation/power/powercap/powercap.rst and hwmon/{amdgpu,xe}.rst;
    nvml.h.
"""

from __future__ import annotations

import ctypes
import re
import subprocess
from functools import partial
from pathlib import Path
from typing import Any, Callable

from draftwire.boards.sensors import hwmon_folders, rapl_zones
from draftwire.boards.tree import Tree
from draftwire.energy.rails import Accuracy
from draftwire.energy.sources.base import (
    Clock,
    PowerSource,
    Reading,
    Response,
    SysfsNumber,
    unique,
)
from draftwire.errors import SensorError

GPUS = ("amdgpu", "i915", "xe")
COMMAND = ("vcgencmd", "pmic_read_adc")
_ADC = re.compile(r"(\w+)_([AV])\s+(?:current|volt)\(\d+\)=(-?\d+(?:\.\d+)?)[AV]")
_NOT_SUPPORTED = 3  # NVML_ERROR_NOT_SUPPORTED


class BatterySource(PowerSource):
    """Power out of the batteries; a SensorError where none discharges or one charges. Of
    several some rest, and give nothing."""

    name = scope = "battery"
    update_s = 1.0  # fuel gauges renew about once a second; some every 30 s
    notes = ("fuel gauges are slow and smoothed: good for minutes, not tokens",)

    def __init__(self, root: Path = Path("/"), *, clock: Clock | None = None) -> None:
        super().__init__(clock)
        self._tree, base = Tree(root), "sys/class/power_supply"
        self._folders = {
            name: f"{base}/{name}"
            for name in self._tree.names(base)
            if self._tree.text(f"{base}/{name}/type") == "Battery"
            and self._tree.text(f"{base}/{name}/scope") != "Device"  # not a mouse
        }
        self.reads = {
            name: partial(_discharge, self._tree, folder)
            for name, folder in self._folders.items()
        }
        if not self.reads:
            raise SensorError("no battery")
        self.rails = self.total = tuple(self.reads)
        self.read()

    def read(self) -> Reading:
        states = {name: _status(self._tree, f) for name, f in self._folders.items()}
        if "Discharging" not in states.values() or "Charging" in states.values():
            told = ", ".join(f"{name} is {state.lower()}" for name, state in states.items())
            why = f"battery {told}, not discharging"
            raise SensorError(why, hint="unplug the supply, or take another source")
        return super().read()


def _status(tree: Tree, folder: str) -> str:
    return tree.text(f"{folder}/status") or "Unknown"


def _discharge(tree: Tree, folder: str) -> float:
    """Return watts; drivers disagree about the sign, so they are made positive."""
    if _status(tree, folder) != "Discharging":
        return 0.0
    micro = tree.number(f"{folder}/power_now")
    if micro is not None:
        return abs(micro) * 1e-6
    volt, amp = (tree.number(f"{folder}/{n}_now") for n in ("voltage", "current"))
    if volt is None or amp is None:
        raise ValueError(f"{folder} tells no power")
    return abs(volt * amp) * 1e-12


class RaplSource(PowerSource):
    """Energy of each processor package; a SensorError where none may be read."""

    name = "rapl"
    scope = "package"
    update_s = 0.001  # the counters move about every millisecond
    # A counter is exact over the time between two reads, give or take its renewal.
    response = Response((0.0, 0.001), (0.0, 0.0), 0.001, "powercap: renewed each ms")
    notes = ("RAPL covers the processor package: no board, disk or display",)

    def __init__(self, root: Path = Path("/"), *, clock: Clock | None = None) -> None:
        super().__init__(clock)
        tree = Tree(root)
        found = rapl_zones(tree)
        if not found:
            raise SensorError("no intel-rapl zone (virtual machines have none)")
        zones = dict(zip(unique([*found.values()]), found))
        self.files = {r: SysfsNumber(tree.path(f"{z}/energy_uj")) for r, z in zones.items()}
        wraps = {r: tree.number(f"{z}/max_energy_range_uj") for r, z in zones.items()}
        self._wrap = {rail: wrap or 0 for rail, wrap in wraps.items()}
        self.reads = {rail: number.read for rail, number in self.files.items()}
        try:
            then_ns, counts, _ = self.gather(self.reads)
        except SensorError as exc:
            why = "counters are there, but only root may read them (CVE-2020-8694)"
            hint = "sudo chmod a+r /sys/class/powercap/*/energy_uj"
            raise SensorError(why, hint=hint) from exc
        self.reads = {rail: self.reads[rail] for rail in counts}
        self._last = {rail: (then_ns, int(count)) for rail, count in counts.items()}
        self._joules = dict.fromkeys(counts, 0.0)
        self.rails = tuple(counts)
        packages = tuple(rail for rail in self.rails if rail.startswith("package"))
        self.total = packages or self.rails

    def read(self) -> Reading:
        """Read the counters; power is the mean since the last read of that counter."""
        t_ns, now, _ = self.gather(self.reads)
        watts, seen = {}, {}
        for rail, value in now.items():
            then_ns, last = self._last[rail]
            step = int(value) - last
            self._last[rail] = t_ns, int(value)
            if step < 0:  # the counter went round
                step += self._wrap[rail]
            if step < 0:  # or it was set back, and its range is not known
                continue
            self._joules[rail] += step * 1e-6
            seen[rail] = self._joules[rail]
            if t_ns > then_ns:
                watts[rail] = step * 1e3 / (t_ns - then_ns)
        return Reading(t_ns, watts, seen)


class GpuSource(PowerSource):
    """A GPU's own power or energy, where its driver tells it: amdgpu, i915, xe."""

    name = "gpu-sysfs"
    scope = "gpu"
    notes = ("GPU only: no host",)

    def __init__(self, root: Path = Path("/"), *, clock: Clock | None = None) -> None:
        super().__init__(clock)
        self.files = {}
        self._before: dict[str, tuple[int, int]] = {}  # of energy counters
        tree = Tree(root)
        for folder in hwmon_folders(tree, GPUS):
            names = ("energy1_input", "power1_average", "power1_input")
            files = [f"{folder}/{name}" for name in names]
            file = next((f for f in files if tree.number(f) is not None), None)
            if file is not None:
                rail = f"{tree.text(f'{folder}/name')}{len(self.files)}"
                self.files[rail] = SysfsNumber(tree.path(file))
        if not self.files:
            raise SensorError("no amdgpu, i915 or xe under sysfs")
        self.rails = self.total = tuple(self.files)
        self.reads = {rail: number.read for rail, number in self.files.items()}

    def read(self) -> Reading:
        """Read every GPU; energy counters give the mean power since the last read."""
        t_ns, found, _ = self.gather(self.reads, self._clock())
        watts = {}
        for rail, value in found.items():
            if not self.files[rail].path.name.startswith("energy"):
                watts[rail] = value * 1e-6
                continue
            then_ns, before = self._before.get(rail, (t_ns, int(value)))
            if t_ns > then_ns and value >= before:
                watts[rail] = (value - before) * 1e3 / (t_ns - then_ns)
            self._before[rail] = t_ns, int(value)
        return Reading(t_ns, watts)


class NvmlSource(PowerSource):
    """Power of each NVIDIA GPU that tells it; a SensorError where none does. Through
    ctypes, so nothing has to be installed."""

    name = "nvml"
    scope = "gpu"
    update_s = 0.1  # boards renew between 20 and 100 ms; averaged over longer on some
    notes = ("GPU only: no host, no memory outside the board",)

    def __init__(self, library: Any = None, *, clock: Clock | None = None) -> None:
        super().__init__(clock)
        try:
            self._lib = ctypes.CDLL("libnvidia-ml.so.1") if library is None else library
        except OSError as exc:
            raise SensorError("no NVIDIA management library") from exc
        count, get = ctypes.c_uint(), self._lib.nvmlDeviceGetCount_v2
        code = self._lib.nvmlInit_v2() or get(ctypes.byref(count))
        if code:
            raise SensorError(f"NVML failed with code {code}")
        self.reads, refused = {}, False
        for index in range(count.value):
            handle = ctypes.c_void_p()
            if self._lib.nvmlDeviceGetHandleByIndex_v2(index, ctypes.byref(handle)):
                continue
            try:
                self._power(handle)
                self.reads[f"GPU{index}"] = partial(self._power, handle)
            except OSError as exc:
                refused = refused or exc.errno == _NOT_SUPPORTED
        if not self.reads:
            why = "answers NotSupported (as on every Jetson)" if refused else "has no GPU"
            self.close()
            raise SensorError(f"NVML is there, but power {why}")
        self.rails = self.total = tuple(self.reads)
        # nvml.h: "+/- 5 % of current power draw" for Fermi and later.
        known = Accuracy(0.001, 0.0, 0.05, "nvml.h, nvmlDeviceGetPowerUsage")
        self.accuracy = dict.fromkeys(self.rails, known)

    def _power(self, handle: Any) -> float:
        milli = ctypes.c_uint()
        code = int(self._lib.nvmlDeviceGetPowerUsage(handle, ctypes.byref(milli)))
        if code:
            raise OSError(code, f"NVML code {code}")
        return milli.value * 1e-3

    def close(self) -> None:
        self._lib.nvmlShutdown()


class PmicSource(PowerSource):
    """The Pi 5's rails; ``run`` returns the text of one ``vcgencmd pmic_read_adc``."""

    name = "pi5-pmic"
    update_s = 0.1  # what a subprocess a reading allows
    notes = ("the PMIC sum misses USB and the 5 V path",)

    def __init__(
        self, run: Callable[[], str] | None = None, *, clock: Clock | None = None
    ) -> None:
        super().__init__(clock)
        self._run = _vcgencmd if run is None else run
        self.rails = tuple(self.read().watts)

    def read(self) -> Reading:
        start, text, end = self._clock(), self._run(), self._clock()
        watts = parse_adc(text)
        if not watts:
            why = "vcgencmd shows no current (not a Raspberry Pi 5?)"
            hint = 'sudo usermod -aG video "$USER"' if "VCHI" in text else ""
            raise SensorError(f"{why}: {text.strip()[:80]}", hint=hint)
        return Reading((start + end) // 2, watts)


def parse_adc(text: str) -> dict[str, float]:
    """Return watts by rail, for rails that have a current and a voltage: they are paired
    by name, since their numbers differ."""
    known: dict[str, dict[str, float]] = {"A": {}, "V": {}}
    for rail, kind, number in _ADC.findall(text):
        known[kind][rail] = float(number)
    return {r: amp * known["V"][r] for r, amp in known["A"].items() if r in known["V"]}


def _vcgencmd() -> str:
    out, err = subprocess.PIPE, subprocess.STDOUT
    try:
        done = subprocess.run(COMMAND, stdout=out, stderr=err, timeout=5.0, check=False)
    except FileNotFoundError as exc:
        raise SensorError("no vcgencmd (not a Raspberry Pi?)") from exc
    except (OSError, subprocess.TimeoutExpired) as exc:
        raise SensorError(f"cannot run {' '.join(COMMAND)}: {exc}") from exc
    return done.stdout.decode("ascii", "replace")
