"""What the energy meter costs: processor share of its sampler, and of a phase switch.

    python -m tools.meter --seconds 20

On a board it reads the board's own sensor; elsewhere a tree of files of the same shape,
without the time that the kernel spends on the I2C bus.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Sequence

from draftwire.energy.account.account import Account
from draftwire.energy.account.meter import Meter
from draftwire.energy.rails import load_tables
from draftwire.energy.sources.choose import total_of
from draftwire.energy.sources.hwmon import HwmonSource
from draftwire.errors import SensorError


def fake_tree(root: Path) -> Path:
    """Write the files of an AGX Orin's INA3221."""
    folder = root / "sys/class/hwmon/hwmon0"
    folder.mkdir(parents=True)
    (folder / "name").write_text("ina3221\n")
    for i, rail in enumerate(("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0"), 1):
        (folder / f"in{i}_label").write_text(f"{rail}\n")
        (folder / f"in{i}_input").write_text("19000\n")
        (folder / f"curr{i}_input").write_text(f"{100 * i}\n")
    return root


def measure_cost(root: Path, *, hz: float, seconds: float) -> dict[str, object]:
    """Run the meter with an open account and return what it cost."""
    source = HwmonSource(root)
    meter = Meter(source, total_of(source, load_tables()), hz=hz)
    with meter:
        account = Account(meter).start("draft")
        begin = time.monotonic()
        before = meter.cpu_s
        time.sleep(seconds)
        wall_s = time.monotonic() - begin
        cpu_s = meter.cpu_s - before
        switches = 20_000
        start = time.perf_counter()
        for _ in range(switches // 2):
            account.phase("wait")
            account.phase("draft")
        switch_s = (time.perf_counter() - start) / switches
        entry = account.result()
    return {
        "schema": "draftwire.bench/1",
        "bench": "energy_meter",
        "source": source.name,
        "rails": len(source.rails),
        "hz": meter.hz,
        "seconds": wall_s,
        "samples": entry["samples"],
        "late": meter.late,
        "sampler_cpu_share": cpu_s / wall_s,
        "cpu_s_per_sample": cpu_s / max(1, len(meter.ring)),
        "phase_switch_s": switch_s,
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Print the cost as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--hz", type=float, default=20.0)
    parser.add_argument("--seconds", type=float, default=20.0)
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        root = Path("/")
        try:
            HwmonSource(root).close()
        except SensorError:
            root = fake_tree(Path(folder))
        cost = measure_cost(root, hz=args.hz, seconds=args.seconds)
    print(json.dumps(cost, indent=2))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
