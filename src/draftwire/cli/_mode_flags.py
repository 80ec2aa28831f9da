"""Flags of ``generate`` and ``demo``: how a stream hides the network, and decides."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from draftwire.errors import ConfigError

__all__ = ["add_mode_flags", "cache_option", "mode_options"]


def add_mode_flags(parser: argparse.ArgumentParser) -> None:
    """Add them; :func:`mode_options` reads them."""
    group = parser.add_argument_group("while a verdict is out")
    group.add_argument(
        "--objective",
        choices=("cost", "latency"),
        default="cost",
        help="cost: few forwards of the target; latency: the target decodes on and takes "
        "drafts in as they come (default: %(default)s)",
    )
    group.add_argument(
        "--pipeline",
        type=int,
        default=1,
        metavar="N",
        help="blocks in flight, at most (default: %(default)s)",
    )
    group.add_argument(
        "--preempt",
        default="guess",
        metavar="WORDS",
        help="what is drafted meanwhile: off, or any of guess (the next block), exits "
        "(what the target's early exits expect), outcomes (the likeliest other ones), "
        "joined by commas (default: %(default)s)",
    )
    group.add_argument(
        "--cut",
        action="store_true",
        help="send a half-drafted block once nothing is in flight",
    )
    group.add_argument(
        "--batch",
        type=int,
        default=0,
        metavar="TOKENS",
        help="send pieces of a block that is still being drafted (default: whole blocks)",
    )
    _add_controller_flags(parser.add_argument_group("how far to draft"))


def _add_controller_flags(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--controller",
        metavar="SPEC",
        help="auto (measures the link, the drafts and the board, and decides), "
        "auto:energy, auto:cost, fixed:K, flexspec, qsv, or off: the target alone "
        "(default: blocks of --block; auto in a race without --block)",
    )
    group.add_argument(
        "--explain",
        action="store_true",
        help="say on stderr why each block ended where it did",
    )
    group.add_argument(
        "--max-watts",
        type=float,
        metavar="W",
        help="draft no more than this mean power allows, over any ten seconds; with "
        "--controller auto and a power source",
    )
    group.add_argument(
        "--max-joules-per-token",
        type=float,
        metavar="J",
        help="likewise, for each token of text",
    )
    group.add_argument(
        "--suffix-cache",
        default="off",
        metavar="FILE|memory|off",
        help="draft what was written before, at no cost: not at all, within this session, "
        "or kept in a file, which then holds your text (default: %(default)s)",
    )
    group.add_argument(
        "--radio",
        default="off",
        metavar="mmcli|iw:NAME|off",
        help="put the radio's signal into the run reports (default: %(default)s)",
    )


def cache_option(args: argparse.Namespace) -> dict[str, Any]:
    """Return what ``draftwire.connect`` takes of them."""
    given = {"suffix_cache": args.suffix_cache, "radio": args.radio}
    return {name: value for name, value in given.items() if value != "off"}


def _say(line: str) -> None:
    print(f"block: {line}", file=sys.stderr)


def mode_options(args: argparse.Namespace) -> dict[str, Any]:
    """Return what ``session.generate`` takes of them.

    Raises:
        ConfigError: A word is unknown or a number out of range.
    """
    from draftwire.runtime.controller import make_controller
    from draftwire.runtime.mode import Mode

    options = {
        "objective": args.objective,
        "pipeline": args.pipeline,
        "preempt": args.preempt,
        "cut": args.cut,
        "batch": args.batch,
    }
    Mode.of(**options)  # checked before a verifier is started for nothing
    budget = {
        "max_watts": args.max_watts,
        "max_joules_per_token": args.max_joules_per_token,
    }
    if args.controller is not None:
        make_controller(args.controller, **budget)
    elif any(value is not None for value in budget.values()):
        raise ConfigError(
            "only --controller auto keeps a budget of power", hint="add --controller auto"
        )
    options.update(controller=args.controller, **budget)
    if args.explain:
        options["explain"] = _say
    return options
