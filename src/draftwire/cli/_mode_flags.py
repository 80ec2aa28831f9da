"""The flags of ``generate`` and ``demo`` that say how a stream hides the network."""

from __future__ import annotations

import argparse
from typing import Any

__all__ = ["add_mode_flags", "mode_options"]


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


def mode_options(args: argparse.Namespace) -> dict[str, Any]:
    """Return what ``session.generate`` takes of them.

    Raises:
        ConfigError: A word is unknown or a number out of range.
    """
    from draftwire.runtime.mode import Mode

    options = {
        "objective": args.objective,
        "pipeline": args.pipeline,
        "preempt": args.preempt,
        "cut": args.cut,
        "batch": args.batch,
    }
    Mode.of(**options)  # checked before a verifier is started for nothing
    return options
