"""Meters on the bench, live: a board that prints lines, a PPK2, a Joulescope.

They are taken only by name: ``--source serial:/dev/ttyUSB0`` (an INA226 or the like that
prints voltage and current, or power), ``ppk2:/dev/ttyACM0,5.0`` (the voltage of the
supply), ``joulescope``.  PPK2 and Joulescope go through the packages ``ppk2-api`` and
``joulescope``, where the user has them.  No such meter was at hand when this was
written: lines are tested through a pseudo-terminal.
"""

from __future__ import annotations

import os
import re
import select
import termios
import threading
from collections import deque
from typing import Any, Mapping

from draftwire.energy.files.instruments import load_instruments
from draftwire.energy.rails import Accuracy
from draftwire.energy.sources.base import (
    Clock,
    PowerSource,
    Reading,
    Response,
    monotonic_ns,
)
from draftwire.errors import ConfigError, SensorError

__all__ = ["JoulescopeSource", "LineMeter", "Ppk2Source", "parse_line"]

RAIL = "METER"
_FIELD = re.compile(
    r"(?P<name>[A-Za-z_ ]*?)\s*[:=]?\s*(?P<value>-?\d+(?:\.\d+)?)\s*"
    r"(?P<unit>(?:[mu\u00b5])?[VAW])\b"
)
_SCALE = {"m": 1e-3, "u": 1e-6, "\u00b5": 1e-6}
_SILENT_S = 5.0


def parse_line(text: str) -> float | None:
    """Return watts of a line such as ``5.02 V, 812.3 mA`` or ``P=4.08W``; else None."""
    found: dict[str, float] = {}
    for match in _FIELD.finditer(text):
        unit = match.group("unit")
        if "shunt" not in match.group("name").lower():
            found.setdefault(
                unit[-1], float(match.group("value")) * _SCALE.get(unit[0], 1.0)
            )
    if "W" in found:
        return found["W"]
    return found["V"] * found["A"] if "V" in found and "A" in found else None


def _figures(name: str, volt: float = 5.0) -> dict[str, Accuracy]:
    one = load_instruments()[name]
    offset = one.offset_a * volt + one.offset_w
    return {RAIL: Accuracy(None, offset, one.gain, one.source)}


class _Bench(PowerSource):
    """What they share."""

    scope = "board-input"
    rails = (RAIL,)
    total = (RAIL,)
    paced = True
    notes = ("external meter",)


class LineMeter(_Bench):
    """A serial port on which each line is a reading.

    Args:
        port: ``/dev/ttyUSB0``, or with a speed: ``/dev/ttyUSB0,115200``.
        clock: Nanoseconds, monotonic.

    Raises:
        SensorError: The port cannot be opened, or no line has a power.
    """

    def __init__(self, port: str, *, clock: Clock = monotonic_ns) -> None:
        path, _, speed = port.partition(",")
        self.name = f"serial:{path}"
        self.accuracy = _figures("ina226")
        self._clock = clock
        self._tail = b""
        try:
            self._fd = os.open(path, os.O_RDONLY | os.O_NOCTTY | os.O_NONBLOCK)
            mode = termios.tcgetattr(self._fd)
            rate = getattr(termios, f"B{speed or 115200}", None)
            if rate is None:
                raise ConfigError(f"no serial speed {speed!r}", hint="for example 115200")
            mode[0] = mode[1] = mode[3] = 0
            mode[2] = termios.CS8 | termios.CREAD | termios.CLOCAL
            mode[4] = mode[5] = rate
            termios.tcsetattr(self._fd, termios.TCSANOW, mode)
        except (OSError, termios.error) as exc:
            raise SensorError(
                f"cannot open the serial port {path}: {exc}",
                hint='the group dialout may: sudo usermod -aG dialout "$USER"',
            ) from exc
        first, last = self.read(), self.read()
        self.update_s = max(1e-3, (last.t_ns - first.t_ns) * 1e-9)

    def read(self) -> Reading:
        """Wait for the next line that holds a power."""
        for _ in range(50):
            while b"\n" not in self._tail:
                ready, _, _ = select.select([self._fd], [], [], _SILENT_S)
                chunk = os.read(self._fd, 4096) if ready else b""
                if not chunk:
                    raise SensorError(f"{self.name} was silent for {_SILENT_S:g} s")
                self._tail = (self._tail + chunk)[-65536:]
            t_ns = self._clock()
            line, self._tail = self._tail.split(b"\n", 1)
            watt = parse_line(line.decode("utf-8", "replace"))
            if watt is not None:
                return Reading(t_ns, {RAIL: watt})
        raise SensorError(f"50 lines of {self.name} without a power (V and A, or W)")

    def close(self) -> None:
        """Close the port."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


class Ppk2Source(_Bench):
    """A Power Profiler Kit II as an ampere meter, through the package ``ppk2-api``.

    Args:
        port: ``/dev/ttyACM0,5.0``: the port, and the volts of the supply.
        clock: Nanoseconds, monotonic.

    Raises:
        SensorError: The package or the kit is not there.
    """

    def __init__(self, port: str, *, clock: Clock = monotonic_ns) -> None:
        path, _, volts = port.partition(",")
        try:
            self._volt = float(volts)
        except ValueError as exc:
            raise ConfigError(
                f"ppk2:{port}: the PPK2 measures current alone",
                hint="name the volts of the supply: ppk2:/dev/ttyACM0,5.0",
            ) from exc
        try:
            from ppk2_api.ppk2_api import PPK2_API  # type: ignore[import-not-found]
        except ImportError as exc:
            raise SensorError(
                "no package ppk2-api", hint="pip install 'draftwire[meters]'"
            ) from exc
        self.name = "ppk2"
        self.update_s = 0.05
        self.accuracy = _figures("ppk2", self._volt)
        self._clock = clock
        try:
            self._kit: Any = PPK2_API(path)
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
            if data:
                found = self._kit.get_samples(data)
                micro = found[0] if isinstance(found, tuple) else found
                if micro:
                    amp = sum(micro) / len(micro) * 1e-6
                    return Reading(self._clock(), {RAIL: amp * self._volt})
            threading.Event().wait(0.01)
        raise SensorError("the PPK2 was silent for 5 s")

    def close(self) -> None:
        """Stop measuring."""
        self._kit.stop_measuring()


class JoulescopeSource(_Bench):
    """A Joulescope, through its own package: its energy counter, twice a second.

    Args:
        clock: Nanoseconds, monotonic.

    Raises:
        SensorError: The package or the device is not there.
    """

    name = "joulescope"
    update_s = 0.5
    response = Response((0.0, 0.05), (0.0, 0.0), 0.0, "its own counter; lag of USB")

    def __init__(self, clock: Clock = monotonic_ns) -> None:
        try:
            import joulescope  # type: ignore[import-not-found]
        except ImportError as exc:
            raise SensorError(
                "no package joulescope", hint="pip install 'draftwire[meters]'"
            ) from exc
        self.accuracy = _figures("js220")
        self._clock = clock
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
        """Wait for the next statistics."""
        with self._new:
            if not self._new.wait_for(lambda: bool(self._queue), _SILENT_S):
                raise SensorError("the Joulescope was silent for 5 s")
            return self._queue.popleft()

    def close(self) -> None:
        """Close the device."""
        self._device.close()
