"""Is B really thriftier than A?  The difference, and how sure it is.

Two runs on one sensor share its offset and its gain: those parts of the uncertainty
cancel to the extent that the runs are alike, and are not counted twice.  With several
runs on each side the spread between runs, which is often larger, decides (Welch).
"""

from __future__ import annotations

import math
import statistics
from dataclasses import asdict, dataclass
from typing import Any, Callable, Iterator, Sequence

from draftwire.energy.account.integral import SHARED, t_factor
from draftwire.energy.reports.rows import Row
from draftwire.errors import ConfigError
from draftwire.io import quantity

ALIKE = 0.05  # durations that differ by more are not the same piece of work

# What can be compared, and its unit; tokens are in J of one token.
_VALUES: dict[str, tuple[str, Callable[[Row], float | None]]] = {
    "request": ("J", lambda r: None if r.energy_j is None else r.energy_j / r.requests),
    "net": ("J net", lambda r: None if r.net_j is None else r.net_j / r.requests),
    "emitted": ("J per emitted token", lambda r: r.per_token_j.get("emitted")),
    "accepted": ("J per accepted token", lambda r: r.per_token_j.get("accepted")),
    "drafted": ("J per drafted token", lambda r: r.per_token_j.get("drafted")),
    "second": ("W", lambda r: r.mean_w),
}
PER = ("auto", *_VALUES)


@dataclass(frozen=True)
class Comparison:
    """B against A, of one quantity (``per``); ``coverage``: the least of a side's runs."""

    per: str
    a_j: float  # mean of A
    b_j: float  # mean of B
    a_uncertainty_j: float  # 95 % half-width of A's mean, with what the sides share
    b_uncertainty_j: float
    difference_j: float  # B minus A
    uncertainty_j: float  # 95 % half-width of the difference
    ratio: float | None  # B over A
    runs: tuple[int, int]  # how many runs on each side
    coverage: tuple[float | None, float | None]
    real: bool  # true when the difference is larger than its uncertainty
    verdict: str  # one sentence
    warnings: tuple[str, ...] = ()  # what makes the comparison doubtful

    @property
    def unit(self) -> str:
        """Unit of the figures."""
        return _VALUES[self.per][0]

    def to_dict(self) -> dict[str, Any]:
        return {"schema": "draftwire.energy-compare/1", **asdict(self)}


def compare(a: Sequence[Row], b: Sequence[Row], *, per: str = "auto") -> Comparison:
    """Compare two sets of runs.

    ``auto`` takes joules per request where each run is one, and joules per emitted token
    where runs were recorded for unequal times. A ConfigError where a run has no joules, or
    the two cannot be compared.
    """
    if per not in PER:
        raise ConfigError(f"cannot compare per {per!r}", hint=f"one of {', '.join(PER)}")
    if not a or not b:
        raise ConfigError("nothing to compare: each side needs at least one run")
    _refuse((*a, *b))
    warnings = list(_warnings(a, b))
    if per == "auto":
        per, why = _fitting((*a, *b))
        warnings += [why] if why else []
    values_a, values_b = ([_value(row, per) for row in side] for side in (a, b))
    shared_a, shared_b = _shared(a, per), _shared(b, per)
    # What the sensor itself makes of the difference.
    one = len({row.source for row in (*a, *b)}) == 1
    pairs = [(shared_a[term], shared_b[term]) for term in shared_a]
    systematic = math.hypot(*(x - y if one else math.hypot(x, y) for x, y in pairs))
    alone_a, alone_b = _alone(a, per), _alone(b, per)
    random = math.hypot(alone_a, alone_b)
    if min(len(a), len(b)) >= 2:
        parts = [statistics.variance(side) / len(side) for side in (values_a, values_b)]
        whole = sum(parts)
        lower = sum(p * p / (len(s) - 1) for p, s in zip(parts, (values_a, values_b)))
        freedom = whole * whole / lower if lower > 0 else 1e9
        # Runs that agree by chance are not better than the sensor's own noise.
        random = max(t_factor(freedom) * math.sqrt(whole), random)
    else:
        warnings.append("one run on a side: the spread between runs is not known")
    half = math.hypot(random, 2.0 * systematic)
    mean_a, mean_b = statistics.fmean(values_a), statistics.fmean(values_b)
    difference = mean_b - mean_a
    real = abs(difference) > half and difference != 0
    ratio = mean_b / mean_a if mean_a > 0 else None
    percent = f" ({100 * (ratio - 1):+.1f} %)" if ratio else ""
    told = f"B takes {'more' if difference > 0 else 'less'}"
    told = told if real else "no difference that this measurement can show"
    covered = [[r.coverage for r in side if r.coverage is not None] for side in (a, b)]
    return Comparison(
        per,
        mean_a,
        mean_b,
        math.hypot(max(alone_a, spread(values_a)), 2.0 * math.hypot(*shared_a.values())),
        math.hypot(max(alone_b, spread(values_b)), 2.0 * math.hypot(*shared_b.values())),
        difference,
        half,
        ratio,
        (len(a), len(b)),
        (min(covered[0], default=None), min(covered[1], default=None)),
        real,
        f"{told}: {quantity(difference, half, _VALUES[per][0])}{percent}",
        tuple(warnings),
    )


def _refuse(rows: Sequence[Row]) -> None:
    for row in rows:
        if row.energy_j is None:
            raise ConfigError(f"{row.file} cannot be compared: {row.why_null}")
        if "stuck" in row.flags:
            hint = "cut it out with --window a:b, or record again"
            why = "its reading was stuck"
            raise ConfigError(f"{row.file} cannot be compared: {why}", hint=hint)
    scopes = sorted({str(row.scope) for row in rows})
    if len(scopes) > 1:
        hint = "joules of a module and of a board cannot be compared"
        raise ConfigError(f"scopes differ: {', '.join(scopes)}", hint=hint)
    unknown = [row for row in rows if row.resolution_only or row.uncertainty_j is None]
    if unknown and len({row.source for row in rows}) > 1:
        why = f"the sources differ, and the accuracy of {unknown[0].source} is not known"
        raise ConfigError(why, hint="state it: --accuracy 1%+5mW, or --meter NAME")


def _fitting(rows: Sequence[Row]) -> tuple[str, str]:
    """Return what to compare, and a sentence where that is not the plain joules."""
    lengths = [row.seconds or 0.0 for row in rows]
    alike = max(lengths) - min(lengths) <= ALIKE * max(lengths)
    if alike or not any(row.open_ended for row in rows):
        return "request", ""
    for kind, count in (("emitted", "emitted"), ("request", "requests")):
        if all(row.tokens.get(count) for row in rows):
            what = "emitted token" if kind == "emitted" else kind
            return kind, f"the runs differ in length: compared per {what}"
    raise ConfigError(
        f"the runs differ in length ({min(lengths):.4g} s and {max(lengths):.4g} s), and "
        "nothing tells what was done in them",
        hint="--per second for mean watts, --tokens N, or --per request if each file is "
        "one and the same piece of work",
    )


def _value(row: Row, per: str) -> float:
    value = _VALUES[per][1](row)
    if value is None:
        why = row.why_null or f"it does not know joules per {per}"
        raise ConfigError(f"{row.file} cannot be compared: {why}")
    return value


def _alone(rows: Sequence[Row], per: str) -> float:
    """Return the 95 % half-width of a side's mean, without what its runs share."""
    return 2.0 * math.sqrt(sum(_random(row, per) ** 2 for row in rows)) / len(rows)


def _random(row: Row, per: str) -> float:
    """Return the standard uncertainty of a run without what it shares with others."""
    if per == "drafted" and row.phase_uncertainty_j.get("draft") is not None:
        return (row.per_token_uncertainty_j.get("drafted") or 0.0) / 2.0
    own = (row.uncertainty_j or 0.0) / 2.0
    if per == "net" and row.net_uncertainty_j is not None:
        own = row.net_uncertainty_j / 2.0
    elif row.terms:
        own = math.sqrt(sum(v * v for k, v in row.terms.items() if k not in SHARED))
    return own * _scale(row, per)


def _scale(row: Row, per: str) -> float:
    """Return the factor from joules of the run to the compared quantity."""
    if per == "net":
        return 1.0 / row.requests
    return abs(_value(row, per) / row.energy_j) if row.energy_j else 1.0


def _shared(rows: Sequence[Row], per: str) -> dict[str, float]:
    """Return the standard uncertainties of a side's mean that its runs share."""
    return {
        term: statistics.fmean(r.terms.get(term, 0.0) * _scale(r, per) for r in rows)
        for term in SHARED
        if (per, term) != ("net", "offset")  # it cancels within each run already
    }


def spread(values: Sequence[float]) -> float:
    """Return the 95 % half-width of the mean of several runs; 0 of one."""
    n = len(values)
    return t_factor(n - 1) * math.sqrt(statistics.variance(values) / n) if n > 1 else 0.0


def _warnings(a: Sequence[Row], b: Sequence[Row]) -> Iterator[str]:
    rows = (*a, *b)
    modes = [sorted({row.power_mode for row in s if row.power_mode}) for s in (a, b)]
    if modes[0] and modes[1] and modes[0] != modes[1]:
        yield f"power modes differ: {', '.join(modes[0])} against {', '.join(modes[1])}"
    sources = sorted({str(row.source) for row in rows})
    if len(sources) > 1:
        yield f"sources differ ({', '.join(sources)}): their offsets do not cancel"
    if any(row.kind == "modelled" for row in rows):
        yield "some joules are modelled, not measured"
    if any(row.uncertainty_j is None for row in rows):
        yield "some runs state no uncertainty: it was taken as 0"
    if any(row.resolution_only for row in rows):
        yield (
            "resolution only: the sensor's accuracy is not known; an offset cancels "
            "between runs of one sensor, a wrong gain does not change the sign"
        )
    bad = {"gaps", "coarse", "not closed", "mode changed", "throttled", "clocks fell"}
    seen = sorted(bad & {flag for row in rows for flag in row.flags})
    if seen:
        yield f"some runs are flagged: {', '.join(seen)}"
