"""From stamped watts to joules: one streaming integrator for live windows and logs.

Trapezoid on the true stamps, never on a nominal interval; linear interpolation at the
window's edges; a hole longer than two periods is a gap, counted and not filled.  Energy
counters are subtracted instead.  What the uncertainty needs is gathered on the way.
"""

from __future__ import annotations

import math
from typing import List, Sequence

__all__ = ["Integrator", "NO_VALUE", "Vector"]

NO_VALUE = math.nan
Vector = List[float]


class Integrator:
    """Energy between ``start_ns`` and ``end_ns`` of several signals sampled together.

    Signal 0 is the total; statistics for the uncertainty are kept for it alone.

    Args:
        width: How many signals.
        start_ns: Left edge; None starts at the first sample.
        end_ns: Right edge, or None until ``finish``.
        max_gap_ns: Longest hole that is interpolated.
    """

    def __init__(
        self,
        width: int,
        start_ns: int | None = None,
        end_ns: int | None = None,
        *,
        max_gap_ns: int,
    ) -> None:
        self.start_ns = start_ns
        self.end_ns = end_ns
        self.max_gap_ns = max_gap_ns
        self.joules = [0.0] * width
        self.covered_s = [0.0] * width
        self.samples = 0
        self.intervals = 0
        self.gaps = 0
        self.largest_gap_s = 0.0
        self.held_s = 0.0
        self.max_w = -math.inf
        self.min_w = math.inf
        self.first_w = NO_VALUE
        self.last_w = NO_VALUE
        self.changes = 0
        self.same_s = 0.0  # longest run without any change of any signal
        self.sum_step2 = 0.0  # sum of (difference x time between samples)^2
        self.sum_diff2 = 0.0  # sum of difference^2
        self.counted = False  # True when counters were used for the total
        self._same_since = 0
        self._t = 0
        self._x: Vector | None = None
        self._c: Vector | None = None

    def add(self, t_ns: int, watts: Vector, joules: Sequence[float] | None = None) -> None:
        """Take the next sample; stamps that do not grow are dropped.

        Args:
            t_ns: Its time.
            watts: Power of each signal, NaN where it could not be read.
            joules: Running counter of each signal, for sources that count.
        """
        counters = None if joules is None else list(joules)
        if self._x is None:
            self._first(t_ns, watts, counters)
            return
        if t_ns <= self._t:
            return
        if watts == self._x and counters is None:
            self.same_s = max(self.same_s, (t_ns - self._same_since) * 1e-9)
        else:
            self._same_since = t_ns
        assert self.start_ns is not None
        a = max(self._t, self.start_ns)
        b = t_ns if self.end_ns is None else min(t_ns, self.end_ns)
        if b > a:
            self._interval(a, b, t_ns, watts, counters)
        if self._inside(t_ns):
            self._count(watts[0])
        self._t, self._x, self._c = t_ns, watts, counters

    def _first(self, t_ns: int, watts: Vector, counters: Vector | None) -> None:
        if self.start_ns is None:
            self.start_ns = t_ns
        self._t, self._x, self._c = t_ns, watts, counters
        self._same_since = t_ns
        if self._inside(t_ns):
            self._count(watts[0])
            late = t_ns - self.start_ns
            if late > 0 and counters is None:
                self._hold(late, watts)

    def _inside(self, t_ns: int) -> bool:
        assert self.start_ns is not None
        return t_ns >= self.start_ns and (self.end_ns is None or t_ns <= self.end_ns)

    def _count(self, watt: float) -> None:
        if watt == watt:
            self.samples += 1
            self.max_w = max(self.max_w, watt)
            self.min_w = min(self.min_w, watt)
            if self.first_w != self.first_w:
                self.first_w = watt
            self.last_w = watt

    def _interval(
        self, a: int, b: int, t_ns: int, watts: Vector, counters: Vector | None
    ) -> None:
        old = self._x
        assert old is not None
        width_ns = t_ns - self._t
        part_s = (b - a) * 1e-9
        hole = width_ns > self.max_gap_ns
        left, right = (a - self._t) / width_ns, (b - self._t) / width_ns
        use_counters = self._c is not None and counters is not None
        missed = False
        for i, (x0, x1) in enumerate(zip(old, watts)):
            if use_counters:
                assert self._c is not None and counters is not None
                step = counters[i] - self._c[i]
                if step == step:
                    self.joules[i] += step * (right - left)
                    self.covered_s[i] += part_s
                    if i == 0:
                        self.counted = True
                    continue
            if hole or x0 != x0 or x1 != x1:
                missed = missed or i == 0
                continue
            slope = x1 - x0
            mean = x0 + slope * (left + right) / 2
            self.joules[i] += mean * part_s
            self.covered_s[i] += part_s
        if missed:
            self.gaps += 1
            self.largest_gap_s = max(self.largest_gap_s, part_s)
            return
        self.intervals += 1
        diff = watts[0] - old[0]
        if diff == diff:
            self.sum_diff2 += diff * diff
            if not use_counters:
                self.sum_step2 += (diff * width_ns * 1e-9) ** 2
            self.changes += diff != 0

    def _hold(self, time_ns: int, watts: Vector) -> None:
        """Hold a value at an edge, for as long as a gap may be."""
        held = min(time_ns, self.max_gap_ns) * 1e-9
        for i, watt in enumerate(watts):
            if watt == watt:
                self.joules[i] += watt * held
                self.covered_s[i] += held
        self.held_s += held
        if time_ns > self.max_gap_ns:
            self.gaps += 1
            self.largest_gap_s = max(self.largest_gap_s, time_ns * 1e-9 - held)

    def finish(self, end_ns: int | None = None) -> None:
        """Close the window; without ``end_ns`` it ends at the last sample."""
        if self.end_ns is None:
            self.end_ns = self._t if end_ns is None else end_ns
        if self._x is None or self.start_ns is None:
            return
        late = self.end_ns - max(self._t, self.start_ns)
        if late > 0:
            self._hold(late, self._x)
            if self.samples == 0 and self._x[0] == self._x[0]:
                self.max_w = self.min_w = self._x[0]

    @property
    def seconds(self) -> float:
        """Length of the window."""
        if self.start_ns is None or self.end_ns is None:
            return 0.0
        return (self.end_ns - self.start_ns) * 1e-9
