"""What the commands of ``draftwire bench`` share."""

from __future__ import annotations

import argparse
import sys
from dataclasses import fields
from typing import Any, Callable, TypeVar

from draftwire.cli._common import write_json

__all__ = ["filled", "say_to", "show"]

Settings = TypeVar("Settings")


def filled(kind: type[Settings], args: argparse.Namespace, **others: Any) -> Settings:
    """Return settings whose fields are the flags of the same names.

    Args:
        kind: A dataclass.
        args: Of the command.
        others: Fields that are no flag, or another one.
    """
    names = {field.name for field in fields(kind)}  # type: ignore[arg-type]
    given = {name: value for name, value in vars(args).items() if name in names}
    return kind(**{**given, **others})


def show(
    args: argparse.Namespace,
    document: Any,
    render: Callable[[Any], str],
) -> int:
    """Write the document to ``--json`` and its text to stdout; return the exit code 0."""
    if args.json is not None:
        write_json(document, args.json)
    if args.json != "-":
        print(render(document))
    return 0


def say_to(args: argparse.Namespace, *, terminal: bool = False) -> Callable[[str], None]:
    """Return who is told of progress: stderr, unless quiet.

    Args:
        args: Of the command.
        terminal: Only where somebody watches.
    """

    def say(line: str) -> None:
        if not args.quiet and (sys.stderr.isatty() or not terminal):
            print(line, file=sys.stderr, flush=True)

    return say
