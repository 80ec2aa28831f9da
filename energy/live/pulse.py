"""Aligns an external meter with our clock by a load pulse.

``make_pulse`` keeps the processor busy in a pattern that nothing else makes, and
returns when it switched.  ``find_offset`` looks for the pattern in the meter's file.
"""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Callable, NamedTuple, Sequence

import numpy as np

from draftwire.energy.files.recording import Recording, read_recording
from draftwire.energy.sources.base import Reading
from draftwire.errors import ConfigError

# On, off, on, off, on: lengths that have no common period, so one shift fits best.
PATTERN_S = (1.0, 0.7, 0.5, 1.3, 1.1)


class Offset(NamedTuple):
    """Add ``seconds`` to the meter's time to have ours."""

    seconds: float  # the shift
    uncertainty_s: float  # half-width of what fits as well
    correlation: float  # 1 for a perfect pattern; below 0.5 nothing is claimed


def make_pulse(
    pattern_s: Sequence[float] = PATTERN_S,
    *,
    threads: int = 2,
    sleep: Callable[[float], None] = time.sleep,
) -> list[int]:
    """Make the load pulse; return the nanoseconds of each switch, on first. Threads share
    a lock that numpy's matrix product lets go."""
    on = threading.Event()
    done = threading.Event()

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
        sleep(length)
    on.clear()
    edges.append(time.monotonic_ns())
    done.set()
    for worker in workers:
        worker.join()
    return edges


def find_offset(
    samples: Sequence[tuple[float, float]],
    edges_s: Sequence[float],
    *,
    step_s: float = 0.01,
) -> Offset:
    """Find when the meter (seconds, watts) saw the load switch at ``edges_s`` of our
    clock, on first; a ConfigError where its file does not show the pulse."""
    table = np.asarray(samples, dtype=np.float64)
    if len(table) < 8 or len(edges_s) < 4:
        raise ConfigError("too few samples to find a load pulse")
    t, w = table[:, 0], table[:, 1]
    edges = np.asarray(edges_s, dtype=np.float64)
    length = edges[-1] - edges[0]
    margin = min(1.0, length / 4)
    n = int((t[-1] - t[0]) / step_s) + 1
    if n * step_s < length:
        raise ConfigError("the meter's file is shorter than the load pulse")
    grid = np.interp(t[0] + np.arange(n) * step_s, t, w)
    m = int((length + 2 * margin) / step_s)
    places = edges[0] - margin + np.arange(m) * step_s
    pattern = (np.searchsorted(edges, places, side="right") % 2).astype(np.float64)
    pattern -= pattern.mean()
    pad = m
    padded = np.concatenate([np.full(pad, grid[0]), grid, np.full(pad, grid[-1])])
    size = 1 << int(len(padded) + m).bit_length()
    spectrum = np.fft.rfft(padded, size) * np.conj(np.fft.rfft(pattern, size))
    dot = np.fft.irfft(spectrum, size)[: len(padded) - m + 1]
    ones = np.concatenate([[0.0], np.cumsum(padded)])
    squares = np.concatenate([[0.0], np.cumsum(padded**2)])
    mean = (ones[m:] - ones[:-m]) / m
    variance = np.maximum((squares[m:] - squares[:-m]) / m - mean**2, 1e-12)
    score = dot / np.sqrt(variance * m) / np.sqrt((pattern**2).sum())
    best = int(score.argmax())
    correlation = float(score[best])
    if correlation < 0.5:
        raise ConfigError(
            f"no load pulse in the meter's file (best correlation {correlation:.2f})",
            hint="record with --pulse while the meter logs, with nothing else running",
        )
    start_meter = t[0] + (best - pad) * step_s + margin
    near = np.flatnonzero(score > correlation - 0.02)
    near = near[np.abs(near - best) < int(0.5 / step_s)]
    half = max(step_s, float(near.max() - near.min()) * step_s / 2)
    return Offset(float(edges[0] - start_meter), half, correlation)


def align(meter: Recording, path: Path) -> Offset:
    """Shift a meter's readings to the clock of a recording made with ``--pulse``, in
    place, and take its phases; a ConfigError without a pulse."""
    own = read_recording(path)
    edges = [t for t, text in own.marks if text.startswith("pulse")]
    count = 6  # one pulse: on, off, on, off, on, off
    if len(edges) < count:
        raise ConfigError(f"{path} holds no load pulse", hint="record it with --pulse")
    seconds = [t * 1e-9 for t in edges[:count]]
    samples = [(r.t_ns * 1e-9, sum(r.watts.values())) for r in meter.samples]
    offset = find_offset(samples, seconds)
    shift = round(offset.seconds * 1e9)
    meter.samples = [Reading(r.t_ns + shift, r.watts, r.joules) for r in meter.samples]
    meter.phases = list(own.phases)
    meter.tokens = dict(own.tokens)
    meter.end_ns = own.end_ns
    # The two clocks run apart by some 50 ppm; a second pulse tells by how much.
    if len(edges) >= 2 * count:
        again = find_offset(samples, [t * 1e-9 for t in edges[count : 2 * count]])
        drift = again.seconds - offset.seconds
        span = (edges[count] - edges[0]) * 1e-9
        scale = 1.0 + drift / span if span > 0 else 1.0
        origin = edges[0]
        meter.samples = [
            Reading(origin + round((r.t_ns - origin) * scale), r.watts, r.joules)
            for r in meter.samples
        ]
    meter.header["notes"] = [
        *meter.header.get("notes", ()),
        f"aligned by a load pulse, +- {offset.uncertainty_s:.3f} s",
    ]
    return offset
