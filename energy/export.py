"""Rows as a table for people, CSV, JSON, Parquet and Prometheus text."""

from __future__ import annotations

import csv
import io
import json
import math
import os
from pathlib import Path
from typing import Any, Callable, Sequence

from draftwire.energy.report import Row
from draftwire.errors import ConfigError

__all__ = ["FORMATS", "as_csv", "as_json", "as_prometheus", "as_table", "write"]


def as_table(rows: Sequence[Row], *, battery_wh: float | None = None) -> str:
    """Return a table for a terminal, with the details that make it worth defending."""
    head = ("file", "energy", "seconds", "mean W", "scope", "source")
    lines = [head]
    for row in rows:
        lines.append(
            (
                Path(row.file).name,
                quantity(row.energy_j, row.uncertainty_j),
                _fixed(row.seconds, 2),
                _fixed(row.mean_w, 2),
                row.scope or "-",
                _labelled(row),
            )
        )
    text = [_align(lines)]
    for row in rows:
        text.append(_details(row, battery_wh, name=len(rows) > 1))
    return "\n".join(part for part in text if part)


def _details(row: Row, battery_wh: float | None, *, name: bool) -> str:
    lines = []
    if row.energy_j is None:
        lines.append(f"no joules: {row.why_null}")
    if row.by_phase_j:
        table = [("phase", "energy", "share", "seconds", "mean W")]
        for phase, joules in sorted(row.by_phase_j.items(), key=lambda x: -x[1]):
            seconds = row.phase_seconds.get(phase)
            watt = joules / seconds if seconds else None
            share = joules / row.energy_j if row.energy_j else None
            percent = "-" if share is None else f"{100 * share:.1f} %"
            table.append(
                (phase, _joules(joules), percent, _fixed(seconds, 2), _fixed(watt, 2))
            )
        lines.append(_align(table))
    tokens = [
        f"{_joules(value)} per {kind} token"
        for kind, value in row.per_token_j.items()
        if value is not None
    ]
    if tokens:
        lines.append(", ".join(tokens))
    if row.answers_per_wh is not None:
        lines.append(f"{row.answers_per_wh:.4g} runs like this per watt-hour")
        if battery_wh and row.mean_w:
            hours = battery_wh / row.mean_w
            lines.append(f"a battery of {battery_wh:g} Wh: {hours:.2f} h at this power")
    if row.power_mode:
        lines.append(f"power mode {row.power_mode}")
    if row.heat_c:
        lines.append(f"hottest zone {row.heat_c[0]:.1f} C, then {row.heat_c[1]:.1f} C")
    if row.flags:
        lines.append(f"flags: {', '.join(row.flags)}")
    lines += [f"note: {note}" for note in row.notes]
    if not lines:
        return ""
    title = f"\n{Path(row.file).name}: {row.label}\n" if name else "\n"
    return title + "\n".join(lines)


def _labelled(row: Row) -> str:
    source = row.source or "-"
    return f"{source} (modelled)" if row.kind == "modelled" else source


def _joules(value: float | None) -> str:
    if value is None:
        return "-"
    for factor, unit in ((1.0, "J"), (1e3, "mJ"), (1e6, "uJ")):
        if abs(value) * factor >= 1 or unit == "uJ":
            return f"{value * factor:.3g} {unit}" if abs(value) < 1e3 else f"{value:.0f} J"
    return f"{value:g} J"


def quantity(value: float | None, half: float | None, unit: str = "J") -> str:
    """Return a value rounded to what its uncertainty leaves of it: ``1350 +- 14 J``."""
    if value is None:
        return "-"
    if half is None or not half > 0:
        return f"{value:.3g} {unit}"
    digits = 1 - math.floor(math.log10(half))  # two digits of the uncertainty
    half = round(half, digits)
    places = max(digits, 0)
    return f"{round(value, digits):.{places}f} +- {half:.{places}f} {unit}"


def _fixed(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _align(lines: Sequence[Sequence[str]]) -> str:
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    text = []
    for line in lines:
        cells = [
            cell.ljust(width)
            if place == 0 or place > 3 and len(line) > 5
            else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(line, widths))
        ]
        text.append("  ".join(cells).rstrip())
    return "\n".join(text)


def flat(row: Row) -> dict[str, Any]:
    """Return one flat dictionary, for CSV and Parquet; None stays empty."""
    record: dict[str, Any] = {
        "file": row.file,
        "label": row.label,
        "energy_j": row.energy_j,
        "uncertainty_j": row.uncertainty_j,
        "seconds": row.seconds,
        "mean_w": row.mean_w,
        "max_w": row.max_w,
        "net_j": row.net_j,
        "source": row.source,
        "kind": row.kind,
        "scope": row.scope,
        "samples": row.samples,
        "coverage": row.coverage,
        "power_mode": row.power_mode,
        "answers_per_wh": row.answers_per_wh,
        "flags": " ".join(flag.replace(" ", "-") for flag in row.flags),
        "why_null": row.why_null,
    }
    for kind in ("drafted", "accepted", "emitted"):
        record[f"{kind}_tokens"] = row.tokens.get(kind)
        record[f"j_per_{kind}"] = row.per_token_j.get(kind)
    for phase, joules in (row.by_phase_j or {}).items():
        record[f"phase_{phase}_j"] = joules
    return record


def _columns(records: Sequence[dict[str, Any]]) -> list[str]:
    return list(dict.fromkeys(key for record in records for key in record))


def as_csv(rows: Sequence[Row]) -> str:
    """Return CSV; what is not known is an empty cell."""
    records = [flat(row) for row in rows]
    out = io.StringIO()
    writer = csv.DictWriter(out, _columns(records), lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    return out.getvalue()


def as_json(rows: Sequence[Row]) -> str:
    """Return one JSON document."""
    document = {
        "schema": "draftwire.energy-report/1",
        "rows": [row.to_dict() for row in rows],
    }
    return json.dumps(document, indent=2, allow_nan=False) + "\n"


def as_prometheus(rows: Sequence[Row]) -> str:
    """Return the Prometheus text format; a null has no sample at all.

    Source:
        https://prometheus.io/docs/instrumenting/exposition_formats/
    """
    metrics: list[tuple[str, str, Callable[[Row], float | None]]] = [
        ("energy_joules", "Energy of the run", lambda row: row.energy_j),
        (
            "energy_uncertainty_joules",
            "95 % half-width of the energy",
            lambda row: row.uncertainty_j,
        ),
        ("energy_seconds", "Length of the run", lambda row: row.seconds),
        ("power_mean_watts", "Mean power", lambda row: row.mean_w),
        ("energy_coverage_ratio", "Share of time sampled", lambda row: row.coverage),
    ]
    lines = []
    for name, text, value in metrics:
        lines += [f"# HELP draftwire_{name} {text}.", f"# TYPE draftwire_{name} gauge"]
        for row in rows:
            number = value(row)
            if number is not None:
                lines.append(f"draftwire_{name}{_labels(row)} {number!r}")
    name = "energy_phase_joules"
    lines += [
        f"# HELP draftwire_{name} Energy by phase.",
        f"# TYPE draftwire_{name} gauge",
    ]
    for row in rows:
        for phase, joules in (row.by_phase_j or {}).items():
            lines.append(f"draftwire_{name}{_labels(row, phase=phase)} {joules!r}")
    name = "energy_per_token_joules"
    lines += [
        f"# HELP draftwire_{name} Energy per token.",
        f"# TYPE draftwire_{name} gauge",
    ]
    for row in rows:
        for kind, per in row.per_token_j.items():
            if per is not None:
                lines.append(f"draftwire_{name}{_labels(row, token=kind)} {per!r}")
    return "\n".join(lines) + "\n"


def _labels(row: Row, **more: str) -> str:
    labels = {
        "file": Path(row.file).name,
        "source": row.source or "",
        "kind": row.kind or "",
        "scope": row.scope or "",
        **more,
    }
    cells = []
    for key, value in labels.items():
        safe = value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
        cells.append(f'{key}="{safe}"')
    return "{" + ",".join(cells) + "}"


def write(rows: Sequence[Row], path: Path, form: str) -> None:
    """Write a report to a file, whole or not at all.

    Raises:
        ConfigError: The format needs a library, or the file cannot be written.
    """
    if form == "parquet":
        write_whole(path, lambda temporary: _parquet(rows, temporary))
        return
    text = FORMATS[form](rows)
    write_whole(path, lambda temporary: _write_text(temporary, text))


def write_whole(path: Path, make: Callable[[Path], None]) -> None:
    """Let ``make`` write beside ``path``, then rename."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}{path.suffix}")
    try:
        make(temporary)
        os.replace(temporary, path)
    except OSError as exc:
        raise ConfigError(f"cannot write {path}: {exc}") from exc
    finally:
        if temporary.exists():
            temporary.unlink()


def _write_text(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


def _parquet(rows: Sequence[Row], path: Path) -> None:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as exc:
        raise ConfigError(
            "Parquet needs pyarrow", hint="pip install 'draftwire[parquet]'"
        ) from exc
    records = [flat(row) for row in rows]
    columns = {name: [record.get(name) for record in records] for name in _columns(records)}
    table = pyarrow.table(columns)
    # A column without any value would get the null type, which many readers refuse.
    fields = [
        pyarrow.field(f.name, pyarrow.float64() if f.type == pyarrow.null() else f.type)
        for f in table.schema
    ]
    parquet.write_table(table.cast(pyarrow.schema(fields)), path)


FORMATS: dict[str, Callable[[Sequence[Row]], str]] = {
    "table": as_table,
    "csv": as_csv,
    "json": as_json,
    "prometheus": as_prometheus,
}
