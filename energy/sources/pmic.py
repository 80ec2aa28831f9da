"""Raspberry Pi 5: the ADC of its power chip, through ``vcgencmd pmic_read_adc``.

Twelve currents and twelve voltages, paired by rail name (their numbers differ).  The
sum misses USB and the 5 V path; ``EXT5V`` has a voltage and no current.  A Pi 4 has
none.
"""

from __future__ import annotations

import re
import subprocess
from typing import Callable

from draftwire.energy.sources.base import Clock, PowerSource, Reading
from draftwire.errors import SensorError

_LINE = re.compile(r"(\w+)_([AV])\s+(?:current|volt)\(\d+\)=(-?\d+(?:\.\d+)?)[AV]")
COMMAND = ("vcgencmd", "pmic_read_adc")


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
        start = self._clock()
        text = self._run()
        end = self._clock()
        watts = parse_adc(text)
        if not watts:
            raise SensorError(
                f"vcgencmd shows no current (not a Raspberry Pi 5?): {text.strip()[:80]}",
                hint='sudo usermod -aG video "$USER"' if "VCHI" in text else "",
            )
        return Reading((start + end) // 2, watts)


def parse_adc(text: str) -> dict[str, float]:
    """Return watts by rail, for rails that have a current and a voltage."""
    known: dict[str, dict[str, float]] = {"A": {}, "V": {}}
    for rail, kind, number in _LINE.findall(text):
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
