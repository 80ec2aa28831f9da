"""``draftwire energy sources | watch | record | sweep``: on the board, now."""

from __future__ import annotations

import argparse
import json
import signal
import sys
import time
from pathlib import Path
from typing import Any, Callable

from draftwire.cli._energy_common import (
    add_board,
    add_json,
    add_live,
    emit,
    open_live,
    rail_tables,
    say,
    seconds_of,
    sentence,
    split,
    watts,
)
from draftwire.errors import ConfigError, DraftwireError, SensorError
from draftwire.io import align, quantity, write_text

# energy sources


def add_sources(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--root", type=Path, default=Path("/"), help=argparse.SUPPRESS)
    add_board(parser)
    add_json(parser)


def run_sources(args: argparse.Namespace) -> int:
    from draftwire.boards.profiles import find_profile, load_profiles
    from draftwire.energy.sources.choose import choose_source, find_sources

    profiles = load_profiles(*([args.profiles] if args.profiles else []))
    match = find_profile(args.root, profiles, board=args.board)
    findings = find_sources(args.root)
    chosen = None
    problem: SensorError | None = None
    try:
        chosen = choose_source(
            rail_tables(args),
            board=None if match.profile.generic else match.profile.name,
            rails=split(args.rails),
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
    if emit(args, document):
        return 0 if chosen else 3
    print(f"board    {match.profile.title} ({match.how})")
    for finding in findings:
        usable = "yes" if finding.usable else "no"
        print(f"{usable:<4} {finding.source:<11}{finding.detail}")
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


def add_watch(parser: argparse.ArgumentParser) -> None:
    add_live(parser)
    parser.add_argument("--for", dest="seconds", help="e.g. 60s, 5m")
    parser.add_argument("--prom", type=Path, help="Prometheus text file, renewed")
    add_json(parser)


def run_watch(args: argparse.Namespace) -> int:
    from draftwire.energy.live.marks import MarkListener
    from draftwire.energy.live.watch import as_event, frames

    meter, _ = open_live(args)
    marks = MarkListener()
    live = sys.stdout.isatty() and args.json is None
    height = 0
    account = None
    with meter:
        try:
            for account, text in frames(
                meter, seconds=seconds_of(args.seconds), marks=marks
            ):
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
        finally:
            marks.close()
        entry = None if account is None else account.result()
    if entry is not None and args.json is None:
        say(sentence(entry))
    return 0


def _prometheus(path: Path, account: Any, meter: Any) -> None:
    from draftwire.energy.live.exporter import live_metrics
    from draftwire.io import write_text

    write_text(path, live_metrics(meter, account))


# energy record


def add_record(parser: argparse.ArgumentParser) -> None:
    add_live(parser)
    parser.add_argument("--for", dest="seconds", help="e.g. 60s, 5m; else until Ctrl-C")
    parser.add_argument("--out", type=Path, required=True, help="recording (.jsonl)")
    parser.add_argument("--force", action="store_true", help="overwrite")
    parser.add_argument("--baseline", help="measure idle power first, e.g. 30s")
    parser.add_argument(
        "--pulse",
        action="store_true",
        help="load pulses that a USB meter is aligned by",
    )
    add_json(parser)
    parser.add_argument("words", nargs="*", metavar="-- COMMAND", help="what to measure")


def run_record(args: argparse.Namespace) -> int:
    from draftwire.energy.account.context import read_context
    from draftwire.energy.files.recording import Recorder
    from draftwire.energy.live.record import record

    seconds = seconds_of(args.seconds)
    command = args.words[1:] if args.words[:1] == ["--"] else args.words
    meter, board = open_live(args)
    with meter:
        if args.baseline:
            idle = meter.measure_baseline(seconds_of(args.baseline) or 0.0)
            say(f"baseline {watts(idle.mean_w)} ({idle.scope})")
            if idle.mean_w is None:
                say(f"warning: no net joules: {idle.why_null}")
        extra: dict[str, Any] = {"command": command}
        if meter.baseline is not None:
            idle_w, u_w = meter.baseline
            extra.update(baseline_w=idle_w, baseline_u_w=u_w)
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
            meter,
            recorder,
            seconds=seconds,
            command=command,
            pulse=args.pulse,
            stdout=2 if args.json == "-" else None,  # the document is alone on stdout
        )
    if done.truncated:
        say(f"warning: {done.truncated}")
    if not emit(args, {"schema": "draftwire.energy-record/1", **done.entry}):
        print(sentence(done.entry))
        print(f"{recorder.samples} samples in {args.out}")
    if done.exit_code:
        say(f"the command ended with {done.exit_code}")
        return done.exit_code if done.exit_code > 0 else 128 - done.exit_code
    return 130 if done.interrupted and command else 0


# energy sweep


def add_sweep(parser: argparse.ArgumentParser) -> None:
    add_live(parser)
    parser.add_argument("--modes", required=True, help="names, comma between")
    parser.add_argument(
        "--set",
        metavar="CMD",
        help="e.g. 'sudo nvpmodel -m {id}'; else you set the mode",
    )
    parser.add_argument("--yes", action="store_true", help="agree to --set beforehand")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--settle", default="10s", help="wait after a change of mode")
    parser.add_argument("--plot", type=Path, help="Pareto chart: .png, .pdf or .svg")
    parser.add_argument("--out", type=Path, help="renewed after every run (JSON)")
    add_json(parser)
    parser.add_argument("words", nargs="+", metavar="-- COMMAND", help="what to run")


def _agree(args: argparse.Namespace) -> Callable[[str], None]:
    def ask(text: str) -> None:
        if args.yes and args.set:
            say(text)
            return
        if not sys.stdin.isatty():
            raise ConfigError(
                f"nobody here to {text}",
                hint="give --set CMD and --yes, or use a terminal",
            )
        say(f"{text} [Enter, or n to stop]")
        if input().strip().lower() in ("n", "no"):
            raise KeyboardInterrupt

    return ask


def run_sweep(args: argparse.Namespace) -> int:
    from draftwire.boards.system import power_mode
    from draftwire.boards.tree import Tree
    from draftwire.energy.account.context import mode_name
    from draftwire.energy.live.record import Recorded, record
    from draftwire.energy.reports.sweep import Point, set_mode, sweep

    command = args.words[1:] if args.words[:1] == ["--"] else args.words
    found = power_mode(Tree(args.root))
    ids = {} if found is None else found.ids
    notes: list[str] = []
    if not split(args.modes) or args.repeats < 1:
        raise ConfigError("a sweep needs --modes A,B and --repeats of 1 or more")

    def enter(mode: str) -> None:
        note = set_mode(
            mode,
            ids.get(mode),
            template=args.set,
            present=lambda: mode_name(args.root),
            agree=_agree(args),
        )
        if note:
            notes.append(note)

    def run(mode: str, number: int) -> Recorded:
        meter, _ = open_live(args)
        with meter:
            say(f"{mode}: run {number + 1} of {args.repeats}")
            return record(meter, None, command=command, stdout=2)  # stdout is ours

    settle_s = seconds_of(args.settle) or 0.0
    before = mode_name(args.root)

    def leave() -> None:
        if before is None or mode_name(args.root) == before:
            return
        try:
            enter(before)
        except (DraftwireError, KeyboardInterrupt) as exc:
            say(f"warning: the board is not back in power mode {before}: {exc}")

    def document(points: list[Point]) -> dict[str, Any]:
        return {
            "schema": "draftwire.energy-sweep/1",
            "command": command,
            "notes": notes,
            "points": [vars(point) for point in points],
        }

    def keep(points: list[Point]) -> None:
        if args.out:
            write_text(args.out, json.dumps(document(points), indent=2) + "\n")

    old = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        points = sweep(
            split(args.modes) or [],
            enter=enter,
            run=run,
            repeats=args.repeats,
            settle=lambda: time.sleep(settle_s),
            leave=leave,
            done=keep,
        )
    finally:
        signal.signal(signal.SIGTERM, old)
    if not emit(args, document(points)):
        rows = [("mode", f"seconds per {points[0].per}", "energy", "")]
        for p in points:
            rows.append(
                (
                    p.mode,
                    quantity(p.seconds, p.uncertainty_s or None, "s"),
                    quantity(p.energy_j, p.uncertainty_j),
                    p.error or ("Pareto" if p.pareto else ""),
                )
            )
        print(align(rows, left=(0, 3)))
        for note in notes:
            print(f"note: {note}")
    for point in points:
        if point.error:
            say(f"{point.mode}: {point.error}")
    if args.plot and any(point.energy_j is not None for point in points):
        from draftwire.energy.reports.plots import plot_pareto

        plot_pareto([vars(point) for point in points], args.plot, per=points[0].per)
    if any(point.error == "interrupted" for point in points):
        return 130
    return 0 if all(p.energy_j is not None and not p.error for p in points) else 3


# energy calibrate, mark, export


def add_calibrate(parser: argparse.ArgumentParser) -> None:
    add_live(parser)
    parser.add_argument("--for", dest="seconds", default="40s", help="how long")
    parser.add_argument("--dry-run", action="store_true", help="do not keep the result")
    add_json(parser)


def run_calibrate(args: argparse.Namespace) -> int:
    from draftwire.energy.live.calibrate import calibrate, save

    seconds = seconds_of(args.seconds) or 40.0
    args.hz = max(args.hz, 50.0)
    meter, _ = open_live(args)
    with meter:
        say(f"loading the processor in a pattern for {seconds:g} s; let nothing else run")
        found = calibrate(meter, seconds)
    kept = None if args.dry_run else save(found)
    if not emit(args, found.to_dict()):
        response = found.response
        for name, (low, high) in (("lag", response.lag_s), ("window", response.window_s)):
            print(f"{name:<9}{1e3 * low:.1f} to {1e3 * high:.1f} ms")
        print(f"contrast {found.contrast_w:.3g} W, noise {found.noise_w:.2g} W")
        print(f"renewed  each {1e3 * found.period_s:.3g} ms, {found.samples} readings")
        print(f"phases   of {2e3 * response.unsure_s:.3g} ms and longer can be told")
    if kept is not None:
        say(f"kept in {kept}")
    return 0


def add_mark(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("phase", nargs="?", help="what the device does from now on")
    for name in ("drafted", "accepted", "emitted", "requests"):
        parser.add_argument(f"--{name}", type=int, default=0, metavar="N")
    parser.add_argument("--to", help="socket of the recording; found when left out")


def run_mark(args: argparse.Namespace) -> int:
    from draftwire.energy.live.marks import find_listener, send

    names = ("drafted", "accepted", "emitted", "requests")
    tokens = {name: getattr(args, name) for name in names if getattr(args, name)}
    if not args.phase and not tokens:
        raise ConfigError("nothing to mark", hint="name a phase, or --emitted N")
    path = args.to or find_listener()
    if not send(path, args.phase, tokens):
        raise ConfigError(f"nobody records at {path}")
    return 0


def add_export(parser: argparse.ArgumentParser) -> None:
    add_live(parser)
    parser.add_argument(
        "--http", nargs="?", const="127.0.0.1:9477", metavar="HOST:PORT",
        help="serve /metrics for Prometheus (127.0.0.1:9477)",
    )  # fmt: skip
    parser.add_argument("--for", dest="seconds", help="e.g. 60s; else until Ctrl-C")
    parser.add_argument("--dashboard", type=Path, help="write Grafana's dashboard")


def run_export(args: argparse.Namespace) -> int:
    from draftwire.energy.live.exporter import dashboard, serve

    if args.dashboard:
        write_text(args.dashboard, dashboard())
    if args.http is None:
        if not args.dashboard:
            raise ConfigError("nothing to export", hint="--http, or --dashboard FILE")
        return 0
    meter, board = open_live(args)
    with meter:
        serve(meter, args.http, seconds=seconds_of(args.seconds), board=board, say=say)
    return 0
