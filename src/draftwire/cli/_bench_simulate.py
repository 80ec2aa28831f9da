"""``draftwire bench simulate``: every scheme in virtual time."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from draftwire.cli._common import format_table, write_json
from draftwire.errors import ConfigError

__all__ = ["run", "simulate_flags"]


def simulate_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags."""
    add = parser.add_argument
    add(
        "--profile",
        default="nano-a100",
        metavar="NAME",
        help="timings: a name, or a .toml file (default: %(default)s)",
    )
    add("--profiles", action="store_true", help="list the profiles, and stop")
    add("--link", metavar="SPEC", help="such as 40ms/10mbit (default: the profile's)")
    add(
        "--scheme",
        metavar="S,S",
        help="cloud, colocated, vanilla, await, flexspec, earlyexit, qs, picospec, "
        "race, ours-cost, ours-latency, or all",
    )
    add("--k", metavar="N|best", help="drafted tokens of a block; best tries 1 to 16")
    add(
        "--objective",
        metavar="WHAT",
        help="latency, cost or energy: of --k best (default: latency), and of ours "
        "(default: cost for ours-cost, latency for ours-latency)",
    )
    add("--grid", action="store_true", help=argparse.SUPPRESS)
    add(
        "--acceptance",
        metavar="LUCK",
        help="0.8, markov:0.8:0.5, regimes:0.9:0.5:40 or steps:0.8,0.4@2000",
    )
    add(
        "--confidence",
        default="calibrated",
        metavar="WHAT",
        help="of a synthetic draft: calibrated, noise or none (default: %(default)s)",
    )
    add("--text", type=Path, metavar="FILE", help="play a recording of real models")
    add("--real", metavar="V", help="run the reference models with target V, e.g. v1")
    add(
        "--record",
        type=Path,
        metavar="FILE",
        help="record what the reference models write (target: --real, else v1), and stop",
    )
    add("--streams", type=int, default=4, metavar="N", help="default: %(default)s")
    add("--tokens", type=int, default=400, metavar="N", help="of each stream (400)")
    add("--hours", type=float, metavar="H", help="virtual time instead of --streams")
    add("--sessions", type=int, default=1, metavar="N", help="devices on one verifier")
    add("--seed", type=int, default=1, help="default: %(default)s")
    add("--runs", action="store_true", help="put every run's report into --json")
    add("--plot", type=Path, metavar="FILE", help="a picture: .png, .pdf or .svg")


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    from draftwire.bench.sim.command import Question, answer, list_profiles, write_recording
    from draftwire.bench.sim.tables import plot, render

    if args.grid:
        raise ConfigError(
            "the grid is a study now, outside the package",
            hint="python -m studies.grid, in a checkout",
        )
    for name in ("streams", "tokens", "sessions"):
        if getattr(args, name) < 1:
            raise ConfigError(f"--{name} is {getattr(args, name)}", hint="1 or more")
    if args.hours is not None and not args.hours > 0:
        raise ConfigError(f"--hours is {args.hours}", hint="above 0")
    if args.profiles:
        found = list_profiles()
        if args.json is not None:
            write_json([{"name": n, "title": t} for n, t in found], args.json)
        if args.json != "-":
            print(format_table(("profile", "what"), found))
        return 0
    if args.record is not None:
        document = write_recording(args.record, args.real or "v1", args.tokens)
        if args.json is not None:
            write_json(document, args.json)
        if args.json != "-":
            print("\n".join(f"{key:12s} {value}" for key, value in document.items()))
        return 0

    def say(line: str) -> None:
        if not args.quiet and sys.stderr.isatty():
            print(line, file=sys.stderr, flush=True)

    document = answer(
        Question(
            profile=args.profile,
            link=args.link,
            schemes=args.scheme,
            block=args.k,
            objective=args.objective,
            acceptance=args.acceptance,
            confidence=args.confidence,
            recording=args.text,
            real=args.real,
            streams=args.streams,
            tokens=args.tokens,
            hours=args.hours,
            sessions=args.sessions,
            seed=args.seed,
            runs=args.runs,
        ),
        say,
    )
    if args.json is not None:
        write_json(document, args.json)
    if args.json != "-":
        print(render(document))
    if args.plot is not None:
        plot(document, args.plot)
    return 0
