"""``draftwire boards key new|show FILE``."""

from __future__ import annotations

import argparse
from pathlib import Path

from draftwire.cli._common import write_json

__all__ = ["add_flags", "run"]

SCHEMA = "draftwire.key/1"


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of the command."""
    parser.add_argument("verb", choices=("new", "show"), help="make one; its public half")
    parser.add_argument("file", type=Path, metavar="FILE", help="the secret key, PEM")


def run(args: argparse.Namespace) -> int:
    """Make a key, or show the public half of one."""
    from draftwire.boards import signing

    new = args.verb == "new"
    key = signing.make_key(args.file) if new else signing.public_key(args.file)
    if args.json is not None:
        write_json({"schema": SCHEMA, "public_key": key.text}, args.json)
    if args.json != "-":
        print(key.text)
    if new and not args.quiet and args.json != "-":
        print(f"the secret half is {args.file}: keep it off the boards, and keep a copy")
        print(f"the public half is {args.file}.pub: boards get it, `install.sh --key`")
    return 0
