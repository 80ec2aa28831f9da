"""``draftwire energy sources | watch | record | sweep``: on the board, now."""

from __future__ import annotations

import argparse
import json
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Any

from draftwire.cli._common import give_json
from draftwire.cli.energy import open_live, rail_tables, say, sentence
from draftwire.errors import ConfigError, DraftwireError, OutputError, SensorError
from draftwire.io import align, quantity, write_text

HERE = "127.0.0.1:9477"  # of Prometheus
COUNTS = ("drafted", "accepted", "emitted", "requests")


class _Renewed:
    """A file that is written again and again: a full disk is said when that begins, and
    raised at the end where it stayed so. Without a path nothing is written."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._full: OutputError | None = None

    def write(self, text: str) -> None:
        try:
            if self._path is not None:
                write_text(self._path, text)
            self._full = None
        except OutputError as exc:
            if self._full is None:
                say(f"warning: {exc}; going on")
            self._full = exc

    def close(self) -> None:
        if self._full is not None:
            raise self._full


def sources(args: argparse.Namespace) -> int:
    """Say what can be measured here; 3 when nothing can."""
    if args.calibrate:
        return _calibrate(args)
    if args.meters:
        return _meters(args)
    from draftwire.boards.profiles import find_profile, load_profiles
    from draftwire.energy.sources.choose import choose_source, find_sources

    match = find_profile(args.root, load_profiles(*args.profile_dir), board=args.board)
    findings = find_sources(args.root)
    document: dict[str, Any] = {
        "schema": "draftwire.energy-sources/1",
        "board": {"name": match.profile.name, "how": match.how},
        "sources": [vars(finding) for finding in findings],
    }
    lines = [f"board    {match.profile.title} ({match.how})"]
    for finding in findings:
        usable = "yes" if finding.usable else "no"
        lines.append(f"{usable:<4} {finding.source:<11}{finding.detail}")
        if finding.remedy:
            lines.append(f"                to make it readable: {finding.remedy}")
    try:
        chosen = choose_source(
            rail_tables(args),
            board=None if match.profile.generic else match.profile.name,
            rails=args.rails,
            scope=args.scope,
            root=args.root,
        )
        source, choice = chosen.source, chosen.choice
        source.close()
        total = choice.total
        document.update(
            chosen=source.name,
            why=chosen.why,
            rails=list(source.rails),
            total=total and {"scope": total.scope, "rails": total.rails},
            total_by=choice.how,
            why_no_total=choice.why_none or None,
            warnings=list(choice.warnings),
        )
        lines.append(f"chosen   {source.name}: {chosen.why}")
        lines += [f"note     {note}" for note in (*source.notes, *choice.warnings)]
        told = f"none: {choice.why_none}"
        if total is not None:
            told = f"{' + '.join(total.rails)} (scope {total.scope}, by {choice.how})"
        lines.append(f"total    {told}")
        others = ((" + ".join(other.rails), other.scope) for other in choice.others)
        lines += [f"also     {rails} (scope {scope})" for rails, scope in others]
    except SensorError as exc:
        nothing = dict.fromkeys(("chosen", "total", "total_by", "why_no_total"))
        document.update(nothing, why=str(exc), rails=[], warnings=[])
        lines.append(f"chosen   none. {exc.hint}")
    if give_json(args, document):
        print("\n".join(lines))
    return 0 if document["chosen"] else 3


def _meters(args: argparse.Namespace) -> int:
    from draftwire.energy.files.meters import load_instruments

    known = load_instruments().values()
    meters = [vars(one) for one in known]
    if give_json(args, {"schema": "draftwire.energy-meters/1", "meters": meters}):
        for one in known:
            offsets = ((one.offset_a, "A"), (one.offset_v, "V"), (one.offset_w, "W"))
            figures = [f"{100 * one.gain:g} %", *(f"{x:g} {u}" for x, u in offsets if x)]
            print(f"{one.name:<8} {one.title}: {' + '.join(figures)}, before {one.scope}")
            print(f"         {one.provenance}" + (one.url and f"\n         {one.url}"))
    return 0


def watch(args: argparse.Namespace) -> None:
    """Show watts while they come, or serve them."""
    if args.http is not None or args.dashboard:
        return _export(args)
    from draftwire.cli._screen import fitting
    from draftwire.energy.live.marks import MarkListener
    from draftwire.energy.live.watch import as_event, frames, live_metrics

    meter, board = open_live(args)
    marks = MarkListener()
    live = sys.stdout.isatty() and args.json is None
    height, account = 0, None
    metrics = _Renewed(args.prom)
    with meter:
        try:
            for account, text in frames(meter, marks, seconds=args.seconds):
                if args.json is not None:
                    print(json.dumps(as_event(account, meter)), flush=True)
                elif live:
                    up = f"\x1b[{height}F\x1b[J" if height else ""
                    lines = fitting(text.split("\n"))
                    print(up + "\n".join(lines), flush=True)
                    height = len(lines)
                else:
                    print(text.replace("\n", " | "), flush=True)
                if args.prom:
                    metrics.write(live_metrics(meter, account, board))
        except KeyboardInterrupt:
            pass
        finally:
            marks.close()
        entry = None if account is None else account.result()
    if entry is not None and args.json is None:
        say(sentence(entry))
    metrics.close()


def record(args: argparse.Namespace) -> int:
    """Record, or tell a recording what happens."""
    if args.mark is not None:
        return _mark(args)
    if args.out is None:
        raise ConfigError("no --out", hint="--out FILE.jsonl takes the recording")
    from draftwire.energy.account.meter import read_context
    from draftwire.energy.files.recording import Recorder
    from draftwire.energy.live import record as live

    seconds = args.seconds
    command = _command(args)
    meter, board = open_live(args)
    with meter:
        known: dict[str, Any] = {"command": command}
        if args.baseline:
            idle = meter.measure_baseline(args.baseline)
            mean = "-" if idle.mean_w is None else f"{idle.mean_w:.3f} W"
            say(f"baseline {mean} ({idle.scope})")
            if idle.mean_w is None:
                say(f"warning: no net joules: {idle.why_null}")
        if meter.baseline is not None:
            known["baseline_w"], known["baseline_u_w"] = meter.baseline
        recorder = Recorder(
            args.out,
            meter.source,
            meter.projector,
            hz=meter.hz,
            board=board,
            context=read_context(args.root),
            force=args.force,
            **known,
        )
        # With --json the document is alone on stdout.
        out = 2 if args.json == "-" else None
        options = {"seconds": seconds, "command": command, "pulse": args.pulse}
        done = live.record(meter, recorder, stdout=out, **options)
    if done.truncated:
        say(f"warning: {done.truncated}")
    if give_json(args, {"schema": "draftwire.energy-record/1", **done.entry}):
        print(sentence(done.entry))
        print(f"{recorder.samples} samples in {args.out}")
    if done.exit_code:
        say(f"the command ended with {done.exit_code}")
        return done.exit_code if done.exit_code > 0 else 128 - done.exit_code
    if done.truncated:
        return OutputError.exit_code
    return 130 if done.interrupted and command else 0


def sweep(args: argparse.Namespace) -> int:
    """Run a command in each of the power modes."""
    from draftwire.boards.system import power_mode
    from draftwire.boards.tree import Tree
    from draftwire.energy.account.meter import mode_name
    from draftwire.energy.files.recording import Recorder
    from draftwire.energy.live import record as live
    from draftwire.energy.reports.sweep import Point, set_mode
    from draftwire.energy.reports.sweep import sweep as run_modes

    command = _command(args)
    found = power_mode(Tree(args.root))
    ids = {} if found is None else found.ids
    modes, notes = args.modes, []
    if not modes or args.repeats < 1:
        raise ConfigError("a sweep needs --modes A,B and --repeats of 1 or more")

    def present() -> str | None:
        return mode_name(args.root)

    def agree(text: str) -> None:
        if args.yes and args.set:
            say(text)
        elif not sys.stdin.isatty():
            hint = "give --set CMD and --yes, or use a terminal"
            raise ConfigError(f"nobody here to {text}", hint=hint)
        else:
            say(f"{text} [Enter, or n to stop]")
            if input().strip().lower() in ("n", "no"):
                raise KeyboardInterrupt

    def enter(mode: str) -> None:
        number = ids.get(mode)
        note = set_mode(mode, number, template=args.set, present=present, agree=agree)
        notes.extend([note] if note else [])

    def settled(mode: str) -> None:
        enter(mode)
        time.sleep(args.settle)

    def run(mode: str, number: int) -> live.Recorded:
        meter, _ = open_live(args)
        with meter:
            say(f"{mode}: run {number + 1} of {args.repeats}")
            nowhere = Recorder(None, meter.source, meter.projector)
            return live.record(meter, nowhere, command=command, stdout=2)  # stdout is ours

    before = present()
    ends = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

    def leave() -> None:
        if before is None or present() == before:
            return
        if args.yes and args.set:  # a second Ctrl-C does not leave it halfway
            for number in ends:
                signal.signal(number, signal.SIG_IGN)
        try:
            enter(before)
        except (DraftwireError, KeyboardInterrupt) as exc:
            say(f"warning: the board is not back in power mode {before}: {exc}")

    def document(points: list[Point]) -> dict[str, Any]:
        told = [vars(point) for point in points]
        about = {"schema": "draftwire.energy-sweep/1", "command": command, "notes": notes}
        return {**about, "points": told}

    kept = _Renewed(args.out)

    def keep(points: list[Point]) -> None:
        kept.write(json.dumps(document(points), indent=2) + "\n")

    # A lost terminal ends it as Ctrl-C does: the board's mode back, the runs kept.
    old = {number: signal.signal(number, signal.default_int_handler) for number in ends}
    ports: dict[str, Any] = {"enter": settled, "run": run, "leave": leave, "done": keep}
    try:
        points = run_modes(modes, repeats=args.repeats, **ports)
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
    if give_json(args, document(points)):
        rows = [("mode", f"seconds per {points[0].per}", "energy", "")]
        for p in points:
            time_text = quantity(p.seconds, p.uncertainty_s or None, "s")
            end = p.error or ("Pareto" if p.pareto else "")
            rows.append((p.mode, time_text, quantity(p.energy_j, p.uncertainty_j), end))
        print(align(rows, left=(0, 3)))
        for note in notes:
            print(f"note: {note}")
    for point in points:
        if point.error:
            say(f"{point.mode}: {point.error}")
    if args.plot and any(point.energy_j is not None for point in points):
        from draftwire.energy.reports.plots import plot_pareto

        plot_pareto([vars(point) for point in points], args.plot, per=points[0].per)
    kept.close()
    if any(point.error == "interrupted" for point in points):
        return 130
    return 0 if all(p.energy_j is not None and not p.error for p in points) else 3


def _command(args: argparse.Namespace) -> list[str]:
    words: list[str] = args.words
    words = words[1:] if words[:1] == ["--"] else words
    if words and shutil.which(words[0]) is None:  # said before anything is measured
        hint = "after -- stands a program, and its arguments"
        raise ConfigError(f"there is no program {words[0]!r} to run", hint=hint)
    return words


def _calibrate(args: argparse.Namespace) -> int:
    from draftwire.energy.live.pulse import calibrate, save

    seconds = args.seconds or 40.0
    args.hz = max(args.hz, 50.0)
    meter, _ = open_live(args)
    with meter:
        say(f"loading the processor in a pattern for {seconds:g} s; let nothing else run")
        found = calibrate(meter, seconds)
    kept = None if args.dry_run else save(found)
    if give_json(args, found.to_dict()):
        response = found.response
        for name, (low, high) in (("lag", response.lag_s), ("window", response.window_s)):
            print(f"{name:<9}{1e3 * low:.1f} to {1e3 * high:.1f} ms")
        print(f"contrast {found.contrast_w:.3g} W, noise {found.noise_w:.2g} W")
        print(f"renewed  each {1e3 * found.period_s:.3g} ms, {found.samples} readings")
        print(f"phases   of {2e3 * response.unsure_s:.3g} ms and longer can be told")
    if kept is not None:
        say(f"kept in {kept}")
    return 0


def _mark(args: argparse.Namespace) -> int:
    from draftwire.energy.live.marks import find_listener, send

    tokens = {name: getattr(args, name) for name in COUNTS if getattr(args, name)}
    if not args.mark and not tokens:
        raise ConfigError("nothing to mark", hint="name a phase, or --emitted N")
    path = args.to or find_listener()
    if not send(path, args.mark or None, tokens):
        raise ConfigError(f"nobody records at {path}")
    return 0


def _export(args: argparse.Namespace) -> None:
    from draftwire.energy.live.watch import dashboard, serve

    if args.dashboard:
        write_text(args.dashboard, dashboard())
    if args.http is not None:
        meter, board = open_live(args)
        with meter:
            seconds = args.seconds
            serve(meter, args.http or HERE, seconds=seconds, board=board, say=say)
