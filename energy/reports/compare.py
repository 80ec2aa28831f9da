"""Is B really thriftier than A?  The difference, and how sure it is.

Two runs on one sensor share its offset and its gain: those parts of the uncertainty
cancel to the extent that the runs are alike, and are not counted twice.  With several
runs on each side the spread between runs, which is often larger, decides (Welch).
"""

from __future__ import annotations

import math
import statistics
from dataclasses import asdict, dataclass
from typing import Any, Callable, Sequence

from draftwire.energy.account.uncertainty import SHARED, t_factor
from draftwire.energy.reports.rows import Row
from draftwire.errors import ConfigError
from draftwire.io import quantity

__all__ = ["PER", "Comparison", "compare"]

ALIKE = 0.05  # durations that differ by more are not the same piece of work

_VALUES: dict[str, Callable[[Row], float | None]] = {
    "request": lambda row: None if row.energy_j is None else row.energy_j / row.requests,
    "net": lambda row: None if row.net_j is None else row.net_j / row.requests,
    "emitted": lambda row: row.per_token_j.get("emitted"),
    "accepted": lambda row: row.per_token_j.get("accepted"),
    "drafted": lambda row: row.per_token_j.get("drafted"),
    "second": lambda row: row.mean_w,
}
_UNITS = {"request": "J", "net": "J net", "second": "W"}
PER = ("auto", *_VALUES)


@dataclass(frozen=True)
class Comparison:
    """B against A, of one quantity.

    Attributes:
        per: What is compared: joules per ``request``, ``net`` joules, joules per token
            of a kind, or per ``second`` (watts).
        a_j: Mean of A.
        b_j: Mean of B.
        difference_j: B minus A.
        uncertainty_j: 95 % half-width of the difference.
        ratio: B over A.
        runs: How many runs on each side.
        coverage: The least share of a run that samples cover, on each side.
        real: True when the difference is larger than its uncertainty.
        verdict: One sentence.
        warnings: What makes the comparison doubtful.
    """

    per: str
    a_j: float
    b_j: float
    difference_j: float
    uncertainty_j: float
    ratio: float | None
    runs: tuple[int, int]
    coverage: tuple[float | None, float | None]
    real: bool
    verdict: str
    warnings: tuple[str, ...] = ()

    @property
    def unit(self) -> str:
        """Unit of the figures."""
        return _UNITS.get(self.per, f"J per {self.per} token")

    def to_dict(self) -> dict[str, Any]:
        """Return it for JSON."""
        return {"schema": "draftwire.energy-compare/1", **asdict(self)}


def compare(a: Sequence[Row], b: Sequence[Row], *, per: str = "auto") -> Comparison:
    """Compare two sets of runs.

    Args:
        a: Runs of one kind.
        b: Runs of the other.
        per: One of ``PER``.  ``auto`` takes joules per request where each run is one,
            and joules per emitted token where runs were recorded for unequal times.

    Raises:
        ConfigError: A run has no joules, or the two cannot be compared.
    """
    if per not in PER:
        raise ConfigError(f"cannot compare per {per!r}", hint=f"one of {', '.join(PER)}")
    if not a or not b:
        raise ConfigError("nothing to compare: each side needs at least one run")
    _refuse(a, b)
    warnings = _warnings(a, b)
    if per == "auto":
        per, why = _fitting(a, b)
        warnings += [why] if why else []
    values = [[_value(row, per) for row in side] for side in (a, b)]
    mean_a, mean_b = (statistics.fmean(side) for side in values)
    systematic = _systematic(a, b, per)
    n_a, n_b = len(values[0]), len(values[1])
    own = 2.0 * math.sqrt(
        sum(_random(row, per) ** 2 / len(s) ** 2 for s in (a, b) for row in s)
    )
    if min(n_a, n_b) >= 2:
        parts = [statistics.variance(side) / len(side) for side in values]
        whole = sum(parts)
        lower = sum(p * p / (len(s) - 1) for p, s in zip(parts, values))
        freedom = whole * whole / lower if lower > 0 else 1e9
        # Runs that agree by chance are not better than the sensor's own noise.
        random = max(t_factor(freedom) * math.sqrt(whole), own)
    else:
        random = own
        warnings.append("one run on a side: the spread between runs is not known")
    half = math.hypot(random, 2.0 * systematic)
    difference = mean_b - mean_a
    real = abs(difference) > half and difference != 0
    ratio = mean_b / mean_a if mean_a > 0 else None
    percent = f" ({100 * (ratio - 1):+.1f} %)" if ratio else ""
    unit = _UNITS.get(per, f"J per {per} token")
    size = quantity(difference, half, unit) + percent
    verdict = (
        f"B takes {'more' if difference > 0 else 'less'}: {size}"
        if real
        else f"no difference that this measurement can show: {size}"
    )
    return Comparison(
        per,
        mean_a,
        mean_b,
        difference,
        half,
        ratio,
        (n_a, n_b),
        (_least_covered(a), _least_covered(b)),
        real,
        verdict,
        tuple(warnings),
    )


def _least_covered(rows: Sequence[Row]) -> float | None:
    known = [row.coverage for row in rows if row.coverage is not None]
    return min(known) if known else None


def _refuse(a: Sequence[Row], b: Sequence[Row]) -> None:
    rows = (*a, *b)
    for row in rows:
        if row.energy_j is None:
            raise ConfigError(f"{row.file} cannot be compared: {row.why_null}")
        if "stuck" in row.flags:
            raise ConfigError(
                f"{row.file} cannot be compared: its reading was stuck",
                hint="cut it out with --window a:b, or record again",
            )
    scopes = {row.scope for row in rows}
    if len(scopes) > 1:
        raise ConfigError(
            f"scopes differ: {', '.join(str(s) for s in sorted(scopes, key=str))}",
            hint="joules of a module and of a board cannot be compared",
        )
    unknown = [row for row in rows if row.resolution_only or row.uncertainty_j is None]
    if unknown and len({row.source for row in rows}) > 1:
        raise ConfigError(
            f"the sources differ, and the accuracy of {unknown[0].source} is not known",
            hint="state it: --accuracy 1%+5mW, or --meter NAME",
        )


def _fitting(a: Sequence[Row], b: Sequence[Row]) -> tuple[str, str]:
    """Return what to compare, and a sentence where that is not the plain joules."""
    lengths = [row.seconds or 0.0 for row in (*a, *b)]
    alike = max(lengths) - min(lengths) <= ALIKE * max(lengths)
    if alike or not any(row.open_ended for row in (*a, *b)):
        return "request", ""
    if all(row.tokens.get("emitted") for row in (*a, *b)):
        return "emitted", "the runs differ in length: compared per emitted token"
    if all(row.tokens.get("requests") for row in (*a, *b)):
        return "request", "the runs differ in length: compared per request"
    raise ConfigError(
        f"the runs differ in length ({min(lengths):.4g} s and {max(lengths):.4g} s), and "
        "nothing tells what was done in them",
        hint="--per second for mean watts, --tokens N, or --per request if each file is "
        "one and the same piece of work",
    )


def _value(row: Row, per: str) -> float:
    value = _VALUES[per](row)
    if value is None:
        why = row.why_null or f"it does not know joules per {per}"
        raise ConfigError(f"{row.file} cannot be compared: {why}")
    return value


def _random(row: Row, per: str) -> float:
    """Return the standard uncertainty of a run without what it shares with others."""
    if row.terms:
        own = math.sqrt(sum(v * v for k, v in row.terms.items() if k not in SHARED))
    else:
        own = (row.uncertainty_j or 0.0) / 2.0
    if per == "net" and row.net_uncertainty_j is not None:
        own = row.net_uncertainty_j / 2.0
    if per == "drafted" and row.phase_uncertainty_j.get("draft") is not None:
        return (row.per_token_uncertainty_j.get("drafted") or 0.0) / 2.0
    return own * _scale(row, per)


def _scale(row: Row, per: str) -> float:
    """Return the factor from joules of the run to the compared quantity."""
    if per == "net":
        return 1.0 / row.requests
    return abs(_value(row, per) / row.energy_j) if row.energy_j else 1.0


def _systematic(a: Sequence[Row], b: Sequence[Row], per: str) -> float:
    """Return the standard uncertainty of the difference that the sensor itself
    makes."""

    def mean(rows: Sequence[Row], term: str) -> float:
        return statistics.fmean(r.terms.get(term, 0.0) * _scale(r, per) for r in rows)

    same = len({row.source for row in (*a, *b)}) == 1
    total = 0.0
    for term in SHARED:
        x, y = mean(a, term), mean(b, term)
        if per == "net" and term == "offset":
            continue  # it cancels within each run already
        total += (x - y) ** 2 if same else x * x + y * y
    return math.sqrt(total)


def _warnings(a: Sequence[Row], b: Sequence[Row]) -> list[str]:
    warnings = []
    rows = (*a, *b)
    modes = [{row.power_mode for row in side if row.power_mode} for side in (a, b)]
    if modes[0] and modes[1] and modes[0] != modes[1]:
        warnings.append(
            f"power modes differ: {', '.join(sorted(modes[0]))} against "
            f"{', '.join(sorted(modes[1]))}"
        )
    sources = {row.source for row in rows}
    if len(sources) > 1:
        named = ", ".join(str(source) for source in sorted(sources, key=str))
        warnings.append(f"sources differ ({named}): their offsets do not cancel")
    if any(row.kind == "modelled" for row in rows):
        warnings.append("some joules are modelled, not measured")
    if any(row.uncertainty_j is None for row in rows):
        warnings.append("some runs state no uncertainty: it was taken as 0")
    if any(row.resolution_only for row in rows):
        warnings.append(
            "resolution only: the sensor's accuracy is not known; an offset cancels "
            "between runs of one sensor, a wrong gain does not change the sign"
        )
    bad = {"gaps", "coarse", "not closed", "mode changed", "throttled", "clocks fell"}
    seen = sorted(bad & {flag for row in rows for flag in row.flags})
    if seen:
        warnings.append(f"some runs are flagged: {', '.join(seen)}")
    return warnings
