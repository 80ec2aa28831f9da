"""What the commands of all studies and measuring tools share."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from draftwire.cli import Parser
from draftwire.cli._common import check_outputs, say_error, show
from draftwire.cli._leaf import COMMON, add_flags
from draftwire.errors import DraftwireError

Say = Callable[[str], None]  # who is told of progress, line by line


def start(
    name: str,
    question: str,
    flags: str,
    study: Callable[[argparse.Namespace, Say], dict[str, Any]],
    render: Callable[[dict[str, Any]], str],
    words: Sequence[str] | None = None,
) -> int:
    """Run a study of a module's ``name``: its document goes to ``--json``, its tables to
    stdout. Return the exit code, as `draftwire` has them.

    ``flags`` are its own, see :mod:`draftwire.cli._leaf`; ``study`` makes the document, and
    gets the parsed flags and who is told of progress; ``words`` stand in place of the
    process's own.
    """
    prog = f"python -m {name}"
    parser = Parser(prog=prog, description=question)
    add_flags(parser, flags)
    add_flags(parser, COMMON)
    try:
        args = parser.parse_args(words)
        check_outputs(args)  # not after minutes of work

        def say(line: str) -> None:
            if not args.quiet:
                print(line, file=sys.stderr, flush=True)

        show(args, study(args, say), render)
    except DraftwireError as exc:
        say_error(exc, f"{prog}: ")
        return exc.exit_code
    except KeyboardInterrupt:
        return 130
    return 0


def markdown(heads: Sequence[str], rows: Iterable[Sequence[object]]) -> list[str]:
    """Return the lines of a Markdown table."""
    first, *others = (f"| {' | '.join(map(str, row))} |" for row in (heads, *rows))
    return [first, "|" + "---|" * len(heads), *others]
