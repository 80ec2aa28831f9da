"""What the commands of all studies share."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from draftwire.cli._common import check_output, write_json
from draftwire.errors import ConfigError, DraftwireError

__all__ = ["start"]


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ConfigError(message, hint=f"see `{self.prog} --help`")


def start(
    name: str,
    question: str,
    add_flags: Callable[[argparse.ArgumentParser], None],
    study: Callable[[argparse.Namespace, Callable[[str], None]], dict[str, Any]],
    render: Callable[[dict[str, Any]], str],
    words: Sequence[str] | None = None,
) -> int:
    """Run a study: its document goes to ``--json``, its tables to stdout.

    Args:
        name: Of its folder.
        question: What it asks, in one line.
        add_flags: Adds its own flags.
        study: Makes the document; gets the parsed flags, and who is told of progress.
        render: Returns the document as text.
        words: In place of the process's own.

    Returns:
        The exit code, as `draftwire` has them.
    """
    prog = f"python -m studies.{name}"
    parser = _Parser(prog=prog, description=question, allow_abbrev=False)
    add_flags(parser)
    parser.add_argument(
        "--json",
        nargs="?",
        const="-",
        metavar="FILE",
        help="write the result as JSON to FILE (alone or -: to stdout)",
    )
    parser.add_argument("-q", "--quiet", action="store_true", help="say no progress")
    try:
        args = parser.parse_args(words)
        check_output(args.json)  # not after minutes of work

        def say(line: str) -> None:
            if not args.quiet:
                print(line, file=sys.stderr, flush=True)

        document = study(args, say)
        if args.json is not None:
            write_json(document, args.json)
        if args.json != "-":
            print(render(document))
    except DraftwireError as exc:
        print(f"{prog}: error: {exc}", file=sys.stderr)
        if exc.hint:
            print(f"hint: {exc.hint}", file=sys.stderr)
        return exc.exit_code
    except KeyboardInterrupt:
        return 130
    return 0
