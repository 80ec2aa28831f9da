"""From stamped watts to joules: one streaming integrator for live windows and logs.

Each signal for itself: trapezoid on the true stamps, never on a nominal interval; linear
interpolation at the window's edges; energy counters are subtracted instead.  Where no
sample came for longer than ``max_gap_ns`` there is a *hole*: it is bridged by a straight
line, its seconds are counted, and what it may have hidden goes into the uncertainty.
"""

from __future__ import annotations

import math
from typing import List, Sequence

NO_VALUE = math.nan
LEAST_HIDDEN = 0.1  # of the energy over a hole
Vector = List[float]


class Integrator:
    """Energy between ``start_ns`` (None: the first sample) and ``end_ns`` of signals that
    are sampled together. Signal 0 is the total; statistics are kept for it alone.
    ``max_gap_ns``: longest time between samples that is no hole."""

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
        self.joules = [0.0] * width  # straight lines over holes included
        self.hole_s = [0.0] * width  # seconds that no sample covers
        self.seen = [False] * width
        self.hole_j = 0.0  # what the straight lines over the total's holes hold
        self.samples = 0
        self.intervals = 0
        self.gaps = 0
        self.largest_gap_s = 0.0
        self.held_s = 0.0
        self.max_w = -math.inf
        self.min_w = math.inf
        self.low_w, self.high_w = math.inf, -math.inf  # outside of the window too
        self.first_w = NO_VALUE
        self.last_w = NO_VALUE
        self.changes = 0
        self.same = 0  # most intervals in a row without any change of any signal
        self.sum_step2 = 0.0  # sum of (difference x time between samples)^2
        self.sum_diff2 = 0.0  # sum of difference^2
        self.counted = False  # True when counters were used for the total
        self._same = 0
        self._now: Vector = []
        self._last_ns = 0
        self._t = [0] * width  # when each signal was last known
        self._x = [0.0] * width
        self._c = [NO_VALUE] * width

    def add(self, t_ns: int, watts: Vector, joules: Sequence[float] | None = None) -> None:
        """Take the next sample: power of each signal (NaN: could not be read) and, of
        sources that count, its running counter; stamps that do not grow are dropped."""
        if self.start_ns is None:
            self.start_ns = t_ns
        if self._now and t_ns <= self._last_ns:
            return
        if joules is None and self._now:
            still = watts[0] == watts[0] and watts == self._now
            self._same = self._same + 1 if still else 0
            self.same = max(self.same, self._same)
        self._now, self._last_ns = watts, t_ns
        inside = t_ns >= self.start_ns and (self.end_ns is None or t_ns <= self.end_ns)
        for i, x in enumerate(watts):
            c = NO_VALUE if joules is None else joules[i]
            if c != c and x != x:
                continue
            if self.seen[i]:
                self._interval(i, t_ns, x, c)
            elif t_ns > self.start_ns and c != c:
                self._edge(i, t_ns - self.start_ns, x)
            self.seen[i] = True
            self._t[i], self._c[i] = t_ns, c
            if x == x:
                self._x[i] = x
                if i == 0:
                    self.low_w, self.high_w = min(self.low_w, x), max(self.high_w, x)
                    if inside:
                        self._count(x)

    def _count(self, watt: float) -> None:
        self.samples += 1
        self.max_w = max(self.max_w, watt)
        self.min_w = min(self.min_w, watt)
        if self.first_w != self.first_w:
            self.first_w = watt
        self.last_w = watt

    def _interval(self, i: int, t_ns: int, x: float, c: float) -> None:
        assert self.start_ns is not None
        then = self._t[i]
        a = max(then, self.start_ns)
        b = t_ns if self.end_ns is None else min(t_ns, self.end_ns)
        if b <= a:
            return
        width_ns, part_s = t_ns - then, (b - a) * 1e-9
        left, right = (a - then) / width_ns, (b - then) / width_ns
        step = c - self._c[i]
        if step == step:  # a counter saw what happened between its readings
            self.joules[i] += step * (right - left)
            if i == 0:
                self.counted = True
                self.intervals += 1
                self.changes += step != 0
            return
        if x != x:
            x = self._x[i]
        old = self._x[i]
        joules = (old + (x - old) * (left + right) / 2) * part_s
        self.joules[i] += joules
        if width_ns > self.max_gap_ns:
            self.hole_s[i] += part_s
            if i == 0:
                self.gaps += 1
                self.largest_gap_s = max(self.largest_gap_s, part_s)
                self.hole_j += joules
        elif i == 0:
            self.intervals += 1
            self.changes += x != old
            self.sum_diff2 += (x - old) ** 2
            self.sum_step2 += ((x - old) * width_ns * 1e-9) ** 2

    def _edge(self, i: int, time_ns: int, watt: float) -> None:
        """Hold a value at an edge; what is longer than a gap may be is a hole."""
        self.joules[i] += watt * time_ns * 1e-9
        beyond_s = max(0, time_ns - self.max_gap_ns) * 1e-9
        self.hole_s[i] += beyond_s
        if i == 0:
            self.held_s += time_ns * 1e-9 - beyond_s
            if beyond_s:
                self.gaps += 1
                self.largest_gap_s = max(self.largest_gap_s, beyond_s)
                self.hole_j += watt * beyond_s

    def finish(self, end_ns: int | None = None) -> None:
        """Close the window; without ``end_ns`` it ends at the last sample."""
        if self.end_ns is None:
            self.end_ns = self._last_ns if end_ns is None else end_ns
        if self.start_ns is None:
            return
        for i, seen in enumerate(self.seen):
            late = self.end_ns - max(self._t[i], self.start_ns)
            if seen and late > 0:
                self._edge(i, late, self._x[i])
        if self.samples == 0 and self.seen[0]:
            self.max_w = self.min_w = self._x[0]

    @property
    def seconds(self) -> float:
        """Length of the window."""
        if self.start_ns is None or self.end_ns is None:
            return 0.0
        return (self.end_ns - self.start_ns) * 1e-9

    def coverage(self, i: int = 0) -> float:
        """Return the share of the window that samples of a signal cover."""
        if not self.seen[i] or not self.seconds > 0:
            return 0.0
        return max(0.0, 1.0 - self.hole_s[i] / self.seconds)

    @property
    def hidden_j(self) -> float:
        """How far the total may be off because of its holes: the power may have stood
        anywhere that it stood elsewhere, and one that never moved may have moved there."""
        if not self.hole_s[0]:
            return 0.0
        high = self.high_w * self.hole_s[0] - self.hole_j
        low = self.hole_j - self.low_w * self.hole_s[0]
        return max(high, low, LEAST_HIDDEN * abs(self.hole_j))
