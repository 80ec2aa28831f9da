"""``python -m studies.family``: the reference family of ``models/``, from its corpora."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from studies.command import start
from studies.family.package import make_family
from studies.family.recipe import FamilySettings

__all__ = ["main"]


def flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags."""
    add = parser.add_argument
    for flag, what in (
        ("--corpus", "the folder with the corpus files that models/cards name"),
        ("--work", "the folder for checkpoints; run again with it to go on"),
        ("--out", "where packages go"),
    ):
        add(flag, required=True, type=Path, metavar="DIR", help=what)
    add(
        "--steps",
        type=float,
        default=1.0,
        metavar="FACTOR",
        help="train so many times longer than published (default: 1)",
    )
    add("--workers", type=int, metavar="N", help="cores to train on (default: all)")
    add("--replace", action="store_true", help="put packages in the place of older ones")


def study(args: argparse.Namespace, say: Callable[[str], None]) -> dict[str, Any]:
    """Train what is missing, package it, and return what was made."""
    settings = FamilySettings().longer(args.steps)
    if args.workers:
        settings = replace(settings, workers=args.workers)
    made = make_family(
        args.corpus, args.work, args.out, settings=settings, replace=args.replace, say=say
    )
    return {"schema": "draftwire.family/1", "packages": [str(path) for path in made]}


def main(words: Sequence[str] | None = None) -> int:
    """Run the recipe."""
    question = (
        "Train, evaluate and package the reference family: a base target, a frozen draft "
        "and evolved targets. Hours on two cores, minutes on a GPU; goes on where it was."
    )
    return start(
        "family", question, flags, study, lambda made: "\n".join(made["packages"]), words
    )


if __name__ == "__main__":
    sys.exit(main())
