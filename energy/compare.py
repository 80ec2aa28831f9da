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

from draftwire.energy.report import Row
from draftwire.errors import ConfigError

__all__ = ["Comparison", "compare"]

# Student's t, 97.5 %, for 1 to 30 degrees of freedom.
_T = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228,
    2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086,
    2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)  # fmt: skip

_VALUES: dict[str, Callable[[Row], float | None]] = {
    "total": lambda row: row.energy_j,
    "net": lambda row: row.net_j,
    "emitted": lambda row: row.per_token_j.get("emitted"),
    "accepted": lambda row: row.per_token_j.get("accepted"),
    "drafted": lambda row: row.per_token_j.get("drafted"),
}


@dataclass(frozen=True)
class Comparison:
    """B against A, of one quantity.

    Attributes:
        per: What is compared: ``total``, ``net``, or joules per token of a kind.
        a_j: Mean of A.
        b_j: Mean of B.
        difference_j: B minus A.
        uncertainty_j: 95 % half-width of the difference.
        ratio: B over A.
        runs: How many runs on each side.
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
    real: bool
    verdict: str
    warnings: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return it for JSON."""
        return {"schema": "draftwire.energy-compare/1", **asdict(self)}


def compare(a: Sequence[Row], b: Sequence[Row], *, per: str = "total") -> Comparison:
    """Compare two sets of runs.

    Args:
        a: Runs of one kind.
        b: Runs of the other.
        per: ``total``, ``net``, ``emitted``, ``accepted`` or ``drafted``.

    Raises:
        ConfigError: A run has no joules, or scopes differ.
    """
    if per not in _VALUES:
        raise ConfigError(f"cannot compare {per!r}", hint=f"one of {', '.join(_VALUES)}")
    values = [[_value(row, per) for row in side] for side in (a, b)]
    if not values[0] or not values[1]:
        raise ConfigError("nothing to compare: each side needs at least one run")
    scopes = {row.scope for row in (*a, *b)}
    if len(scopes) > 1:
        raise ConfigError(
            f"scopes differ: {', '.join(str(s) for s in sorted(scopes, key=str))}",
            hint="joules of a module and of a board cannot be compared",
        )
    warnings = _warnings(a, b)
    mean_a, mean_b = (statistics.fmean(side) for side in values)
    systematic = _systematic(a, b, per)
    n_a, n_b = len(values[0]), len(values[1])
    if min(n_a, n_b) >= 2:
        parts = [statistics.variance(side) / len(side) for side in values]
        whole = sum(parts)
        lower = sum(p * p / (len(s) - 1) for p, s in zip(parts, values))
        freedom = whole * whole / lower if lower > 0 else 1e9
        # Runs that agree by chance are not better than the sensor's own noise.
        own = sum(_random(row, per) ** 2 / len(s) ** 2 for s in (a, b) for row in s)
        random = max(_t(freedom) * math.sqrt(whole), 2.0 * math.sqrt(own))
        half = math.hypot(random, 2.0 * systematic)
    else:
        random2 = sum(_random(row, per) ** 2 / len(s) ** 2 for s in (a, b) for row in s)
        half = 2.0 * math.sqrt(random2 + systematic**2)
        warnings.append("one run on a side: the spread between runs is not known")
    difference = mean_b - mean_a
    real = abs(difference) > half
    ratio = mean_b / mean_a if mean_a > 0 else None
    percent = f" ({100 * (ratio - 1):+.1f} %)" if ratio else ""
    unit = "J" if per in ("total", "net") else f"J per {per} token"
    size = f"{difference:+.4g} +- {half:.2g} {unit}{percent}"
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
        real,
        verdict,
        tuple(warnings),
    )


def _value(row: Row, per: str) -> float:
    value = _VALUES[per](row)
    if value is None:
        why = row.why_null or f"it does not know joules per {per}"
        raise ConfigError(f"{row.file} cannot be compared: {why}")
    return value


def _scale(row: Row, per: str) -> float:
    """Return the factor from joules of the run to the compared quantity."""
    if per in ("total", "net") or not row.energy_j:
        return 1.0
    return abs(_value(row, per) / row.energy_j)


def _random(row: Row, per: str) -> float:
    """Return the standard uncertainty of a run without what it shares with others."""
    if row.terms:
        own = sum(v * v for k, v in row.terms.items() if k not in ("offset", "gain"))
        return math.sqrt(own) * _scale(row, per)
    return (row.uncertainty_j or 0.0) / 2.0 * _scale(row, per)


def _systematic(a: Sequence[Row], b: Sequence[Row], per: str) -> float:
    """Return the standard uncertainty of the difference that the sensor itself
    makes."""

    def mean(rows: Sequence[Row], term: str) -> float:
        return statistics.fmean(r.terms.get(term, 0.0) * _scale(r, per) for r in rows)

    same = len({row.source for row in (*a, *b)}) == 1
    total = 0.0
    for term in ("offset", "gain"):
        x, y = mean(a, term), mean(b, term)
        total += (x - y) ** 2 if same else x * x + y * y
    return math.sqrt(total)


def _warnings(a: Sequence[Row], b: Sequence[Row]) -> list[str]:
    warnings = []
    modes = [{row.power_mode for row in side if row.power_mode} for side in (a, b)]
    if modes[0] and modes[1] and modes[0] != modes[1]:
        warnings.append(
            f"power modes differ: {', '.join(sorted(modes[0]))} against "
            f"{', '.join(sorted(modes[1]))}"
        )
    sources = {row.source for row in (*a, *b)}
    if len(sources) > 1:
        named = ", ".join(str(source) for source in sorted(sources, key=str))
        warnings.append(f"sources differ ({named}): their offsets do not cancel")
    if any(row.kind == "modelled" for row in (*a, *b)):
        warnings.append("some joules are modelled, not measured")
    if any(row.uncertainty_j is None for row in (*a, *b)):
        warnings.append("some runs state no uncertainty: it was taken as 0")
    bad = {"throttled", "clocks fell", "mode changed"}
    found = sorted({f for row in (*a, *b) for f in row.flags if f in bad})
    if found:
        warnings.append(f"flags: {', '.join(found)}")
    return warnings


def _t(freedom: float) -> float:
    place = int(freedom)
    if place < 1:
        return _T[0]
    return _T[place - 1] if place <= len(_T) else 1.96 + 2.4 / freedom
