"""Times for a tegrastats log.

Stamps have 1 s resolution and are local time, so neighbours often have the same: a line
is fitted through (sample number, stamp), and where stamps jump each side is fitted
alone.
"""

from __future__ import annotations

import numpy as np

from draftwire.energy.files.tegra_log import NO_STAMP, Log, Run
from draftwire.errors import ConfigError


def set_clock(
    log: Log, *, interval_s: float | None = None, duration_s: float | None = None
) -> None:
    """Give every run its times; findings about the clock are added to the log.

    Logs without stamps need what was asked of tegrastats, ``interval_s``, or how long the
    log took as a whole, ``duration_s``; a ConfigError where that is not positive.
    """
    if any(value is not None and not value > 0 for value in (interval_s, duration_s)):
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
                index = np.arange(len(stamps))
                stamps[~good] = np.interp(index[~good], index[good], stamps[good])
            unit_s = run.unit_s
            if unit_s < 1 and not ((stamps + run.base_stamp) % 1000).any():
                run.unit_s = 1.0  # whole seconds in milliseconds
            run.times = stamps.astype(np.float64)
            del stamps, good  # a log of 500 MB must fit
            run.times *= unit_s
            _stamped(log, run)
            run.times += (run.base_stamp - origin) * unit_s
        elif interval_s is not None:
            if duration_s is None:
                run.clock_u_s = 0.05 * max(run.samples - 1, 0) * interval_s
                what = (
                    "times are the nominal interval: real periods are 3 to 7 % longer, "
                    "and so is the energy"
                )
                log.note("nominal-interval", run.first_sample, what)
            run.times = base + np.arange(run.samples) * interval_s
            base += run.samples * interval_s


def _stamped(log: Log, run: Run) -> None:
    """Make times of stamps: in place, stretch by stretch."""
    times = run.times
    steps = np.diff(times)
    forth = steps[: 1 << 18]
    forth = forth[forth >= 0]
    middle = float(np.median(forth)) if forth.size else 1.0
    usual = forth[forth <= 3 * middle + 2 * run.unit_s]
    period = float(usual.mean()) if usual.size else 1.0
    breaks = np.flatnonzero((steps < 0) | (steps > 2 * period + run.unit_s)) + 1
    jumps = steps[breaks - 1]
    del steps
    for place, step in zip(breaks.tolist(), jumps.tolist()):
        number = run.first_sample + place
        if step < 0:
            text = f"stamps go back by {-step:.4g} s at sample {number}: the clock was set"
            log.note("stamps-back", number, text)
            # tegrastats went on meanwhile: the next sample is one period later.
            unit = run.unit_s
            times[place:] += -step + max(unit, round(period / unit) * unit)
        else:
            text = f"no sample for {step:.4g} s before sample {number}"
            log.note("gap", number, text)
    parts = np.split(times, breaks)  # views: each is straightened in place
    squares = (_fit(part, period, run.unit_s) ** 2 for part in parts if len(part))
    run.clock_u_s = float(sum(squares)) ** 0.5


def _fit(t: np.ndarray, period: float, unit_s: float) -> float:
    """Straighten the times of a stretch; return what its length is uncertain by."""
    n = len(t)
    if unit_s < 0.1:  # stamps of arrival, fine enough as they are
        return unit_s
    if n < 3 or t[0] == t[-1]:
        # Too few for a line: the stamps, spread by the period of the rest of the run.
        step = (t[-1] - t[0]) / (n - 1) if t[-1] > t[0] else period
        t[:] = t[0] + step * np.arange(n)
        return 0.41 * unit_s * (n > 1)  # sd of the difference of two roundings
    # Rounding to a unit has sd 0.29; a fitted length of n samples 0.29 x sqrt(12 / n).
    return 0.29 * unit_s * float(np.sqrt(12.0 * _lines(t) / n))


def _lines(t: np.ndarray) -> int:
    """Fit a line, or several where the period itself changed; return how many."""
    n = len(t)
    middle, mean = (n - 1) / 2.0, float(t.mean())
    parts = [(a, t[a : a + 65536]) for a in range(0, n, 65536)]

    def index(a: int, part: np.ndarray) -> np.ndarray:
        return np.arange(a, a + len(part), dtype=np.float64) - middle

    slope = sum(float(index(a, p) @ p) for a, p in parts) / (n * (n * n - 1.0) / 12.0)
    rests = (p - (mean + slope * index(a, p)) for a, p in parts)
    ends = [(float(rest.min()), float(rest.max())) for rest in rests]
    if n <= 400 or max(e[1] for e in ends) - min(e[0] for e in ends) <= 2.0:
        for a, part in parts:
            part[:] = mean + slope * index(a, part)
        return 1
    half = n // 2
    count = _lines(t[:half]) + _lines(t[half:])
    step = t[half] - t[half - 1]
    if step <= 0:  # the lines cross: time must not run back
        t[half:] += -step + slope / 2
    return count
