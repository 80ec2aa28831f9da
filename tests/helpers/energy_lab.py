"""A sensor on a virtual clock, a fake board, and recordings, for the energy tests."""

from __future__ import annotations

import json
import os
from pathlib import Path

from draftwire import cli
from draftwire.energy.account.meter import Meter, deadline_ns
from draftwire.energy.rails import Accuracy, Total, TotalChoice
from draftwire.energy.sources.base import PowerSource, Reading, Response
from draftwire.errors import SensorError

CHOICE = TotalChoice(Total("module", ("VDD_IN",)), how="test")


class Now:
    def __init__(self):
        self.ns = 0

    def __call__(self):
        return self.ns


class Fake(PowerSource):
    """A sensor whose power is a function of time."""

    name, rails = "fake", ("VDD_IN",)
    response = Response()
    closed = False

    def __init__(self, clock, power):
        self.clock, self.power = clock, power
        self.accuracy = {"VDD_IN": Accuracy(0.04, 0.08, 0.0025, "test")}

    def read(self):
        t = self.clock()
        watt = self.power(t * 1e-9)
        if watt is None:
            raise SensorError("bus error")
        return Reading(t, {"VDD_IN": watt})

    def close(self):
        self.closed = True


def setup(power, hz=20.0, **options):
    now = Now()
    meter = Meter(Fake(now, power), CHOICE, hz=hz, clock=now, **options)
    return now, meter


def advance(now, meter, to_s, events=()):
    """Go on to a time, sampling on the meter's deadlines, with events between."""
    begin = now.ns
    times = []
    k = 0
    while True:
        k += 1
        t = begin + deadline_ns(k, meter.period_ns)
        if t >= to_s * 1e9:
            break
        times.append((t, meter.read_now))
    times += [(int(t * 1e9), action) for t, action in events]
    for t, action in sorted(times, key=lambda item: item[0]):
        now.ns = t
        action()
    now.ns = int(to_s * 1e9)


def run(*words):
    args = cli.parse([str(word) for word in ("energy", *words)])
    return args.run(args)


def write_recording(path, watts, *, phases=(), period=0.05, tokens=None, close=True, hz=20):
    accuracy = {"step_w": 0.04, "offset_w": 0.08, "gain": 0.0025, "source": "test"}
    header = {
        "schema": "draftwire.energy/1",
        "kind": "header",
        "source": "sysfs-ina3221",
        "source_kind": "measured",
        "rails": ["VDD_IN", "VDD_SOC"],
        "total": {"scope": "module", "rails": ["VDD_IN"]},
        "others": [],
        "hz": hz,
        "accuracy": {"VDD_IN": accuracy},
        "context": {"power_mode": "15W"},
    }
    lines = [header]
    for i, watt in enumerate(watts):
        w = [watt, None if watt is None else watt / 5]
        lines.append({"t": int(i * period * 1e9), "w": w})
    lines += [{"t": int(t * 1e9), "phase": name} for t, name in phases]
    lines += [{"tokens": tokens}] if tokens else []
    if close:
        end = int((len(watts) - 1) * period * 1e9)
        lines.append({"kind": "end", "t": end, "result": {}})
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def put(root: Path, files: dict) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\n")
    return root


def tree(root):
    """An Orin Nano with a device tree, a power mode and one INA3221."""
    hwmon, zone = "sys/class/hwmon/hwmon0", "sys/class/thermal/thermal_zone0"
    modes = "< POWER_MODEL ID=0 NAME=15W >\n< POWER_MODEL ID=1 NAME=25W >"
    texts = {
        "proc/device-tree/compatible": "nvidia,p3768-0000+p3767-0005-super\0tegra234\0",
        "etc/nvpmodel.conf": modes,
        "var/lib/nvpmodel/status": "pmode:0001 fmode:fanNull",
        f"{hwmon}/name": "ina3221",
        f"{hwmon}/in1_label": "VDD_IN",
        f"{hwmon}/in1_input": 5000,
        f"{hwmon}/curr1_input": 1000,
        f"{hwmon}/shunt1_resistor": 5000,
        f"{zone}/type": "cpu-thermal",
        f"{zone}/temp": 48500,
    }
    return put(root, texts)


def mainline(root: Path, hwmon: int, rails: list, address: str = "1-0040") -> Path:
    """Make the tree of the mainline driver: (label, millivolt, milliampere)."""
    base = f"sys/bus/i2c/drivers/ina3221/{address}/hwmon/hwmon{hwmon}"
    texts = {"name": "ina3221", "update_interval": 7}
    for channel, (label, volt, amp) in enumerate(rails, 1):
        texts[f"in{channel}_label"] = label
        texts[f"in{channel}_input"] = volt
        texts[f"curr{channel}_input"] = amp
        texts[f"in{channel + 3}_input"] = 12345
        texts[f"shunt{channel}_resistor"] = 5000
    texts.update(in7_label="sum of shunt voltages", in7_input=999999)
    put(root, {f"{base}/{name}": text for name, text in texts.items()})
    link = root / f"sys/class/hwmon/hwmon{hwmon}"
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(os.path.relpath(root / base, link.parent))  # as in sysfs
    return root


def nx_rails(root):
    rails = [("VDD_IN", 5000, 1000), ("VDD_CPU_GPU_CV", 5000, 300), ("VDD_SOC", 5000, 250)]
    return mainline(root, 3, rails, "7-0040")
