"""``draftwire energy``: measured joules, for the person at the bench."""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable, Sequence

from draftwire.errors import ConfigError, SensorError

if TYPE_CHECKING:
    from draftwire.energy.meter import Meter
    from draftwire.energy.rails import RailTable
    from draftwire.energy.report import Row

__all__ = ["register"]


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command and its verbs."""
    energy = subparsers.add_parser(
        "energy",
        help="measured joules: sources, recordings, logs, reports",
        description="Joules with their source, scope and uncertainty. "
        "What was not measured is null with a reason, never 0.",
    )
    verbs = energy.add_subparsers(dest="verb", metavar="VERB", required=True)
    for name, (add, run, text) in _VERBS.items():
        verb = verbs.add_parser(name, help=text, description=text)
        add(verb)
        verb.set_defaults(run=run)


# Options that several verbs share.


def _json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--json",
        nargs="?",
        const="-",
        metavar="FILE",
        help="JSON to FILE, or to stdout without one",
    )


def _board(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--board", help="board profile; found by itself when left out")
    parser.add_argument(
        "--rails", help="rails to add up, comma between, when no profile knows them"
    )
    parser.add_argument("--scope", help="which total: module, board, ...")
    parser.add_argument("--profiles", type=Path, help="folder with profiles of your own")


def _live(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--source", default="auto", help="auto, sysfs, pmic, jtop, ...")
    parser.add_argument("--hz", type=float, default=20.0, help="samples a second")
    parser.add_argument("--root", type=Path, default=Path("/"), help=argparse.SUPPRESS)
    parser.add_argument("--replay", type=Path, help="play a recording as the source")
    parser.add_argument("--speed", type=float, default=1.0, help="of --replay")
    _board(parser)


def _logs(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--window", help="a:b, seconds from the first sample")
    parser.add_argument("--interval", type=float, metavar="MS", help="of unstamped logs")
    parser.add_argument("--duration", type=float, metavar="S", help="of unstamped logs")
    _board(parser)


def _tokens(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--tokens", help="N emitted, or drafted=N,accepted=N,emitted=N", metavar="N"
    )


def _tables(args: argparse.Namespace) -> Sequence[RailTable]:
    """Join the rooms: boards know the profiles, energy takes their rail tables."""
    from draftwire.boards.profiles import load_profiles
    from draftwire.energy.rails import RailTable

    profiles = load_profiles(*([args.profiles] if args.profiles else []))
    return [RailTable.from_dict(p.name, p.rails) for p in profiles.values()]


def _board_name(args: argparse.Namespace) -> str | None:
    """Return the profile of this machine, or None for one that we do not know."""
    from draftwire.boards.profiles import find_profile, load_profiles

    profiles = load_profiles(*([args.profiles] if args.profiles else []))
    match = find_profile(args.root, profiles, board=args.board)
    return None if match.profile.generic else match.profile.name


def _named_board(args: argparse.Namespace) -> str | None:
    """Return the board that the user names for a log; logs come from other machines."""
    if args.board in (None, "auto"):
        return None
    from draftwire.boards.profiles import find_profile, load_profiles

    profiles = load_profiles(*([args.profiles] if args.profiles else []))
    return find_profile(profiles=profiles, board=args.board).profile.name


def _split(text: str | None) -> list[str] | None:
    return [part.strip() for part in text.split(",") if part.strip()] if text else None


def _counts(text: str | None) -> dict[str, int]:
    if not text:
        return {}
    counts = {}
    for part in text.split(","):
        name, equals, number = part.partition("=")
        if not equals:
            name, number = "emitted", part
        if name not in ("drafted", "accepted", "emitted") or not number.strip().isdigit():
            raise ConfigError(f"--tokens {text!r}: N, or drafted=N,accepted=N,emitted=N")
        counts[name] = int(number)
    return counts


def _meter(args: argparse.Namespace) -> tuple[Meter, str | None]:
    """Return a started meter and the board's name."""
    from draftwire.energy.choose import open_meter, total_of
    from draftwire.energy.meter import Meter

    tables, board = _tables(args), _board_name(args)
    options: dict[str, Any] = {"rails": _split(args.rails), "scope": args.scope}
    if args.replay:
        from draftwire.energy.sources.replay import ReplaySource

        replay = ReplaySource(args.replay, speed=args.speed)
        choice = replay.recording.choice
        if options["rails"] or options["scope"]:
            choice = total_of(replay, tables, board=board, **options)
        meter = Meter(replay, choice, hz=args.hz)
    else:
        meter = open_meter(
            tables, hz=args.hz, root=args.root, name=args.source, board=board, **options
        )
    for warning in meter.projector.choice.warnings:
        _say(f"warning: {warning}")
    if meter.projector.choice.total is None:
        _say(f"no total: {meter.projector.choice.why_none}")
    meter.start()
    return meter, board


def _say(text: str) -> None:
    print(text, file=sys.stderr)


def _emit(args: argparse.Namespace, document: Any) -> bool:
    """Write the document where ``--json`` wants it; return False without the option."""
    if args.json is None:
        return False
    text = json.dumps(document, indent=2, allow_nan=False, default=str) + "\n"
    if args.json == "-":
        sys.stdout.write(text)
    else:
        from draftwire.energy.export import write_whole

        write_whole(Path(args.json), lambda path: _put(path, text))
    return True


def _put(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


# energy sources


def _add_sources(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--root", type=Path, default=Path("/"), help=argparse.SUPPRESS)
    _board(parser)
    _json(parser)


def _sources(args: argparse.Namespace) -> int:
    from draftwire.boards.profiles import find_profile, load_profiles
    from draftwire.energy.choose import choose_source, find_sources

    profiles = load_profiles(*([args.profiles] if args.profiles else []))
    match = find_profile(args.root, profiles, board=args.board)
    findings = find_sources(args.root)
    chosen = None
    problem: SensorError | None = None
    try:
        chosen = choose_source(
            _tables(args),
            board=None if match.profile.generic else match.profile.name,
            rails=_split(args.rails),
            scope=args.scope,
            root=args.root,
        )
        chosen.source.close()
    except SensorError as exc:
        problem = exc
    total = None if chosen is None else chosen.choice.total
    document = {
        "schema": "draftwire.energy-sources/1",
        "board": {"name": match.profile.name, "how": match.how},
        "sources": [vars(finding) for finding in findings],
        "chosen": None if chosen is None else chosen.source.name,
        "why": str(problem) if chosen is None else chosen.why,
        "rails": [] if chosen is None else list(chosen.source.rails),
        "total": None if total is None else {"scope": total.scope, "rails": total.rails},
        "total_by": None if chosen is None else chosen.choice.how,
        "why_no_total": None if chosen is None else chosen.choice.why_none or None,
        "warnings": [] if chosen is None else list(chosen.choice.warnings),
    }
    if _emit(args, document):
        return 0 if chosen else 3
    print(f"board    {match.profile.title} ({match.how})")
    for finding in findings:
        print(f"{'yes' if finding.usable else 'no':<4} {finding.source:<11}{finding.detail}")
        if finding.remedy:
            print(f"                to make it readable: {finding.remedy}")
    if chosen is None:
        assert problem is not None
        print(f"chosen   none. {problem.hint}")
        return 3
    print(f"chosen   {chosen.source.name}: {chosen.why}")
    for note in (*chosen.source.notes, *chosen.choice.warnings):
        print(f"note     {note}")
    if total is None:
        print(f"total    none: {chosen.choice.why_none}")
    else:
        rails = " + ".join(total.rails)
        print(f"total    {rails} (scope {total.scope}, by {chosen.choice.how})")
        for other in chosen.choice.others:
            print(f"also     {' + '.join(other.rails)} (scope {other.scope})")
    return 0


# energy watch


def _add_watch(parser: argparse.ArgumentParser) -> None:
    _live(parser)
    parser.add_argument("--for", dest="seconds", help="e.g. 60s, 5m")
    parser.add_argument("--marks", type=Path, help="file that a program writes phases to")
    parser.add_argument("--prom", type=Path, help="Prometheus text file, renewed")
    _json(parser)


def _watch(args: argparse.Namespace) -> int:
    from draftwire.energy.marks import MarkReader
    from draftwire.energy.watch import as_event, frames

    meter, _ = _meter(args)
    marks = MarkReader(args.marks) if args.marks else None
    live = sys.stdout.isatty() and args.json is None
    height = 0
    account = None
    with meter:
        try:
            for account, text in frames(meter, seconds=_time(args.seconds), marks=marks):
                if args.json is not None:
                    print(json.dumps(as_event(account, meter)), flush=True)
                elif live:
                    up = f"\x1b[{height}F\x1b[J" if height else ""
                    print(up + text, flush=True)
                    height = text.count("\n") + 1
                else:
                    print(text.replace("\n", " | "), flush=True)
                if args.prom:
                    _prometheus(args.prom, account, meter)
        except KeyboardInterrupt:
            pass
        entry = None if account is None else account.result()
    if entry is not None and args.json is None:
        _say(_sentence(entry))
    return 0


def _prometheus(path: Path, account: Any, meter: Any) -> None:
    from draftwire.energy.export import as_prometheus, write_whole
    from draftwire.energy.report import Row

    total = meter.projector.choice.total
    row = Row(
        "watch",
        "watch",
        account.joules(),
        source=meter.source.name,
        kind=meter.source.kind,
        scope=None if total is None else total.scope,
    )
    write_whole(path, lambda temporary: _put(temporary, as_prometheus([row])))


# energy record


def _add_record(parser: argparse.ArgumentParser) -> None:
    _live(parser)
    parser.add_argument("--for", dest="seconds", help="e.g. 60s, 5m; else until Ctrl-C")
    parser.add_argument("--out", type=Path, required=True, help="recording (.jsonl)")
    parser.add_argument("--force", action="store_true", help="overwrite")
    parser.add_argument("--baseline", help="measure idle power first, e.g. 30s")
    parser.add_argument(
        "--pulse", action="store_true", help="load pulses that a USB meter is aligned by"
    )
    _json(parser)
    parser.add_argument("words", nargs="*", metavar="-- COMMAND", help="what to measure")


def _record(args: argparse.Namespace) -> int:
    from draftwire.energy.context import read_context
    from draftwire.energy.record import record
    from draftwire.energy.recording import Recorder

    seconds = _time(args.seconds)
    command = args.words[1:] if args.words[:1] == ["--"] else args.words
    meter, board = _meter(args)
    with meter:
        if args.baseline:
            idle = meter.measure_baseline(_time(args.baseline) or 0.0)
            _say(f"baseline {_watts(idle.mean_w)} ({idle.scope})")
        extra = {"command": command, "baseline_w": meter.baseline_w}
        recorder = Recorder(
            args.out,
            meter.source,
            meter.projector,
            hz=meter.hz,
            board=board,
            context=read_context(args.root),
            extra=extra,
            force=args.force,
        )
        done = record(
            meter, recorder, seconds=seconds, command=command, pulse=args.pulse
        )
    if done.truncated:
        _say(f"warning: {done.truncated}")
    if not _emit(args, {"schema": "draftwire.energy-record/1", **done.entry}):
        print(_sentence(done.entry))
        print(f"{recorder.samples} samples in {args.out}")
    if done.exit_code:
        _say(f"the command ended with {done.exit_code}")
        return done.exit_code if done.exit_code > 0 else 128 - done.exit_code
    return 130 if done.interrupted and command else 0


# energy import


def _add_import(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("log", help="a tegrastats log, a meter's .csv, or - for stdin")
    _logs(parser)
    parser.add_argument("--align", type=Path, help="recording with pulses, for a meter")
    parser.add_argument("--columns", help="time=NAME,power=NAME of a meter's file")
    _json(parser)


def _import(args: argparse.Namespace) -> int:
    if args.log.lower().endswith((".csv", ".tsv")):
        return _import_meter(args)
    from draftwire.energy.export import as_table
    from draftwire.energy.importer import import_tegrastats, parse_window
    from draftwire.energy.report import rows_of_import

    imported = import_tegrastats(
        "stdin" if args.log == "-" else args.log,
        _tables(args),
        file=sys.stdin.buffer if args.log == "-" else None,
        board=_named_board(args),
        rails=_split(args.rails),
        scope=args.scope,
        window=parse_window(args.window) if args.window else None,
        interval_s=args.interval / 1000 if args.interval else None,
        duration_s=args.duration,
    )
    if not _emit(args, imported.to_dict()):
        print(f"{imported.samples} samples, {len(imported.runs)} runs of tegrastats")
        pairs = f"{imported.mean_checked} pairs"
        wrong = f", {imported.mean_wrong} do not follow" if imported.mean_wrong else ""
        print(f"running mean of the first field against the second: {pairs} agree{wrong}")
        for finding in imported.findings:
            print(f"found: {finding.text}")
        rows = rows_of_import(imported)
        for row in rows:
            row.notes = [n for n in row.notes if n not in _texts(imported)]
        print(as_table(rows))
    return 0 if imported.energy_j is not None else 3


def _texts(imported: Any) -> set[str]:
    return {finding.text for finding in imported.findings}


def _import_meter(args: argparse.Namespace) -> int:
    from draftwire.energy.align import align
    from draftwire.energy.export import as_table
    from draftwire.energy.importer import parse_window
    from draftwire.energy.report import recording_of_meter, row_of_recording

    columns = dict(part.split("=", 1) for part in _split(args.columns) or ["="])
    columns.pop("", None)
    options: dict[str, Any] = {"columns": columns}
    if args.scope:
        options["scope"] = args.scope
    meter = recording_of_meter(Path(args.log), **options)
    meter.complete = True
    if args.align:
        offset = align(meter, args.align)
        _say(
            f"meter clock + {offset.seconds:.3f} s is ours, +- {offset.uncertainty_s:.3f} s "
            f"(correlation {offset.correlation:.2f})"
        )
    window = parse_window(args.window) if args.window else None
    row = row_of_recording(meter, window=window)
    if not _emit(args, {"schema": "draftwire.energy-import/1", **row.to_dict()}):
        print(as_table([row]))
    return 0 if row.energy_j is not None else 3


# energy report


def _add_report(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("files", nargs="+", type=Path, help="recordings, reports, logs")
    _logs(parser)
    _tokens(parser)
    parser.add_argument("--battery-wh", type=float, help="battery of the robot")
    parser.add_argument(
        "--format", choices=("table", "csv", "json", "prometheus", "parquet")
    )
    parser.add_argument("--out", type=Path, help="file for --format")
    parser.add_argument("--plot", type=Path, help="picture: .png, .pdf or .svg")
    parser.add_argument("--html", type=Path, help="one self-contained page")
    _json(parser)


def _load(args: argparse.Namespace, path: Path) -> list[Row]:
    from draftwire.energy.importer import parse_window
    from draftwire.energy.report import load_rows

    return load_rows(
        path,
        _tables(args),
        tokens=_counts(getattr(args, "tokens", None)),
        window=parse_window(args.window) if args.window else None,
        board=_named_board(args),
        rails=_split(args.rails),
        scope=args.scope,
        interval_s=args.interval / 1000 if args.interval else None,
        duration_s=args.duration,
    )


def _report(args: argparse.Namespace) -> int:
    from draftwire.energy import export, pictures

    rows = [row for path in args.files for row in _load(args, path)]
    form = args.format or ("json" if args.json is not None else "table")
    target = args.out or (Path(args.json) if args.json not in (None, "-") else None)
    if target is not None:
        export.write(rows, target, form)
    elif form == "parquet":
        raise ConfigError("Parquet is binary", hint="name a file with --out")
    elif form == "table":
        print(export.as_table(rows, battery_wh=args.battery_wh))
    else:
        sys.stdout.write(export.FORMATS[form](rows))
    if args.plot:
        pictures.plot(args.files, rows, args.plot)
    if args.html:
        pictures.write_html(args.files, rows, args.html)
    return 0 if all(row.energy_j is not None for row in rows) else 3


# energy compare


def _add_compare(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("a", help="one file, or several runs with commas between")
    parser.add_argument("b", help="the other side")
    parser.add_argument(
        "--per",
        default="total",
        choices=("total", "net", "emitted", "accepted", "drafted"),
        help="compare joules of the run, or joules per token",
    )
    _logs(parser)
    _json(parser)


def _compare(args: argparse.Namespace) -> int:
    from draftwire.energy.compare import compare

    sides = [
        [row for name in side.split(",") for row in _load(args, Path(name))]
        for side in (args.a, args.b)
    ]
    result = compare(*sides, per=args.per)
    if not _emit(args, result.to_dict()):
        unit = "J" if args.per in ("total", "net") else f"J per {args.per} token"
        print(f"A  {result.a_j:.5g} {unit}  ({result.runs[0]} runs)")
        print(f"B  {result.b_j:.5g} {unit}  ({result.runs[1]} runs)")
        print(result.verdict)
        for warning in result.warnings:
            print(f"warning: {warning}")
    return 0


# energy sweep


def _add_sweep(parser: argparse.ArgumentParser) -> None:
    _live(parser)
    parser.add_argument("--modes", required=True, help="names, comma between")
    parser.add_argument(
        "--set", metavar="CMD", help="e.g. 'sudo nvpmodel -m {id}'; else you set the mode"
    )
    parser.add_argument("--yes", action="store_true", help="agree to --set beforehand")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--settle", default="10s", help="wait after a change of mode")
    parser.add_argument("--plot", type=Path, help="Pareto chart: .png, .pdf or .svg")
    _json(parser)
    parser.add_argument("words", nargs="+", metavar="-- COMMAND", help="what to run")


def _agree(args: argparse.Namespace) -> Callable[[str], None]:
    def ask(text: str) -> None:
        if args.yes and args.set:
            _say(text)
            return
        if not sys.stdin.isatty():
            raise ConfigError(
                f"nobody here to {text}", hint="give --set CMD and --yes, or use a terminal"
            )
        _say(f"{text} [Enter, or n to stop]")
        if input().strip().lower() in ("n", "no"):
            raise KeyboardInterrupt

    return ask


def _sweep(args: argparse.Namespace) -> int:
    from draftwire.energy.context import power_mode, power_modes
    from draftwire.energy.record import Recorded, record
    from draftwire.energy.sweep import set_mode, sweep

    command = args.words[1:] if args.words[:1] == ["--"] else args.words
    ids = {name: number for number, name in power_modes(args.root).items()}
    notes: list[str] = []

    def enter(mode: str) -> None:
        note = set_mode(
            mode,
            ids.get(mode),
            template=args.set,
            present=lambda: power_mode(args.root),
            agree=_agree(args),
        )
        if note:
            notes.append(note)

    def run(mode: str, number: int) -> Recorded:
        meter, _ = _meter(args)
        with meter:
            _say(f"{mode}: run {number + 1} of {args.repeats}")
            return record(meter, None, command=command, stdout=sys.stderr)

    settle_s = _time(args.settle) or 0.0
    points = sweep(
        _split(args.modes) or [],
        enter=enter,
        run=run,
        repeats=args.repeats,
        settle=lambda: time.sleep(settle_s),
    )
    document = {
        "schema": "draftwire.energy-sweep/1",
        "command": command,
        "notes": notes,
        "points": [vars(point) for point in points],
    }
    if not _emit(args, document):
        print(f"{'mode':<20}{'seconds':>10}{'joules':>12}{'+-':>10}  per {points[0].per}")
        for p in points:
            joules = "-" if p.energy_j is None else f"{p.energy_j:.4g}"
            half = "-" if p.uncertainty_j is None else f"{p.uncertainty_j:.2g}"
            mark = "  Pareto" if p.pareto else ""
            print(f"{p.mode:<20}{p.seconds:>10.4g}{joules:>12}{half:>10}{mark}")
        for note in notes:
            print(f"note: {note}")
    if args.plot:
        from draftwire.energy.plots import plot_pareto

        plot_pareto([vars(point) for point in points], args.plot, per=points[0].per)
    return 0 if all(point.energy_j is not None for point in points) else 3


# Small things.


def _time(text: str | None) -> float | None:
    if text is None:
        return None
    units = {"ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0, "": 1.0}
    number = text.rstrip("msh")
    try:
        value = float(number) * units[text[len(number) :]]
    except (KeyError, ValueError) as exc:
        raise ConfigError(f"{text!r} is no time", hint="e.g. 500ms, 60s, 5m") from exc
    if not value > 0:
        raise ConfigError(f"{text!r} is not a positive time")
    return value


def _watts(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f} W"


def _sentence(entry: dict[str, Any]) -> str:
    if entry["joules"] is None:
        return f"no joules: {entry['why_null']}"
    half = "" if entry["uncertainty"] is None else f" +- {entry['uncertainty']:.2g}"
    flags = f" [{', '.join(entry['flags'])}]" if entry["flags"] else ""
    seconds = sum(entry["seconds_by_phase"].values())
    return (
        f"{entry['joules']:.5g}{half} J in {seconds:.2f} s, scope {entry['scope']}, "
        f"source {entry['source']}{flags}"
    )


_VERBS: dict[str, tuple[Callable[..., None], Callable[..., int], str]] = {
    "sources": (_add_sources, _sources, "what can be measured here, and what is missing"),
    "watch": (_add_watch, _watch, "live view of rails, phases and session"),
    "record": (_add_record, _record, "record a command, a time, or until Ctrl-C"),
    "import": (_add_import, _import, "read a tegrastats log or a meter's file"),
    "report": (_add_report, _report, "tables, CSV, Prometheus, plots from recordings"),
    "compare": (_add_compare, _compare, "is B really thriftier than A?"),
    "sweep": (_add_sweep, _sweep, "one command over power modes, with a Pareto chart"),
}
