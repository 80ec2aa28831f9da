"""What a picture of a recording shows: power over time, and the phase at each
moment."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Iterator, Sequence

import numpy as np

from draftwire.energy.account.integral import Projector
from draftwire.energy.files.recording import Recording
from draftwire.energy.reports.rows import Row
from draftwire.errors import ConfigError

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
    """Power over time; NaN where it could not be read, or nobody knows the total."""

    t_s: np.ndarray  # seconds from the first sample, ``(n,)``
    total_w: np.ndarray  # the total, ``(n,)``; NaN where it could not be read
    rails_w: dict[str, np.ndarray]  # each rail, ``(n,)``
    spans: list[tuple[float, float, str]]
    phases: list[str]  # in order of appearance
    scope: str | None  # what the total covers, or None: then ``total_w`` is all NaN
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
                    inside = at[(at > a) & (at < b)]
                    x = np.concatenate([[a], inside, [b]])
                    yield phase, x, np.interp(x, at, watt)


def trace_of(recording: Recording) -> Trace:
    """Return the trace of a recording; a ConfigError with fewer than two samples."""
    samples = recording.samples
    if len(samples) < 2:
        raise ConfigError(f"{recording.path} holds too few samples for a picture")
    origin = samples[0].t_ns
    t_s = np.array([s.t_ns - origin for s in samples], dtype=np.float64) * 1e-9
    projector = Projector(recording.rails, recording.choice)
    # A counter's first reading has no watts, so the next one's are shown.
    later = [*samples[1:], samples[-1]]
    table = np.array([projector.watts(a.watts or b.watts) for a, b in zip(samples, later)])
    rails = {rail: table[:, 1 + i] for i, rail in enumerate(projector.rails)}
    end = max(float(t_s[-1]), (recording.end_ns - origin) * 1e-9)
    switches = [((t - origin) * 1e-9, name) for t, name in sorted(recording.phases)]
    spans = _spans(switches, end)
    names = list(dict.fromkeys(name for _, _, name in spans))
    total = recording.choice.total
    scope = None if total is None else total.scope
    holes = _holes(recording.header.get("hz"), t_s, table[:, 0], end)
    return Trace(t_s, table[:, 0], rails, spans, names, scope, holes)


def trace_of_row(row: Row) -> Trace | None:
    """Return the trace behind a row; a run report has none, nor a run of one sample."""
    try:
        return None if row.recording is None else trace_of(row.recording())
    except ConfigError:
        return None


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
    spans: list[tuple[float, float, str]] = []
    for i, place in enumerate(share.argmax(axis=0)):
        name = names[int(place)]
        if spans and spans[-1][2] == name:
            spans[-1] = (spans[-1][0], float(edges[i + 1]), name)
        else:
            spans.append((float(edges[i]), float(edges[i + 1]), name))
    return spans


def colour_of(phase: str, phases: list[str]) -> str:
    """Return the colour of a phase: ours by name, others in turn."""
    if phase in PHASE_COLOURS:
        return PHASE_COLOURS[phase]
    others = [name for name in phases if name not in PHASE_COLOURS]
    return _MORE[others.index(phase) % len(_MORE)] if phase in others else "#666666"
