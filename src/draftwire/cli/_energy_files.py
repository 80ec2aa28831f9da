"""``draftwire energy import | report | compare``: from files, on any machine."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from draftwire.cli._energy_common import (
    add_json,
    add_logs,
    add_meter,
    add_tokens,
    board_name,
    counts,
    emit,
    meter_options,
    rail_tables,
    say,
    split,
)
from draftwire.errors import ConfigError

if TYPE_CHECKING:
    from draftwire.energy.reports.rows import Row


# energy import


def add_import(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("log", help="a tegrastats log, a meter's file, or - for stdin")
    add_logs(parser)
    add_meter(parser)
    parser.add_argument("--align", type=Path, help="recording with pulses, for a meter")
    add_json(parser)


def run_import(args: argparse.Namespace) -> int:
    from draftwire.energy.reports.rows import kind_of

    kind = "tegrastats" if args.log == "-" else kind_of(Path(args.log))
    if kind == "meter":
        return _import_meter(args)
    if kind in ("recording", "reports"):
        raise ConfigError(
            f"{args.log} is ours already", hint=f"draftwire energy report {args.log}"
        )
    from draftwire.energy.files.importer import import_tegrastats
    from draftwire.energy.reports.rows import rows_of_import
    from draftwire.energy.reports.text import as_table

    imported = import_tegrastats(
        "stdin" if args.log == "-" else args.log,
        rail_tables(args),
        file=sys.stdin.buffer if args.log == "-" else None,
        window=_window(args),
        **_log_options(args),
    )
    if not emit(args, imported.to_dict()):
        print(f"{imported.samples} samples, {len(imported.runs)} runs of tegrastats")
        pairs = f"{imported.mean_checked} pairs"
        wrong = f", {imported.mean_wrong} do not follow" if imported.mean_wrong else ""
        print(f"running mean of the first field against the second: {pairs} agree{wrong}")
        for finding in imported.findings:
            print(f"found: {finding.text}")
        texts = {finding.text for finding in imported.findings}
        rows = rows_of_import(imported)
        for row in rows:
            row.notes = [note for note in row.notes if note not in texts]
        print(as_table(rows))
    return 0 if imported.energy_j is not None else 3


def _window(args: argparse.Namespace) -> tuple[float, float] | None:
    from draftwire.energy.files.importer import parse_window

    return parse_window(args.window) if args.window else None


def _log_options(args: argparse.Namespace) -> dict[str, Any]:
    return {
        "board": board_name(args, here=False),
        "rails": split(args.rails),
        "scope": args.scope,
        "interval_s": args.interval / 1000 if args.interval else None,
        "duration_s": args.duration,
    }


def _import_meter(args: argparse.Namespace) -> int:
    from draftwire.energy.files.instruments import read_meter
    from draftwire.energy.live.pulse import align
    from draftwire.energy.reports.rows import row_of_recording
    from draftwire.energy.reports.text import as_table

    interval_s = args.interval / 1000 if args.interval else None
    meter = read_meter(
        Path(args.log), interval_s=interval_s, scope=args.scope, **meter_options(args)
    )
    if args.align:
        offset = align(meter, args.align)
        say(
            f"meter clock + {offset.seconds:.3f} s is ours, "
            f"+- {offset.uncertainty_s:.3f} s "
            f"(correlation {offset.correlation:.2f})"
        )
    row = row_of_recording(meter, window=_window(args))
    if not emit(args, {"schema": "draftwire.energy-import/1", **row.to_dict()}):
        print(as_table([row]))
    return 0 if row.energy_j is not None else 3


# energy report


def add_report(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("files", nargs="+", type=Path, help="recordings, reports, logs")
    add_logs(parser)
    add_tokens(parser)
    parser.add_argument("--battery-wh", type=float, help="battery of the robot")
    parser.add_argument(
        "--co2", type=float, metavar="G_PER_KWH", help="gCO2e of a kWh, as you state it"
    )
    parser.add_argument(
        "--format", choices=("table", "csv", "json", "prometheus", "parquet")
    )
    parser.add_argument("--out", type=Path, help="file for --format")
    parser.add_argument("--plot", type=Path, help="picture: .png, .pdf or .svg")
    parser.add_argument("--html", type=Path, help="one self-contained page")
    parser.add_argument(
        "--trace", type=Path, help="power and phases for ui.perfetto.dev (JSON)"
    )
    add_meter(parser)
    add_json(parser)


def _load(args: argparse.Namespace, path: Path) -> list[Row]:
    from draftwire.energy.reports.rows import load_rows

    return load_rows(
        path,
        rail_tables(args),
        tokens=counts(getattr(args, "tokens", None)),
        window=_window(args),
        meter=meter_options(args),
        **_log_options(args),
    )


def run_report(args: argparse.Namespace) -> int:
    from draftwire.energy.reports import pictures
    from draftwire.energy.reports import text as export

    rows = [row for path in args.files for row in _load(args, path)]
    form = args.format or ("json" if args.json is not None else "table")
    target = args.out or (Path(args.json) if args.json not in (None, "-") else None)
    if target is not None:
        export.write(rows, target, form)
    elif form == "parquet":
        raise ConfigError("Parquet is binary", hint="name a file with --out")
    elif form == "table":
        print(export.as_table(rows, battery_wh=args.battery_wh, g_per_kwh=args.co2))
    else:
        sys.stdout.write(export.FORMATS[form](rows))
    if args.plot:
        pictures.plot(rows, args.plot)
    if args.html:
        pictures.write_html(rows, args.html)
    if args.trace:
        from draftwire.energy.reports.perfetto import write_trace

        write_trace(rows, args.trace)
    return 0 if all(row.energy_j is not None for row in rows) else 3


# energy compare


def add_compare(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("a", help="one file, or several runs with commas between")
    parser.add_argument("b", help="the other side")
    parser.add_argument(
        "--per",
        default="auto",
        choices=("auto", "request", "net", "emitted", "accepted", "drafted", "second"),
        help="joules per request or token, net joules, or watts",
    )
    add_logs(parser)
    add_tokens(parser)
    add_meter(parser)
    add_json(parser)


def run_compare(args: argparse.Namespace) -> int:
    from draftwire.energy.reports.compare import compare

    sides = [
        [row for name in side.split(",") for row in _load(args, Path(name))]
        for side in (args.a, args.b)
    ]
    result = compare(*sides, per=args.per)
    if not emit(args, result.to_dict()):
        for name, mean, runs, covered in zip(
            "AB", (result.a_j, result.b_j), result.runs, result.coverage
        ):
            share = "" if covered is None else f", {100 * covered:.0f} % covered"
            print(f"{name}  {mean:.5g} {result.unit}  ({runs} runs{share})")
        print(result.verdict)
        for warning in result.warnings:
            print(f"warning: {warning}")
    return 0
