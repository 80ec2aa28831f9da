"""``draftwire export draft`` and ``export evolve``: the flags of the two trainings."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Callable

__all__ = ["draft", "draft_arguments", "evolve", "evolve_arguments"]


def draft_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of ``export draft``."""
    add = parser.add_argument
    add(
        "base",
        metavar="BASE_DIR",
        type=Path,
        help="a Hugging Face directory (Llama, Qwen2, Mistral or GPT-NeoX shape), or a "
        "target package",
    )
    _text_and_place(parser, "NAME.draft")
    add(
        "--anchor-layers",
        type=int,
        metavar="N",
        help="first layers that draft and targets share (default: those of the target "
        "package, or 2)",
    )
    add(
        "--layers",
        type=int,
        default=2,
        metavar="M",
        help="layers that are trained, between anchor and head (default: %(default)s)",
    )
    _budget(parser, tokens=2_000_000, lr=3e-3)
    add(
        "--budget",
        metavar="TIME",
        help="what it may take here, as 2h or 90m: decides --tokens by ten seconds of "
        "measuring",
    )
    add("--precision", metavar="P[,P...]", help="int8 (default), int4, fp32")
    add("--name", help="the package's name (default: from --out)")
    add("--family", help="the family's name (default: the target's, or the base's name)")
    add("--context", type=int, metavar="N", help="positions to serve")
    add(
        "--prompts",
        type=int,
        default=16,
        metavar="N",
        help="held-out prompts of each file that acceptance is measured on (default: 16)",
    )
    add(
        "--min-agreement",
        type=float,
        metavar="SHARE",
        help="least share of positions with the trained model's most likely token",
    )


def draft(args: argparse.Namespace) -> list[Path]:
    """Train a draft, package it, return the package's folder."""
    from draftwire.export.training.build import DraftSettings, build_draft
    from draftwire.export.training.plan import seconds_of

    settings = DraftSettings(
        anchor_layers=args.anchor_layers,
        trained_layers=args.layers,
        tokens=args.tokens,
        batch=args.batch,
        lr=args.lr,
        seed=args.seed,
        workers=args.workers,
        device=args.device,
        precision=args.arithmetic,
        prompts=args.prompts,
        budget=0.0 if args.budget is None else seconds_of(args.budget),
    )
    out = build_draft(
        args.base,
        args.out,
        args.data,
        settings=settings,
        work=args.work,
        export_precision=args.precision.split(",") if args.precision else None,
        name=args.name,
        family_name=args.family,
        context=args.context,
        min_agreement=args.min_agreement,
        replace=args.replace,
        say=_say(args),
    )
    return [out]


def evolve_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of ``export evolve``."""
    add = parser.add_argument
    add(
        "target",
        metavar="TARGET",
        type=Path,
        help="a whole target package; or a Hugging Face directory, which gives an "
        "adapter directory in PEFT's format",
    )
    _text_and_place(parser, "NAME.target")
    add("--version", default="v2", dest="version_name", help="its version (default: v2)")
    add("--rank", type=int, default=16, metavar="R", help="of LoRA (default: 16)")
    anchor = parser.add_mutually_exclusive_group()
    anchor.add_argument(
        "--freeze-anchor",
        action="store_true",
        help="leave the anchor alone, so that the family's drafts fit (the default)",
    )
    anchor.add_argument(
        "--free-anchor",
        action="store_true",
        help="train the anchor too: the family's drafts age faster",
    )
    add(
        "--anchor-layers",
        type=int,
        metavar="N",
        help="layers of the anchor (default: those of the package; 0 for a directory)",
    )
    _budget(parser, tokens=500_000, lr=2e-3)
    add("--name", help="the package's name (default: from --out)")


def evolve(args: argparse.Namespace) -> list[Path]:
    """Train adapters, package them, return the folder."""
    from draftwire.export.training.evolve import EvolveSettings, evolve_target

    settings = EvolveSettings(
        rank=args.rank,
        freeze_anchor=not args.free_anchor,
        anchor_layers=args.anchor_layers,
        tokens=args.tokens,
        batch=args.batch,
        lr=args.lr,
        seed=args.seed,
        workers=args.workers,
        device=args.device,
        precision=args.arithmetic,
    )
    out = evolve_target(
        args.target,
        args.out,
        args.data,
        version=args.version_name,
        settings=settings,
        work=args.work,
        name=args.name,
        replace=args.replace,
        say=_say(args),
    )
    return [out]


def _text_and_place(parser: argparse.ArgumentParser, kind: str) -> None:
    add = parser.add_argument
    add(
        "--data",
        required=True,
        nargs="+",
        type=Path,
        metavar="FILE",
        help="text, plain or .jsonl; one part in 25 is held out",
    )
    add("--out", required=True, type=Path, metavar=kind, help="what to write")
    add("--replace", action="store_true", help="put it in the place of an older one")
    add(
        "--work",
        type=Path,
        metavar="DIR",
        help="for checkpoint and report; run again with the same flags to go on "
        "(default: NAME.work beside --out)",
    )


def _budget(parser: argparse.ArgumentParser, *, tokens: int, lr: float) -> None:
    add = parser.add_argument
    add(
        "--tokens",
        type=int,
        default=tokens,
        metavar="N",
        help="tokens that the training reads (default: %(default)s)",
    )
    add("--batch", type=int, default=8192, metavar="N", help="tokens of a step")
    add("--lr", type=float, default=lr, help="peak learning rate (default: %(default)s)")
    add("--seed", type=int, default=1, help="default: %(default)s")
    add("--workers", type=int, default=1, metavar="N", help="training processes (CPU)")
    add("--device", choices=("cpu", "cuda"), help="default: cuda where there is one")
    add(
        "--arithmetic",
        choices=("auto", "float32", "bfloat16"),
        default="auto",
        help="auto takes bfloat16 where it is faster (default: auto)",
    )


def _say(args: argparse.Namespace) -> Callable[[str], None]:
    if args.quiet:
        return lambda line: None
    return lambda line: print(line, file=sys.stderr, flush=True)
