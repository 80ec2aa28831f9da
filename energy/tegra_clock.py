"""Times for a tegrastats log.

Stamps have 1 s resolution and are local time, so neighbours often have the same: a line
is fitted through (sample number, stamp), and where stamps jump each side is fitted
alone.
"""

from __future__ import annotations

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
        if run.samples >= 2 and bool(good.all()):
            origin = int(stamps[0]) if origin is None else origin
            _stamped(log, run, stamps - origin)
            continue
        if int(good.sum()) >= max(3, run.samples // 2):
            origin = int(stamps[good][0]) if origin is None else origin
            _fill_stamps(stamps, good)
            _stamped(log, run, stamps - origin)
            continue
        if interval_s is None:
            run.segments = []
            continue
        times = base + np.arange(run.samples) * interval_s
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
        run.segments = [Segment(0, run.samples, times, interval_s, clock_u)]
        base = float(times[-1]) + interval_s if run.samples else base


def _fill_stamps(stamps: np.ndarray, good: np.ndarray) -> None:
    index = np.arange(len(stamps))
    stamps[~good] = np.interp(index[~good], index[good], stamps[good]).astype(np.int64)


def _stamped(log: Log, run: Run, stamps: np.ndarray) -> None:
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
        _fit(stamps, a, b, period) for a, b in zip(edges, edges[1:]) if b > a
    ]


def _fit(stamps: np.ndarray, a: int, b: int, period: float) -> Segment:
    part = stamps[a:b].astype(np.float64)
    n = b - a
    if n < 3 or part[-1] == part[0]:
        # Too few for a line: the stamps, spread by the period of the rest of the run.
        step = (
            (part[-1] - part[0]) / (n - 1) if n > 1 and part[-1] > part[0] else period
        )
        clock_u = 0.41 * (n > 1)  # sd of the difference of two roundings to 1 s
        return Segment(a, b, part[0] + np.arange(n) * step, step, clock_u)
    index = np.arange(n, dtype=np.float64)
    slope, start = np.polyfit(index, part, 1)
    times = start + slope * index
    off = part - times
    if n > 400 and float(off.max() - off.min()) > 2.0:  # the period itself changed
        half = n // 2
        left = _fit(stamps, a, a + half, period)
        right = _fit(stamps, a + half, b, period)
        times = np.maximum.accumulate(np.concatenate([left.times_s, right.times_s]))
        return Segment(a, b, times, float(slope), max(left.clock_u_s, right.clock_u_s))
    # 1 s rounding has sd 0.29 s; the fitted length of n samples has 0.29 x sqrt(12 /
    # n).
    return Segment(a, b, times, float(slope), 0.29 * float(np.sqrt(12.0 / n)))
