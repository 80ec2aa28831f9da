"""A load that nothing else makes, looked for in readings: to put a meter on our clock, and
to find how late and how blurred this board's sensor is.

``make_pulse`` keeps the processor busy in a pattern and returns when it switched.
``find_offset`` looks for the pattern in the meter's file.  ``calibrate`` (``energy sources
--calibrate``) takes a random pattern: lag and averaging window are those under which the
readings follow it best, and what fits about as well is the range.  Kept by source in
``sensors.json`` of the user's configuration, and used from then on to tell phases apart.
"""

from __future__ import annotations

import json
import math
import os
import random
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Sequence

import numpy as np

from draftwire.energy.account.meter import Meter
from draftwire.energy.account.phases import shares
from draftwire.energy.files.recording import Recording, read_recording
from draftwire.energy.sources.base import Response, response_of
from draftwire.errors import ConfigError, SensorError
from draftwire.io import parse_json, write_text

# On, off, on, off, on: lengths that have no common period, so one shift fits best.
PATTERN_S = (1.0, 0.7, 0.5, 1.3, 1.1)
EDGES = len(PATTERN_S) + 1
STEP_S = 0.01  # of the grid on which readings and pattern are laid over each other
LONGEST_S = 0.6  # no lag or window beyond it is looked for


class Offset(NamedTuple):
    """Add ``seconds`` to the meter's time to have ours."""

    seconds: float  # the shift
    uncertainty_s: float  # half-width of what fits as well
    correlation: float  # 1 for a perfect pattern; below 0.5 nothing is claimed


def make_pulse(pattern_s: Sequence[float] = PATTERN_S, *, threads: int = 2) -> list[int]:
    """Make the load pulse; return the nanoseconds of each switch, on first. Threads share
    a lock that numpy's matrix product lets go."""
    on, done = threading.Event(), threading.Event()

    def spin() -> None:
        a = np.random.default_rng(0).random((256, 256))
        while not done.is_set():
            if on.wait(0.05):
                a = a @ a
                a /= np.abs(a).max()

    workers = [threading.Thread(target=spin, daemon=True) for _ in range(threads)]
    for worker in workers:
        worker.start()
    edges = []
    for place, length in enumerate(pattern_s):
        (on.clear if place % 2 else on.set)()
        edges.append(time.monotonic_ns())
        time.sleep(length)
    on.clear()
    edges.append(time.monotonic_ns())
    done.set()
    for worker in workers:
        worker.join()
    return edges


def find_offset(samples: Sequence[tuple[float, float]], edges_s: Sequence[float]) -> Offset:
    """Find when the meter (seconds, watts) saw the load switch at ``edges_s`` of our
    clock, on first; a ConfigError where its file does not show the pulse."""
    table = np.asarray(samples, dtype=np.float64)
    if len(table) < 8 or len(edges_s) < 4:
        raise ConfigError("too few samples to find a load pulse")
    t, w = table[:, 0], table[:, 1]
    edges = np.asarray(edges_s, dtype=np.float64)
    length = edges[-1] - edges[0]
    margin = min(1.0, length / 4)
    n = int((t[-1] - t[0]) / STEP_S) + 1
    if n * STEP_S < length:
        raise ConfigError("the meter's file is shorter than the load pulse")
    grid = np.interp(t[0] + np.arange(n) * STEP_S, t, w)
    m = int((length + 2 * margin) / STEP_S)
    places = edges[0] - margin + np.arange(m) * STEP_S
    pattern = (np.searchsorted(edges, places, side="right") % 2).astype(np.float64)
    pattern -= pattern.mean()
    padded = np.concatenate([np.full(m, grid[0]), grid, np.full(m, grid[-1])])
    size = 1 << int(len(padded) + m).bit_length()
    spectrum = np.fft.rfft(padded, size) * np.conj(np.fft.rfft(pattern, size))
    dot = np.fft.irfft(spectrum, size)[: len(padded) - m + 1]
    sums = (np.concatenate([[0.0], np.cumsum(padded**power)]) for power in (1, 2))
    mean, square = ((s[m:] - s[:-m]) / m for s in sums)
    variance = np.maximum(square - mean**2, 1e-12)
    score = dot / np.sqrt(variance * m) / np.sqrt((pattern**2).sum())
    best = int(score.argmax())
    correlation = float(score[best])
    if correlation < 0.5:
        raise ConfigError(
            f"no load pulse in the meter's file (best correlation {correlation:.2f})",
            hint="record with --pulse while the meter logs, with nothing else running",
        )
    start_meter = t[0] + (best - m) * STEP_S + margin
    near = np.flatnonzero(score > correlation - 0.02)
    near = near[np.abs(near - best) < int(0.5 / STEP_S)]
    half = max(STEP_S, float(near.max() - near.min()) * STEP_S / 2)
    return Offset(float(edges[0] - start_meter), half, correlation)


def align(meter: Recording, path: Path) -> Offset:
    """Shift a meter's readings to the clock of a recording made with ``--pulse``, in
    place, and take its phases; a ConfigError without a pulse."""
    own = read_recording(path)
    edges = [t for t, text in own.marks if text.startswith("pulse")]
    if len(edges) < EDGES:
        raise ConfigError(f"{path} holds no load pulse", hint="record it with --pulse")
    samples = [(r.t_ns * 1e-9, sum(r.watts.values())) for r in meter.samples]
    offset, *later = (
        find_offset(samples, [t * 1e-9 for t in edges[first : first + EDGES]])
        for first in ((0, EDGES) if len(edges) >= 2 * EDGES else (0,))
    )
    shift, origin, scale = round(offset.seconds * 1e9), edges[0], 1.0
    if later:  # the two clocks run apart by some 50 ppm; a second pulse tells by how much
        span = (edges[EDGES] - origin) * 1e-9
        scale += (later[0].seconds - offset.seconds) / span if span > 0 else 0.0
    for place, r in enumerate(meter.samples):
        t_ns = r.t_ns + shift
        t_ns = origin + round((t_ns - origin) * scale) if later else t_ns
        meter.samples[place] = r._replace(t_ns=t_ns)
    meter.phases, meter.tokens = list(own.phases), dict(own.tokens)
    meter.end_ns = own.end_ns
    note = f"aligned by a load pulse, +- {offset.uncertainty_s:.3f} s"
    meter.header["notes"] = [*meter.header.get("notes", ()), note]
    return offset


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
        found = {**vars(self), "response": vars(self.response)}
        return {"schema": "draftwire.energy-calibration/1", **found}


def calibrate(meter: Meter, seconds: float = 40.0) -> Calibration:
    """Load the processor in a pattern and fit the sensor's response.

    Others should be at rest; 40 s tell a lag to a few milliseconds. A SensorError where the
    load did not move the reading.
    """
    pattern: list[float] = []
    rng = random.Random(1)
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
        lags, windows = (
            np.maximum(0.0, middle + np.linspace(-1.5, 1.5, 9) * wide) for middle in best
        )
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
    least, most = np.maximum(0.0, good.min(0) - grid), good.max(0) + grid
    lag_s, window_s = zip(least.tolist(), most.tolist())
    how = f"calibrated {time.strftime('%Y-%m-%d')}"
    steps = np.abs(np.diff(y))
    steps = steps[steps > 1e-9]
    return Calibration(
        source,
        Response(lag_s, window_s, 0.0, how),
        slope,
        noise,
        float(steps.min()) if len(steps) else None,
        n,
        float(np.median(np.diff(t))),
    )


def _kept() -> tuple[Path, dict[str, Any]]:
    """Return the file of calibrations, and what it holds."""
    base = os.environ.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config")
    path = Path(base) / "draftwire" / "sensors.json"
    try:
        value = parse_json(path.read_bytes())
    except (OSError, ValueError):
        value = None
    return path, value if isinstance(value, dict) else {}


def save(calibration: Calibration) -> Path:
    """Keep a calibration for this user; return where."""
    path, known = _kept()
    known[calibration.source] = calibration.to_dict()
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(known, indent=2) + "\n")
    return path


def known_response(source: str) -> Response | None:
    """Return the calibrated response of a source, or None."""
    entry = _kept()[1].get(source)
    return response_of(entry.get("response")) if isinstance(entry, dict) else None
