"""``python -m studies.family``: the reference family of ``models/``, from its corpora."""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from studies.command import Say, start
from studies.family.package import make_family
from studies.family.parallel import make_parallel
from studies.family.recipe import FamilySettings

FLAGS = """
--corpus DIR !           the folder with the corpus files that models/cards name
--work DIR !             the folder for checkpoints; run again with it to go on
--out DIR !              where packages go
--steps FACTOR:positive =1  train so many times longer than published
--workers N              cores to train on (default: all)
--replace                put packages in the place of older ones
--parallel               train the parallel draft of the packages in models/ instead
"""


def study(args: argparse.Namespace, say: Say) -> dict[str, Any]:
    """Train what is missing, package it, and return what was made."""
    places = args.corpus, args.work, args.out
    if args.parallel:
        made = [make_parallel(*places, Path("models"), args.steps, say)]
    else:
        settings = FamilySettings().longer(args.steps)
        if args.workers:
            settings = replace(settings, workers=args.workers)
        made = make_family(*places, settings, say, replace=args.replace)
    return {"schema": "draftwire.family/1", "packages": [str(path) for path in made]}


def _render(made: dict[str, Any]) -> str:
    return "\n".join(made["packages"])


QUESTION = (
    "Train, evaluate and package the reference family: a base target, a frozen draft "
    "and evolved targets. Hours on two cores, minutes on a GPU; goes on where it was."
)
main = partial(start, "studies.family", QUESTION, FLAGS, study, _render)

if __name__ == "__main__":
    sys.exit(main())
