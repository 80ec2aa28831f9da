"""``draftwire energy report --import``: from any log to joules that can be defended."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Sequence

from draftwire.energy.account.integrate import Integrator
from draftwire.energy.account.result import (
    EnergyResult,
    Projector,
    build_result,
    null_result,
)
from draftwire.energy.files.pmic_log import CURRENT, read_pmic_log
from draftwire.energy.files.recording import Recording
from draftwire.energy.files.tegra_clock import set_clock
from draftwire.energy.files.tegra_log import Log, Run, read_log
from draftwire.energy.files.unpack import read_head
from draftwire.energy.rails import RailTable, TotalChoice, choose_total
from draftwire.errors import ConfigError


@dataclass(frozen=True)
class RunEnergy:
    """Energy of one run in a log."""

    first_sample: int
    samples: int
    period_s: float | None
    result: EnergyResult
    choice: TotalChoice


@dataclass
class Imported:
    """A log, what it holds and what is odd about it."""

    log: Log = field(repr=False)
    runs: list[RunEnergy] = field(default_factory=list)  # energy of each run

    def __post_init__(self) -> None:
        log = self.log
        self.name, self.samples, self.findings = log.name, log.samples, log.findings
        self.mean_checked = sum(run.mean_checked for run in log.runs)
        self.mean_wrong = sum(run.mean_wrong for run in log.runs)

    @property
    def energy_j(self) -> float | None:
        """Joules of all runs, or None when one of them has none."""
        values = [run.result.energy_j for run in self.runs]
        known = [value for value in values if value is not None]
        return sum(known) if known and len(known) == len(values) else None

    def to_dict(self) -> dict[str, Any]:
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
                    "board": run.choice.board,
                    "total_by": run.choice.how,
                    **run.result.to_dict(),
                }
                for run in self.runs
            ],
        }


def parse_window(text: str) -> tuple[float, float]:
    """Parse ``a:b``, seconds from the first sample, either may be empty; else a
    ConfigError."""
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
    """Read a tegrastats log and integrate each of its runs, within the ``window`` (seconds
    from the first sample); ``board`` None tells it by its rails. ConfigError: no sample
    in the file, or a setting is wrong."""
    dumps = file is None and CURRENT.search(read_head(path, 1 << 12))
    log = read_pmic_log(path) if dumps else read_log(path, file)
    set_clock(log, interval_s=interval_s, duration_s=duration_s)
    imported = Imported(log)
    origin = next((float(r.times[0]) for r in log.runs if len(r.times)), 0.0)
    bounds = None if window is None else (origin + window[0], origin + window[1])
    for run in log.runs:
        choice = choose_total(run.rails, tables, board=board, user_rails=rails, scope=scope)
        result = _energy(log.source, run, Projector(run.rails, choice), bounds)
        if result is None:
            continue
        energy = RunEnergy(run.first_sample, run.samples, run.period_s, result, choice)
        imported.runs.append(energy)
        for warning in choice.warnings:
            log.note("total", run.first_sample, warning)
    if window is not None and not imported.runs:
        raise ConfigError("the window lies outside of the log")
    return imported


def _energy(
    source: str, run: Run, projector: Projector, bounds: tuple[float, float] | None
) -> EnergyResult | None:
    """Integrate a run; None when the window misses it."""
    label = f"samples {run.first_sample} to {run.first_sample + run.samples - 1}"
    whys = {
        "the log has no power rail": not run.rails,
        "a single sample has no duration": run.samples < 2,
        "the log has no time stamps: give --interval or --duration": not len(run.times),
    }
    why = next((text for text, true in whys.items() if true), "")
    if why:
        notes = _mean_power(run, projector)
        return null_result(label, why, notes=notes, source=source, samples=run.samples)
    start, end = float(run.times[0]), float(run.times[-1])
    whole_s = end - start
    if bounds is not None:
        start, end = max(start, bounds[0]), min(end, bounds[1])
        if end <= start:
            return None
    gap_s = 2 * (run.period_s or 1.0) + 0.3 * run.unit_s
    edges = round(start * 1e9), round(end * 1e9)
    integral = Integrator(projector.width, *edges, max_gap_ns=int(gap_s * 1e9))
    for reading in run.readings():
        integral.add(reading.t_ns, projector.watts(reading.watts))
    integral.finish()
    return build_result(
        label,
        integral,
        projector,
        source=source,
        clock_u_s=run.clock_u_s * (end - start) / max(whole_s, 1e-9),
        observed_step_w=run.observed_step_w(),
        context={"heat_c": {"start": run.heat_first, "end": run.heat_last}},
    )


def _mean_power(run: Run, projector: Projector) -> tuple[str, ...]:
    """Say the mean power: without a clock that is all a log can give."""
    total = projector.choice.total
    sums = [projector.watts(run.watts(i))[0] for i in range(run.samples)]
    known = [watt for watt in sums if watt == watt]
    if total is None or not known:
        return ()
    mean_w = sum(known) / len(known)
    return (f"mean power of {len(known)} samples, {total.scope}: {mean_w:.2f} W",)


def recording_of_run(imported: Imported, first_sample: int) -> Recording:
    """Return one run of a log as a recording; without times a ConfigError."""
    for run, energy in zip(imported.log.runs, imported.runs):
        if first_sample == run.first_sample and len(run.times):
            header = {"source": imported.log.source, "rails": list(run.rails)}
            recording = Recording(imported.name, header, energy.choice, {})
            recording.samples = list(run.readings())
            recording.end_ns = recording.samples[-1].t_ns
            return recording
    raise ConfigError(f"{imported.name} has no times to draw")
