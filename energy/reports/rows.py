"""Reports: rows of energy from recordings, run reports, logs and meter files.

A row is one measurement: joules with uncertainty, by phase and by token.  Tables, CSV,
JSON, Parquet and Prometheus text are made from rows by ``energy.reports.text``.
"""

from __future__ import annotations

import functools
import statistics
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable, Iterator, Mapping, Sequence

from draftwire.energy.account.account import COUNTS, Account, per_token
from draftwire.energy.account.integral import Baseline, EnergyResult
from draftwire.energy.account.meter import Meter
from draftwire.energy.files import ends_in, open_text, read_head
from draftwire.energy.files.logs import DUMP_START, Log, import_tegrastats
from draftwire.energy.files.meters import read_meter
from draftwire.energy.files.recording import (
    CONTEXT,
    Recording,
    ReplaySource,
    check_shape,
    is_recording,
    read_recording,
)
from draftwire.energy.rails import RailTable
from draftwire.energy.sources.base import Reading
from draftwire.energy.sources.jetson import SAMPLE_START
from draftwire.errors import ConfigError
from draftwire.io import parse_json

REPORT = "draftwire.report/1"
Values = Mapping[str, "float | None"]


@dataclass
class Row:
    """One measurement, ready for a table; every figure with its own half-width."""

    file: str
    label: str
    energy_j: float | None
    uncertainty_j: float | None = None
    seconds: float | None = None
    coverage: float | None = None
    mean_w: float | None = None
    max_w: float | None = None
    source: str | None = None
    kind: str | None = None
    scope: str | None = None
    board: str | None = None
    rails: Sequence[str] = ()
    samples: int | None = None
    resolution_only: bool = False
    baseline_w: float | None = None
    net_j: float | None = None
    net_uncertainty_j: float | None = None
    by_phase_j: Values | None = None
    phase_uncertainty_j: Values = field(default_factory=dict)
    phase_why: Mapping[str, str] = field(default_factory=dict)
    phase_seconds: Mapping[str, float] = field(default_factory=dict)
    tokens: Mapping[str, int] = field(default_factory=dict)
    per_token_j: Values = field(default_factory=dict)
    per_token_uncertainty_j: Values = field(default_factory=dict)
    by_rail_j: Mapping[str, float] = field(default_factory=dict)
    by_scope_j: Mapping[str, float] = field(default_factory=dict)
    terms: Mapping[str, float] = field(default_factory=dict)
    power_mode: str | None = None
    heat_c: tuple[float, float] | None = None
    flags: Sequence[str] = ()
    why_null: str | None = None
    notes: Sequence[str] = ()
    open_ended: bool = False  # recorded for a time, not around a piece of work
    recording: Callable[[], Recording] | None = field(default=None, repr=False)

    @property
    def mean_uncertainty_w(self) -> float | None:
        if self.uncertainty_j is None or not self.seconds:
            return None
        return self.uncertainty_j / self.seconds

    @property
    def requests(self) -> int:
        """How many pieces of work it holds."""
        return self.tokens.get("requests", 0) or 1

    @property
    def answers_per_wh(self) -> float | None:
        if not self.energy_j or self.energy_j <= 0:
            return None
        return 3600.0 * self.requests / self.energy_j

    def to_dict(self) -> dict[str, Any]:
        row = dict(vars(self))
        del row["recording"]
        for name in ("mean_uncertainty_w", "answers_per_wh", "requests"):
            row[name] = getattr(self, name)
        only = self.resolution_only
        row["uncertainty_covers"] = "resolution only" if only else "95 %, k = 2"
        row["flags"], row["notes"] = list(self.flags), list(self.notes)
        return row


def load_rows(
    path: Path,
    tables: Sequence[RailTable],
    *,
    tokens: Mapping[str, int] | None = None,
    window: tuple[float, float] | None = None,
    meter: Mapping[str, Any] | None = None,
    **log_options: Any,
) -> list[Row]:
    """Read any file that holds energy: a recording, run reports, a tegrastats log, a
    meter's file (else a ConfigError). ``tokens``: counts that it does not know;
    ``window``: only these seconds, not for run reports; ``log_options``: of
    ``import_tegrastats``."""
    kind = kind_of(path)
    rails, scope = log_options.get("rails"), log_options.get("scope")
    if kind == "reports":
        if window or rails or scope:
            hint = "--window, --rails and --scope are for recordings and logs"
            raise ConfigError(f"{path} is a run report: it has no samples", hint=hint)
        return list(_rows_of_reports(path))
    if kind == "tegrastats":
        log = import_tegrastats(path, tables, window=window, **log_options)
        return rows_of_import(log, tokens or {})
    if kind == "recording":
        recording = read_recording(path)
        recording.choice = recording.total_of(rails, scope)
    else:
        options = {"interval_s": log_options.get("interval_s"), "scope": scope}
        recording = read_meter(path, **{**(meter or {}), **options})
    return [row_of_recording(recording, tokens=tokens, window=window)]


def kind_of(path: Path) -> str:
    """Tell ``recording``, ``reports``, ``meter`` or ``tegrastats`` (and dumps of a Pi 5) by
    what it holds."""
    if is_recording(path):
        return "recording"
    head = read_head(path, 1 << 18)
    if SAMPLE_START.search(head) or DUMP_START.search(head):
        return "tegrastats"
    electric = (b"power", b"volt", b"curr", b"ch1")
    start, words = head.lstrip(), head[:2000].lower()
    if ends_in(path, ".csv", ".tsv", ".dat"):
        return "meter"
    if ends_in(path, ".json", ".jsonl") or start[:1] in (b"[", b"{"):
        words = start.split(b"\n", 1)[0].lower()
        meter = REPORT.encode() not in head and any(w in words for w in electric[:3])
        return "meter" if meter else "reports"
    return "meter" if start and any(w in words for w in electric) else "tegrastats"


def rows_of_import(log: Log, tokens: Mapping[str, int] | None = None) -> list[Row]:
    """Return a row for each run in a log."""
    rows = []
    for run in log.runs:
        entry = run.result.entry()
        entry["notes"] += [finding.text for finding in log.findings]
        row = _row_of_entry(log.name, entry, tokens or {}, run.result.label, run.result)
        row.board, row.open_ended = run.choice.board, True
        row.recording = functools.partial(log.recording, run)
        rows.append(row)
    return rows


def analyse(
    recording: Recording, window: tuple[float, float] | None = None
) -> tuple[dict[str, Any], Account]:
    """Send a recording through meter and account once more; a ConfigError where the window
    misses it."""
    samples, header = recording.samples, recording.header
    if not samples:
        raise ConfigError(f"{recording.path} holds no sample")
    steps = [b.t_ns - a.t_ns for a, b in zip(samples, samples[1:])]
    hz = header.get("hz")
    period_s = (
        1.0 / hz if hz and hz > 1e-6 else statistics.median(steps) * 1e-9 if steps else 1.0
    )
    origin = now = samples[0].t_ns
    rate = min(1000.0, 1 / max(period_s, 1e-3))
    meter = Meter(ReplaySource(recording), recording.choice, hz=rate)
    # What one period may be: the recorded deadlines are dithered, gaps are counted.
    meter.period_ns = int(period_s * 1e9)
    if header.get("baseline_w") is not None:
        meter.baseline = Baseline(header["baseline_w"], header.get("baseline_u_w") or 0.0)
    start = recording.phases[0][0] if recording.phases else origin
    end = recording.end_ns or samples[-1].t_ns
    if window is not None:
        start = max(start, origin + int(window[0] * 1e9))
        if window[1] != float("inf"):
            end = min(end, origin + int(window[1] * 1e9))
    if end <= start:
        if window is None:
            raise ConfigError(f"{recording.path} holds a moment, and no time between two")
        raise ConfigError("the window lies outside of the recording")
    account, phase = Account(meter, clock=lambda: now), "run"
    events: list[tuple[int, Reading | str]] = [(r.t_ns, r) for r in samples]
    events.extend(recording.phases)
    events.sort(key=lambda event: event[0])
    later = sum(t_ns < start for t_ns, _ in events)
    for _, event in events[:later]:
        if isinstance(event, str):
            phase = event
        else:
            meter.push(event)
    now = start
    account.start(phase)
    for t_ns, event in events[later:]:
        now = min(t_ns, end)
        if isinstance(event, str):
            if t_ns <= end:
                account.phase(event)
            continue
        if t_ns > end:
            account.close_at(end)
        meter.push(event)
        if t_ns > end:
            break
    now = end
    account.close_at(end)
    account.count(**{k: v for k, v in recording.tokens.items() if k in COUNTS})
    return account.result(), account


def row_of_recording(
    recording: Recording,
    *,
    tokens: Mapping[str, int] | None = None,
    window: tuple[float, float] | None = None,
) -> Row:
    """Return the row of a recording, or of a meter's file."""
    check_shape(recording.result, _RESULT, f"{recording.path}: result")
    entry, account = analyse(recording, window)
    notes, flags = list(entry["notes"]), list(entry["flags"])
    header, recorded = recording.header, recording.result.get("context") or {}
    if not recording.complete:
        flags.append("not closed")
        notes.append("the recording was not closed: power cut, or a full disk")
    if recording.bad_lines:
        notes.append(f"{recording.bad_lines} lines could not be read")
    flags += [f for f in recording.result.get("flags") or () if f not in flags]
    context = {"start": header.get("context") or {}, "end": {}, **recorded}
    entry = {**entry, "source": recording.name, "context": context}
    entry.update(flags=flags, notes=notes)
    command, meter = header.get("command") or (), recording.name.startswith("meter")
    label = " ".join(command) or ("external meter" if meter else "recording")
    counts = {**recording.tokens, **(tokens or {})}
    row = _row_of_entry(recording.path, entry, counts, label, account.energy)
    row.board, row.open_ended = header.get("board"), not command
    row.recording = lambda: recording
    return row


def _rows_of_reports(path: Path) -> Iterator[Row]:
    with open_text(path) as file:
        text = file.read()
    try:
        value = parse_json(text)
        reports = value if isinstance(value, list) else [value]
    except ValueError:
        try:
            reports = [parse_json(line) for line in text.splitlines() if line.strip()]
        except ValueError as exc:
            raise ConfigError(f"{path} is not JSON: {exc}") from exc
    for number, report in enumerate(reports or [None], 1):
        if not isinstance(report, dict) or report.get("schema") != REPORT:
            why = f"{path} holds no run report ({REPORT}) and no recording"
            hint = "a tegrastats log has lines with `RAM n/nMB`, a meter's file a power"
            raise ConfigError(why, hint=hint)
        yield row_of_report(report, f"{path}#{number}" if len(reports) > 1 else str(path))


_RESULT = {"context": CONTEXT, "flags": [""]}
_ENTRY = {
    **dict.fromkeys(("joules", "uncertainty", "net", "net_uncertainty", "samples"), 0.0),
    **dict.fromkeys(("baseline_w", "coverage"), 0.0),
    **dict.fromkeys(("source", "scope", "kind", "why_null"), ""),
    **dict.fromkeys(("by_phase", "uncertainty_by_phase"), {"": (0.0,)}),
    **dict.fromkeys(("seconds_by_phase", "by_rail", "by_scope"), {"": 0.0}),
    **{"why_null_by_phase": {"": ""}, "notes": [""], "resolution_only": False, **_RESULT},
}
_REPORT = {
    **dict.fromkeys(("tokens", "drafted", "accepted"), 0.0),
    **{"mode": {}, "seconds": {"": (0.0,)}, "energy": _ENTRY},
}


def row_of_report(report: Mapping[str, Any], name: str) -> Row:
    """Return the row of a run report (design: one run, one report)."""
    check_shape(report, _REPORT, f"{name}:")
    energy = report.get("energy") or {}
    keys = {"drafted": "drafted", "accepted": "accepted", "emitted": "tokens"}
    known = {kind: report.get(key) for kind, key in keys.items()}
    counts = {kind: int(count) for kind, count in known.items() if count is not None}
    mode = report.get("mode") or {}
    label = str(mode.get("objective") or mode.get("controller") or "run")
    row = _row_of_entry(name, energy, counts, label)
    if row.energy_j is None and not row.why_null:
        row.why_null = "the report has none"
    if row.seconds is None:
        row.seconds = (report.get("seconds") or {}).get("total")
        if row.energy_j is not None and row.seconds:
            row.mean_w = row.energy_j / row.seconds
    return row


# What a row takes from the ``energy`` entry of a report, and what it calls it.
_TAKEN = {
    **{name: name for name in (
        "coverage", "source", "kind", "scope", "samples", "resolution_only", "baseline_w",
        "flags", "why_null", "notes")},
    "uncertainty": "uncertainty_j", "net": "net_j", "net_uncertainty": "net_uncertainty_j",
    "by_phase": "by_phase_j", "uncertainty_by_phase": "phase_uncertainty_j",
    "why_null_by_phase": "phase_why", "seconds_by_phase": "phase_seconds",
    "by_rail": "by_rail_j", "by_scope": "by_scope_j",
}  # fmt: skip


def _row_of_entry(
    file: str,
    energy: Mapping[str, Any],
    counts: Mapping[str, int],
    label: str,
    result: EnergyResult | None = None,
) -> Row:
    """Return the row of what an account says (``Account.result``), and of what only the
    whole ``result`` of a measurement knows."""
    known = {name: energy.get(key) for key, name in _TAKEN.items()}
    taken: dict[str, Any] = {n: value for n, value in known.items() if value is not None}
    row = Row(file, label, energy.get("joules"), tokens=counts, **taken)
    joules, half = row.energy_j, row.uncertainty_j
    context = energy.get("context") or {}
    looks = {edge: context.get(edge) or {} for edge in ("start", "end")}
    logged = context.get("heat_c") or {}  # a log has no other context
    zones = [look.get("heat_c") or logged.get(edge) or {} for edge, look in looks.items()]
    heat = [max(each.values(), default=0.0) for each in zones]
    row.power_mode = looks["start"].get("power_mode")
    row.heat_c = (heat[0], heat[1]) if all(heat) else None
    row.per_token_j = per_token(joules, row.by_phase_j, counts)
    row.per_token_uncertainty_j = per_token(half, row.phase_uncertainty_j, counts)
    row.seconds = sum(row.phase_seconds.values()) or None
    row.mean_w = joules / row.seconds if joules is not None and row.seconds else None
    if result is not None:
        row.rails, row.max_w = result.rails, result.max_w
        row.terms = {} if result.uncertainty is None else result.uncertainty.terms
        row.seconds, row.mean_w = result.duration_s, result.mean_w
    return row
