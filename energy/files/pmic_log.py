"""Dumps of ``vcgencmd pmic_read_adc`` one after another, as a loop on a Raspberry Pi 5
writes them; what ``date``, ``ts`` or journald put before them are their times."""

from __future__ import annotations

import re
from pathlib import Path

from draftwire.energy.files.tegra_log import Log, Run, foreign_stamp
from draftwire.energy.files.unpack import open_bytes
from draftwire.energy.sources.pmic import PmicSource, parse_adc

CURRENT = re.compile(rb"(\w+)_A\s+current\(\d+\)=")


def read_pmic_log(path: Path | str) -> Log:
    """Read the dumps as one run of a log."""
    log, stamp, first = Log(str(path), source="pmic-log", foreign=True), None, b""
    dumps: list[tuple[int | None, list[str]]] = []
    with open_bytes(path) as file:
        for line in file:
            found, rail = foreign_stamp(line), CURRENT.search(line)
            stamp = stamp if found is None else found
            if rail and rail.group(1) == (first or rail.group(1)):  # a dump begins
                first = rail.group(1)
                dumps.append((stamp, []))
                stamp = None
            if dumps:
                dumps[-1][1].append(line.decode("utf-8", "replace"))
    run: Run | None = None
    for stamp, lines in dumps:
        watts = parse_adc("".join(lines))
        run = run or Run(1, tuple(watts), tuple(watts), unit_s=1e-3)
        run.append(tuple(watts), [round(1e3 * watt) for watt in watts.values()], stamp)
    log.note("partial-sum", None, PmicSource.notes[0])
    log.runs, log.samples = [run] if run else [], len(dumps)
    log.stamped = any(stamp is not None for stamp, _ in dumps)
    return log
