"""From stamped watts to joules, with source, scope and uncertainty, or why not.

One streaming integrator for live windows and logs, each signal for itself: trapezoid on
the true stamps, never on a nominal interval; linear interpolation at the window's edges;
energy counters are subtracted instead.  Where no sample came for longer than
``max_gap_ns`` there is a *hole*: it is bridged by a straight line, its seconds are
counted, and what it may have hidden goes into the uncertainty.  What makes the 95 %
half-width, and the flags: docs/energy.md.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, List, Mapping, NamedTuple, Sequence

from draftwire.energy.rails import Accuracy, Total, TotalChoice
from draftwire.energy.sources.base import Reading

NO_VALUE = math.nan
LEAST_HIDDEN = 0.1  # of the energy over a hole
COARSE_SAMPLES = 20
STUCK_S = 10.0
LEAST_COVERAGE = 0.5  # below it a total would say more about the holes than the run
SHARED = ("offset", "gain")  # terms that are the same for all windows of one sensor
_ROOT3, _ROOT12 = math.sqrt(3.0), math.sqrt(12.0)
# Student's t, 97.5 %, for 1 to 30 degrees of freedom.
_T = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228,
    2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086,
    2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)  # fmt: skip
Vector = List[float]


class Integrator:
    """Energy between ``start_ns`` and ``end_ns`` (None: not known yet) of signals that are
    sampled together. Signal 0 is the total; statistics are kept for it alone.
    ``max_gap_ns``: longest time between samples that is no hole."""

    def __init__(
        self, width: int, start_ns: int, end_ns: int | None = None, *, max_gap_ns: int
    ) -> None:
        self.start_ns, self.end_ns, self.max_gap_ns = start_ns, end_ns, max_gap_ns
        self.joules = [0.0] * width  # straight lines over holes included
        self.hole_s = [0.0] * width  # seconds that no sample covers
        self.seen = [False] * width
        self.hole_j = 0.0  # what the straight lines over the total's holes hold
        self.samples = self.intervals = self.gaps = 0
        self.held_s = 0.0
        self.min_w, self.max_w = math.inf, -math.inf
        self.low_w, self.high_w = math.inf, -math.inf  # outside of the window too
        self.first_w = self.last_w = NO_VALUE
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
        if self._now and t_ns <= self._last_ns:
            return
        if joules is None and self._now:
            still = watts[0] == watts[0] and watts == self._now
            self._same = self._same + 1 if still else 0
            self.same = max(self.same, self._same)
        self._now, self._last_ns = watts, t_ns
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
        watt = watts[0]
        if watt == watt:
            self.low_w, self.high_w = min(self.low_w, watt), max(self.high_w, watt)
            if t_ns >= self.start_ns and (self.end_ns is None or t_ns <= self.end_ns):
                self.samples += 1
                self.max_w, self.min_w = max(self.max_w, watt), min(self.min_w, watt)
                self.first_w = watt if self.first_w != self.first_w else self.first_w
                self.last_w = watt

    def _interval(self, i: int, t_ns: int, x: float, c: float) -> None:
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
        old = self._x[i]
        x = old if x != x else x
        joules = (old + (x - old) * (left + right) / 2) * part_s
        self.joules[i] += joules
        if width_ns > self.max_gap_ns:
            self._hole(i, part_s, joules)
        elif i == 0:
            self.intervals += 1
            self.changes += x != old
            self.sum_diff2 += (x - old) ** 2
            self.sum_step2 += ((x - old) * width_ns * 1e-9) ** 2

    def _hole(self, i: int, seconds: float, joules: float) -> None:
        self.hole_s[i] += seconds
        if i == 0:
            self.gaps += 1
            self.hole_j += joules

    def _edge(self, i: int, time_ns: int, watt: float) -> None:
        """Hold a value at an edge; what is longer than a gap may be is a hole."""
        self.joules[i] += watt * time_ns * 1e-9
        beyond_s = max(0, time_ns - self.max_gap_ns) * 1e-9
        if i == 0:
            self.held_s += time_ns * 1e-9 - beyond_s
        if beyond_s:
            self._hole(i, beyond_s, watt * beyond_s)

    def finish(self) -> None:
        """Close the window; without an end it ends at the last sample."""
        if self.end_ns is None:
            self.end_ns = self._last_ns
        for i, seen in enumerate(self.seen):
            late = self.end_ns - max(self._t[i], self.start_ns)
            if seen and late > 0:
                self._edge(i, late, self._x[i])
        if self.samples == 0 and self.seen[0]:
            self.max_w = self.min_w = self._x[0]

    @property
    def seconds(self) -> float:
        """Length of the window."""
        return 0.0 if self.end_ns is None else (self.end_ns - self.start_ns) * 1e-9

    def coverage(self, i: int = 0) -> float:
        """Return the share of the window that samples of a signal cover."""
        if not self.seen[i] or not self.seconds > 0:
            return 0.0
        return max(0.0, 1.0 - self.hole_s[i] / self.seconds)

    @property
    def hidden_j(self) -> float:
        """How far the total may be off because of its holes: the power may have stood
        anywhere that it stood elsewhere, and one that never moved may have moved there."""
        high = self.high_w * self.hole_s[0] - self.hole_j
        low = self.hole_j - self.low_w * self.hole_s[0]
        return max(high, low, LEAST_HIDDEN * abs(self.hole_j))


def t_factor(freedom: float) -> float:
    """Return Student's t for a 95 % interval."""
    if freedom < 1:
        return math.inf
    return _T[int(freedom) - 1] if freedom < 31 else 1.96 + 2.6 / freedom


@dataclass(frozen=True)
class Uncertainty:
    """95 % half-width in joules, and its terms as standard uncertainties; those of
    ``SHARED`` cancel between runs of one sensor. Without ``sensor_known`` it covers
    sampling and resolution only, and everything that shows it says so."""

    joules: float  # half-width, k = 2
    terms: Mapping[str, float] = field(default_factory=dict)
    sensor_known: bool = True

    @property
    def random_j(self) -> float:
        """Standard uncertainty of what differs from run to run."""
        return math.sqrt(sum(v * v for k, v in self.terms.items() if k not in SHARED))


def estimate(
    integral: Integrator,
    accuracies: Sequence[Accuracy],
    *,
    lag_s: float = 0.0,
    context_step2: float = 0.0,
    clock_u_s: float = 0.0,
    observed_step_w: float | None = None,
) -> Uncertainty | None:
    """Return the uncertainty of a finished integrator's total, from what is known of each
    of its rails; None when nothing can be said: the reading never changed and its
    resolution is not known.

    Args:
        lag_s: How late the sensor may be, its averaging included.
        context_step2: Mean ``(difference x period)^2`` of an interval around the
            window; a window of few samples cannot know it by itself.
        clock_u_s: Standard uncertainty of the window's length.
        observed_step_w: Smallest step seen, for rails whose step is not known.
    """
    seconds, joules = integral.seconds, integral.joules[0]
    offsets = [a.offset_w for a in accuracies if a.offset_w is not None]
    gains = [a.gain for a in accuracies if a.gain is not None]
    steps = [a.step_w if a.step_w is not None else observed_step_w for a in accuracies]
    step_w = math.sqrt(sum((step or 0.0) ** 2 for step in steps))
    if step_w == 0 and integral.changes == 0 and not integral.counted:
        return None
    terms = {}
    n = max(integral.intervals, 1)
    if offsets:
        terms["offset"] = math.sqrt(sum(w * w for w in offsets)) * seconds / _ROOT3
    if gains:
        terms["gain"] = max(gains) * abs(joules) / _ROOT3
    if not integral.counted:
        terms["quantisation"] = step_w * seconds / _ROOT12 / math.sqrt(1 + integral.changes)
        step2 = integral.sum_step2
        if integral.intervals < 20:
            step2 = max(step2, n * context_step2)
        # Student's factor for few samples, folded into the standard uncertainty.
        terms["sampling"] = (1.0 + 2.0 / n) * math.sqrt(step2 / 2.0)
        terms["edge"] = integral.held_s * math.sqrt(integral.sum_diff2 / n)
    else:
        # A counter is exact between samples; only the two edges are interpolated.
        spread = integral.max_w - integral.min_w
        terms["edge"] = _finite(seconds / n * spread / _ROOT12 * math.sqrt(2.0))
    if lag_s:
        terms["lag"] = _finite(lag_s * abs(integral.last_w - integral.first_w) / _ROOT3)
    if clock_u_s:
        terms["clock"] = clock_u_s * abs(joules / seconds if seconds > 0 else 0.0)
    if integral.hole_s[0] > 1e-9:
        terms["hole"] = _finite(integral.hidden_j) / 2.0  # a bound, not a deviation
    total = 2.0 * math.sqrt(sum(term * term for term in terms.values()))
    return Uncertainty(total, terms, len(offsets) == len(gains) == len(accuracies))


def _finite(value: float) -> float:
    return value if math.isfinite(value) else 0.0


@dataclass(frozen=True)
class EnergyResult:
    """Energy of one window."""

    label: str  # what was measured
    energy_j: float | None = None  # gross, or None: then ``why_null`` says why
    source: str = "none"  # name of the source
    kind: str = "measured"  # or ``"modelled"``
    scope: str | None = None  # what the joules cover: ``module``, ``board``, ...
    rails: tuple[str, ...] = ()  # the rails that were added up
    duration_s: float = 0.0  # length of the window
    samples: int = 0  # samples inside it
    coverage: float | None = None  # share of the window that samples cover
    mean_w: float | None = None  # mean power over the whole window, holes bridged
    max_w: float | None = None  # largest sample
    step_w: float | None = None  # smallest change that the sensor can show
    uncertainty: Uncertainty | None = None  # None with ``energy_j``
    baseline_w: float | None = None  # idle power that ``net_j`` was taken against
    net_j: float | None = None  # gross minus baseline; None below one step of the sensor
    # 95 % half-width of it: the offset cancels, the baseline's own noise does not
    net_uncertainty_j: float | None = None
    # joules of each rail; parts are inside the total, never beside it
    by_rail: Mapping[str, float] = field(default_factory=dict)
    by_scope: Mapping[str, float] = field(default_factory=dict)  # of the other totals
    flags: tuple[str, ...] = ()  # ``coarse``, ``gaps``, ``stuck``, ...: docs/energy.md
    why_null: str = ""  # one sentence
    notes: tuple[str, ...] = ()  # sentences about source and total
    # power mode, clocks and temperatures at start and end
    context: Mapping[str, Any] = field(default_factory=dict)

    @property
    def uncertainty_j(self) -> float | None:
        """95 % half-width in joules, or None."""
        return None if self.uncertainty is None else self.uncertainty.joules

    @property
    def resolution_only(self) -> bool:
        """True when nothing is known of the sensor's accuracy."""
        u = self.uncertainty
        return u is not None and not u.sensor_known and self.kind != "modelled"

    def to_dict(self) -> dict[str, Any]:
        u, covers = self.uncertainty, "95 %; sensor data sheet, not calibrated"
        if self.kind == "modelled":
            covers = "stated with the model, not measured"
        elif self.resolution_only:
            covers = "95 % of sampling and resolution only"
            covers += "; the sensor's accuracy is not known"
        found = dict(vars(self))
        del found["uncertainty"]
        for name in ("by_rail", "by_scope"):
            found[f"{name}_j"] = dict(found.pop(name))
        return {
            **found,
            "uncertainty_j": self.uncertainty_j,
            "uncertainty_terms_j": None if u is None else dict(u.terms),
            "uncertainty_covers": None if u is None else covers,
            "resolution_only": self.resolution_only,
            "why_null": self.why_null or None,
            "context": dict(self.context),
        }

    def entry(self) -> dict[str, Any]:
        """Return what the ``energy`` entry of a run report says of it."""
        return {
            "joules": self.energy_j,
            "source": None if self.source == "none" else self.source,
            "scope": self.scope,
            "uncertainty": self.uncertainty_j,
            "why_null": self.why_null or None,
            "kind": None if self.energy_j is None else self.kind,
            "resolution_only": self.resolution_only,
            "net": self.net_j,
            "net_uncertainty": self.net_uncertainty_j,
            "baseline_w": self.baseline_w,
            "coverage": self.coverage,
            "samples": self.samples,
            "by_rail": dict(self.by_rail),
            "by_scope": dict(self.by_scope),
            "flags": list(self.flags),
            "notes": list(self.notes),
            "context": dict(self.context),
        }


class PhasePower(NamedTuple):
    """Mean power of a phase, or its joules."""

    watts: float | None  # or None: then ``why`` says why
    half_w: float | None  # 95 % half-width, without the sensor's own offset and gain
    why: str = ""  # one clause, or ""


class Baseline(NamedTuple):
    """Idle power, and the standard uncertainty of what differs from run to run."""

    watts: float
    u_w: float = 0.0


class Projector:
    """Turns readings into vectors: total first, then every rail, then other totals."""

    def __init__(self, rails: Sequence[str], choice: TotalChoice) -> None:
        self.rails = tuple(rails)
        self.choice = choice
        self.totals: tuple[Total, ...] = choice.others
        self.width = 1 + len(self.rails) + len(self.totals)

    def watts(self, values: Mapping[str, float]) -> Vector:
        """Return one vector; NaN where a rail is missing."""
        get, total = values.get, self.choice.total
        vector = [math.nan if total is None else sum(get(r, math.nan) for r in total.rails)]
        vector += [get(rail, math.nan) for rail in self.rails]
        vector += [sum(get(r, math.nan) for r in other.rails) for other in self.totals]
        return vector

    def project(self, reading: Reading) -> tuple[Vector, Vector | None]:
        """Return the vectors of power and, for counting sources, of energy."""
        counters = None if reading.joules is None else self.watts(reading.joules)
        return self.watts(reading.watts), counters


def build_result(
    label: str,
    integral: Integrator,
    projector: Projector,
    *,
    source: str,
    kind: str = "measured",
    accuracy: Mapping[str, Accuracy] | None = None,
    observed_step_w: float | None = None,
    baseline: Baseline | None = None,
    notes: Sequence[str] = (),
    flags: Sequence[str] = (),
    context: Mapping[str, Any] | None = None,
    **known_of: float,
) -> EnergyResult:
    """Make the result of a finished integrator; ``known_of`` goes to ``estimate``."""
    choice, known = projector.choice, accuracy or {}
    total, table, count = choice.total, choice.table, len(projector.rails)
    joules, seconds = integral.joules[0], integral.seconds
    by_rail = {
        rail: integral.joules[i]
        for i, rail in enumerate(projector.rails, 1)
        if integral.coverage(i) >= LEAST_COVERAGE
    }
    common: dict[str, Any] = {
        "source": source,
        "kind": kind,
        "duration_s": seconds,
        "samples": integral.samples,
        "by_rail": by_rail,
        "notes": (*choice.warnings, *notes),
        "context": context or {},
    }
    if total is None:
        return EnergyResult(label, why_null=choice.why_none, **common)
    common.update(scope=total.scope, rails=total.rails, coverage=integral.coverage())
    why, flag = _why_null(integral, total, by_rail)
    if why:
        return EnergyResult(label, why_null=why, flags=(flag, *flags), **common)

    accuracies = [known.get(rail) or choice.accuracy(rail) for rail in total.rails]
    u = estimate(integral, accuracies, observed_step_w=observed_step_w, **known_of)
    steps = [a.step_w for a in accuracies if a.step_w is not None]
    step_w = max(steps, default=observed_step_w)
    parts = sum(by_rail.get(rail, 0.0) for rail in (table.parts if table else ()))
    above = parts > joules + (0.0 if u is None else u.joules)
    only = u is not None and not u.sensor_known and kind != "modelled"
    net_j = net_u = None
    low = False
    if baseline is not None:
        net_j = joules - baseline.watts * seconds
        gain = 0.0 if u is None else u.terms.get("gain", 0.0) * abs(net_j / (joules or 1.0))
        own = 0.0 if u is None else u.random_j
        net_u = 2.0 * math.sqrt(own**2 + gain**2 + (baseline.u_w * seconds) ** 2)
        low = step_w is not None and abs(net_j) < step_w * seconds
    found = {
        "coarse": integral.samples < COARSE_SAMPLES,
        "gaps": integral.gaps,
        _still(integral): not integral.counted,
        "resolution unknown": u is None,
        "resolution only": only,
        "parts exceed the total": above and choice.how != "user",
        "net below one step": low,
    }
    said = [flag for flag, true in found.items() if flag and true]
    for line in table.estimates if table else ():
        if line.of == total.scope:
            wider = line.gain * joules + line.offset_w * seconds
            note = f"{line.scope}, estimated and not measured: {wider:.3g} J"
            common["notes"] += (f"{note} ({line.source})",)
    return EnergyResult(
        label,
        joules,
        mean_w=joules / seconds if seconds > 0 else None,
        max_w=integral.max_w if math.isfinite(integral.max_w) else None,
        step_w=step_w,
        uncertainty=u,
        baseline_w=None if baseline is None else baseline.watts,
        by_scope={
            other.scope: integral.joules[i]
            for i, other in enumerate(projector.totals, 1 + count)
            if integral.coverage(i) >= LEAST_COVERAGE
        },
        flags=tuple(dict.fromkeys((*flags, *said))),
        net_j=None if low else net_j,
        net_uncertainty_j=None if low else net_u,
        **common,
    )


def _why_null(
    integral: Integrator, total: Total, by_rail: Mapping[str, float]
) -> tuple[str, str]:
    """Return why there is no total, or "", and the flag for it."""
    if not integral.seen[0]:
        missing = [rail for rail in total.rails if rail not in by_rail]
        if by_rail and missing:
            return f"rails of the total could not be read: {', '.join(missing)}", "gaps"
        return "no sample fell into the window", "gaps"
    covered = integral.coverage()
    if covered < LEAST_COVERAGE and not integral.counted:
        seen_j = integral.joules[0] - integral.hole_j
        seen_s = integral.seconds - integral.hole_s[0]
        return (
            f"samples cover {100 * covered:.0f} % of {integral.seconds:.1f} s: what the "
            f"rest took nobody knows ({seen_j:.4g} J in the {seen_s:.1f} s covered)"
        ), "gaps"
    still = integral.max_w == 0 and integral.min_w == 0
    if integral.joules[0] == 0 and (integral.counted or still):
        return "the sensor read exactly 0 W throughout: it does not measure", "dead sensor"
    return "", ""


def _still(integral: Integrator) -> str:
    """Return the flag of a reading that stands still, against how often it moves."""
    run, rest = integral.same, integral.intervals - integral.same
    if integral.intervals < COARSE_SAMPLES:
        return ""
    if not integral.changes:
        return "never changed"
    # A coarse sensor at rest stands still for long; one that moves with every other
    # sample does not, for ten seconds.
    usual = rest > 0 and integral.changes / rest >= 0.5
    still_s = run * integral.seconds / integral.intervals
    stuck = usual and run >= COARSE_SAMPLES and still_s >= STUCK_S
    return "stuck" if stuck else ""
