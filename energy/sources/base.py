"""What every power source looks like to the meter."""

from __future__ import annotations

import math
import os
import time
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Callable, Mapping, NamedTuple, Sequence

from draftwire.energy.rails import Accuracy
from draftwire.errors import SensorError

Clock = Callable[[], int]
monotonic_ns: Clock = time.monotonic_ns


class Reading(NamedTuple):
    """One look at the rails."""

    t_ns: int  # nanoseconds of the monotonic clock: the middle of the read
    watts: dict[str, float]  # of each rail that could be read; one that could not is absent
    # running counters, for sources that count; their differences are exact, so the meter
    # prefers them to ``watts``
    joules: dict[str, float] | None = None


@dataclass(frozen=True)
class Response:
    """How a sensor sees a changing power: what phases shorter than it can be told by.
    Ranges are least and most seconds."""

    lag_s: tuple[float, float] = (0.0, 0.0)  # from the end of what it averages to its stamp
    window_s: tuple[float, float] = (0.0, 0.0)  # that a reading averages over
    # the moment of a reading is spread over so many seconds: a sensor that renews each 7 ms
    # and is read at any moment
    jitter_s: float = 0.0
    how: str = ""  # where that is known from, for the report

    @property
    def unsure_s(self) -> float:
        """By how much lag and window together are not known."""
        return self.lag_s[1] - self.lag_s[0] + self.window_s[1] - self.window_s[0]

    @property
    def reach_s(self) -> float:
        """How far back from its stamp a reading may look."""
        return self.lag_s[1] + self.window_s[1] + self.jitter_s

    @property
    def mean_lag_s(self) -> float:
        """How late a reading is on the average, at most."""
        return self.lag_s[1] + (self.window_s[1] + self.jitter_s) / 2

    def corners(self) -> list[tuple[float, float]]:
        """Return (lag, window) at the middle and the ends of both ranges."""
        lags, windows = (
            [low] if high <= low else [(low + high) / 2, low, high]
            for low, high in (self.lag_s, self.window_s)
        )
        return [(lag, window) for lag in lags for window in windows]


UNKNOWN_RESPONSE = Response((0.0, 0.25), (0.0, 1.0), 0.0, "not known")


def response_of(raw: Any) -> Response:
    """Return a response from what a recording, a profile or a calibration holds of it."""
    try:
        known = dict(raw)
        (low, high), (short, long) = known["lag_s"], known["window_s"]
        ranges = (float(low), float(high)), (float(short), float(long))
        jitter_s, how = float(known.get("jitter_s", 0.0)), str(known.get("how", ""))
        return Response(*ranges, jitter_s, how)
    except (KeyError, TypeError, ValueError, OverflowError):
        return UNKNOWN_RESPONSE


def finite(text: str) -> bool:
    """Tell whether a text is a number, and not one without an end."""
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


class PowerSource:
    """A source of power readings; each says only what is different from this."""

    name = ""  # for reports: ``"sysfs-ina3221"``
    kind = "measured"  # or ``"modelled"``
    rails: tuple[str, ...] = ()  # names as the board prints them
    scope: str | None = None  # of the sum, when the source itself knows it
    total: tuple[str, ...] = ()  # rails that make ``scope``, when the source knows them
    accuracy: Mapping[str, Accuracy] = MappingProxyType({})
    update_s: float | None = None  # how often the sensor renews its value
    response: Response = UNKNOWN_RESPONSE  # how the sensor sees a changing power
    paced = False  # True when ``read`` itself waits for the next sample
    over = False  # True when no reading will come any more
    notes: tuple[str, ...] = ()  # sentences for the report
    problem: Exception | None = None  # why the last rail that failed did
    # What ``read`` and ``close`` work on, where a source has no more to it than that.
    reads: Mapping[str, Callable[[], float]] = MappingProxyType({})  # watts by rail
    files: Mapping[str, SysfsNumber] = MappingProxyType({})

    def __init__(self, clock: Clock | None = None) -> None:
        self._clock = clock or monotonic_ns

    def read(self) -> Reading:
        """Take one sample; a SensorError where nothing could be read."""
        return self.gather(self.reads)

    def gather(
        self, reads: Mapping[str, Callable[[], float]], t_ns: int | None = None
    ) -> Reading:
        """Return what each rail's function gives, without those that fail; SensorError if
        all do."""
        watts, start, self.problem = {}, self._clock() if t_ns is None else t_ns, None
        for rail, read in reads.items():
            try:
                watts[rail] = read()
            except (OSError, ValueError) as exc:
                self.problem = exc
        if not watts:
            raise SensorError(
                f"cannot read any rail at {self.name}: {self.problem}",
                hint="run `draftwire energy sources`; in a container, mount /sys read-only",
            )
        return Reading((start + self._clock()) // 2 if t_ns is None else t_ns, watts)

    def close(self) -> None:
        """Give everything back; harmless when called twice."""
        for number in self.files.values():
            number.close()


def unique(names: Sequence[str]) -> tuple[str, ...]:
    """Number repeated names: a dict must not swallow a rail."""
    before = [names[:place].count(name) for place, name in enumerate(names)]
    return tuple(f"{name}#{n + 1}" if n else name for name, n in zip(names, before))


class SysfsNumber:
    """One sysfs attribute, kept open: a read is one ``pread`` and no path walk."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.fd = -1

    def read(self) -> int:
        """Return the value; OSError or ValueError where the kernel gives none."""
        try:
            if self.fd < 0:
                self.fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
            return int(os.pread(self.fd, 64, 0))
        except (OSError, ValueError):
            self.close()  # the next read walks the path anew
            raise

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
