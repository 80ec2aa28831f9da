"""``draftwire energy``: measured joules, live and from files."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Sequence

from draftwire.cli._common import give_json, plain
from draftwire.cli._leaf import PROFILES, Leaf
from draftwire.errors import ConfigError
from draftwire.io import quantity

if TYPE_CHECKING:
    from draftwire.energy.account.meter import Meter
    from draftwire.energy.rails import RailTable
    from draftwire.energy.reports.rows import Row

COLUMNS = "time=NAME:ms,voltage=NAME,current=NAME:mA"

_BOARD = f"""
--board NAME          board profile; found by itself when left out
--rails NAME,NAME:words  rails to add up, when no profile knows them
--scope NAME          which total: module, board, ...
{PROFILES}"""
_LIVE = f"""
--source NAME =auto   auto, sysfs, pmic, jtop, ...
--hz N:positive =20   samples a second
--replay FILE         play a recording as the source
--speed N:number =1   of --replay
--root DIR =/         look at the files of another machine below DIR
{_BOARD}"""
_FILES = f"""
--window A:B          seconds from the first sample
--interval MS:positive  of unstamped logs
--duration S:positive  of unstamped logs
{_BOARD}
--columns WORDS:words  {COLUMNS}
--voltage V:positive  of the supply, for current alone
--meter NAME          ppk2, otii, js220, fnb58, um25c, ...
--accuracy TEXT       of the meter, e.g. 0.5%+2mW
"""
_TOKENS = """
--tokens N:text       N emitted, or drafted=N,accepted=N,emitted=N
"""
_LIVE_RUNS = "draftwire.cli.energy.live"
LEAVES = {
    "sources": Leaf(
        "what can be measured here, and what is missing",
        f"{_LIVE_RUNS}:sources",
        f"""{_LIVE}
--meters              bench meters: accuracy, its source, what is unverified
calibrate:
--calibrate           measure how late and how blurred this board's sensor is
--for TIME:time =40s >seconds  how long
--dry-run             do not keep the result
""",
    ),
    "watch": Leaf(
        "live view of rails, phases and session; Prometheus and Grafana",
        f"{_LIVE_RUNS}:watch",
        f"""{_LIVE}
--for TIME:time >seconds  e.g. 60s, 5m; else until Ctrl-C
--prom FILE           Prometheus text file, renewed
--http [HOST:PORT]    serve /metrics for Prometheus instead (127.0.0.1:9477)
--dashboard FILE      write Grafana's dashboard
""",
    ),
    "record": Leaf(
        "record a command, a time, or until Ctrl-C; or mark a phase in a recording",
        f"{_LIVE_RUNS}:record",
        f"""
[WORDS...]            -- COMMAND: what to measure
--out FILE            recording (.jsonl)
--force               overwrite
--baseline TIME:time  measure idle power first, e.g. 30s
--pulse               load pulses that a USB meter is aligned by
--for TIME:time >seconds  e.g. 60s, 5m; else until Ctrl-C
{_LIVE}
mark:
--mark [PHASE]        tell a recording that runs what the device does from now on
--drafted N:int =0    and what it has done
--accepted N:int =0
--emitted N:int =0
--requests N:int =0
--to SOCKET           of the recording; found when left out
""",
    ),
    "report": Leaf(
        "tables, CSV, Prometheus, plots of recordings, reports, logs, meters' files",
        "draftwire.cli.energy:report",
        f"""
FILES...              recordings, run reports, tegrastats logs, files of meters; - is a log
                      on stdin
{_FILES}{_TOKENS}
--battery-wh N:positive  battery of the robot
--co2 G_PER_KWH:number  gCO2e of a kWh, as you state it
--format {{table,csv,json,prometheus,parquet}}  (default: table)
--out FILE            file for --format
--plot FILE           picture: .png, .pdf or .svg
--html FILE           one self-contained page
--trace FILE          power and phases for ui.perfetto.dev (JSON)
import:
--import >imported    examine one log or meter's file: what is odd in it
--align FILE          recording with pulses, for a meter
""",
    ),
    "compare": Leaf(
        "is B really thriftier than A?",
        "draftwire.cli.energy:compare",
        f"""
A:text                one file, or several runs with commas between
B:text                the other side
{_FILES}{_TOKENS}
--per {{auto,request,net,emitted,accepted,drafted,second}} =auto  joules per request or
                      token, net joules, or watts
""",
    ),
    "sweep": Leaf(
        "one command over power modes, with a Pareto chart",
        f"{_LIVE_RUNS}:sweep",
        f"""
WORDS...              -- COMMAND: what to run
--modes NAME,NAME:words !  of the board
--set CMD             e.g. 'sudo nvpmodel -m {{id}}'; else you set the mode
--yes                 agree to --set beforehand
--repeats N:int =3
--settle TIME:pause =10s  wait after a change of mode
--plot FILE           Pareto chart: .png, .pdf or .svg
--out FILE            renewed after every run (JSON)
{_LIVE}""",
    ),
}


def rail_tables(args: argparse.Namespace) -> Sequence[RailTable]:
    from draftwire.energy.rails import load_tables

    return load_tables(*args.profile_dir)


def board_name(args: argparse.Namespace, root: Path) -> str | None:
    """Return the profile of a machine, or None for one that we do not know."""
    from draftwire.boards.profiles import find_profile, load_profiles

    profiles = load_profiles(*args.profile_dir)
    profile = find_profile(root, profiles, board=args.board).profile
    return None if profile.generic else profile.name


def open_live(args: argparse.Namespace) -> tuple[Meter, str | None]:
    """Return a started meter and the board's name."""
    from draftwire.energy.sources.choose import open_meter

    board = board_name(args, args.root)
    meter = open_meter(
        rail_tables(args),
        hz=args.hz,
        root=args.root,
        name=f"replay:{args.replay},{args.speed}" if args.replay else args.source,
        board=board,
        rails=args.rails,
        scope=args.scope,
    )
    choice = meter.projector.choice
    for warning in choice.warnings:
        say(f"warning: {warning}")
    if choice.total is None:
        say(f"no total: {choice.why_none}")
    meter.start()
    return meter, board


def say(text: str) -> None:
    print(text, file=sys.stderr)


def sentence(entry: dict[str, Any]) -> str:
    if entry["joules"] is None:
        return f"no joules: {entry['why_null']}"
    text = quantity(entry["joules"], entry["uncertainty"])
    text += " (resolution only)" if entry["resolution_only"] else ""
    if entry["net"] is not None:
        text += f" ({quantity(entry['net'], entry['net_uncertainty'])} above idle)"
    text += f" in {sum(entry['seconds_by_phase'].values()):.2f} s"
    if entry["coverage"] is not None and entry["coverage"] < 0.9995:
        text += f", {100 * entry['coverage']:.1f} % covered"
    flags = f" [{', '.join(entry['flags'])}]" if entry["flags"] else ""
    return f"{text}, scope {entry['scope']}, source {entry['source']}{flags}"


def _log_options(args: argparse.Namespace) -> dict[str, Any]:
    """Return what the flags say of files that are no meter's."""
    from draftwire.energy.files.logs import parse_window

    return {
        "tables": rail_tables(args),
        "window": parse_window(args.window) if args.window else None,
        # Logs come from other machines: only what the user names counts.
        "board": None if args.board in (None, "auto") else board_name(args, Path("/")),
        "rails": args.rails,
        "scope": args.scope,
        "interval_s": args.interval / 1000 if args.interval else None,
        "duration_s": args.duration,
    }


def _meter_options(args: argparse.Namespace) -> dict[str, Any]:
    """Return what the flags say of a meter's file."""
    pairs = [part.partition("=") for part in args.columns or ()]
    wrong = next((name for name, equals, value in pairs if not equals or not value), None)
    if wrong is not None:
        why = f"--columns {','.join(args.columns)}: {wrong!r} has no =NAME"
        raise ConfigError(why, hint=f"--columns {COLUMNS}")
    columns = {name.strip(): value for name, _, value in pairs}
    known = {name: getattr(args, name) for name in ("voltage", "meter", "accuracy")}
    return {"columns": columns, **known}


def _counts(text: str | None) -> dict[str, int]:
    found = {}
    for part in text.split(",") if text else ():
        name, equals, number = part.partition("=")
        if not equals:
            name, number = "emitted", part
        if name not in ("drafted", "accepted", "emitted") or not number.strip().isdigit():
            raise ConfigError(f"--tokens {text!r}: N, or drafted=N,accepted=N,emitted=N")
        found[name] = int(number)
    return found


def _load(args: argparse.Namespace, *sides: Sequence[str]) -> list[list[Row]]:
    """Return the rows of the files of each side."""
    from draftwire.energy.reports.rows import load_rows

    options = {**_log_options(args), "meter": _meter_options(args)}
    options["tokens"] = _counts(args.tokens)
    return [
        [r for name in side for r in load_rows(Path(name), **options)] for side in sides
    ]


def _import(args: argparse.Namespace, log: str) -> int:
    """Examine one log, or one file of a meter."""
    from draftwire.energy.files.logs import import_tegrastats
    from draftwire.energy.reports.rows import kind_of, load_rows, rows_of_import
    from draftwire.energy.reports.text import as_table

    kind = "tegrastats" if log == "-" else kind_of(Path(log))
    if kind == "meter":
        return _import_meter(args, Path(log))
    if kind == "reports":
        load_rows(Path(log), ())  # what is none says so
    if kind in ("recording", "reports"):
        raise ConfigError(f"{log} is ours already", hint=f"draftwire energy report {log}")
    name, file = ("stdin", sys.stdin.buffer) if log == "-" else (log, None)
    imported = import_tegrastats(name, file=file, **_log_options(args))
    if give_json(args, imported.to_dict()):
        print(f"{imported.source}: {imported.samples} samples, {len(imported.runs)} runs")
        if imported.source == "tegrastats-log":
            wrong = f", {imported.mean_wrong} do not follow" if imported.mean_wrong else ""
            pairs = f"{imported.mean_checked} pairs agree{wrong}"
            print(f"running mean of the first field against the second: {pairs}")
        texts = list(dict.fromkeys(finding.text for finding in imported.findings))
        print("".join(f"found: {text}\n" for text in texts), end="")
        rows = rows_of_import(imported)
        for row in rows:
            row.notes = [note for note in row.notes if note not in texts]
        print(plain(as_table(rows)))
    return 0 if imported.energy_j is not None else 3


def _import_meter(args: argparse.Namespace, log: Path) -> int:
    from draftwire.energy.files.meters import read_meter
    from draftwire.energy.reports.rows import row_of_recording
    from draftwire.energy.reports.text import as_table

    known = _log_options(args)
    options = {name: known[name] for name in ("interval_s", "scope")}
    meter = read_meter(log, **_meter_options(args), **options)
    if args.align:
        from draftwire.energy.live.pulse import align

        shift_s, half_s, correlation = align(meter, args.align)
        text = f"meter clock + {shift_s:.3f} s is ours, +- {half_s:.3f} s"
        say(f"{text} (correlation {correlation:.2f})")
    row = row_of_recording(meter, window=known["window"])
    if give_json(args, {"schema": "draftwire.energy-import/1", **row.to_dict()}):
        print(plain(as_table([row])))
    return 0 if row.energy_j is not None else 3


def report(args: argparse.Namespace) -> int:
    """Show files: their rows as a table or in another form, and pictures of them."""
    from draftwire.energy.reports import page, plots, text, trace

    if args.imported:
        if len(args.files) > 1:
            raise ConfigError("--import examines one file", hint="leave the others out")
        for name in ("format", "out", "plot", "html", "trace"):
            if getattr(args, name):
                hint = (
                    "leave --import out to write a file; what it says goes to --json FILE"
                )
                raise ConfigError(f"--{name} does not go with --import", hint=hint)
        return _import(args, args.files[0])
    (rows,) = _load(args, args.files)
    form = args.format or ("json" if args.json is not None else "table")
    target = args.out or (Path(args.json) if args.json not in (None, "-") else None)
    if target is not None:
        text.write(rows, target, form)
    elif form == "parquet":
        raise ConfigError("Parquet is binary", hint="name a file with --out")
    elif form == "table":
        table = text.as_table(rows, battery_wh=args.battery_wh, g_per_kwh=args.co2)
        print(plain(table))  # names come from files of others
    else:
        sys.stdout.write(text.FORMATS[form](rows))
    for path, write in (
        (args.plot, plots.plot),
        (args.html, page.write_page),
        (args.trace, trace.write_trace),
    ):
        if path:
            write(rows, path)
    return 0 if all(row.energy_j is not None for row in rows) else 3


def compare(args: argparse.Namespace) -> None:
    """Say whether one side takes less than the other."""
    from draftwire.energy.reports import compare

    result = compare.compare(
        *_load(args, args.a.split(","), args.b.split(",")), per=args.per
    )
    if give_json(args, result.to_dict()):
        means = (result.a_j, result.a_uncertainty_j), (result.b_j, result.b_uncertainty_j)
        for name, mean, runs, covered in zip("AB", means, result.runs, result.coverage):
            share = "" if covered is None else f", {100 * covered:.0f} % covered"
            count = "1 run" if runs == 1 else f"{runs} runs"
            print(f"{name}  {quantity(*mean, result.unit)}  ({count}{share})")
        print(result.verdict)
        for warning in result.warnings:
            print(f"warning: {warning}")
