"""``python -m studies.controllers``: the length policies side by side, in virtual time."""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path
from typing import Any

from draftwire.cli._common import fields_of
from draftwire.errors import ConfigError
from studies.command import Say, start
from studies.controllers.tables import Settings, bench_controllers, render

FLAGS = """
--traces DIR             folder of channel traces, t_s,mbit_s (default: none)
--profile NAME =agx-a100-qwen  timings
--rtt-ms MS:number =80
--acceptance LUCK =0.8   as in bench simulate
--modes M,M:words =race,pipeline,ahead,wait  what streams do while verdicts are out
--tokens N:int =300      of a stream
--streams N:int =2
--seeds N:int =1         to average over
"""


def study(args: argparse.Namespace, say: Say) -> dict[str, Any]:
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
        Settings(**{**fields_of(Settings, args), "traces": traces}), say
    )


QUESTION = "What the length policies are worth: traces, steps, joules and budgets."
main = partial(start, "studies.controllers", QUESTION, FLAGS, study, render)

if __name__ == "__main__":
    sys.exit(main())
