"""``draftwire energy import | report | compare``: from files, on any machine."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from draftwire.cli._energy_common import (
    FILES,
    add,
    counts,
    emit,
    log_options,
    meter_options,
    rail_tables,
    say,
)
from draftwire.errors import ConfigError

if TYPE_CHECKING:
    from draftwire.energy.reports.rows import Row


def add_import(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("log", help="a tegrastats log, a meter's file, or - for stdin")
    align = {"type": Path, "help": "recording with pulses, for a meter"}
    add(parser, *FILES, align=align)
    add(parser, "json")


def run_import(args: argparse.Namespace) -> int:
    from draftwire.energy.files.importer import import_tegrastats
    from draftwire.energy.reports.rows import kind_of, rows_of_import
    from draftwire.energy.reports.text import as_table

    kind = "tegrastats" if args.log == "-" else kind_of(Path(args.log))
    if kind == "meter":
        return _import_meter(args)
    if kind in ("recording", "reports"):
        hint = f"draftwire energy report {args.log}"
        raise ConfigError(f"{args.log} is ours already", hint=hint)
    imported = import_tegrastats(
        "stdin" if args.log == "-" else args.log,
        rail_tables(args),
        file=sys.stdin.buffer if args.log == "-" else None,
        window=_window(args),
        **log_options(args),
    )
    if not emit(args, imported.to_dict()):
        print(f"{imported.samples} samples, {len(imported.runs)} runs of tegrastats")
        wrong = f", {imported.mean_wrong} do not follow" if imported.mean_wrong else ""
        pairs = f"{imported.mean_checked} pairs agree{wrong}"
        print(f"running mean of the first field against the second: {pairs}")
        texts = [finding.text for finding in imported.findings]
        print("".join(f"found: {text}\n" for text in texts), end="")
        rows = rows_of_import(imported)
        for row in rows:
            row.notes = [note for note in row.notes if note not in texts]
        print(as_table(rows))
    return 0 if imported.energy_j is not None else 3


def _window(args: argparse.Namespace) -> tuple[float, float] | None:
    from draftwire.energy.files.importer import parse_window

    return parse_window(args.window) if args.window else None


def _import_meter(args: argparse.Namespace) -> int:
    from draftwire.energy.files.instruments import read_meter
    from draftwire.energy.live.pulse import align
    from draftwire.energy.reports.rows import row_of_recording
    from draftwire.energy.reports.text import as_table

    interval_s = args.interval / 1000 if args.interval else None
    options = {**meter_options(args), "interval_s": interval_s, "scope": args.scope}
    meter = read_meter(Path(args.log), **options)
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


def add_report(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("files", nargs="+", type=Path, help="recordings, reports, logs")
    formats = ("table", "csv", "json", "prometheus", "parquet")
    add(
        parser,
        *FILES,
        "tokens",
        battery_wh={"type": float, "help": "battery of the robot"},
        co2={
            "type": float,
            "metavar": "G_PER_KWH",
            "help": "gCO2e of a kWh, as you state it",
        },
        format={"choices": formats},
        out={"type": Path, "help": "file for --format"},
        plot={"type": Path, "help": "picture: .png, .pdf or .svg"},
        html={"type": Path, "help": "one self-contained page"},
        trace={"type": Path, "help": "power and phases for ui.perfetto.dev (JSON)"},
    )
    add(parser, "json")


def _load(args: argparse.Namespace, path: Path) -> list[Row]:
    from draftwire.energy.reports.rows import load_rows

    return load_rows(
        path,
        rail_tables(args),
        tokens=counts(args.tokens),
        window=_window(args),
        meter=meter_options(args),
        **log_options(args),
    )


def run_report(args: argparse.Namespace) -> int:
    from draftwire.energy.reports import page, perfetto, plots, text

    rows = [row for path in args.files for row in _load(args, path)]
    form = args.format or ("json" if args.json is not None else "table")
    target = args.out or (Path(args.json) if args.json not in (None, "-") else None)
    if target is not None:
        text.write(rows, target, form)
    elif form == "parquet":
        raise ConfigError("Parquet is binary", hint="name a file with --out")
    elif form == "table":
        print(text.as_table(rows, battery_wh=args.battery_wh, g_per_kwh=args.co2))
    else:
        sys.stdout.write(text.FORMATS[form](rows))
    for path, write in (
        (args.plot, plots.plot),
        (args.html, page.write_page),
        (args.trace, perfetto.write_trace),
    ):
        if path:
            write(rows, path)
    return 0 if all(row.energy_j is not None for row in rows) else 3


def add_compare(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("a", help="one file, or several runs with commas between")
    parser.add_argument("b", help="the other side")
    per = ("auto", "request", "net", "emitted", "accepted", "drafted", "second")
    what = "joules per request or token, net joules, or watts"
    add(parser, *FILES, "tokens", per={"default": "auto", "choices": per, "help": what})
    add(parser, "json")


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
