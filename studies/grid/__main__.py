"""``python -m studies.grid``: published schemes over a grid, and the fastest possible."""

from __future__ import annotations

import argparse
import sys
from functools import partial
from typing import Any

from draftwire.bench.sim.command import Question
from draftwire.cli._common import fields_of
from draftwire.errors import ConfigError
from studies.command import Say, start
from studies.grid.show import plot, render
from studies.grid.study import one_profile, reference_grid

FLAGS = """
--profile NAME           one timing profile in place of the grid: its schemes beside the
                         bound, and beside what was published of it (draftwire bench
                         simulate --profiles)
--scheme S,S >schemes    as in draftwire bench simulate
--link SPEC              with --profile: another link than its own
--k N|best >block        with --profile: tokens of a block
--acceptance LUCK        with --profile: of the texts; else numbers for the grid's
--repeats SHARE:share =0  of the grid's texts
--at-once N:int =1       tokens of a forward of the grid's drafts
--rows N:int =128        tokens that a forward of its targets takes
--boards NAME,NAME       profiles of the grid
--jobs N:int =1          processes for the grid
--objective WHAT         latency, cost or energy (default: latency)
--streams N:int          default: 1; 4 with --profile
--tokens N:int           of each (500; 400 with --profile)
--seed N:int =1
--plot FILE              a picture: .png, .pdf or .svg
"""


def study(args: argparse.Namespace, say: Say) -> dict[str, Any]:
    """Run the grid, or one profile."""
    streams, tokens = (1, 500) if args.profile is None else (4, 400)
    args.streams = streams if args.streams is None else args.streams
    args.tokens = tokens if args.tokens is None else args.tokens
    counts = args.streams, args.tokens, args.jobs, args.rows - 1
    if min(counts) < 1 or not 1 <= args.at_once <= 32:
        what = f"{args.streams} streams of {args.tokens} tokens, {args.at_once} at once, "
        what += f"{args.rows} rows"
        raise ConfigError(what, hint="1 or more; rows 2 or more; at once 1 to 32")
    asked = fields_of(Question, args).items()
    question = Question(**{name: value for name, value in asked if value is not None})
    if args.profile is None:
        if args.link or args.block:
            raise ConfigError(
                "the grid has links and block lengths of its own",
                hint="name a --profile, or leave --link and --k out",
            )
        names = "at_once", "rows", "jobs", "boards"
        how = {name: getattr(args, name) for name in names}
        document = reference_grid(question, say, **how)
    else:
        document = one_profile(question, say)
    if args.plot is not None:
        plot(document, args.plot)
    return document


QUESTION = "How fast published schemes and ours are, and how fast anything could be."
main = partial(start, "studies.grid", QUESTION, FLAGS, study, render)

if __name__ == "__main__":
    sys.exit(main())
