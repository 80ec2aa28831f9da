"""The ``draftwire`` command.  Each sub-command is one module, imported when used."""

from __future__ import annotations

import argparse
import errno
import importlib
import os
import re
import sys
from typing import Any, Iterable, NoReturn, Sequence

from draftwire.errors import ConfigError, DraftwireError, OutputError

__all__ = ["COMMANDS", "main"]

COMMANDS = {  # name -> one line for `draftwire --help`
    "demo": "a verifier and a device on this machine, with the reference models",
    "generate": "write text with a draft here and a target at a verifier",
    "chat": "talk with a target",
    "report": "run reports as a table",
    "verifier": "serve targets to devices",
    "pull": "fetch a model by name",
    "pairs": "drafts and targets that are known to fit",
    "export": "make draft and target packages",
    "bench": "measure the parts",
    "boards": "know, examine and supply a board",
    "service": "the supervised process of a board",
    "energy": "measured joules: sources, recordings, logs, reports",
    "protocol": "explain what crosses the wire",
    "sampling": "compare the sampling schemes",
    "config": "show the settings and where each comes from",
}

EXIT_CODES = """\
exit codes:
  0    done
  1    a bug in draftwire
  2    usage or configuration
  3    board or sensor
  4    transport: the verifier is gone, late or refused
  5    model: a package does not load, or does not match
  6    the result is there, and could not be written (a full disk)
  130  interrupted

every command takes --debug (show tracebacks) and --no-color (also: NO_COLOR)
"""

INTERRUPTED = 130
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class _Parser(argparse.ArgumentParser):
    """Reports wrong usage as every other error is reported."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs.setdefault("allow_abbrev", False)
        super().__init__(*args, **kwargs)

    def parse_known_args(self, *args: Any, **kwargs: Any) -> Any:
        found, unknown = super().parse_known_args(*args, **kwargs)
        if unknown and self._subparsers is None:  # where the flags are known
            message = "unrecognized arguments: " + " ".join(unknown)
            self.error(message, unknown[0].split("=")[0], self._option_string_actions)
        return found, unknown

    def error(self, message: str, word: str = "", known: Iterable[str] = ()) -> NoReturn:
        choice = re.search(r"invalid choice: '(.*?)' \(choose from (.*)\)", message)
        if choice:
            word, known = choice[1], re.findall(r"[\w.:/-]+", choice[2])
        from draftwire.io import did_you_mean  # when somebody has misspelt something

        otherwise = f"see `{self.prog} --help`"
        raise ConfigError(message, hint=did_you_mean(word, known, otherwise, cutoff=0.7))


class InternalError(DraftwireError):
    """A bug of ours."""

    default_hint = "run it again with --debug and report the traceback"


class _ShowVersion(argparse.Action):
    """Prints the version, imported only then."""

    def __call__(self, *_: Any) -> NoReturn:
        from draftwire import __version__

        print(f"draftwire {__version__}")
        raise SystemExit(0)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: The words after ``draftwire``; those of the process by default.

    Returns:
        The exit code.
    """
    words, everywhere = _split_global(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in everywhere
    try:
        args = _parse(words)
        args.no_color = "--no-color" in everywhere
        args.debug = debug
        if getattr(args, "json", None):
            from draftwire.cli._common import check_output

            check_output(args.json)  # not after minutes of work
        code = int(args.run(args) or 0)
        sys.stdout.flush()
        return code
    except DraftwireError as exc:
        if debug:
            raise
        return _complain(words, exc)
    except KeyboardInterrupt:
        if debug:
            raise
        return INTERRUPTED
    except BrokenPipeError:  # whoever read our output has seen enough
        _drop_stdout()
        return 0
    except Exception as exc:  # noqa: BLE001  the last resort: no traceback for users
        if debug:
            raise
        if isinstance(exc, OSError) and exc.errno in _FULL:
            full = OutputError(f"cannot write the output: {exc.strerror}")
            return _complain(words, full)
        bug = InternalError(f"this is a bug: {type(exc).__name__}: {exc}")
        return _complain(words, bug)


def _drop_stdout() -> None:
    """What is still to be written goes nowhere, without further complaint."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _split_global(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Take ``--debug`` and ``--no-color`` out, wherever they stand before ``--``."""
    end = words.index("--") if "--" in words else len(words)
    rest = [w for w in words[:end] if w not in ("--debug", "--no-color")]
    taken = [w for w in words[:end] if w in ("--debug", "--no-color")]
    return rest + list(words[end:]), taken


def _parse(words: Sequence[str]) -> argparse.Namespace:
    parser = _Parser(
        prog="draftwire",
        description="A frozen draft model on the device, the target in the cloud.",
        epilog=EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--version", action=_ShowVersion, nargs=0, help="show the version and exit"
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    asked = next((word for word in words if not word.startswith("-")), None)
    if asked is not None and asked not in COMMANDS:
        import difflib

        close = difflib.get_close_matches(asked, list(COMMANDS), n=1)
        raise ConfigError(
            f"there is no command {asked!r}",
            hint=f"did you mean `draftwire {close[0]}`?"
            if close
            else "see `draftwire --help`",
        )
    for name, summary in COMMANDS.items():
        if name == asked:  # only the asked-for command pays for its imports
            importlib.import_module(f"draftwire.cli.{name}").register(commands)
        else:
            commands.add_parser(name, help=summary)
    args = parser.parse_args(words)
    if args.command is None:
        parser.error("name a command")
    return args


def _complain(words: Sequence[str], error: DraftwireError) -> int:
    """Say what went wrong, also to ``--json``; return the exit code."""
    from draftwire.cli._common import json_destination, plain, write_json

    try:
        sys.stdout.flush()
    except OSError:  # full, or nobody reads: Python must not try again at its end
        _drop_stdout()
    print(plain(f"draftwire: error: {error}"), file=sys.stderr)
    if error.hint:
        print(plain(f"hint: {error.hint}"), file=sys.stderr)
    destination = json_destination(words)
    if destination is not None and not isinstance(error, OutputError):  # it is there
        try:
            write_json({"error": error.to_dict()}, destination)
        except DraftwireError:
            pass  # the file may be what went wrong; stderr has said so
    return error.exit_code
