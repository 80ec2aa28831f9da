"""``draftwire sampling ...``: the schemes on the same prompts, and what they cost."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from draftwire.cli._common import add_common_flags, write_json
from draftwire.errors import ConfigError

__all__ = ["register"]


def register(subparsers: Any) -> None:
    """Add the command and its leaves."""
    parser = subparsers.add_parser(
        "sampling", help="compare the sampling schemes", description=__doc__
    )
    leaves = parser.add_subparsers(dest="leaf", metavar="WHAT", required=True)
    summary = "acceptance and bytes of every scheme, on your packages or the reference's"
    table = leaves.add_parser("table", help=summary, description=summary)
    table.add_argument(
        "--draft", type=Path, metavar="DIR", help="default: the reference draft"
    )
    table.add_argument(
        "--target", type=Path, metavar="DIR", help="default: the reference target v1"
    )
    table.add_argument(
        "--text",
        type=Path,
        metavar="FILE",
        help="held-out text to cut prompts from (default: built-in sentences)",
    )
    table.add_argument(
        "--schemes", type=_names, default=(), metavar="NAME,NAME", help="default: all"
    )
    table.add_argument("--block", type=_whole, default=4, metavar="K", help=_default())
    table.add_argument("--temperature", type=_real, default=0.8, help=_default())
    table.add_argument("--top-k", type=_whole, default=50, help=_default())
    table.add_argument("--top-p", type=_real, default=1.0, help=_default())
    table.add_argument("--seed", type=_whole, default=1, help=_default())
    table.add_argument(
        "--tokens",
        type=_whole,
        default=64,
        help="new tokens of each prompt (default: %(default)s)",
    )
    table.add_argument("--prompts", type=_whole, default=12, help=_default())
    table.add_argument(
        "--prompt-tokens",
        type=_whole,
        default=32,
        help="length of prompts cut from a text (default: %(default)s)",
    )
    add_common_flags(table)
    table.set_defaults(run=run)
    summary = "what choosing a token costs at real vocabularies, without any model"
    speed = leaves.add_parser("speed", help=summary, description=summary)
    speed.add_argument(
        "--vocab", type=_names, default=("49152", "151936"), metavar="N,N", help=_default()
    )
    add_common_flags(speed)
    speed.set_defaults(run=run_speed)


def run_speed(args: argparse.Namespace) -> int:
    """Measure and print."""
    from draftwire.bench.sampling_speed import render, sampling_speed

    sizes = [_whole(size) for size in args.vocab]
    if not sizes or not all(2 <= size < 1 << 24 for size in sizes):
        raise ConfigError("a vocabulary has 2 to 16,777,215 tokens")
    rows = sampling_speed(sizes)
    if args.json is not None:
        write_json({"schema": "draftwire.sampling_speed/1", "rows": rows}, args.json)
    if args.json != "-":
        print(render(rows))
    return 0


def run(args: argparse.Namespace) -> int:
    """Measure and print."""
    from draftwire.bench.sampling_table import Settings, render, sampling_table
    from draftwire.reference import draft_path, target_path

    settings = Settings(
        block=args.block,
        temperature=args.temperature,
        top_k=args.top_k,
        top_p=args.top_p,
        seed=args.seed,
        tokens=args.tokens,
        prompts=args.prompts,
        prompt_tokens=args.prompt_tokens,
        schemes=args.schemes,
    )
    document = sampling_table(
        draft_path() if args.draft is None else args.draft,
        target_path("v1") if args.target is None else args.target,
        settings,
        text=args.text,
    )
    if args.json is not None:
        write_json(document, args.json)
    if args.json != "-":
        print(render(document))
    return 0


def _default() -> str:
    return "default: %(default)s"


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


def _whole(text: str) -> int:
    if not text.isdecimal():
        raise ConfigError(f"{text!r} is no whole number")
    return int(text)


def _real(text: str) -> float:
    try:
        return float(text)
    except ValueError as exc:
        raise ConfigError(f"{text!r} is no number") from exc
