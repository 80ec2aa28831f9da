"""``draftwire boards list``: the boards that draftwire knows."""

from __future__ import annotations

import argparse

from draftwire.cli import _boards_common as common
from draftwire.cli._common import write_json

__all__ = ["add_flags", "run"]

SCHEMA = "draftwire.boards/1"


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of the command."""
    common.add_profile_flag(parser)


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    profiles = sorted(common.profiles(args).values(), key=lambda p: (p.generic, p.name))
    if args.json is not None:
        boards = [
            {
                "name": p.name,
                "title": p.title,
                "soc": p.soc or None,
                "arch": p.arch or None,
                "variants": [variant.name for variant in p.variants],
                "scopes": [t.get("scope") for t in p.rails.get("total", ())],
                "own": p.own,
                "profile": str(p.path),
            }
            for p in profiles
        ]
        write_json({"schema": SCHEMA, "boards": boards}, args.json)
    if args.json == "-":
        return 0
    header = ("name", "board", "measures")
    rows = []
    for p in profiles:
        forms = [variant.name for variant in p.variants]
        title = f"{p.title} ({', '.join(forms)})" if forms else p.title
        scopes = ", ".join(str(t.get("scope")) for t in p.rails.get("total", ()))
        rows.append((p.name, title, (scopes or "nothing") + (" *" if p.own else "")))
    widths = [max(len(row[i]) for row in (header, *rows)) for i in range(2)]
    for row in (header, *rows):
        print(f"{row[0]:<{widths[0]}}  {row[1]:<{widths[1]}}  {row[2]}")
    if any(p.own for p in profiles):
        print("* your own profile")
    return 0
