"""``python -m studies.evolve``: one frozen draft against targets that evolve."""

from __future__ import annotations

import argparse
import json
import sys
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from draftwire.cli._common import fields_of
from draftwire.errors import ConfigError
from studies.command import Say, start
from studies.evolve.report import render, write_markdown
from studies.evolve.stats import SCHEMA

FLAGS = """
--base PATH              checkpoint or target package (v1)
--work DIR               for models and results; goes on there
--data NAME=FILE...:text  text: half for the drafts, half for evolved targets (repeat)
--new NAME=FILE...:text  text that base and drafts never see (repeat)
--corpus DIR             the reference family's corpora, split as for its base
--version SPEC... >versions  an evolved target (repeat): TEXT[+TEXT]:STEPS (LoRA), with
                         :free (its anchor too), :varied (a preference, by DPO), :new
                         (another model, from nothing) or :taught=TEACHER (distilled; a
                         version or a path); VERSION+VERSION:mean or :sum (merged);
                         NAME.target:TEXT for a package
--arms A,A               default: all
--draft DIR              the package that is measured as it is, the arm "given"
--seeds N,N =1,2,3       of drafts
--anchor-layers N:int    that the frozen draft shares
--layers N:int >trained_layers  that it trains
--draft-tokens N:int     that the frozen draft reads; the others' compute follows
--pool-tokens N:int      that the base reads once as the teacher
--batch N:int            tokens of a step
--length N:int           tokens of a row
--rank N:int             of LoRA
--prompts N:int          for each target and text
--count N:int            tokens that follow a prompt
--long X:positive        times the compute, one independent draft
--retrain X:positive     share of it, for re-trained drafts
--results FILE           train nothing, show the results in FILE (results.json of a work
                         folder)
--markdown FILE          write tables and a picture between the marks of FILE
--part NAME =study       which of its marks
"""


def study(args: argparse.Namespace, say: Say) -> dict[str, Any]:
    """Run or read a study; write its page."""
    document = _run(args, say) if args.results is None else _read(args.results)
    if args.markdown is not None:
        for path in write_markdown(document, args.markdown, args.part):
            say(f"wrote {path}")
    return document


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as exc:
        raise ConfigError(f"{path} holds no results: {exc}") from exc
    if not isinstance(found, dict) or found.get("schema") != SCHEMA:
        raise ConfigError(
            f"{path} is no document of this study",
            hint="give results.json of its --work folder",
        )
    return found


def _run(args: argparse.Namespace, say: Say) -> dict[str, Any]:
    for module in ("torch", "onnx", "safetensors", "tokenizers"):
        if find_spec(module) is None:
            raise ConfigError(
                f"the study needs {module}, which is not installed",
                hint="pip install 'draftwire[export]', on a workstation",
            )
    if args.work is None:
        raise ConfigError("the study needs a folder", hint="--work DIR")
    from draftwire.reference import target_path
    from studies.evolve.measure import Probe
    from studies.evolve.models import Budget
    from studies.evolve.study import ARMS, Study, parse_version, run_study
    from studies.evolve.text import Domain

    domains = [Domain(*_named(word)) for word in args.data]
    domains += [Domain(*_named(word), new=True) for word in args.new]
    try:
        seeds = tuple(int(word) for word in args.seeds.split(","))
    except ValueError as exc:
        raise ConfigError(f"--seeds {args.seeds} are no whole numbers") from exc
    budget, probe = (
        {name: value for name, value in fields_of(kind, args).items() if value is not None}
        for kind in (Budget, Probe)
    )
    budget["seeds"] = seeds
    for name, value in {**budget, **probe}.items():
        few = 1 if isinstance(value, int) else 1e-6
        least = {"anchor_layers": 0, "count": Probe.block + 1}.get(name, few)
        if name != "seeds" and value < least:
            flag = name.replace("trained_", "").replace("_", "-")
            raise ConfigError(f"--{flag} is {value}, that is too few")
    versions = tuple(parse_version(word) for word in args.versions)
    if not versions:
        raise ConfigError(
            "say which targets evolve", hint="--version coffee:40 --version home:40"
        )
    every = tuple(arm for arm in ARMS if arm != "given" or args.draft is not None)
    return run_study(
        Study(
            base=target_path("v1") if args.base is None else args.base,
            work=args.work,
            versions=versions,
            domains=tuple(domains),
            corpus=args.corpus,
            budget=Budget(**budget),
            probe=Probe(**probe),
            arms=tuple(args.arms.split(",")) if args.arms else every,
            draft=args.draft,
        ),
        say=say,
    )


def _named(word: str) -> tuple[str, Path]:
    name, equals, path = word.partition("=")
    if not (name and equals and path) or not name.isidentifier():
        raise ConfigError(f"{word!r} is not NAME=FILE", hint="--data coffee=coffee.txt")
    return name, Path(path)


QUESTION = "How one frozen draft serves targets that evolve, beside other drafts."
main = partial(start, "studies.evolve", QUESTION, FLAGS, study, render)

if __name__ == "__main__":
    sys.exit(main())
