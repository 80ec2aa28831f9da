"""Traces of a link's rate: reading, checking, and exact time for a number of bytes.

Two formats.  A table with the header ``t_s,mbit_s`` says from when on which rate holds;
a mahimahi file has one line for each chance to deliver 1500 bytes, in whole
milliseconds.  Both become a piecewise constant rate that starts over at its end.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from pathlib import Path
from typing import Sequence

from draftwire.errors import ConfigError

HEADER = "t_s,mbit_s"
MAX_BYTES = 64 * 2**20
_MTU_BITS = 1500 * 8


class Trace:
    """A piecewise constant rate, in bits a second, that starts over at its end.

    Args:
        starts_s: When each piece starts, rising, the first at 0.
        rates: Bits a second of each piece, not negative.
        period_s: Where the last piece ends.
        name: For errors.

    Raises:
        ConfigError: The pieces are out of order, or nothing would ever get through.
    """

    def __init__(
        self,
        starts_s: Sequence[float],
        rates: Sequence[float],
        period_s: float,
        name: str = "trace",
    ) -> None:
        edges = [*starts_s, period_s]
        if not all(math.isfinite(x) for x in [*edges, *rates]):
            raise ConfigError(f"{name}: a time or a rate is no finite number")
        if edges[0] != 0 or any(b <= a for a, b in zip(edges, edges[1:])):
            raise ConfigError(f"{name}: the times must start at 0 and rise")
        if min(rates) < 0:
            raise ConfigError(f"{name}: a rate is negative")
        if max(rates) <= 0:
            why = f"{name}: nothing would ever get through"
            raise ConfigError(why, hint="all its rates are 0")
        self.starts_s = tuple(float(x) for x in starts_s)
        self.rates = tuple(float(x) for x in rates)
        self.period_s = float(period_s)
        self._bits = [0.0]  # let through before each piece, and before the end
        for i, rate in enumerate(self.rates):
            self._bits.append(self._bits[-1] + rate * (edges[i + 1] - edges[i]))

    @classmethod
    def constant(cls, bit_s: float) -> Trace:
        """Return a rate that never changes."""
        return cls([0.0], [bit_s], 1.0)

    def bits_until(self, t_s: float) -> float:
        """Return the bits that a busy link lets through from 0 to ``t_s``."""
        rounds, within = self._place(t_s)
        return rounds * self._bits[-1] + self._before(within)

    def finish(self, start_s: float, nbytes: float) -> float:
        """Return when ``nbytes`` are through that start at ``start_s``.

        The integral of the rate from ``start_s`` to the answer is ``8 * nbytes``, and
        the answer is the first such time.
        """
        if nbytes <= 0:
            return start_s
        rounds, within = self._place(start_s)
        base, left = start_s - within, self._before(within) + 8.0 * nbytes
        if left > self._bits[-1]:
            whole, left = divmod(left, self._bits[-1])
            base = (rounds + whole) * self.period_s
            if left == 0:  # the first time of that many bits, not the last
                base, left = base - self.period_s, self._bits[-1]
        return max(start_s, base + self._when(left))

    def _place(self, t_s: float) -> tuple[float, float]:
        """Return how many whole rounds are over, and the time within the present one."""
        rounds = math.floor(max(0.0, t_s) / self.period_s)
        within = max(0.0, t_s) - rounds * self.period_s
        if within < 0:  # rounded up by the division
            return rounds - 1.0, within + self.period_s
        return float(rounds), min(within, math.nextafter(self.period_s, 0.0))

    def _before(self, within_s: float) -> float:
        """Return the bits that are through before a time within the period."""
        i = bisect_right(self.starts_s, within_s) - 1
        return self._bits[i] + (within_s - self.starts_s[i]) * self.rates[i]

    def _when(self, bits: float) -> float:
        """Return the first time within the period by which ``bits`` are through."""
        # The first piece that ends with that many or more.
        i = min(bisect_left(self._bits, bits, 1), len(self.rates)) - 1
        if self.rates[i] <= 0:  # only by rounding: nothing is left to send
            return self.starts_s[i]
        return self.starts_s[i] + (bits - self._bits[i]) / self.rates[i]


def read_trace(path: str | Path) -> Trace:
    """Read a trace from a file of either format.

    Raises:
        ConfigError: The file cannot be read, or is not a trace; names the line.
    """
    path = Path(path)
    try:
        with path.open("rb") as handle:
            data = handle.read(MAX_BYTES + 1)
    except OSError as exc:
        raise ConfigError(
            f"cannot read the trace {path}: {exc.strerror}",
            hint="name a file with the header t_s,mbit_s, or a mahimahi trace",
        ) from exc
    if len(data) > MAX_BYTES:
        raise ConfigError(f"the trace {path} is above {MAX_BYTES // 2**20} MiB")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as exc:
        raise ConfigError(f"the trace {path} is not text: {exc}") from exc
    return parse_trace(text, name=path.name)


def parse_trace(text: str, *, name: str = "trace") -> Trace:
    """Return the trace in ``text``, of either format.

    Raises:
        ConfigError: It is neither; names the line.

    Source:
        mm-link(1): one line is the chance to deliver 1500 bytes at that millisecond,
        and the trace starts over at its last time.
    """
    lines = [
        (number, line.strip())
        for number, line in enumerate(text.splitlines(), 1)
        if line.strip() and not line.lstrip().startswith("#")
    ]
    if not lines:
        raise ConfigError(f"{name} is empty", hint="two columns: t_s,mbit_s")
    if lines[0][1].replace(" ", "").lower() == HEADER:
        return _table(lines[1:], name)
    if lines[0][1].isdecimal():
        return _mahimahi(lines, name)
    raise ConfigError(
        f"{name} line {lines[0][0]} is neither the header {HEADER} nor a millisecond",
        hint="a table with that header, or a mahimahi packet delivery trace",
    )


def _table(lines: list[tuple[int, str]], name: str) -> Trace:
    times: list[float] = []
    rates: list[float] = []
    for number, line in lines:
        cells = line.split(",")
        try:
            t_s, mbit_s = (float(cell) for cell in cells)
        except ValueError as exc:
            raise ConfigError(f"{name} line {number}: not two numbers: {line!r}") from exc
        if not (math.isfinite(t_s) and math.isfinite(mbit_s) and mbit_s >= 0):
            raise ConfigError(f"{name} line {number}: out of range: {line!r}")
        if times and t_s <= times[-1]:
            raise ConfigError(f"{name} line {number}: the time does not rise")
        times.append(t_s)
        rates.append(mbit_s * 1e6)
    if not times:
        raise ConfigError(f"{name} has a header and no rows")
    first = times[0]
    # The last row lasts as long as the one before it.
    last = times[-1] - times[-2] if len(times) > 1 else 1.0
    starts = [t - first for t in times]
    return Trace(starts, rates, starts[-1] + last, name)


def _mahimahi(lines: list[tuple[int, str]], name: str) -> Trace:
    starts: list[float] = []
    rates: list[float] = []
    previous, end = 0, 0

    def piece(start_ms: int, bit_s: float) -> None:
        if not rates or rates[-1] != bit_s:  # runs of one rate are one piece
            starts.append(start_ms / 1e3)
            rates.append(bit_s)

    counts: dict[int, int] = {}
    for number, line in lines:
        if not line.isdecimal() or len(line) > 12:
            raise ConfigError(f"{name} line {number}: not a millisecond: {line!r}")
        at = int(line)
        if at < previous:
            raise ConfigError(f"{name} line {number}: the time falls")
        previous = at
        # What is deliverable at a time flows during the millisecond before it.
        bin_ms = max(0, at - 1)
        counts[bin_ms] = counts.get(bin_ms, 0) + 1
    if previous == 0:
        raise ConfigError(f"{name}: the last time must be above 0")
    for bin_ms, count in counts.items():
        if bin_ms > end:
            piece(end, 0.0)
        piece(bin_ms, count * _MTU_BITS * 1e3)
        end = bin_ms + 1
    return Trace(starts, rates, previous / 1e3, name)
