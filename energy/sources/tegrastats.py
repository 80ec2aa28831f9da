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
from pathlib import Path
from typing import NamedTuple, Sequence

from draftwire.energy.sources.base import Clock, PowerSource, Reading, Response
from draftwire.errors import SensorError

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
    """One tegrastats sample."""

    # ``(month, day, year, hour, minute, second)``, local time, or None
    stamp: tuple[int, ...] | None
    rails: tuple[str, ...]  # names in order, ``NC`` included
    now_mw: tuple[int, ...]  # power, milliwatt, same order
    mean_mw: tuple[int, ...]  # mean since tegrastats started, truncated, same order
    max_mw: tuple[int, ...] | None  # third field of R39, or None


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


class LineFeed:
    """Whole lines from a pipe or a port, with the time at which each arrived."""

    def __init__(self, name: str, fd: int, clock: Clock, timeout_s: float) -> None:
        self.name, self.fd, self.clock, self.timeout_s = name, fd, clock, timeout_s
        self._tail, self._arrived = b"", 0

    def next_line(self) -> tuple[int, bytes]:
        """Wait for a line; a SensorError when it ended, or nothing came in time."""
        while b"\n" not in self._tail:
            if not select.select([self.fd], [], [], self.timeout_s)[0]:
                raise SensorError(f"{self.name} was silent for {self.timeout_s:g} s")
            chunk = os.read(self.fd, 65536)
            if not chunk:
                raise SensorError(f"{self.name} ended")
            self._arrived = self.clock()
            self._tail = (self._tail + chunk)[-4 * MAX_SAMPLE :]
        line, self._tail = self._tail.split(b"\n", 1)
        return self._arrived, line


class TegrastatsSource(PowerSource):
    """A tegrastats process of our own, for machines where it alone may read the rails.
    Lines are stamped on arrival: the real period is 3 to 7 % longer than the interval."""

    name = "tegrastats"
    paced = True
    # The reading is instant; the line comes when the others have been gathered.
    response = Response((0.0, 0.05), (0.0, 0.01), 0.0, "stamped on arrival of the line")

    def __init__(
        self,
        interval_ms: int = 100,
        *,
        command: Sequence[str] = ("tegrastats",),
        clock: Clock | None = None,
    ) -> None:
        super().__init__(clock)
        self.update_s = interval_ms * 1e-3
        full = [*command, "--interval", str(interval_ms)]
        try:
            self._process = subprocess.Popen(
                full, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, bufsize=0
            )
        except OSError as exc:
            hint = "it is on Jetson boards only; see `draftwire energy sources`"
            raise SensorError(f"cannot start {command[0]}: {exc}", hint=hint) from exc
        assert self._process.stdout is not None
        feed, timeout_s = self._process.stdout.fileno(), max(5.0, 0.01 * interval_ms)
        self._feed = LineFeed(self.name, feed, self._clock, timeout_s)
        try:
            rails = self._sample()[1].rails
            if set(rails) <= {"NC"}:
                raise SensorError(
                    "tegrastats prints no power rail on this board",
                    hint="try with sudo; a board without a sensor needs a USB meter",
                )
        except SensorError:
            self.close()
            raise
        self.rails = tuple(dict.fromkeys(rail for rail in rails if rail != "NC"))

    def _sample(self) -> tuple[int, Sample]:
        for _ in range(100):  # warnings and rubbish before a sample are skipped
            t_ns, line = self._feed.next_line()
            start = SAMPLE_START.search(line)
            sample = None if start is None else parse_sample(line[start.start() :])
            if sample is not None:
                return t_ns, sample
        raise SensorError("100 lines of tegrastats without a sample")

    def read(self) -> Reading:
        t_ns, sample = self._sample()
        pairs = zip(sample.rails, sample.now_mw)
        return Reading(t_ns, {rail: mw * 1e-3 for rail, mw in pairs if rail != "NC"})

    def close(self) -> None:
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(2.0)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()


def look(root: Path = Path("/")) -> str:
    """Tell where tegrastats is, without starting it; a SensorError if nowhere."""
    path = shutil.which("tegrastats")
    if path is None:
        raise SensorError("no tegrastats in PATH (not a Jetson?)")
    return f"{path}; coarser than sysfs, same numbers"
