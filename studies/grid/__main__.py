"""``python -m studies.grid``: published schemes over a grid, and the fastest possible."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from typing import Any

from draftwire.bench.sim.command import Question
from draftwire.errors import ConfigError
from studies.command import start
from studies.grid.show import plot, render
from studies.grid.study import one_profile, reference_grid

FLAGS = """
--profile NAME           one timing profile in place of the grid: its schemes beside the
                         bound, and beside what was published of it (draftwire bench
                         simulate --profiles)
--scheme S,S             as in draftwire bench simulate
--link SPEC              with --profile: another link than its own
--k N|best               with --profile: tokens of a block
--acceptance LUCK        with --profile: of the texts
--repeats SHARE:float =0  of the grid's texts
--at-once N:int =1       tokens of a forward of the grid's drafts
--boards NAME,NAME       profiles of the grid
--jobs N:int =1          processes for the grid
--objective WHAT         latency, cost or energy (default: latency)
--streams N:int          default: 1; 4 with --profile
--tokens N:int           of each (500; 400 with --profile)
--seed N:int =1
--plot FILE              a picture: .png, .pdf or .svg
"""


def study(args: argparse.Namespace, say: Callable[[str], None]) -> dict[str, Any]:
    """Run the grid, or one profile."""
    streams, tokens = (1, 500) if args.profile is None else (4, 400)
    streams = streams if args.streams is None else args.streams
    tokens = tokens if args.tokens is None else args.tokens
    if min(streams, tokens, args.jobs) < 1 or not 1 <= args.at_once <= 32:
        what = f"{streams} streams of {tokens} tokens, {args.at_once} at once"
        raise ConfigError(what, hint="1 or more; at once 1 to 32")
    question = Question(
        schemes=args.scheme,
        link=args.link,
        block=args.k,
        acceptance=args.acceptance,
        objective=args.objective,
        streams=streams,
        tokens=tokens,
        seed=args.seed,
        repeats=args.repeats,
    )
    if args.profile is None:
        if args.link or args.k or args.acceptance:
            raise ConfigError(
                "the grid has links, block lengths and acceptances of its own",
                hint="name a --profile, or leave --link, --k and --acceptance out",
            )
        document = reference_grid(
            question, say, at_once=args.at_once, jobs=args.jobs, boards=args.boards
        )
    else:
        document = one_profile(question, args.profile, say)
    if args.plot is not None:
        plot(document, args.plot)
    return document


def main(words: Sequence[str] | None = None) -> int:
    """Run the study."""
    asked = "How fast published schemes and ours are, and how fast anything could be."
    return start("studies.grid", asked, FLAGS, study, render, words)


if __name__ == "__main__":
    sys.exit(main())
