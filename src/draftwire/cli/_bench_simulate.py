"""``draftwire bench simulate``: every scheme in virtual time."""

from __future__ import annotations

import argparse
from pathlib import Path

from draftwire.cli._bench_common import filled, say_to, show
from draftwire.cli._common import format_table
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
        dest="schemes",
        metavar="S,S",
        help="cloud, colocated, vanilla, await, flexspec, earlyexit, qs, picospec, "
        "race, ours-cost, ours-latency, or all; race+lookup has that help of the verifier",
    )
    add(
        "--k",
        dest="block",
        metavar="N|best",
        help="drafted tokens of a block; best tries 1 to 16",
    )
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
    add(
        "--repeats",
        type=float,
        default=0.0,
        metavar="SHARE",
        help="of a synthetic text that repeats what stands before it (default: 0)",
    )
    add(
        "--text",
        dest="recording",
        type=Path,
        metavar="FILE",
        help="play a recording of real models",
    )
    add("--real", metavar="V", help="run the reference models with target V, e.g. v1")
    add(
        "--record",
        type=Path,
        metavar="FILE",
        help="record what the reference models write (target: --real, else v1), and stop",
    )
    add(
        "--replay",
        type=Path,
        metavar="FILE",
        help="take link, board, target and texts from a device's --wire-log, and compare "
        "with what was recorded; --scheme adds others",
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
        names = [{"name": name, "title": title} for name, title in found]
        return show(args, names, lambda _: format_table(("profile", "what"), found))
    if args.record is not None:
        document = write_recording(args.record, args.real or "v1", args.tokens)
        return show(
            args, document, lambda d: "\n".join(f"{k:12s} {v}" for k, v in d.items())
        )

    document = answer(filled(Question, args), say_to(args, terminal=True))
    show(args, document, render)
    if args.plot is not None:
        plot(document, args.plot)
    return 0
