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

FLAGS = """
--traces DIR             folder of channel traces, t_s,mbit_s (default: none)
--profile NAME =agx-a100-qwen  timings
--rtt-ms MS:float =80
--acceptance LUCK =0.8   as in bench simulate
--modes M,M:words =race,pipeline,ahead,wait  what streams do while verdicts are out
--tokens N:int =300      of a stream
--streams N:int =2
--seeds N:int =1         to average over
"""


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
            args.modes,
            args.tokens,
            args.streams,
            args.seeds,
        ),
        say,
    )


def main(words: Sequence[str] | None = None) -> int:
    """Run the study."""
    question = "What the length policies are worth: traces, steps, joules and budgets."
    return start("studies.controllers", question, FLAGS, study, render, words)


if __name__ == "__main__":
    sys.exit(main())
