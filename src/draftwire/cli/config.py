"""``draftwire config``: the settings and where each comes from."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from draftwire.cli import _common

__all__ = ["register"]


def register(subparsers: Any) -> None:
    """Add the command and its one action."""
    parser = subparsers.add_parser(
        "config", help="settings", description="Show the settings."
    )
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    show = actions.add_parser(
        "show",
        help="print every setting",
        description="Print every setting; the first of flag, DRAFTWIRE_* variable, "
        "./draftwire.toml, the user's config.toml and the default wins.",
    )
    show.add_argument(
        "--origin", action="store_true", help="and where its value comes from"
    )
    _common.add_common_flags(show)
    show.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print the settings as lines, or as one JSON document."""
    values = _common.read_settings(args)
    if args.json:
        rows = {
            name: {"value": _plain(v.value), "origin": v.origin}
            for name, v in values.items()
        }
        document = {"schema": "draftwire.config/1", "settings": rows}
        _common.write_json(document, args.json)
    if not args.json or (args.json != "-" and not args.quiet):
        for name, found in values.items():
            value = "(unset)" if found.value is None else found.value
            line = f"{name:<12} {value}"
            print(f"{line:<44} {found.origin}" if args.origin else line)
    return 0


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else value
