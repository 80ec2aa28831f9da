"""``python -m studies.controllers``: the length policies side by side, in virtual time."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from draftwire.errors import ConfigError
from studies.command import start
from studies.controllers.tables import Settings, bench_controllers, render

__all__ = ["main"]


def flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags."""
    add = parser.add_argument
    add(
        "--traces",
        type=Path,
        metavar="DIR",
        help="folder of channel traces, t_s,mbit_s (default: leave that table out)",
    )
    add("--profile", default="agx-a100-qwen", help="timings (default: %(default)s)")
    add("--rtt-ms", type=float, default=80.0, metavar="MS", help="default: %(default)s")
    add("--acceptance", default="0.8", help="as in bench simulate (default: %(default)s)")
    add(
        "--modes",
        default="race,pipeline,ahead,wait",
        metavar="M,M",
        help="what streams do while verdicts are out (default: %(default)s)",
    )
    add("--tokens", type=int, default=300, help="of a stream (default: %(default)s)")
    add("--streams", type=int, default=2, help="default: %(default)s")
    add("--seeds", type=int, default=1, help="to average over (default: %(default)s)")


def study(args: argparse.Namespace, say: Callable[[str], None]) -> dict[str, Any]:
    """Run the benchmark."""
    if min(args.tokens, args.streams, args.seeds) < 1 or not args.rtt_ms >= 0:
        raise ConfigError("--tokens, --streams, --seeds or --rtt-ms is out of range")
    traces: list[Path] = []
    if args.traces is not None:
        traces = sorted(args.traces.glob("*.csv"))
        if not traces:
            raise ConfigError(
                f"there is no trace in {args.traces}",
                hint="a trace is a file NAME.csv of t_s,mbit_s",
            )
    return bench_controllers(
        Settings(
            traces,
            args.profile,
            args.rtt_ms,
            args.acceptance,
            tuple(part.strip() for part in args.modes.split(",") if part.strip()),
            args.tokens,
            args.streams,
            args.seeds,
        ),
        say,
    )


def main(words: Sequence[str] | None = None) -> int:
    """Run the study."""
    question = "What the length policies are worth: traces, steps, joules and budgets."
    return start("controllers", question, flags, study, render, words)


if __name__ == "__main__":
    sys.exit(main())
