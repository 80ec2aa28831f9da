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
from studies.family.parallel import make_parallel
from studies.family.recipe import FamilySettings

FLAGS = """
--corpus DIR !           the folder with the corpus files that models/cards name
--work DIR !             the folder for checkpoints; run again with it to go on
--out DIR !              where packages go
--steps FACTOR:float =1  train so many times longer than published
--workers N              cores to train on (default: all)
--replace                put packages in the place of older ones
--parallel               train the parallel draft of the packages in models/ instead
"""


def study(args: argparse.Namespace, say: Callable[[str], None]) -> dict[str, Any]:
    """Train what is missing, package it, and return what was made."""
    if args.parallel:
        places = Path(args.corpus), Path(args.work), Path(args.out)
        out = make_parallel(*places, Path("models"), args.steps, say)
        return {"schema": "draftwire.family/1", "packages": [str(out)]}
    settings = FamilySettings().longer(args.steps)
    if args.workers:
        settings = replace(settings, workers=args.workers)
    made = make_family(
        args.corpus, args.work, args.out, settings=settings, replace=args.replace, say=say
    )
    return {"schema": "draftwire.family/1", "packages": [str(path) for path in made]}


def _render(made: dict[str, Any]) -> str:
    return "\n".join(made["packages"])


def main(words: Sequence[str] | None = None) -> int:
    """Run the recipe."""
    question = (
        "Train, evaluate and package the reference family: a base target, a frozen draft "
        "and evolved targets. Hours on two cores, minutes on a GPU; goes on where it was."
    )
    return start("studies.family", question, FLAGS, study, _render, words)


if __name__ == "__main__":
    sys.exit(main())
