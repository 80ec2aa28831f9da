"""Reports: rows of energy from recordings, run reports, logs and meter files.

A row is one measurement: joules with uncertainty, by phase and by token.  Tables, CSV,
JSON, Parquet and Prometheus text are made from rows by ``energy.export``.
"""

from __future__ import annotations

import json
import statistics
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Iterator, Mapping, Sequence

from draftwire.energy.account import Account, per_token
from draftwire.energy.as_recording import recording_of_meter
from draftwire.energy.importer import Imported, import_tegrastats
from draftwire.energy.meter import Meter
from draftwire.energy.rails import RailTable
from draftwire.energy.recording import Recording, is_recording, read_recording
from draftwire.energy.sources.base import Reading
from draftwire.energy.sources.replay import ReplaySource
from draftwire.errors import ConfigError

__all__ = ["Row", "analyse", "load_rows"]

REPORT = "draftwire.report/1"


@dataclass
class Row:
    """One measurement, ready for a table."""

    file: str
    label: str
    energy_j: float | None
    uncertainty_j: float | None = None
    seconds: float | None = None
    mean_w: float | None = None
    max_w: float | None = None
    source: str | None = None
    kind: str | None = None
    scope: str | None = None
    samples: int | None = None
    coverage: float | None = None
    net_j: float | None = None
    by_phase_j: Mapping[str, float] | None = None
    phase_seconds: Mapping[str, float] = field(default_factory=dict)
    tokens: Mapping[str, int] = field(default_factory=dict)
    per_token_j: Mapping[str, float | None] = field(default_factory=dict)
    terms: Mapping[str, float] = field(default_factory=dict)
    power_mode: str | None = None
    heat_c: tuple[float, float] | None = None
    flags: Sequence[str] = ()
    why_null: str | None = None
    notes: Sequence[str] = ()
    first_sample: int | None = None  # of a run inside a log

    @property
    def answers_per_wh(self) -> float | None:
        """How many runs like this one a watt-hour lasts for."""
        return 3600.0 / self.energy_j if self.energy_j and self.energy_j > 0 else None

    def to_dict(self) -> dict[str, Any]:
        """Return it for JSON and tables."""
        row = dict(vars(self))
        row["answers_per_wh"] = self.answers_per_wh
        row["flags"], row["notes"] = list(self.flags), list(self.notes)
        return row


def load_rows(
    path: Path,
    tables: Sequence[RailTable],
    *,
    tokens: Mapping[str, int] | None = None,
    window: tuple[float, float] | None = None,
    **log_options: Any,
) -> list[Row]:
    """Read any file that holds energy.

    Args:
        path: A recording, a run report (or a list of them), a tegrastats log, or a
            meter's CSV.
        tables: Rail tables, for logs.
        tokens: Counts that the file does not know.
        window: Only these seconds; not for run reports.
        log_options: As for ``import_tegrastats``.

    Raises:
        ConfigError: It is none of them.
    """
    if is_recording(path):
        row = row_of_recording(read_recording(path), tokens=tokens, window=window)
        return [row]
    if path.suffix.lower() in (".csv", ".tsv"):
        return [_row_of_meter(path, window, tokens or {})]
    if path.suffix.lower() in (".json", ".jsonl"):
        return list(_rows_of_reports(path))
    imported = import_tegrastats(path, tables, window=window, **log_options)
    return rows_of_import(imported, tokens or {})


def rows_of_import(
    imported: Imported, tokens: Mapping[str, int] | None = None
) -> list[Row]:
    """Return a row for each run in a log."""
    counts = dict(tokens or {})
    rows = []
    for run in imported.runs:
        result = run.result
        rows.append(
            Row(
                imported.name,
                result.label,
                result.energy_j,
                result.uncertainty_j,
                result.duration_s,
                result.mean_w,
                result.max_w,
                result.source,
                result.kind,
                result.scope,
                result.samples,
                result.coverage,
                tokens=counts,
                per_token_j=per_token(result.energy_j, None, counts),
                terms={} if result.uncertainty is None else result.uncertainty.terms,
                flags=result.flags,
                why_null=result.why_null or None,
                notes=[*result.notes, *(f.text for f in imported.findings)],
                first_sample=run.first_sample,
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
    meter = Meter(source, recording.choice, hz=1 / max(period_s, 1e-3), ring=1)
    # What one period may be: the recorded deadlines are dithered, gaps are counted.
    meter.period_ns = int(period_s * 1e9)
    meter.baseline_w = recording.header.get("baseline_w")
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
    account.count(**{k: v for k, v in recording.tokens.items() if k in _COUNTS})
    return account.result(), account


_COUNTS = ("drafted", "accepted", "emitted")


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
    """Return the row of a recording."""
    entry, account = analyse(recording, window)
    counts = {**recording.tokens, **(tokens or {})}
    notes = list(entry["notes"])
    flags = list(entry["flags"])
    recorded = recording.result.get("context") or {}
    context = {"start": recording.header.get("context") or {}, "end": {}, **recorded}
    if not recording.complete:
        flags.append("not closed")
        notes.append("the recording was not closed: power cut, or a full disk")
    if recording.bad_lines:
        notes.append(f"{recording.bad_lines} lines could not be read")
    for flag in recording.result.get("flags", ()):
        if flag not in flags:
            flags.append(str(flag))
    label = " ".join(recording.header.get("command") or ()) or "recording"
    result = account.energy
    assert result is not None
    return Row(
        recording.path,
        label,
        entry["joules"],
        entry["uncertainty"],
        result.duration_s,
        result.mean_w,
        result.max_w,
        recording.name,
        entry["kind"] or recording.header.get("source_kind"),
        entry["scope"],
        entry["samples"],
        entry["coverage"],
        entry["net"],
        entry["by_phase"],
        entry["seconds_by_phase"],
        counts,
        per_token(entry["joules"], entry["by_phase"], counts),
        {} if result.uncertainty is None else result.uncertainty.terms,
        context["start"].get("power_mode"),
        _heat(context),
        flags,
        entry["why_null"],
        notes,
    )


def _heat(context: Mapping[str, Any]) -> tuple[float, float] | None:
    """Return the hottest zone at start and end."""
    start = (context.get("start") or {}).get("heat_c")
    end = (context.get("end") or {}).get("heat_c")
    return (max(start.values()), max(end.values())) if start and end else None


def _row_of_meter(
    path: Path, window: tuple[float, float] | None, tokens: Mapping[str, int]
) -> Row:
    recording = recording_of_meter(path)
    row = row_of_recording(recording, tokens=tokens, window=window)
    row.label = "external meter"
    row.flags = [flag for flag in row.flags if flag != "not closed"]
    row.notes = [note for note in row.notes if not note.startswith("the recording was")]
    return row


def _rows_of_reports(path: Path) -> Iterator[Row]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as exc:
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
                hint="tegrastats logs end in .log or .txt, meter files in .csv",
            )
        yield row_of_report(report, f"{path}#{number}" if len(reports) > 1 else str(path))


def row_of_report(report: Mapping[str, Any], name: str) -> Row:
    """Return the row of a run report (design: one run, one report)."""
    energy = report.get("energy") or {}
    joules = energy.get("joules")
    by_phase = energy.get("by_phase")
    seconds = (report.get("seconds") or {}).get("total")
    counts = {
        name: int(count)
        for name, count in (
            ("drafted", report.get("drafted")),
            ("accepted", report.get("accepted")),
            ("emitted", report.get("tokens")),
        )
        if count is not None
    }
    why = energy.get("why_null") or (None if joules is not None else "the report has none")
    mode = report.get("mode") or {}
    context = energy.get("context") or {}
    return Row(
        name,
        str(mode.get("objective") or mode.get("controller") or "run"),
        joules,
        energy.get("uncertainty"),
        seconds,
        joules / seconds if joules is not None and seconds else None,
        None,
        energy.get("source"),
        energy.get("kind"),
        energy.get("scope"),
        energy.get("samples"),
        energy.get("coverage"),
        energy.get("net"),
        by_phase,
        energy.get("seconds_by_phase") or {},
        counts,
        per_token(joules, by_phase, counts),
        power_mode=(context.get("start") or {}).get("power_mode"),
        heat_c=_heat(context),
        flags=energy.get("flags") or (),
        why_null=why,
        notes=energy.get("notes") or (),
    )
