"""What a picture of a recording shows: power over time, and the phase at each
moment."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from draftwire.energy.account.result import Projector
from draftwire.energy.files.recording import Recording
from draftwire.energy.sources.base import Reading
from draftwire.errors import ConfigError

__all__ = ["PHASE_COLOURS", "Trace", "colour_of", "trace_of"]

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


@dataclass(frozen=True)
class Trace:
    """Power over time.

    Attributes:
        t_s: Seconds from the first sample, ``(n,)``.
        total_w: The total, ``(n,)``; NaN where it could not be read.
        rails_w: Each rail, ``(n,)``.
        spans: ``(start, end, phase)`` in seconds, as fine as a picture can show.
        phases: In order of appearance.
        scope: What the total covers, or None: then ``total_w`` is all NaN.
        holes: ``(start, end, least watts, most watts)``: no sample came, and between
            these the power may have stood.
    """

    t_s: np.ndarray
    total_w: np.ndarray
    rails_w: dict[str, np.ndarray]
    spans: list[tuple[float, float, str]]
    phases: list[str]
    scope: str | None
    holes: list[tuple[float, float, float, float]] = field(default_factory=list)

    def pieces(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """Return the line in pieces: none runs across a hole."""
        known = np.isfinite(self.total_w)
        t, w = self.t_s[known], self.total_w[known]
        cuts = np.searchsorted(t, [(a + b) / 2 for a, b, _, _ in self.holes])
        return [(x, y) for x, y in zip(np.split(t, cuts), np.split(w, cuts)) if len(x)]


def trace_of(recording: Recording, *, bins: int = 600) -> Trace:
    """Return the trace of a recording.

    Args:
        recording: The recording.
        bins: How many pieces the phases are shown in; each has the colour of the phase
            that holds most of it.

    Raises:
        ConfigError: It holds fewer than two samples.
    """
    samples = recording.samples
    if len(samples) < 2:
        raise ConfigError(f"{recording.path} holds too few samples for a picture")
    origin = samples[0].t_ns
    t_s = np.array([s.t_ns - origin for s in samples], dtype=np.float64) * 1e-9
    projector = Projector(recording.rails, recording.choice)
    table = np.array([projector.watts(_power(samples, i)) for i in range(len(samples))])
    rails = {rail: table[:, 1 + i] for i, rail in enumerate(projector.rails)}
    end = max(t_s[-1], (recording.end_ns - origin) * 1e-9)
    switches = [((t - origin) * 1e-9, name) for t, name in sorted(recording.phases)]
    spans = _spans(switches, float(end), bins)
    names = list(dict.fromkeys(name for _, _, name in spans))
    total = recording.choice.total
    scope = None if total is None else total.scope
    holes = _holes(recording, t_s, table[:, 0], float(end))
    return Trace(t_s, table[:, 0], rails, spans, names, scope, holes)


def _holes(
    recording: Recording, t_s: np.ndarray, w: np.ndarray, end: float
) -> list[tuple[float, float, float, float]]:
    known = np.isfinite(w)
    if not known.any():
        return []
    t, w = t_s[known], w[known]
    hz = recording.header.get("hz")
    limit = 2.7 / hz if hz else 2.7 * float(np.median(np.diff(t_s)))
    low, high = float(w.min()), float(w.max())
    wide = np.flatnonzero(np.diff(t) > limit)
    holes = [(float(t[i]), float(t[i + 1]), low, high) for i in wide]
    if end - t[-1] > limit:
        holes.append((float(t[-1]), end, low, high))
    return holes


def _power(samples: list[Reading], i: int) -> dict[str, float]:
    """Return watts; a counter's first reading has none, so the next one's are shown."""
    return dict(samples[i].watts or samples[min(i + 1, len(samples) - 1)].watts)


def _spans(
    switches: list[tuple[float, str]], end: float, bins: int
) -> list[tuple[float, float, str]]:
    if not switches:
        return [(0.0, end, "run")]
    names = list(dict.fromkeys(name for _, name in switches))
    start = max(0.0, switches[0][0])
    edges = np.linspace(start, end, bins + 1)
    share = np.zeros((len(names), bins))
    bounds = [t for t, _ in switches] + [end]
    for (t0, name), t1 in zip(switches, bounds[1:]):
        low, high = np.clip([t0, t1], start, end)
        a = int(np.searchsorted(edges, low, "right")) - 1
        b = int(np.searchsorted(edges, high, "left"))
        for i in range(max(a, 0), min(b, bins)):
            covered = min(high, edges[i + 1]) - max(low, edges[i])
            share[names.index(name), i] += max(covered, 0.0)
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
