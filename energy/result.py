"""The result of a measurement: joules with source, scope and uncertainty, or why
not."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Mapping, Sequence

from draftwire.energy.integrate import Integrator, Vector
from draftwire.energy.rails import Accuracy, Total, TotalChoice
from draftwire.energy.sources.base import PowerSource, Reading
from draftwire.energy.uncertainty import Uncertainty, estimate

__all__ = ["EnergyResult", "Projector", "build_result", "null_result"]

COARSE_SAMPLES = 20
STUCK_S = 10.0


@dataclass(frozen=True)
class EnergyResult:
    """Energy of one window.

    Attributes:
        label: What was measured.
        energy_j: Gross energy, or None: then ``why_null`` says why.  Never a silent 0.
        source: Name of the source.
        kind: ``"measured"`` or ``"modelled"``.
        scope: What the joules cover: ``module``, ``board``, ``package``, ...
        rails: The rails that were added up.
        duration_s: Length of the window.
        samples: Samples inside it.
        coverage: Share of the window that the samples cover.
        mean_w: Mean power over the covered time.
        max_w: Largest sample.
        step_w: Smallest change that the sensor can show.
        uncertainty: 95 % half-width and its terms; None with ``energy_j``.
        baseline_w: Idle power that ``net_j`` was taken against.
        net_j: Gross minus baseline; None when smaller than one step of the sensor.
        by_rail: Joules of each rail; parts are inside the total, never beside it.
        by_scope: Joules of other totals of the board.
        flags: ``coarse``, ``gaps``, ``stuck``, ``throttled``, ``mode changed``, ...
        why_null: One sentence.
        notes: Sentences about source and total.
        context: Power mode, clocks and temperatures at start and end.
    """

    label: str
    energy_j: float | None
    source: str
    kind: str
    scope: str | None
    rails: tuple[str, ...] = ()
    duration_s: float = 0.0
    samples: int = 0
    coverage: float | None = None
    mean_w: float | None = None
    max_w: float | None = None
    step_w: float | None = None
    uncertainty: Uncertainty | None = None
    baseline_w: float | None = None
    net_j: float | None = None
    by_rail: Mapping[str, float] = field(default_factory=dict)
    by_scope: Mapping[str, float] = field(default_factory=dict)
    flags: tuple[str, ...] = ()
    why_null: str = ""
    notes: tuple[str, ...] = ()
    context: Mapping[str, Any] = field(default_factory=dict)

    @property
    def uncertainty_j(self) -> float | None:
        """95 % half-width in joules, or None."""
        return None if self.uncertainty is None else self.uncertainty.joules

    def to_dict(self) -> dict[str, Any]:
        """Return it for JSON."""
        u = self.uncertainty
        return {
            "label": self.label,
            "energy_j": self.energy_j,
            "uncertainty_j": self.uncertainty_j,
            "uncertainty_terms_j": None if u is None else dict(u.terms),
            "uncertainty_covers": _covers(u, self.kind),
            "source": self.source,
            "kind": self.kind,
            "scope": self.scope,
            "rails": list(self.rails),
            "duration_s": self.duration_s,
            "samples": self.samples,
            "coverage": self.coverage,
            "mean_w": self.mean_w,
            "max_w": self.max_w,
            "step_w": self.step_w,
            "baseline_w": self.baseline_w,
            "net_j": self.net_j,
            "by_rail_j": dict(self.by_rail),
            "by_scope_j": dict(self.by_scope),
            "flags": list(self.flags),
            "why_null": self.why_null or None,
            "notes": list(self.notes),
            "context": dict(self.context),
        }


def _covers(u: Uncertainty | None, kind: str) -> str | None:
    if u is None:
        return None
    if kind == "modelled":
        return "stated with the model, not measured"
    if u.sensor_known:
        return "95 %; sensor data sheet, not calibrated"
    return "95 % of sampling and resolution only; the sensor's accuracy is not known"


class Projector:
    """Turns readings into vectors: total first, then every rail, then other totals."""

    def __init__(self, rails: Sequence[str], choice: TotalChoice) -> None:
        self.rails = tuple(rails)
        self.choice = choice
        self.totals: tuple[Total, ...] = choice.others
        self.width = 1 + len(self.rails) + len(self.totals)

    def watts(self, values: Mapping[str, float]) -> Vector:
        """Return one vector; NaN where a rail is missing."""
        nan = math.nan
        total = self.choice.total
        first = nan if total is None else _sum(values, total.rails)
        vector = [first]
        vector += [values.get(rail, nan) for rail in self.rails]
        vector += [_sum(values, other.rails) for other in self.totals]
        return vector

    def project(self, reading: Reading) -> tuple[Vector, Vector | None]:
        """Return the vectors of power and, for counting sources, of energy."""
        counters = None if reading.joules is None else self.watts(reading.joules)
        return self.watts(reading.watts), counters


def _sum(values: Mapping[str, float], rails: Sequence[str]) -> float:
    total = 0.0
    for rail in rails:
        value = values.get(rail)
        if value is None:
            return math.nan
        total += value
    return total


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
    update_s: float | None = None,
    context_step2: float = 0.0,
    clock_u_s: float = 0.0,
    observed_step_w: float | None = None,
    baseline_w: float | None = None,
    notes: Sequence[str] = (),
    flags: Sequence[str] = (),
    context: Mapping[str, Any] | None = None,
    gaps_outside: bool = False,
) -> EnergyResult:
    """Make the result of a finished integrator."""
    choice = projector.choice
    known = accuracy or {}
    all_notes = (*choice.warnings, *notes)
    count = len(projector.rails)
    by_rail = {
        rail: integral.joules[1 + i]
        for i, rail in enumerate(projector.rails)
        if integral.covered_s[1 + i] > 0
    }
    common: dict[str, Any] = {
        "source": source,
        "kind": kind,
        "duration_s": integral.seconds,
        "samples": integral.samples,
        "by_rail": by_rail,
        "notes": all_notes,
        "context": context or {},
    }
    if choice.total is None:
        return null_result(label, choice.why_none, **common)
    total = choice.total
    common.update(scope=total.scope, rails=total.rails)
    covered = integral.covered_s[0]
    if covered <= 0:
        why = "no sample fell into the window"
        if by_rail:
            missing = [rail for rail in total.rails if rail not in by_rail]
            why = f"rails of the total could not be read: {', '.join(missing)}"
        return null_result(label, why, coverage=0.0, flags=tuple(flags), **common)
    if integral.joules[0] == 0 and (
        integral.counted or (integral.max_w == 0 and integral.min_w == 0)
    ):
        why = "the sensor read exactly 0 W throughout: it does not measure"
        return null_result(label, why, flags=("dead sensor", *flags), **common)

    found = list(flags)
    coverage = covered / integral.seconds if integral.seconds > 0 else None
    if integral.samples < COARSE_SAMPLES:
        found.append("coarse")
    if integral.gaps:
        found.append("gaps")
    if integral.same_s >= STUCK_S and integral.samples >= COARSE_SAMPLES:
        found.append("stuck")
    accuracies = [known.get(rail) or choice.accuracy(rail) for rail in total.rails]
    u = estimate(
        integral,
        accuracies,
        update_s=update_s,
        context_step2=context_step2,
        clock_u_s=clock_u_s,
        observed_step_w=observed_step_w,
        gaps_outside=gaps_outside,
    )
    steps = [a.step_w for a in accuracies if a.step_w is not None]
    step_w = max(steps) if steps else observed_step_w
    mean_w = integral.joules[0] / covered
    parts = sum(by_rail.get(r, 0.0) for r in (choice.table.parts if choice.table else ()))
    if u is None:
        found.append("resolution unknown")
    if (
        parts > integral.joules[0] + (0.0 if u is None else u.joules)
        and choice.how != "user"
    ):
        found.append("parts exceed the total")
    for line in choice.table.estimates if choice.table else ():
        if line.of == total.scope:
            wider = line.gain * integral.joules[0] + line.offset_w * covered
            note = f"{line.scope}, estimated and not measured: {wider:.3g} J"
            common["notes"] = (*common["notes"], f"{note} ({line.source})")
    net_j = None
    if baseline_w is not None:
        net_j = integral.joules[0] - baseline_w * covered
        if step_w is not None and abs(net_j) < step_w * covered:
            net_j = None
            found.append("net below one step")
    return EnergyResult(
        label,
        integral.joules[0],
        coverage=coverage,
        mean_w=mean_w,
        max_w=integral.max_w if math.isfinite(integral.max_w) else None,
        step_w=step_w,
        uncertainty=u,
        baseline_w=baseline_w,
        net_j=net_j,
        by_scope={
            other.scope: integral.joules[1 + count + i]
            for i, other in enumerate(projector.totals)
            if integral.covered_s[1 + count + i] > 0
        },
        flags=tuple(dict.fromkeys(found)),
        **common,
    )


def describe_source(source: PowerSource) -> dict[str, Any]:
    """Return what a report says of a source."""
    return {
        "name": source.name,
        "kind": source.kind,
        "rails": list(source.rails),
        "update_s": source.update_s,
        "notes": list(source.notes),
    }
