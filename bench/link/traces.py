"""Traces of a link's rate: reading, checking, and exact time for a number of bytes.

Two formats.  A table with the header ``t_s,mbit_s`` says from when on which rate holds;
a mahimahi file has one line for each chance to deliver 1500 bytes, in whole
milliseconds.  Both become a piecewise constant rate that starts over at its end.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from pathlib import Path
from typing import Sequence

from draftwire.errors import ConfigError

HEADER = "t_s,mbit_s"
MAX_BYTES = 64 * 2**20
_MTU_BITS = 1500 * 8


class Trace:
    """A piecewise constant rate, in bits a second.

    Args:
        starts_s: When each piece starts, rising, the first at 0.
        rates: Bits a second of each piece, not negative.
        period_s: Where the last piece ends.
        loop: Start over at the end; otherwise the last rate goes on for ever.
        name: For reports and errors.

    Raises:
        ConfigError: The pieces are out of order, or nothing would ever get through.
    """

    def __init__(
        self,
        starts_s: Sequence[float],
        rates: Sequence[float],
        period_s: float,
        *,
        loop: bool = True,
        name: str = "trace",
    ) -> None:
        if not starts_s or len(starts_s) != len(rates):
            raise ConfigError(f"{name}: a trace needs one rate for each time")
        edges = [*starts_s, period_s]
        if not all(math.isfinite(x) for x in [*edges, *rates]):
            raise ConfigError(f"{name}: a time or a rate is no finite number")
        if edges[0] != 0 or any(b <= a for a, b in zip(edges, edges[1:])):
            raise ConfigError(f"{name}: the times must start at 0 and rise")
        if min(rates) < 0:
            raise ConfigError(f"{name}: a rate is negative")
        if (max(rates) if loop else rates[-1]) <= 0:
            raise ConfigError(
                f"{name}: nothing would ever get through", hint="all its rates are 0"
            )
        self.name = name
        self.loop = loop
        self.starts_s = tuple(float(x) for x in starts_s)
        self.rates = tuple(float(x) for x in rates)
        self.period_s = float(period_s)
        self._bits = [0.0]  # let through before each piece, and before the end
        for i, rate in enumerate(self.rates):
            self._bits.append(self._bits[-1] + rate * (edges[i + 1] - edges[i]))

    @classmethod
    def constant(cls, bit_s: float, name: str = "constant") -> Trace:
        """Return a rate that never changes."""
        return cls([0.0], [bit_s], 1.0, name=name)

    @property
    def mean_bit_s(self) -> float:
        """Mean rate over one period."""
        return self._bits[-1] / self.period_s

    def rate_at(self, t_s: float) -> float:
        """Return the rate at ``t_s``, bits a second."""
        _, within = self._place(t_s)
        return self.rates[self._piece(within)]

    def bits_until(self, t_s: float) -> float:
        """Return the bits that a busy link lets through from 0 to ``t_s``."""
        rounds, within = self._place(t_s)
        if within >= self.period_s:  # past the end without a loop
            return self._bits[-1] + (within - self.period_s) * self.rates[-1]
        i = self._piece(within)
        bits = self._bits[i] + (within - self.starts_s[i]) * self.rates[i]
        return rounds * self._bits[-1] + bits

    def finish(self, start_s: float, nbytes: float) -> float:
        """Return when ``nbytes`` are through that start at ``start_s``.

        The integral of the rate from ``start_s`` to the answer is ``8 * nbytes``, and
        the answer is the first such time.
        """
        if nbytes <= 0:
            return start_s
        rounds, within = self._place(start_s)
        base = start_s - within
        left = 8.0 * nbytes
        if within < self.period_s:
            i = self._piece(within)
            here = self._bits[i] + (within - self.starts_s[i]) * self.rates[i]
            if here + left <= self._bits[-1]:
                return max(start_s, base + self._when(here + left, i))
            if self.loop:
                whole, left = divmod(here + left, self._bits[-1])
                base = (rounds + whole) * self.period_s
                if left == 0:  # the first time of that many bits, not the last
                    base, left = base - self.period_s, self._bits[-1]
                return max(start_s, base + self._when(left, 0))
            left -= self._bits[-1] - here
            within = self.period_s
        return base + within + left / self.rates[-1]

    def scaled(self, factor: float) -> Trace:
        """Return the same trace with every rate ``factor`` times as high."""
        rates = [rate * factor for rate in self.rates]
        return Trace(self.starts_s, rates, self.period_s, loop=self.loop, name=self.name)

    def _place(self, t_s: float) -> tuple[float, float]:
        if not self.loop or t_s < self.period_s:
            return 0.0, max(0.0, t_s)
        rounds = math.floor(t_s / self.period_s)
        within = t_s - rounds * self.period_s
        if within < 0:  # rounded up by the division
            return rounds - 1.0, within + self.period_s
        return float(rounds), min(within, math.nextafter(self.period_s, 0.0))

    def _piece(self, within_s: float) -> int:
        return min(bisect_right(self.starts_s, within_s), len(self.starts_s)) - 1

    def _when(self, bits: float, low: int) -> float:
        """Return the first time within the period by which ``bits`` are through."""
        high = len(self.rates) - 1
        while low < high:  # the first piece that ends with that many or more
            middle = (low + high) // 2
            if self._bits[middle + 1] >= bits:
                high = middle
            else:
                low = middle + 1
        rate = self.rates[low]
        if rate <= 0:  # only by rounding: nothing is left to send
            return self.starts_s[low]
        return self.starts_s[low] + (bits - self._bits[low]) / rate


def read_trace(path: str | Path, *, loop: bool = True) -> Trace:
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
    return parse_trace(text, name=path.name, loop=loop)


def parse_trace(text: str, *, name: str = "trace", loop: bool = True) -> Trace:
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
        return _table(lines[1:], name, loop)
    if lines[0][1].isdecimal():
        return _mahimahi(lines, name, loop)
    raise ConfigError(
        f"{name} line {lines[0][0]} is neither the header {HEADER} nor a millisecond",
        hint="a table with that header, or a mahimahi packet delivery trace",
    )


def _table(lines: list[tuple[int, str]], name: str, loop: bool) -> Trace:
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
    return Trace(starts, rates, starts[-1] + last, loop=loop, name=name)


def _mahimahi(lines: list[tuple[int, str]], name: str, loop: bool) -> Trace:
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
    return Trace(starts, rates, previous / 1e3, loop=loop, name=name)
