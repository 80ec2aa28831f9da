"""Rows as a table for people, CSV, JSON, Parquet and Prometheus text."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any, Callable, Iterator, Mapping, Sequence

from draftwire.energy.reports.rows import Row
from draftwire.errors import ConfigError
from draftwire.io import align, quantity, significant, write_text, write_whole


def stated(value: float | None, half: float | None, row: Row, unit: str = "J") -> str:
    """Return a figure as it stands anywhere: with its half-width and what that covers."""
    text = quantity(value, half, unit)
    only = row.resolution_only and value is not None and half is not None
    return f"{text} (resolution only)" if only else text


def _over(half: float | None, by: float) -> float | None:
    return None if half is None else half / by


def as_table(
    rows: Sequence[Row], *, battery_wh: float | None = None, g_per_kwh: float | None = None
) -> str:
    """Return a table for a terminal, with the details that make it worth defending."""
    head = ("file", "energy", "seconds", "covered", "mean power", "scope", "source")
    lines = [
        (
            Path(row.file).name,
            stated(row.energy_j, row.uncertainty_j, row),
            "-" if row.seconds is None else f"{row.seconds:.2f}",
            "-" if row.coverage is None else f"{100 * row.coverage:.0f} %",
            quantity(row.mean_w, row.mean_uncertainty_w, "W"),
            row.scope or "-",
            (row.source or "-") + " (modelled)" * (row.kind == "modelled"),
        )
        for row in rows
    ]
    text = [align([head, *lines], left=(0, 5, 6))]
    for row in rows:
        details = "\n".join(_details(row, battery_wh, g_per_kwh))
        title = f"{Path(row.file).name}: {row.label}\n" if len(rows) > 1 else ""
        text += [f"\n{title}{details}"] if details else []
    return "\n".join(text)


def _details(row: Row, battery_wh: float | None, g_per_kwh: float | None) -> Iterator[str]:
    if row.energy_j is None:
        yield f"no joules: {row.why_null}"
    if row.net_j is not None and row.baseline_w is not None:
        net = stated(row.net_j, row.net_uncertainty_j, row)
        yield f"net of {row.baseline_w:.3g} W idle: {net}"
    if row.rails:
        by = f", {row.board}" if row.board else ""
        yield f"total: {' + '.join(row.rails)} (scope {row.scope}{by})"
    for scope, joules in row.by_scope_j.items():
        than = "wider" if joules > (row.energy_j or 0.0) else "within"
        yield f"{than}: scope {scope} took {significant(joules)} (--scope {scope})"
    if len(row.by_phase_j or {}) > 1:
        head = ("phase", "energy", "share", "seconds", "mean power")
        yield align([head, *phase_rows(row)])
        yield from phase_whys(row)
    yield from per_token_text(row)
    if row.energy_j and row.answers_per_wh is not None:
        if not row.open_ended or row.tokens.get("requests"):
            yield f"{row.answers_per_wh:.4g} requests like this per watt-hour"
        if battery_wh and row.mean_w:
            hours = battery_wh / row.mean_w
            yield f"a battery of {battery_wh:g} Wh: {hours:.2f} h at this power"
        if g_per_kwh is not None:
            wh, half = row.energy_j / 3600, (row.uncertainty_j or 0.0) / 3600
            co2 = quantity(wh * g_per_kwh, half * g_per_kwh, "mgCO2e")
            yield f"{quantity(wh, half, 'Wh')}; {co2} at {g_per_kwh:g} g/kWh, stated"
    if row.power_mode:
        yield f"power mode {row.power_mode}"
    if row.heat_c:
        yield f"hottest zone {row.heat_c[0]:.1f} C, then {row.heat_c[1]:.1f} C"
    if row.flags:
        yield f"flags: {', '.join(row.flags)}"
    yield from (f"note: {note}" for note in row.notes)


def phase_rows(row: Row) -> Iterator[tuple[str, str, str, str, str]]:
    """Yield name, energy, share, seconds and power of each phase, the largest first."""
    items = sorted((row.by_phase_j or {}).items(), key=lambda item: -(item[1] or 0.0))
    for phase, joules in items:
        seconds, half = row.phase_seconds.get(phase), row.phase_uncertainty_j.get(phase)
        time = "-" if seconds is None else f"{seconds:.2f}"
        if joules is None:
            yield phase, "not told", "-", time, "-"
            continue
        share = f"{100 * joules / row.energy_j:.1f} %" if row.energy_j else "-"
        watt, u = (joules / seconds, _over(half, seconds)) if seconds else (None, None)
        yield phase, stated(joules, half, row), share, time, quantity(watt, u, "W")


def phase_whys(row: Row) -> list[str]:
    """Return a sentence for each phase that has no figure."""
    return [f"{phase} is not told: {why}" for phase, why in row.phase_why.items()]


def per_token_text(row: Row) -> list[str]:
    """Return sentences: joules per token, per thousand, tokens per joule."""
    halves = row.per_token_uncertainty_j
    parts = [
        f"{quantity(value, halves.get(kind))} per {kind} token"
        for kind, value in row.per_token_j.items()
        if value is not None
    ]
    lines = [", ".join(parts)] if parts else []
    emitted, half = row.per_token_j.get("emitted"), halves.get("emitted")
    if emitted and emitted > 0:
        many = quantity(1000 * emitted, None if half is None else 1000 * half)
        rate = quantity(1 / emitted, _over(half, emitted**2), "tokens/J")
        lines.append(f"{many} per 1,000 emitted tokens; {rate}")
    n = row.requests
    if n > 1 and row.energy_j is not None:
        each = quantity(row.energy_j / n, _over(row.uncertainty_j, n))
        lines.append(f"{each} per request ({n})")
    return lines


_FLAT = (
    "file label energy_j uncertainty_j resolution_only seconds coverage mean_w "
    "mean_uncertainty_w max_w net_j net_uncertainty_j source kind scope board samples "
    "power_mode requests answers_per_wh why_null"
).split()


def flat(row: Row) -> dict[str, Any]:
    """Return one flat dictionary, for CSV and Parquet; None stays empty."""
    record: dict[str, Any] = {name: getattr(row, name) for name in _FLAT}
    record["flags"] = " ".join(flag.replace(" ", "-") for flag in row.flags)
    for kind in ("drafted", "accepted", "emitted"):
        record[f"{kind}_tokens"] = row.tokens.get(kind)
        record[f"j_per_{kind}"] = row.per_token_j.get(kind)
        record[f"u_per_{kind}"] = row.per_token_uncertainty_j.get(kind)
    for phase, joules in (row.by_phase_j or {}).items():
        record[f"phase_{phase}_j"] = joules
        record[f"phase_{phase}_u"] = row.phase_uncertainty_j.get(phase)
    return record


def _records(rows: Sequence[Row]) -> tuple[list[dict[str, Any]], list[str]]:
    """Return the flat rows, and the columns that any of them has."""
    records = [flat(row) for row in rows]
    return records, list(dict.fromkeys(key for record in records for key in record))


def as_csv(rows: Sequence[Row]) -> str:
    """Return CSV; what is not known is an empty cell."""
    records, columns = _records(rows)
    out = io.StringIO()
    writer = csv.DictWriter(out, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    return out.getvalue()


def as_json(rows: Sequence[Row]) -> str:
    """Return one JSON document."""
    told = [row.to_dict() for row in rows]
    document = {"schema": "draftwire.energy-report/1", "rows": told}
    return json.dumps(document, indent=2, allow_nan=False) + "\n"


def prometheus(metrics: Mapping[str, tuple[str, str, Sequence[Any]]]) -> str:
    """Return the Prometheus text format
    (https://prometheus.io/docs/instrumenting/exposition_formats/) of (kind, help,
    [(labels, value)]) by name; a null has no sample."""
    lines = []
    escapes = str.maketrans({"\\": "\\\\", '"': '\\"', "\n": "\\n"})
    for name, (kind, text, samples) in metrics.items():
        lines += [f"# HELP draftwire_{name} {text}.", f"# TYPE draftwire_{name} {kind}"]
        for labels, value in samples:
            if value is not None:
                cells = [
                    f'{key}="{word.translate(escapes)}"' for key, word in labels.items()
                ]
                lines.append(f"draftwire_{name}{{{','.join(cells)}}} {value!r}")
    return "\n".join(lines) + "\n"


# Name of the metric, what it says, the field of a row, and the label of its parts.
_METRICS = (
    ("energy_joules", "Energy of the run", "energy_j", ""),
    ("energy_uncertainty_joules", "95 % half-width of the energy", "uncertainty_j", ""),
    ("energy_net_joules", "Energy above idle", "net_j", ""),
    ("energy_seconds", "Length of the run", "seconds", ""),
    ("power_mean_watts", "Mean power", "mean_w", ""),
    ("energy_coverage_ratio", "Share of time sampled", "coverage", ""),
    ("energy_phase_joules", "Energy by phase", "by_phase_j", "phase"),
    ("energy_phase_uncertainty_joules", "95 % half-width of the energy by phase",
     "phase_uncertainty_j", "phase"),
    ("energy_per_token_joules", "Energy per token", "per_token_j", "token"),
)  # fmt: skip


def as_prometheus(rows: Sequence[Row]) -> str:
    """Return the Prometheus text format."""

    def samples(row: Row, name: str, part: str) -> list[tuple[dict[str, str], Any]]:
        labels = {"file": Path(row.file).name, "source": row.source or ""}
        labels.update(kind=row.kind or "", scope=row.scope or "")
        labels["covers"] = "resolution" if row.resolution_only else "data sheet"
        value = getattr(row, name)
        if not part:
            return [(labels, value)]
        return [({**labels, part: key}, each) for key, each in (value or {}).items()]

    found = {
        metric: ("gauge", text, [s for row in rows for s in samples(row, name, part)])
        for metric, text, name, part in _METRICS
    }
    return prometheus(found)


def write(rows: Sequence[Row], path: Path, form: str) -> None:
    """Write a report to a file, whole or not at all; a ConfigError without its library."""
    if form == "parquet":
        write_whole(path, lambda temporary: _parquet(rows, temporary))
    else:
        write_text(path, FORMATS[form](rows))


def _parquet(rows: Sequence[Row], path: Path) -> None:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as exc:
        hint = "pip install 'draftwire[parquet]'"
        raise ConfigError("Parquet needs pyarrow", hint=hint) from exc
    records, columns = _records(rows)
    table = pyarrow.table({n: [record.get(n) for record in records] for n in columns})
    # A column without any value would get the null type, which many readers refuse.
    types = [pyarrow.float64() if t == pyarrow.null() else t for t in table.schema.types]
    parquet.write_table(table.cast(pyarrow.schema(list(zip(columns, types)))), path)


FORMATS: dict[str, Callable[[Sequence[Row]], str]] = {
    "table": as_table,
    "csv": as_csv,
    "json": as_json,
    "prometheus": as_prometheus,
}
