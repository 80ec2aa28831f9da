"""Times for a tegrastats log.

Stamps have 1 s resolution and are local time, so neighbours often have the same: a line
is fitted through (sample number, stamp), and where stamps jump each side is fitted
alone.
"""

from __future__ import annotations

from typing import Iterator

import numpy as np

from draftwire.energy.tegra_log import NO_STAMP, Log, Run, Segment
from draftwire.errors import ConfigError

__all__ = ["set_clock"]


def set_clock(
    log: Log, *, interval_s: float | None = None, duration_s: float | None = None
) -> None:
    """Give every run its times; findings about the clock are added to the log.

    Args:
        log: As ``read_log`` returns it.
        interval_s: For logs without stamps: what was asked of tegrastats.
        duration_s: For logs without stamps: how long the log took, as a whole.

    Raises:
        ConfigError: Interval or duration are not positive.
    """
    for value in (interval_s, duration_s):
        if value is not None and not value > 0:
            raise ConfigError("interval and duration must be positive")
    base = 0.0
    if duration_s is not None:
        steps = sum(max(run.samples - 1, 0) for run in log.runs)
        interval_s = duration_s / steps if steps else None
    origin: int | None = None
    for run in log.runs:
        stamps = run.stamps()
        good = stamps != NO_STAMP
        count = int(good.sum())
        if run.samples >= 2 and count >= max(2, run.samples // 2):
            assert run.base_stamp is not None
            origin = run.base_stamp if origin is None else origin
            if count < run.samples:
                _fill_stamps(stamps, good)
            _stamped(log, run, stamps, float(run.base_stamp - origin))
            continue
        if interval_s is None:
            run.segments = []
            continue
        length = max(run.samples - 1, 0) * interval_s
        clock_u = 0.0
        if duration_s is None:
            clock_u = 0.05 * length
            log.note(
                "nominal-interval",
                run.first_sample,
                "times are the nominal interval: real periods are 3 to 7 % longer, and "
                "so is the energy",
            )
        pieces = ((run.samples, base, interval_s),)
        run.segments = [Segment(0, run.samples, pieces, clock_u)]
        base += run.samples * interval_s


def _fill_stamps(stamps: np.ndarray, good: np.ndarray) -> None:
    index = np.arange(len(stamps))
    stamps[~good] = np.interp(index[~good], index[good], stamps[good]).astype(np.int32)


def _stamped(log: Log, run: Run, stamps: np.ndarray, shift: float) -> None:
    steps = np.diff(stamps)
    middle = float(np.median(steps[steps >= 0])) if (steps >= 0).any() else 1.0
    usual = steps[(steps >= 0) & (steps <= 3 * middle + 2)]
    period = float(usual.mean()) if usual.size else 1.0
    breaks = np.flatnonzero((steps < 0) | (steps > 2 * period + 1)) + 1
    for place in breaks:
        step = int(steps[place - 1])
        number = run.first_sample + int(place)
        if step < 0:
            text = f"stamps go back by {-step} s at sample {number}: the clock was set"
            log.note("stamps-back", number, text)
            # How long the hole was nobody knows: go on one period later.
            stamps[place:] += -step + max(1, round(period))
        else:
            text = f"a gap of {step} s before sample {number} is not integrated"
            log.note("gap", number, text)
    edges = [0, *(int(b) for b in breaks), run.samples]
    run.segments = [
        _fit(stamps, a, b, period, shift) for a, b in zip(edges, edges[1:]) if b > a
    ]


def _fit(stamps: np.ndarray, a: int, b: int, period: float, shift: float) -> Segment:
    n = b - a
    first, last = int(stamps[a]), int(stamps[b - 1])
    if n < 3 or first == last:
        # Too few for a line: the stamps, spread by the period of the rest of the run.
        step = (last - first) / (n - 1) if last > first else period
        clock_u = 0.41 * (n > 1)  # sd of the difference of two roundings to 1 s
        return Segment(a, b, ((n, first + shift, step),), clock_u)
    # 1 s rounding has sd 0.29 s; a fitted length of n samples 0.29 x sqrt(12 / n).
    pieces = [(k, start + shift, step) for k, start, step in _lines(stamps, a, b)]
    return Segment(a, b, tuple(pieces), 0.29 * float(np.sqrt(12.0 * len(pieces) / n)))


def _lines(stamps: np.ndarray, a: int, b: int) -> list[tuple[int, float, float]]:
    """Fit a line, or several where the period itself changed."""
    n = b - a
    middle = (n - 1) / 2.0
    sum_t = sum_it = 0.0
    for i, part in _chunks(stamps, a, b):
        sum_t += float(part.sum())
        sum_it += float(((i - middle) * part).sum())
    slope = sum_it / (n * (n * n - 1.0) / 12.0)
    start = sum_t / n - slope * middle
    low, high = np.inf, -np.inf
    for i, part in _chunks(stamps, a, b):
        off = part - (start + slope * i)
        low, high = min(low, float(off.min())), max(high, float(off.max()))
    if n <= 400 or high - low <= 2.0:
        return [(n, start, slope)]
    half = a + n // 2
    left, right = _lines(stamps, a, half), _lines(stamps, half, b)
    count, begin, step = left[-1]
    end = begin + (count - 1) * step
    if right[0][1] <= end:  # the lines cross: time must not run back
        right[0] = (right[0][0], end + step / 2, right[0][2])
    return [*left, *right]


def _chunks(stamps: np.ndarray, a: int, b: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield sample numbers and stamps in parts: a long log must not be copied whole."""
    for low in range(a, b, 65536):
        high = min(low + 65536, b)
        index = np.arange(low - a, high - a, dtype=np.float64)
        yield index, stamps[low:high].astype(np.float64)
