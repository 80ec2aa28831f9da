"""``draftwire sampling ...``: the schemes on the same prompts, and what they cost."""

from __future__ import annotations

import argparse
from dataclasses import fields
from pathlib import Path
from typing import Any

from draftwire.cli._common import add_common_flags, give_json, ruled
from draftwire.rules import number, whole

__all__ = ["register"]


def register(subparsers: Any) -> None:
    """Add the command and its leaves."""
    parser = subparsers.add_parser(
        "sampling", help="compare the sampling schemes", description=__doc__
    )
    leaves = parser.add_subparsers(dest="leaf", metavar="WHAT", required=True)
    summary = "acceptance and bytes of every scheme, on your packages or the reference's"
    table = leaves.add_parser("table", help=summary, description=summary)
    add = table.add_argument
    add("--draft", type=Path, metavar="DIR", help="default: the reference draft")
    add("--target", type=Path, metavar="DIR", help="default: the reference target v1")
    add(
        "--text",
        type=Path,
        metavar="FILE",
        help="held-out text to cut prompts from (default: built-in sentences)",
    )
    add("--schemes", type=_names, default=(), metavar="NAME,NAME", help="default: all")
    count, real = ruled(whole(0, 2**64 - 1)), ruled(number(0, 1e9))
    for flag, kind, default, about in (
        ("--block", count, 4, ""),
        ("--temperature", real, 0.8, ""),
        ("--top-k", count, 50, ""),
        ("--top-p", real, 1.0, ""),
        ("--seed", count, 1, ""),
        ("--tokens", count, 64, "new tokens of each prompt"),
        ("--prompts", count, 12, ""),
        ("--prompt-tokens", count, 32, "length of prompts cut from a text"),
    ):
        said = f"{about} (default: {default})" if about else f"default: {default}"
        add(flag, type=kind, default=default, metavar="N", help=said)
    add_common_flags(table)
    table.set_defaults(run=run)
    summary = "what choosing a token costs at real vocabularies, without any model"
    speed = leaves.add_parser("speed", help=summary, description=summary)
    speed.add_argument(
        "--vocab",
        type=_sizes,
        default=(49152, 151936),
        metavar="N,N",
        help="default: 49152,151936",
    )
    add_common_flags(speed)
    speed.set_defaults(run=run_speed)


def run_speed(args: argparse.Namespace) -> int:
    """Measure and print."""
    from draftwire.bench.sampling_speed import render, sampling_speed

    rows = sampling_speed(args.vocab)
    if give_json(args, {"schema": "draftwire.sampling_speed/1", "rows": rows}):
        print(render(rows))
    return 0


def run(args: argparse.Namespace) -> int:
    """Measure and print."""
    from draftwire.bench.sampling_table import Settings, render, sampling_table
    from draftwire.reference import draft_path, target_path

    settings = Settings(
        **{field.name: getattr(args, field.name) for field in fields(Settings)}
    )
    document = sampling_table(
        draft_path() if args.draft is None else args.draft,
        target_path("v1") if args.target is None else args.target,
        settings,
        text=args.text,
    )
    if give_json(args, document):
        print(render(document))
    return 0


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


def _sizes(text: str) -> tuple[int, ...]:
    one = ruled(whole(2, (1 << 24) - 1))
    return tuple(one(size) for size in _names(text)) or (one(""),)
