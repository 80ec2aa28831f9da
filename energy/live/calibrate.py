"""``energy sources --calibrate``: how late and how blurred this board's sensor is.

The processor is kept busy and left alone in a random pattern; lag and averaging window
are those under which the readings follow the pattern best.  What fits about as well is
the range.  Kept by source in ``sensors.json`` of the user's configuration, and used
from then on to tell phases apart.
"""

from __future__ import annotations

import json
import math
import os
import random
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Sequence

import numpy as np

from draftwire.energy.account.meter import Meter
from draftwire.energy.account.phases import shares
from draftwire.energy.live.pulse import make_pulse
from draftwire.energy.sources.base import Response, response_of
from draftwire.errors import SensorError
from draftwire.io import write_text

LONGEST_S = 0.6  # no lag or window beyond it is looked for


@dataclass(frozen=True)
class Calibration:
    """What a calibration found."""

    source: str  # name of the source
    response: Response  # lag and window, as ranges
    contrast_w: float  # how far the load moved the reading
    noise_w: float  # standard deviation of what the fit leaves
    step_w: float | None  # smallest change that was seen, or None
    samples: int  # how many readings
    period_s: float  # median time between readings that differ

    def to_dict(self) -> dict[str, Any]:
        return {
            "schema": "draftwire.energy-calibration/1",
            **{**vars(self), "response": vars(self.response)},
        }


def calibrate(meter: Meter, seconds: float = 40.0, *, seed: int = 1) -> Calibration:
    """Load the processor in a pattern and fit the sensor's response.

    Others should be at rest; 40 s tell a lag to a few milliseconds. A SensorError where the
    load did not move the reading.
    """
    pattern: list[float] = []
    rng = random.Random(seed)
    while sum(pattern) < seconds:
        pattern.append(rng.uniform(0.03, 0.5))
    samples: list[tuple[float, float]] = []

    def listener(t_ns: int, watts: Sequence[float], joules: object) -> None:
        samples.append((t_ns * 1e-9, watts[0]))

    meter.add_listener(listener)
    try:
        edges = make_pulse(pattern, threads=os.cpu_count() or 2)
        time.sleep(1.0)
    finally:
        meter.remove_listener(listener)
    table = np.array([s for s in samples if s[1] == s[1]])
    return fit_response(table, [e * 1e-9 for e in edges], meter.source.name)


def fit_response(table: np.ndarray, edges_s: Sequence[float], source: str) -> Calibration:
    """Find the response under which readings ``(seconds, watts)``, ``(n, 2)``, follow a
    load that switched at ``edges_s``, on first; a SensorError where it does not show in
    them."""
    at = np.concatenate([[edges_s[0] - 10.0], edges_s])
    phase = (np.arange(len(at)) + 1) % 2  # 0 is loaded, the one that is looked at
    keep = (table[:, 0] >= edges_s[0]) & (table[:, 0] <= edges_s[-1] + 0.5)
    # A reading that is repeated was not renewed: only its first time tells when.
    fresh = np.concatenate([[True], np.diff(table[:, 1]) != 0])
    t, y = table[keep & fresh].T
    n = len(t)
    if n < 40:
        why = f"{n} readings changed during the calibration: too few"
        raise SensorError(why, hint="give it longer: --for 120s")

    def fit(lag: float, window: float) -> tuple[float, float]:
        x = shares(t, at, phase, 1, lag, window, 0.0)[:, 0]
        x0, y0 = x - x.mean(), y - y.mean()
        power = float(x0 @ x0)
        slope = float(x0 @ y0) / power if power > 1e-9 else 0.0
        return float(((y0 - slope * x0) ** 2).sum()), slope

    lags = np.linspace(0.0, LONGEST_S, 41)
    windows = np.linspace(0.0, LONGEST_S, 31)
    found: dict[tuple[float, float], tuple[float, float]] = {}
    for step in range(4):
        for lag in lags:
            for window in windows:
                found.setdefault((float(lag), float(window)), fit(lag, window))
        best = min(found, key=lambda key: found[key][0])
        wide = LONGEST_S / 40 / 4**step
        lags = np.maximum(0.0, best[0] + np.linspace(-1.5, 1.5, 9) * wide)
        windows = np.maximum(0.0, best[1] + np.linspace(-1.5, 1.5, 9) * wide)
    rss, slope = found[best]
    noise = math.sqrt(rss / n)
    if slope < 6 * noise / math.sqrt(n) or slope <= 0:
        raise SensorError(
            f"the load moved the reading by {slope:.3g} W, its noise is {noise:.3g} W",
            hint="let nothing else run; a sensor that does not see the processor has no "
            "use for this",
        )
    # Readings of neighbours are not independent: a quarter of them counts.
    limit = rss * (1.0 + 6.0 / max(n / 4, 1.0)) + 1e-12
    good = np.array([key for key, (r, _) in found.items() if r <= limit])
    grid = LONGEST_S / 40 / 4**3
    (lag0, window0), (lag1, window1) = good.min(0) - grid, good.max(0) + grid
    steps = np.abs(np.diff(y))
    response = Response(
        (max(0.0, float(lag0)), float(lag1)),
        (max(0.0, float(window0)), float(window1)),
        0.0,
        f"calibrated {time.strftime('%Y-%m-%d')}",
    )
    return Calibration(
        source,
        response,
        slope,
        noise,
        float(steps[steps > 1e-9].min()) if (steps > 1e-9).any() else None,
        n,
        float(np.median(np.diff(t))),
    )


def _path() -> Path:
    base = os.environ.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config")
    return Path(base) / "draftwire" / "sensors.json"


def save(calibration: Calibration) -> Path:
    """Keep a calibration for this user; return where."""
    path = _path()
    known = _read(path)
    known[calibration.source] = calibration.to_dict()
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(known, indent=2) + "\n")
    return path


def known_response(source: str) -> Response | None:
    """Return the calibrated response of a source, or None."""
    entry = _read(_path()).get(source)
    return response_of(entry.get("response")) if isinstance(entry, dict) else None


def _read(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}
