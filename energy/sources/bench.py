"""Meters on the bench, live: a board that prints lines, a PPK2, a Joulescope.

They are taken only by name: ``--source serial:/dev/ttyUSB0`` (an INA226 or the like that
prints voltage and current, or power), ``ppk2:/dev/ttyACM0,5.0`` (the voltage of the
supply), ``joulescope``.  PPK2 and Joulescope go through the packages ``ppk2-api`` and
``joulescope``, where the user has them.  No such meter was at hand when this was
written: lines are tested through a pseudo-terminal.
"""

from __future__ import annotations

import importlib
import os
import re
import termios
import threading
from collections import deque
from typing import Any, Mapping

from draftwire.energy.files.meters import RAIL, load_instruments
from draftwire.energy.rails import Accuracy
from draftwire.energy.sources.base import Clock, PowerSource, Reading, Response, finite
from draftwire.energy.sources.jetson import LineFeed
from draftwire.errors import ConfigError, SensorError

_FIELD = re.compile(
    # No part of a number, so a decimal comma is no reading rather than a wrong one.
    r"(?P<name>[A-Za-z_ ]*?)\s*[:=]?\s*"
    r"(?P<value>(?<![\d.])-?(?:\d+\.\d+|(?<!\d,)\d+)(?:[eE][-+]?\d\d?)?)\s*"
    r"(?P<unit>(?:[mu\u00b5])?[VAW])\b"
)
_SCALE = {"m": 1e-3, "u": 1e-6, "\u00b5": 1e-6}
_SILENT_S = 5.0


def parse_line(text: str) -> float | None:
    """Return watts of a line such as ``5.02 V, 812.3 mA`` or ``P=4.08W``; else None."""
    found: dict[str, float] = {}
    for name, value, unit in _FIELD.findall(text):
        if "shunt" not in name.lower():
            found.setdefault(unit[-1], float(value) * _SCALE.get(unit[0], 1.0))
    if "W" in found:
        return found["W"]
    return found["V"] * found["A"] if "V" in found and "A" in found else None


class _Bench(PowerSource):
    """What they share: one rail, and the figures of the table of instruments."""

    scope = "board-input"
    rails = total = (RAIL,)
    paced = True
    notes = ("external meter",)

    def __init__(self, clock: Clock | None, like: str, volt: float = 5.0) -> None:
        super().__init__(clock)
        one = load_instruments()[like]
        # At the largest current of a USB board: it is not known before.
        offset_w = one.offset_a * volt + one.offset_v * 3.0 + one.offset_w
        self.accuracy = {RAIL: Accuracy(None, offset_w, one.gain, one.provenance)}


def _package(module: str, package: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as exc:
        hint = "pip install 'draftwire[meters]'"
        raise SensorError(f"no package {package}", hint=hint) from exc


class LineMeter(_Bench):
    """A serial port on which each line is a reading: ``/dev/ttyUSB0`` or
    ``/dev/ttyUSB0,9600``; opened anew when it was pulled out."""

    def __init__(self, port: str, *, clock: Clock | None = None) -> None:
        super().__init__(clock, "ina219")
        self._path, _, speed = port.partition(",")
        self._rate = getattr(termios, f"B{speed or 115200}", None)
        if self._rate is None:
            raise ConfigError(f"no serial speed {speed!r}", hint="for example 115200")
        self.name = f"serial:{self._path}"
        self._open()
        first, last = self.read(), self.read()
        self.update_s = max(1e-3, (last.t_ns - first.t_ns) * 1e-9)

    def _open(self) -> None:
        path, rate = self._path, self._rate
        try:
            self._fd = os.open(path, os.O_RDONLY | os.O_NOCTTY | os.O_NONBLOCK)
            mode = termios.tcgetattr(self._fd)
            mode[0] = mode[1] = mode[3] = 0
            mode[2] = termios.CS8 | termios.CREAD | termios.CLOCAL
            mode[4] = mode[5] = rate
            termios.tcsetattr(self._fd, termios.TCSANOW, mode)
        except (OSError, termios.error) as exc:
            why = f"cannot open the serial port {path}: {exc}"
            hint = 'the group dialout may: sudo usermod -aG dialout "$USER"'
            raise SensorError(why, hint=hint) from exc
        self._feed = LineFeed(self.name, self._fd, self._clock, _SILENT_S)

    def read(self) -> Reading:
        if self._feed.ended:
            self.close()
            self._open()
            self._feed.next_line()  # cut where we came in
        for _ in range(50):
            t_ns, line = self._feed.next_line()
            watt = parse_line(line.decode("utf-8", "replace"))
            if watt is not None:
                return Reading(t_ns, {RAIL: watt})
        raise SensorError(f"50 lines of {self.name} without a power (V and A, or W)")

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


class Ppk2Source(_Bench):
    """A PPK2 as an ampere meter: ``/dev/ttyACM0,5.0``, with the volts."""

    name = "ppk2"
    update_s = 0.05

    def __init__(self, port: str, *, clock: Clock | None = None) -> None:
        path, _, volts = port.partition(",")
        if not finite(volts) or float(volts) <= 0:
            why = f"ppk2:{port}: the PPK2 measures current alone"
            hint = "name the volts of the supply: ppk2:/dev/ttyACM0,5.0"
            raise ConfigError(why, hint=hint)
        self._volt = float(volts)
        super().__init__(clock, "ppk2", self._volt)
        api = _package("ppk2_api.ppk2_api", "ppk2-api")
        try:
            self._kit: Any = api.PPK2_API(path)
            self._kit.get_modifiers()
            self._kit.set_source_voltage(round(self._volt * 1000))
            self._kit.use_ampere_meter()
            self._kit.start_measuring()
        except (OSError, ValueError, AttributeError) as exc:
            raise SensorError(f"the PPK2 at {path} does not answer: {exc}") from exc

    def read(self) -> Reading:
        """Return the mean over what came since the last read."""
        for _ in range(500):
            data = self._kit.get_data()
            found = self._kit.get_samples(data) if data else None
            micro = found[0] if isinstance(found, tuple) else found
            if micro:
                amp = sum(micro) / len(micro) * 1e-6
                return Reading(self._clock(), {RAIL: amp * self._volt})
            threading.Event().wait(0.01)
        raise SensorError("the PPK2 was silent for 5 s")

    def close(self) -> None:
        self._kit.stop_measuring()


class JoulescopeSource(_Bench):
    """A Joulescope: its energy counter, twice a second."""

    name = "joulescope"
    update_s = 0.5
    response = Response((0.0, 0.05), (0.0, 0.0), 0.0, "its own counter; lag of USB")

    def __init__(self, clock: Clock | None = None) -> None:
        super().__init__(clock, "js220")
        joulescope = _package("joulescope", "joulescope")
        self._new = threading.Condition()
        self._queue: deque[Reading] = deque(maxlen=100)
        try:
            self._device = joulescope.scan_require_one(config="auto")
            self._device.open()
            self._device.statistics_callback_register(self._statistics, "sensor")
        except (RuntimeError, OSError, ValueError) as exc:
            raise SensorError(f"no Joulescope: {exc}") from exc

    def _statistics(self, found: Mapping[str, Any]) -> None:
        watt = float(found["signals"]["power"]["\u00b5"]["value"])
        joules = float(found["accumulators"]["energy"]["value"])
        with self._new:
            self._queue.append(Reading(self._clock(), {RAIL: watt}, {RAIL: joules}))
            self._new.notify()

    def read(self) -> Reading:
        with self._new:
            if not self._new.wait_for(lambda: bool(self._queue), _SILENT_S):
                raise SensorError("the Joulescope was silent for 5 s")
            return self._queue.popleft()

    def close(self) -> None:
        self._device.close()
