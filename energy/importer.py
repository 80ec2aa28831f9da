"""``draftwire energy import``: from any log to joules that can be defended."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Sequence

from draftwire.energy import tegra_log
from draftwire.energy.integrate import Integrator
from draftwire.energy.rails import RailTable, choose_total
from draftwire.energy.result import EnergyResult, Projector, build_result, null_result
from draftwire.energy.tegra_clock import set_clock
from draftwire.energy.tegra_log import MISSING, Log, LogFinding, Run
from draftwire.errors import ConfigError

__all__ = ["Imported", "RunEnergy", "import_tegrastats", "parse_window"]


@dataclass(frozen=True)
class RunEnergy:
    """Energy of one run in a log."""

    first_sample: int
    samples: int
    period_s: float | None
    result: EnergyResult


@dataclass
class Imported:
    """A log, what it holds and what is odd about it.

    Attributes:
        name: The file.
        samples: How many samples it holds.
        runs: Energy of each run.
        findings: What is odd.
        mean_checked: Pairs in which the mean column followed from the powers.
        mean_wrong: Pairs in which it did not.
    """

    name: str
    samples: int
    runs: list[RunEnergy] = field(default_factory=list)
    findings: list[LogFinding] = field(default_factory=list)
    mean_checked: int = 0
    mean_wrong: int = 0
    log: Log | None = field(default=None, repr=False)

    @property
    def energy_j(self) -> float | None:
        """Joules of all runs, or None when one of them has none."""
        values = [run.result.energy_j for run in self.runs]
        if not values or any(value is None for value in values):
            return None
        return sum(value for value in values if value is not None)

    def to_dict(self) -> dict[str, Any]:
        """Return it for JSON."""
        return {
            "schema": "draftwire.energy-import/1",
            "file": self.name,
            "samples": self.samples,
            "energy_j": self.energy_j,
            "mean_column": {"checked": self.mean_checked, "wrong": self.mean_wrong},
            "findings": [vars(finding) for finding in self.findings],
            "runs": [
                {
                    "first_sample": run.first_sample,
                    "samples": run.samples,
                    "period_s": run.period_s,
                    **run.result.to_dict(),
                }
                for run in self.runs
            ],
        }


def parse_window(text: str) -> tuple[float, float]:
    """Parse ``a:b``, seconds from the first sample; either side may be empty.

    Raises:
        ConfigError: It is something else.
    """
    left, colon, right = text.partition(":")
    try:
        a = float(left) if left.strip() else 0.0
        b = float(right) if right.strip() else float("inf")
    except ValueError as exc:
        raise ConfigError(f"--window {text!r} is not a:b in seconds") from exc
    if not colon or not b > a:
        raise ConfigError(f"--window {text!r} is not a:b in seconds with b after a")
    return a, b


def import_tegrastats(
    path: Path | str,
    tables: Sequence[RailTable],
    *,
    file: BinaryIO | None = None,
    board: str | None = None,
    rails: Sequence[str] | None = None,
    scope: str | None = None,
    window: tuple[float, float] | None = None,
    interval_s: float | None = None,
    duration_s: float | None = None,
) -> Imported:
    """Read a tegrastats log and integrate each of its runs.

    Args:
        path: The log.
        tables: Rail tables of all boards.
        file: Read from here instead of ``path``.
        board: Name of the board, or None to tell it by its rails.
        rails: Rails to add up, when nobody else knows.
        scope: The total to take, on boards with more than one.
        window: Only these seconds, counted from the first sample.
        interval_s: For logs without stamps.
        duration_s: For logs without stamps.

    Raises:
        ConfigError: No sample in the file, or a setting is wrong.
    """
    log = tegra_log.read_log(path, file)
    set_clock(log, interval_s=interval_s, duration_s=duration_s)
    imported = Imported(log.name, log.samples, findings=log.findings, log=log)
    origin = next((r.segments[0].start_s for r in log.runs if r.segments), 0.0)
    bounds = None
    if window is not None:
        bounds = (origin + window[0], origin + window[1])
    for run in log.runs:
        imported.mean_checked += run.mean_checked
        imported.mean_wrong += run.mean_wrong
        choice = choose_total(run.rails, tables, board=board, user_rails=rails, scope=scope)
        result = _energy(run, Projector(run.rails, choice), bounds)
        if result is None:
            continue
        periods = [s.period_s for s in run.segments if s.period_s is not None]
        period = periods[0] if periods else None
        imported.runs.append(RunEnergy(run.first_sample, run.samples, period, result))
        for warning in choice.warnings:
            log.note("total", run.first_sample, warning)
    if window is not None and not imported.runs:
        raise ConfigError("the window lies outside of the log")
    return imported


def _energy(
    run: Run, projector: Projector, bounds: tuple[float, float] | None
) -> EnergyResult | None:
    """Integrate a run; None when the window misses it."""
    label = f"samples {run.first_sample} to {run.first_sample + run.samples - 1}"
    source = "tegrastats-log"
    common: dict[str, Any] = {"source": source, "samples": run.samples}
    if not run.rails:
        return null_result(label, "the log has no power rail", **common)
    if run.samples < 2:
        why = "a single sample has no duration"
        common["notes"] = _mean_powers(run, projector)
        return null_result(label, why, **common)
    if not run.segments:
        why = "the log has no time stamps: give --interval or --duration"
        common["notes"] = _mean_powers(run, projector)
        return null_result(label, why, **common)
    start, end = run.segments[0].start_s, run.segments[-1].end_s
    if bounds is not None:
        start, end = max(start, bounds[0]), min(end, bounds[1])
        if end <= start:
            return None
    parts, clock_u2 = [], 0.0
    for segment in run.segments:
        a = max(start, segment.start_s)
        b = min(end, segment.end_s)
        if b <= a:
            continue
        period_ns = int((segment.period_s or 1.0) * 1e9)
        integral = Integrator(
            projector.width, int(a * 1e9), int(b * 1e9), max_gap_ns=2 * period_ns + 1
        )
        for t, row in zip(segment.times(), run.rows(segment.first, segment.last)):
            if t < a - 3 * (segment.period_s or 1.0):
                continue
            watts = {
                rail: int(milli) * 1e-3
                for rail, milli in zip(run.rails, row)
                if milli != MISSING
            }
            integral.add(int(t * 1e9), projector.watts(watts))
            if t > b:
                break
        integral.finish()
        parts.append(integral)
        share = (b - a) / max(segment.end_s - segment.start_s, 1e-9)
        clock_u2 += (segment.clock_u_s * share) ** 2
    if not parts:
        return null_result(label, "every stretch of the log is a single sample", **common)
    whole = _join(parts)
    whole.start_ns, whole.end_ns = int(start * 1e9), int(end * 1e9)
    return build_result(
        label,
        whole,
        projector,
        source=source,
        clock_u_s=clock_u2**0.5,
        observed_step_w=run.observed_step_w(),
        context=tegra_log.context_of(run),
        gaps_outside=True,
    )


def _join(parts: list[Integrator]) -> Integrator:
    """Add integrals of stretches that do not touch; between them is a gap."""
    first = parts[0]
    for other in parts[1:]:
        for i, joules in enumerate(other.joules):
            first.joules[i] += joules
            first.covered_s[i] += other.covered_s[i]
        first.samples += other.samples
        first.intervals += other.intervals
        first.gaps += other.gaps + 1
        first.held_s += other.held_s
        first.changes += other.changes
        first.sum_step2 += other.sum_step2
        first.sum_diff2 += other.sum_diff2
        first.same_s = max(first.same_s, other.same_s)
        first.max_w = max(first.max_w, other.max_w)
        first.min_w = min(first.min_w, other.min_w)
        first.last_w = other.last_w
    return first


def _mean_powers(run: Run, projector: Projector) -> tuple[str, ...]:
    """Say the mean power: without a clock that is all a log can give."""
    total = projector.choice.total
    if total is None:
        return ()
    sums, count = 0.0, 0
    for row in run.rows(0, run.samples):
        found = {rail: int(m) for rail, m in zip(run.rails, row) if m != MISSING}
        if all(rail in found for rail in total.rails):
            sums += sum(found[rail] for rail in total.rails) * 1e-3
            count += 1
    if not count:
        return ()
    return (f"mean power of {count} samples, {total.scope}: {sums / count:.2f} W",)
