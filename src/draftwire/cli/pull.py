"""``draftwire pull``: a model by name, as a package for a board or as a target."""

from __future__ import annotations

import argparse
import dataclasses
import os
import shutil
import sys
from pathlib import Path
from typing import Any

from draftwire.cli._common import give_json
from draftwire.cli._leaf import Leaf
from draftwire.errors import ConfigError
from draftwire.io import align, scratch_in

LEAF = Leaf(
    "fetch a model by name, or list those that are known to fit",
    "draftwire.cli.pull:run",
    """
[NAME]                of the list, or OWNER/NAME on the hub (default: list them)
--role {draft,target,both} =draft  what is wanted of a pair
--out DIR =.          where to
--precision P =int8   of the draft
--replace             in place of an older one
""",
    about="Fetch a model by name and make a draft package of it, or a target directory for "
    "`draftwire verifier serve --backend hf`; without NAME list drafts and targets that "
    "share a tokenizer. The hub is that of HF_ENDPOINT, with the login of `hf auth login`; "
    "what was fetched before is kept and gone on with.",
)


def _pairs(args: argparse.Namespace) -> None:
    """Print the table."""
    from draftwire.export.sources.pairs import PAIRS

    document = {name: dataclasses.asdict(pair) for name, pair in PAIRS.items()}
    if give_json(args, document):
        rows = [["name", "draft", "", "target", "", "vocabulary", "licence", "measured"]]
        rows += [
            [name, p.draft, p.draft_size, p.target, p.target_size]
            + [str(p.vocabulary), p.licence, p.measured or "not yet"]
            for name, p in PAIRS.items()
        ]
        print(align(rows, left=(0, 1, 3, 6, 7)))


def run(args: argparse.Namespace) -> None:
    """Fetch, export, and say what to run next."""
    if args.name is None:
        return _pairs(args)
    from draftwire.export.sources.pairs import Pair, find

    pair = find(args.name)
    if pair is None:
        if args.role == "both":
            hint = "pull it twice: --role draft, --role target"
            raise ConfigError(f"{args.name} is one model, not a pair", hint=hint)
        pair = Pair(args.name, args.name, "", "", "", 0)
    stem = args.name.rsplit("/", 1)[-1]
    wanted = ("draft", "target") if args.role == "both" else (args.role,)
    made = {
        role: args.out / f"{stem}.{'hf' if role == 'target' else role}" for role in wanted
    }
    for place in made.values():
        if place.exists() and not args.replace:
            raise ConfigError(f"{place} exists already", hint="--replace takes its place")
    for role, place in made.items():
        _make(pair, role, place, args)
    document = {
        "name": args.name,
        "licence": pair.licence or None,
        **{role: str(place) for role, place in made.items()},
    }
    if give_json(args, document):
        for place in made.values():
            print(f"wrote {place}")
        if "draft" in made:
            print(f"on the board: draftwire generate ... --draft {made['draft']}")
        if "target" in made:
            print(f"in the cloud: draftwire verifier serve --target {made['target']}")


def _make(pair: Any, role: str, place: Path, args: argparse.Namespace) -> None:
    if role == "draft":
        from draftwire.export.onnx import export_onnx
    from draftwire.export.sources.inputs import checkpoint_folder
    from draftwire.export.sources.pairs import fetch

    if not args.quiet:
        print(f"{role}: fetching {getattr(pair, role)}", file=sys.stderr)
    if not sys.stderr.isatty():
        os.environ.setdefault("TQDM_DISABLE", "1")  # bars are for terminals
    source = fetch(pair, role)
    if role == "draft":
        export_onnx(source, place, precision=args.precision, replace=args.replace)
        return
    with scratch_in(place.parent) as scratch:
        folder = checkpoint_folder(source, scratch)
        copy = scratch / "whole"
        shutil.copytree(folder, copy)  # the hub's cache is links
        if place.exists():
            shutil.rmtree(place)
        copy.rename(place)
