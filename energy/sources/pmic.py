"""Raspberry Pi 5: the ADC of its power chip, through ``vcgencmd pmic_read_adc``.

Twelve currents and twelve voltages, paired by rail name (their numbers differ).  The
sum misses USB and the 5 V path; ``EXT5V`` has a voltage and no current.  A Pi 4 has
none.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from typing import Callable

from draftwire.energy.sources.base import (
    Clock,
    Finding,
    PowerSource,
    Reading,
    monotonic_ns,
    sensor_error,
)
from draftwire.errors import SensorError

__all__ = ["PmicSource", "parse_adc"]

_LINE = re.compile(r"(\w+)_([AV])\s+(?:current|volt)\(\d+\)=(-?\d+(?:\.\d+)?)[AV]")
COMMAND = ("vcgencmd", "pmic_read_adc")


class PmicSource(PowerSource):
    """The Pi 5's rails.

    Args:
        run: Returns the text of one ``vcgencmd pmic_read_adc``.
        clock: Nanoseconds, monotonic.

    Raises:
        SensorError: vcgencmd is not there, may not be used, or answers something else.
    """

    name = "pi5-pmic"
    update_s = 0.1  # what a subprocess a reading allows

    def __init__(
        self, run: Callable[[], str] | None = None, *, clock: Clock = monotonic_ns
    ) -> None:
        self._run = _vcgencmd if run is None else run
        self._clock = clock
        self.notes = ("the PMIC sum misses USB and the 5 V path",)
        self.rails = tuple(self.read().watts)

    def read(self) -> Reading:
        """Run vcgencmd once.

        Raises:
            SensorError: No rail has both its current and its voltage.
        """
        start = self._clock()
        text = self._run()
        end = self._clock()
        watts = parse_adc(text)
        if not watts:
            raise sensor_error("the PMIC", " ".join(COMMAND), text.strip()[:80] or "empty")
        return Reading((start + end) // 2, watts)


def parse_adc(text: str) -> dict[str, float]:
    """Return watts by rail, for rails that have a current and a voltage."""
    amps: dict[str, float] = {}
    volts: dict[str, float] = {}
    for rail, kind, number in _LINE.findall(text):
        (amps if kind == "A" else volts)[rail] = float(number)
    return {rail: amps[rail] * volts[rail] for rail in amps if rail in volts}


def probe() -> Finding:
    """Tell whether this is a Pi 5 whose PMIC we may read."""
    if shutil.which("vcgencmd") is None:
        return Finding("pmic", False, "no vcgencmd (not a Raspberry Pi?)")
    try:
        rails = parse_adc(_vcgencmd())
    except SensorError as exc:
        return Finding("pmic", False, str(exc), 'sudo usermod -aG video "$USER"')
    if not rails:
        return Finding("pmic", False, "vcgencmd shows no current: not a Raspberry Pi 5")
    return Finding("pmic", True, f"{len(rails)} rails")


def _vcgencmd() -> str:
    try:
        done = subprocess.run(
            COMMAND,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=5.0,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as exc:
        raise sensor_error("the PMIC", " ".join(COMMAND), exc) from exc
    return done.stdout.decode("ascii", "replace")
