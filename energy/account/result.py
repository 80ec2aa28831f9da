"""The result of a measurement: joules with source, scope and uncertainty, or why
not."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Mapping, NamedTuple, Sequence

from draftwire.energy.account.integrate import Integrator, Vector
from draftwire.energy.account.uncertainty import Uncertainty, estimate
from draftwire.energy.rails import Accuracy, Total, TotalChoice
from draftwire.energy.sources.base import Reading

COARSE_SAMPLES = 20
STUCK_S = 10.0
LEAST_COVERAGE = 0.5  # below it a total would say more about the holes than the run


@dataclass(frozen=True)
class EnergyResult:
    """Energy of one window."""

    label: str  # what was measured
    # gross energy, or None: then ``why_null`` says why. Never a silent 0.
    energy_j: float | None
    source: str  # name of the source
    kind: str  # ``"measured"`` or ``"modelled"``
    scope: str | None  # what the joules cover: ``module``, ``board``, ``package``, ..
    rails: tuple[str, ...] = ()  # the rails that were added up
    duration_s: float = 0.0  # length of the window
    samples: int = 0  # samples inside it
    # share of the window that samples cover; what lies between is bridged, and the
    # uncertainty has the most that it may hide
    coverage: float | None = None
    mean_w: float | None = None  # mean power over the whole window, holes bridged
    max_w: float | None = None  # largest sample
    step_w: float | None = None  # smallest change that the sensor can show
    # 95 % half-width and its terms; None with ``energy_j``
    uncertainty: Uncertainty | None = None
    baseline_w: float | None = None  # idle power that ``net_j`` was taken against
    # gross minus baseline; None when smaller than one step of the sensor
    net_j: float | None = None
    # 95 % half-width of it: the offset cancels, the baseline's own noise does not
    net_uncertainty_j: float | None = None
    # joules of each rail; parts are inside the total, never beside it
    by_rail: Mapping[str, float] = field(default_factory=dict)
    # joules of other totals of the board
    by_scope: Mapping[str, float] = field(default_factory=dict)
    # ``coarse``, ``gaps``, ``stuck``, ``throttled``, ``mode changed``, ...
    flags: tuple[str, ...] = ()
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
        u = self.uncertainty
        found = dict(vars(self))
        del found["uncertainty"]
        for name in ("by_rail", "by_scope"):
            found[f"{name}_j"] = dict(found.pop(name))
        return {
            **found,
            "uncertainty_j": self.uncertainty_j,
            "uncertainty_terms_j": None if u is None else dict(u.terms),
            "uncertainty_covers": covers(u, self.kind),
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


def covers(u: Uncertainty | None, kind: str) -> str | None:
    """Say what an uncertainty speaks of."""
    if u is None:
        return None
    if kind == "modelled":
        return "stated with the model, not measured"
    if u.sensor_known:
        return "95 %; sensor data sheet, not calibrated"
    return "95 % of sampling and resolution only; the sensor's accuracy is not known"


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


def null_result(
    label: str, why: str, *, source: str = "none", kind: str = "measured", **rest: Any
) -> EnergyResult:
    """Return a result without joules, which says why."""
    scope = rest.pop("scope", None)
    return EnergyResult(label, None, source, kind, scope, why_null=why, **rest)


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
    by_rail = {
        rail: integral.joules[i]
        for i, rail in enumerate(projector.rails, 1)
        if integral.coverage(i) >= LEAST_COVERAGE
    }
    common: dict[str, Any] = {
        "source": source,
        "kind": kind,
        "duration_s": integral.seconds,
        "samples": integral.samples,
        "by_rail": by_rail,
        "notes": (*choice.warnings, *notes),
        "context": context or {},
    }
    if total is None:
        return null_result(label, choice.why_none, **common)
    common.update(scope=total.scope, rails=total.rails, coverage=integral.coverage())
    why, flag = _why_null(integral, total, by_rail)
    if why:
        return null_result(label, why, flags=(flag, *flags), **common)

    found_flags = [*flags]
    found_flags += ["coarse"] if integral.samples < COARSE_SAMPLES else []
    found_flags += ["gaps"] if integral.gaps else []
    found_flags += [] if integral.counted else _still(integral)
    accuracies = [known.get(rail) or choice.accuracy(rail) for rail in total.rails]
    u = estimate(integral, accuracies, observed_step_w=observed_step_w, **known_of)
    steps = [a.step_w for a in accuracies if a.step_w is not None]
    step_w = max(steps) if steps else observed_step_w
    joules, seconds = integral.joules[0], integral.seconds
    parts = sum(by_rail.get(rail, 0.0) for rail in (table.parts if table else ()))
    if u is None:
        found_flags.append("resolution unknown")
    elif not u.sensor_known and kind != "modelled":
        found_flags.append("resolution only")
    if parts > joules + (0.0 if u is None else u.joules) and choice.how != "user":
        found_flags.append("parts exceed the total")
    for line in table.estimates if table else ():
        if line.of == total.scope:
            wider = line.gain * joules + line.offset_w * seconds
            note = f"{line.scope}, estimated and not measured: {wider:.3g} J"
            common["notes"] += (f"{note} ({line.source})",)
    net_j = net_u = None
    if baseline is not None:
        net_j = joules - baseline.watts * seconds
        gain = 0.0 if u is None else u.terms.get("gain", 0.0) * abs(net_j / (joules or 1.0))
        own = 0.0 if u is None else u.random_j
        net_u = 2.0 * math.sqrt(own**2 + gain**2 + (baseline.u_w * seconds) ** 2)
        if step_w is not None and abs(net_j) < step_w * seconds:
            net_j = net_u = None
            found_flags.append("net below one step")
    return EnergyResult(
        label,
        joules,
        mean_w=joules / seconds if seconds > 0 else None,
        max_w=integral.max_w if math.isfinite(integral.max_w) else None,
        step_w=step_w,
        uncertainty=u,
        baseline_w=None if baseline is None else baseline.watts,
        net_j=net_j,
        net_uncertainty_j=net_u,
        by_scope={
            other.scope: integral.joules[i]
            for i, other in enumerate(projector.totals, 1 + count)
            if integral.coverage(i) >= LEAST_COVERAGE
        },
        flags=tuple(dict.fromkeys(found_flags)),
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


def _still(integral: Integrator) -> list[str]:
    """Return flags of a reading that stands still, against how often it moves."""
    run, rest = integral.same, integral.intervals - integral.same
    if integral.intervals < COARSE_SAMPLES:
        return []
    if not integral.changes:
        return ["never changed"]
    # A coarse sensor at rest stands still for long; one that moves with every other
    # sample does not, for ten seconds.
    usual = rest > 0 and integral.changes / rest >= 0.5
    still_s = run * integral.seconds / integral.intervals
    return ["stuck"] if usual and run >= COARSE_SAMPLES and still_s >= STUCK_S else []
