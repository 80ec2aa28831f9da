"""``draftwire export tune``: its flags, and what it prints."""

from __future__ import annotations

import argparse
from pathlib import Path

from draftwire.cli._common import write_json
from draftwire.errors import ConfigError

__all__ = ["arguments", "run"]


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags."""
    add = parser.add_argument
    add("draft", metavar="DRAFT", type=Path, help="draft package with several models")
    add("--board", metavar="NAME", help="name of a board's profile (default: this one)")
    add(
        "--times",
        type=Path,
        metavar="FILE",
        help="what `draftwire bench device --json FILE` wrote on the board (default: "
        "measure here)",
    )
    add("--target", type=Path, metavar="DIR", help="who accepts: a package or checkpoint")
    add("--prompts", type=Path, metavar="FILE", help="a prompt a line")
    add("--block", type=_count, default=4, help="drafted tokens (default: %(default)s)")
    add("--tokens", type=_count, default=64, help="for each prompt (default: %(default)s)")
    add("--rounds", type=_count, default=30, help="as for bench device")
    add("--spawn", type=_count, default=3, help="as for bench device")
    add("--threads", metavar="N,N", help="as for bench device")
    add(
        "--write",
        action="store_true",
        help="write acceptance and choice into draft.json; the id stays",
    )


def run(args: argparse.Namespace) -> list[Path]:
    """Tune; nothing is left to be summed up."""
    from draftwire.bench.tune import Tuning, render, tune

    threads = [_count(part) for part in args.threads.split(",")] if args.threads else []
    document = tune(
        Tuning(
            draft=args.draft,
            board=args.board,
            times=args.times,
            target=args.target,
            prompts=args.prompts,
            block=args.block,
            tokens=args.tokens,
            write=args.write,
            rounds=args.rounds,
            spawn=args.spawn,
            threads=threads,
        )
    )
    if args.json is not None:
        write_json(document, args.json)
    if args.json != "-":
        print(render(document))
    return []


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise ConfigError(f"{text!r} is no count", hint="a whole number from 1")
    return int(text)
