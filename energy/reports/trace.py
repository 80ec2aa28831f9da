"""What a picture of a recording shows: power over time, and the phase at each moment; and
the same in the Chrome trace format, for ui.perfetto.dev.

Source:
    "Trace Event Format", catapult project: complete events (``X``), counters (``C``).
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Iterator, Sequence

import numpy as np

from draftwire.energy.account.integral import Projector
from draftwire.energy.reports.rows import Row
from draftwire.errors import ConfigError
from draftwire.io import write_text

# Okabe and Ito's palette: told apart by colour-blind readers, and in print.
PHASE_COLOURS = {
    "prefill": "#56B4E9",
    "draft": "#E69F00",
    "transmit": "#CC79A7",
    "wait": "#009E73",
    "verify-wait": "#0072B2",
    "idle": "#BBBBBB",
    "run": "#0072B2",
}
_MORE = ("#D55E00", "#F0E442", "#999933", "#882255", "#44AA99", "#332288")
BINS = 600  # pieces that phases are shown in: each has the colour of what holds most


@dataclass(frozen=True)
class Trace:
    """Power over time, ``(n,)`` each; NaN where it could not be read."""

    t_s: np.ndarray  # seconds from the first sample
    total_w: np.ndarray  # the total; all NaN where nobody knows it
    rails_w: dict[str, np.ndarray]  # each rail
    spans: list[tuple[float, float, str]]  # from, to, phase
    phases: list[str]  # in order of appearance
    scope: str | None  # what the total covers, or None
    holes: list[tuple[float, float, float, float]] = field(default_factory=list)

    @property
    def end_s(self) -> float:
        """Where the time axis ends."""
        return max(float(self.t_s[-1]), self.spans[-1][1])

    def pieces(self, w: np.ndarray | None = None) -> list[tuple[np.ndarray, np.ndarray]]:
        """Return a line (the total's) in pieces: none runs across a hole."""
        w = self.total_w if w is None else w
        known = np.isfinite(w)
        t, w = self.t_s[known], w[known]
        cuts = np.searchsorted(t, [(a + b) / 2 for a, b, _, _ in self.holes])
        return [(x, y) for x, y in zip(np.split(t, cuts), np.split(w, cuts)) if len(x)]

    def areas(
        self, pieces: Sequence[tuple[np.ndarray, np.ndarray]]
    ) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
        """Yield phase, seconds, watts of each stretch below the line, cut at the span's
        own edges."""
        for start, end, phase in self.spans:
            for at, watt in pieces:
                a, b = max(start, float(at[0])), min(end, float(at[-1]))
                if b > a:
                    x = np.concatenate([[a], at[(at > a) & (at < b)], [b]])
                    yield phase, x, np.interp(x, at, watt)


def trace_of_row(row: Row) -> Trace | None:
    """Return the trace behind a row; a run report has none, nor a run of one sample."""
    try:
        recording = None if row.recording is None else row.recording()
    except ConfigError:
        return None
    if recording is None or len(recording.samples) < 2:
        return None
    samples, total = recording.samples, recording.choice.total
    origin = samples[0].t_ns
    t_s = np.array([s.t_ns - origin for s in samples], dtype=np.float64) * 1e-9
    projector = Projector(recording.rails, recording.choice)
    # A counter's first reading has no watts, so the next one's are shown.
    later = [*samples[1:], samples[-1]]
    table = np.array([projector.watts(a.watts or b.watts) for a, b in zip(samples, later)])
    rails = {rail: table[:, 1 + i] for i, rail in enumerate(projector.rails)}
    end = max(float(t_s[-1]), (recording.end_ns - origin) * 1e-9)
    spans = _spans([((t - origin) * 1e-9, n) for t, n in sorted(recording.phases)], end)
    names = list(dict.fromkeys(name for _, _, name in spans))
    holes = _holes(recording.header.get("hz"), t_s, table[:, 0], end)
    scope = None if total is None else total.scope
    return Trace(t_s, table[:, 0], rails, spans, names, scope, holes)


def _holes(
    hz: float | None, t_s: np.ndarray, w: np.ndarray, end: float
) -> list[tuple[float, float, float, float]]:
    known = np.isfinite(w)
    if not known.any():
        return []
    t, w = np.append(t_s[known], end), w[known]
    limit = 2.7 / hz if hz else 2.7 * float(np.median(np.diff(t_s)))
    low, high = float(w.min()), float(w.max())
    wide = np.flatnonzero(np.diff(t) > limit)
    return [(float(t[i]), float(t[i + 1]), low, high) for i in wide]


def _spans(switches: list[tuple[float, str]], end: float) -> list[tuple[float, float, str]]:
    if not switches:
        return [(0.0, end, "run")]
    names = list(dict.fromkeys(name for _, name in switches))
    edges = np.linspace(max(0.0, switches[0][0]), end, BINS + 1)
    bounds = np.clip([t for t, _ in switches] + [end], edges[0], end)
    share = np.zeros((len(names), BINS))
    for (_, name), low, high in zip(switches, bounds, bounds[1:]):
        # What of each bin is covered: the clipped stretch, differenced over the edges.
        share[names.index(name)] += np.diff(np.clip(edges, low, high))
    most = share.argmax(axis=0)
    cuts = [0, *(np.flatnonzero(np.diff(most)) + 1), BINS]
    return [
        (float(edges[a]), float(edges[b]), names[most[a]]) for a, b in zip(cuts, cuts[1:])
    ]


def colour_of(phase: str, phases: list[str]) -> str:
    """Return the colour of a phase: ours by name, others in turn."""
    if phase in PHASE_COLOURS:
        return PHASE_COLOURS[phase]
    others = [name for name in phases if name not in PHASE_COLOURS]
    return _MORE[others.index(phase) % len(_MORE)] if phase in others else "#666666"


def write_trace(rows: Sequence[Row], path: Path) -> None:
    """Write rails as counters and phases as slices, one process for each row."""
    events: list[dict[str, Any]] = []
    for pid, row in enumerate(rows, 1):
        if row.recording is None:
            continue
        found = row.recording()
        origin, total = found.samples[0].t_ns, found.choice.total
        name = {"ph": "M", "pid": pid, "name": "process_name", "args": {"name": row.file}}
        events.append(name)
        for sample in found.samples:
            at = {"ph": "C", "pid": pid, "ts": (sample.t_ns - origin) / 1e3}
            watts = dict(sample.watts)
            if total is not None and set(total.rails) <= set(watts):
                watts[total.scope] = sum(watts[rail] for rail in total.rails)
            for rail, watt in watts.items():
                events.append({**at, "name": f"{rail} (W)", "args": {"W": watt}})
        ends = [t for t, _ in found.phases[1:]] + [found.end_ns]
        for (start, phase), end in zip(found.phases, ends):
            at = {"ph": "X", "pid": pid, "tid": 1, "ts": (start - origin) / 1e3}
            events.append({**at, "name": phase, "dur": max(0, end - start) / 1e3})
    if not events:
        raise ConfigError("a run report has no trace", hint="give it a recording")
    write_text(path, json.dumps({"traceEvents": events, "displayTimeUnit": "ms"}))
