"""Reports: rows of energy from recordings, run reports, logs and meter files.

A row is one measurement: joules with uncertainty, by phase and by token.  Tables, CSV,
JSON, Parquet and Prometheus text are made from rows by ``energy.export``.
"""

from __future__ import annotations

import json
import statistics
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable, Iterator, Mapping, Sequence

from draftwire.energy.account.account import Account, per_token
from draftwire.energy.account.meter import Meter
from draftwire.energy.account.result import Baseline
from draftwire.energy.files.importer import Imported, import_tegrastats, recording_of_run
from draftwire.energy.files.instruments import read_meter
from draftwire.energy.files.recording import Recording, is_recording, read_recording
from draftwire.energy.files.unpack import UNPACK_ERRORS, open_bytes, open_text, stem
from draftwire.energy.rails import RailTable
from draftwire.energy.sources.base import Reading
from draftwire.energy.sources.replay import ReplaySource
from draftwire.energy.sources.tegrastats import SAMPLE_START
from draftwire.errors import ConfigError

__all__ = ["Row", "analyse", "load_rows", "row_of_recording", "rows_of_import"]

REPORT = "draftwire.report/1"
COUNTS = ("drafted", "accepted", "emitted", "requests")
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
        """Half-width of the mean power."""
        if self.uncertainty_j is None or not self.seconds:
            return None
        return self.uncertainty_j / self.seconds

    @property
    def requests(self) -> int:
        """How many pieces of work it holds."""
        return self.tokens.get("requests", 0) or 1

    @property
    def answers_per_wh(self) -> float | None:
        """How many requests like these a watt-hour lasts for."""
        if not self.energy_j or self.energy_j <= 0:
            return None
        return 3600.0 * self.requests / self.energy_j

    def to_dict(self) -> dict[str, Any]:
        """Return it for JSON and tables."""
        row = dict(vars(self))
        del row["recording"]
        row["mean_uncertainty_w"] = self.mean_uncertainty_w
        row["answers_per_wh"] = self.answers_per_wh
        row["requests"] = self.requests
        row["uncertainty_covers"] = (
            "resolution only" if self.resolution_only else "95 %, k = 2"
        )
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
    """Read any file that holds energy.

    Args:
        path: A recording, a run report (or a list of them), a tegrastats log, or a
            meter's file.
        tables: Rail tables, for logs.
        tokens: Counts that the file does not know.
        window: Only these seconds; not for run reports.
        meter: As for ``read_meter``.
        log_options: As for ``import_tegrastats``.

    Raises:
        ConfigError: It is none of them.
    """
    kind = kind_of(path)
    if kind == "recording":
        return [row_of_recording(read_recording(path), tokens=tokens, window=window)]
    if kind == "meter":
        options = {**(meter or {}), "interval_s": log_options.get("interval_s")}
        recording = read_meter(path, scope=log_options.get("scope"), **options)
        return [row_of_recording(recording, tokens=tokens, window=window)]
    if kind == "reports":
        return list(_rows_of_reports(path))
    imported = import_tegrastats(path, tables, window=window, **log_options)
    return rows_of_import(imported, tokens or {})


def kind_of(path: Path) -> str:
    """Tell ``recording``, ``reports``, ``meter`` or ``tegrastats`` by what it holds."""
    if is_recording(path):
        return "recording"
    try:
        with open_bytes(path) as file:
            head = file.read(1 << 18)
    except UNPACK_ERRORS as exc:
        raise ConfigError(f"cannot read {path}: {exc}") from exc
    if SAMPLE_START.search(head):
        return "tegrastats"
    name = stem(path)
    start = head.lstrip()[:1]
    if name.endswith((".csv", ".tsv", ".dat")):
        return "meter"
    if name.endswith((".json", ".jsonl")) or start in (b"[", b"{"):
        return "meter" if REPORT.encode() not in head and _meter_json(head) else "reports"
    words = head[:2000].lower()
    meter = any(word in words for word in (b"volt", b"curr", b"power", b"ch1"))
    return "meter" if meter and start else "tegrastats"


def _meter_json(head: bytes) -> bool:
    line = head.lstrip().split(b"\n", 1)[0].lower()
    return any(word in line for word in (b"power", b"voltage", b"current"))


def rows_of_import(
    imported: Imported, tokens: Mapping[str, int] | None = None
) -> list[Row]:
    """Return a row for each run in a log."""
    counts = dict(tokens or {})
    rows = []
    for run in imported.runs:
        result = run.result

        def recording(first: int = run.first_sample) -> Recording:
            return recording_of_run(imported, first)

        rows.append(
            Row(
                imported.name,
                result.label,
                result.energy_j,
                result.uncertainty_j,
                result.duration_s,
                result.coverage,
                result.mean_w,
                result.max_w,
                result.source,
                result.kind,
                result.scope,
                run.choice.board,
                result.rails,
                result.samples,
                result.resolution_only,
                tokens=counts,
                per_token_j=per_token(result.energy_j, None, counts),
                per_token_uncertainty_j=per_token(result.uncertainty_j, None, counts),
                by_rail_j=result.by_rail,
                by_scope_j=result.by_scope,
                terms={} if result.uncertainty is None else result.uncertainty.terms,
                flags=result.flags,
                why_null=result.why_null or None,
                notes=[*result.notes, *(f.text for f in imported.findings)],
                open_ended=True,
                recording=recording,
            )
        )
    return rows


def analyse(
    recording: Recording, window: tuple[float, float] | None = None
) -> tuple[dict[str, Any], Account]:
    """Send a recording through the meter and the account once more.

    Args:
        recording: The recording.
        window: Seconds from the first sample.

    Raises:
        ConfigError: It has no sample, or the window misses it.
    """
    samples = recording.samples
    if not samples:
        raise ConfigError(f"{recording.path} holds no sample")
    steps = [b.t_ns - a.t_ns for a, b in zip(samples, samples[1:])]
    hz = recording.header.get("hz")
    period_s = 1.0 / hz if hz else statistics.median(steps) * 1e-9 if steps else 1.0
    source = ReplaySource(recording)
    now = samples[0].t_ns
    meter = Meter(source, recording.choice, hz=min(1000.0, 1 / max(period_s, 1e-3)), ring=1)
    # What one period may be: the recorded deadlines are dithered, gaps are counted.
    meter.period_ns = int(period_s * 1e9)
    idle = recording.header.get("baseline_w")
    if idle is not None:
        meter.baseline = Baseline(idle, recording.header.get("baseline_u_w") or 0.0)
    start, end = _session(recording)
    if window is not None:
        start = max(start, samples[0].t_ns + int(window[0] * 1e9))
        if window[1] != float("inf"):
            end = min(end, samples[0].t_ns + int(window[1] * 1e9))
    if end <= start:
        raise ConfigError("the window lies outside of the recording")
    account = Account(meter, clock=lambda: now)
    current = "run"
    started = False
    for t_ns, event in _events(recording):
        if not started and t_ns >= start:
            now = start
            account.start(current)
            started = True
        if t_ns > end and isinstance(event, str):
            continue
        now = min(t_ns, end)
        if isinstance(event, str):
            current = event
            if started:
                account.phase(event)
        else:
            if t_ns > end:
                account.close_at(end)
            meter.push(event)
            if t_ns > end:
                break
    if not started:
        now = start
        account.start(current)
    now = end
    account.close_at(end)
    account.count(**{k: v for k, v in recording.tokens.items() if k in COUNTS})
    return account.result(), account


def _session(recording: Recording) -> tuple[int, int]:
    """Return the edges of the session: its first phase to its closing line."""
    first = recording.samples[0].t_ns
    start = recording.phases[0][0] if recording.phases else first
    return start, recording.end_ns or recording.samples[-1].t_ns


def _events(recording: Recording) -> Iterator[tuple[int, Reading | str]]:
    events: list[tuple[int, Reading | str]] = [(r.t_ns, r) for r in recording.samples]
    events += recording.phases
    events.sort(key=lambda event: event[0])
    yield from events


def row_of_recording(
    recording: Recording,
    *,
    tokens: Mapping[str, int] | None = None,
    window: tuple[float, float] | None = None,
) -> Row:
    """Return the row of a recording, or of a meter's file."""
    entry, account = analyse(recording, window)
    counts = {**recording.tokens, **(tokens or {})}
    notes, flags = list(entry["notes"]), list(entry["flags"])
    recorded = recording.result.get("context") or {}
    context = {"start": recording.header.get("context") or {}, "end": {}, **recorded}
    if not recording.complete:
        flags.append("not closed")
        notes.append("the recording was not closed: power cut, or a full disk")
    if recording.bad_lines:
        notes.append(f"{recording.bad_lines} lines could not be read")
    flags += [str(f) for f in recording.result.get("flags", ()) if f not in flags]
    command = recording.header.get("command") or ()
    meter = recording.name.startswith("meter")
    result = account.energy
    assert result is not None
    row = _row_of_entry(
        recording.path,
        {**entry, "source": recording.name, "context": context},
        counts,
        " ".join(command) or ("external meter" if meter else "recording"),
    )
    row.board, row.rails, row.max_w = (
        recording.header.get("board"), result.rails, result.max_w
    )  # fmt: skip
    row.terms = {} if result.uncertainty is None else result.uncertainty.terms
    row.seconds = result.duration_s
    row.flags, row.notes, row.open_ended = flags, notes, not command
    row.recording = lambda: recording
    return row


def _heat(context: Mapping[str, Any]) -> tuple[float, float] | None:
    """Return the hottest zone at start and end."""
    start = (context.get("start") or {}).get("heat_c")
    end = (context.get("end") or {}).get("heat_c")
    return (max(start.values()), max(end.values())) if start and end else None


def _rows_of_reports(path: Path) -> Iterator[Row]:
    try:
        with open_text(path) as file:
            text = file.read()
    except UNPACK_ERRORS as exc:
        raise ConfigError(f"cannot read {path}: {exc}") from exc
    try:
        value = json.loads(text)
        reports = value if isinstance(value, list) else [value]
    except ValueError:
        try:
            reports = [json.loads(line) for line in text.splitlines() if line.strip()]
        except ValueError as exc:
            raise ConfigError(f"{path} is not JSON: {exc}") from exc
    for number, report in enumerate(reports, 1):
        if not isinstance(report, dict) or report.get("schema") != REPORT:
            raise ConfigError(
                f"{path} holds no run report ({REPORT}) and no recording",
                hint="a tegrastats log has lines with `RAM n/nMB`, a meter's file a power",
            )
        yield row_of_report(report, f"{path}#{number}" if len(reports) > 1 else str(path))


def row_of_report(report: Mapping[str, Any], name: str) -> Row:
    """Return the row of a run report (design: one run, one report)."""
    energy = report.get("energy") or {}
    counts = {
        name: int(count)
        for name, count in (
            ("drafted", report.get("drafted")),
            ("accepted", report.get("accepted")),
            ("emitted", report.get("tokens")),
        )
        if count is not None
    }
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


def _row_of_entry(
    file: str, energy: Mapping[str, Any], counts: Mapping[str, int], label: str
) -> Row:
    """Return the row of what an account says: ``Account.result``."""
    joules, half = energy.get("joules"), energy.get("uncertainty")
    by_phase = energy.get("by_phase")
    by_phase_u = energy.get("uncertainty_by_phase") or {}
    phase_s = energy.get("seconds_by_phase") or {}
    seconds = sum(phase_s.values()) or None
    context = energy.get("context") or {}
    return Row(
        file,
        label,
        joules,
        half,
        seconds,
        energy.get("coverage"),
        joules / seconds if joules is not None and seconds else None,
        source=energy.get("source"),
        kind=energy.get("kind"),
        scope=energy.get("scope"),
        samples=energy.get("samples"),
        resolution_only=bool(energy.get("resolution_only")),
        baseline_w=energy.get("baseline_w"),
        net_j=energy.get("net"),
        net_uncertainty_j=energy.get("net_uncertainty"),
        by_phase_j=by_phase,
        phase_uncertainty_j=by_phase_u,
        phase_why=energy.get("why_null_by_phase") or {},
        phase_seconds=phase_s,
        tokens=counts,
        per_token_j=per_token(joules, by_phase, counts),
        per_token_uncertainty_j=per_token(half, by_phase_u, counts),
        by_rail_j=energy.get("by_rail") or {},
        by_scope_j=energy.get("by_scope") or {},
        power_mode=(context.get("start") or {}).get("power_mode"),
        heat_c=_heat(context),
        flags=energy.get("flags") or (),
        why_null=energy.get("why_null"),
        notes=energy.get("notes") or (),
    )
