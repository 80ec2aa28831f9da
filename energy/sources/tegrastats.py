"""tegrastats: the grammar of its samples, and the live process.

The second number of a rail is the mean since that tegrastats started, not a window
mean: it is read only to find restarts.  Powers can be negative.  ``NC`` can come twice.
"""

from __future__ import annotations

import os
import re
import select
import shutil
import subprocess
from dataclasses import dataclass
from typing import NamedTuple, Sequence

from draftwire.energy.sources.base import (
    Clock,
    Finding,
    PowerSource,
    Reading,
    Response,
    monotonic_ns,
)
from draftwire.errors import SensorError

__all__ = ["SAMPLE_START", "Sample", "TegrastatsSource", "parse_sample"]

# A sample starts here; newlines do not count (one real log is 18 samples on a line).
SAMPLE_START = re.compile(rb"(?:(\d\d)-(\d\d)-(\d{4}) (\d\d):(\d\d):(\d\d) )?RAM \d+/\d+MB")
_SKIP = re.compile(rb"\b(?:RAM|SWAP|IRAM) \d+/\d+[kMG]?B|CPU \[[^\]]*\]")
_RAIL = re.compile(
    rb"(?<![\w@])([A-Z0-9][A-Z0-9_]*) (-?\d+)(?:mW)?/(-?\d+)(?:mW)?"
    rb"(?:/(-?\d+)(?:mW)?)?(?![\w/.])"
)
_HEAT = re.compile(rb"(?<![\w])([A-Za-z][A-Za-z0-9_]*)@(-?\d+(?:\.\d+)?)C")
MAX_SAMPLE = 65536  # bytes; real samples have 200 to 900


class Sample(NamedTuple):
    """One tegrastats sample.

    Attributes:
        stamp: ``(month, day, year, hour, minute, second)``, local time, or None.
        rails: Names in order, ``NC`` included.
        now_mw: Power, milliwatt, same order.
        mean_mw: Mean since tegrastats started, truncated, same order.
        max_mw: Third field of R39, or None.
    """

    stamp: tuple[int, ...] | None
    rails: tuple[str, ...]
    now_mw: tuple[int, ...]
    mean_mw: tuple[int, ...]
    max_mw: tuple[int, ...] | None


def parse_sample(text: bytes) -> Sample | None:
    """Parse one sample, or return None when ``text`` does not start with one."""
    start = SAMPLE_START.match(text)
    if start is None:
        return None
    stamp = None
    if start.group(1) is not None:
        stamp = tuple(int(part) for part in start.groups())
    fields = _RAIL.findall(_SKIP.sub(b"", text))
    third = all(f[3] for f in fields) and bool(fields)
    return Sample(
        stamp,
        tuple(f[0].decode() for f in fields),
        tuple(int(f[1]) for f in fields),
        tuple(int(f[2]) for f in fields),
        tuple(int(f[3]) for f in fields) if third else None,
    )


def parse_heat(text: bytes) -> dict[str, float]:
    """Return the temperatures of one sample, degrees Celsius, by zone."""
    return {
        name.decode(): float(value)
        for name, value in _HEAT.findall(text)
        if float(value) > -200  # -256 means that the zone is off
    }


@dataclass
class LineFeed:
    """Whole lines from a pipe, with the time at which each arrived."""

    fd: int
    clock: Clock
    timeout_s: float
    _tail: bytes = b""

    def next_line(self) -> tuple[int, bytes]:
        """Wait for a line.

        Raises:
            SensorError: The pipe ended, or nothing came within the timeout.
        """
        while b"\n" not in self._tail:
            ready, _, _ = select.select([self.fd], [], [], self.timeout_s)
            if not ready:
                raise SensorError(f"tegrastats was silent for {self.timeout_s:g} s")
            chunk = os.read(self.fd, 65536)
            if not chunk:
                raise SensorError("tegrastats ended")
            self._arrived = self.clock()
            self._tail = (self._tail + chunk)[-4 * MAX_SAMPLE :]
        line, self._tail = self._tail.split(b"\n", 1)
        return self._arrived, line

    _arrived: int = 0


class TegrastatsSource(PowerSource):
    """A tegrastats process of our own.

    Lines are stamped when they arrive: ``usleep`` plus work makes the real period 3 to
    7 % longer than the interval.  Sysfs has the same numbers without a process, so this
    is for machines where only tegrastats may read the rails.

    Args:
        interval_ms: What tegrastats sleeps between samples.
        command: The program; tests pass a script.
        clock: Nanoseconds, monotonic.

    Raises:
        SensorError: There is no tegrastats, or its lines have no rail.
    """

    name = "tegrastats"
    paced = True
    # The reading is instant; the line comes when the others have been gathered.
    response = Response((0.0, 0.05), (0.0, 0.01), 0.0, "stamped on arrival of the line")

    def __init__(
        self,
        interval_ms: int = 100,
        *,
        command: Sequence[str] = ("tegrastats",),
        clock: Clock = monotonic_ns,
    ) -> None:
        self.update_s = interval_ms * 1e-3
        full = [*command, "--interval", str(interval_ms)]
        try:
            self._process = subprocess.Popen(
                full, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, bufsize=0
            )
        except OSError as exc:
            raise SensorError(
                f"cannot start {command[0]}: {exc}",
                hint="it is on Jetson boards only; see `draftwire energy sources`",
            ) from exc
        assert self._process.stdout is not None
        timeout_s = max(5.0, 0.01 * interval_ms)
        self._feed = LineFeed(self._process.stdout.fileno(), clock, timeout_s)
        try:
            first = self._sample()[1]
        except SensorError:
            self.close()
            raise
        self.rails = tuple(dict.fromkeys(rail for rail in first.rails if rail != "NC"))
        if not self.rails:
            self.close()
            raise SensorError(
                "tegrastats prints no power rail on this board",
                hint="try with sudo; a board without a sensor needs a USB meter",
            )

    def _sample(self) -> tuple[int, Sample]:
        for _ in range(100):  # warnings and rubbish before a sample are skipped
            t_ns, line = self._feed.next_line()
            start = SAMPLE_START.search(line)
            sample = None if start is None else parse_sample(line[start.start() :])
            if sample is not None:
                return t_ns, sample
        raise SensorError("100 lines of tegrastats without a sample")

    def read(self) -> Reading:
        """Wait for the next sample."""
        t_ns, sample = self._sample()
        watts = {
            rail: milli * 1e-3
            for rail, milli in zip(sample.rails, sample.now_mw)
            if rail != "NC"
        }
        return Reading(t_ns, watts)

    def close(self) -> None:
        """End the process that we started; never ``tegrastats --stop``, which ends
        others."""
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(2.0)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()


def probe() -> Finding:
    """Tell whether tegrastats can be started."""
    path = shutil.which("tegrastats")
    if path is None:
        return Finding("tegrastats", False, "no tegrastats in PATH (not a Jetson?)")
    return Finding("tegrastats", True, f"{path}; coarser than sysfs, same numbers")
