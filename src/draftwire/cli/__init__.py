"""The ``draftwire`` command; each of its commands is declared in a module of its own."""

from __future__ import annotations

import argparse
import errno
import importlib
import os
import re
import sys
from typing import Any, Iterable, NoReturn, Sequence

from draftwire import __version__
from draftwire.errors import ConfigError, DraftwireError, OutputError

# Each is a module here with a LEAF, or with LEAVES and then more words to choose from.
COMMANDS = {  # name -> one line for `draftwire --help`
    "demo": "a verifier and a device on this machine, with the reference models",
    "generate": "write text with a draft here and a target at a verifier",
    "chat": "talk with a target",
    "report": "what runs did, what crossed the wire",
    "verifier": "serve targets to devices",
    "pull": "fetch a model by name, or list those that are known to fit",
    "export": "make draft and target packages, on a workstation",
    "bench": "measure the parts",
    "boards": "know, examine and supply a board",
    "service": "the supervised process of a board",
    "energy": "joules with their source, scope and uncertainty",
    "config": "show the settings and where each comes from",
}

# What commands were called before: their words still do.
MOVED = {
    "boards installer": "boards bundle --installer",
    "boards key new": "boards bundle --new-key",
    "boards key show": "boards bundle --show-key",
    "boards list": "boards detect --all",
    "boards show": "boards detect --profile",
    "completion": "config --completion",
    "energy calibrate": "energy sources --calibrate",
    "energy export": "energy watch",
    "energy import": "energy report --import",
    "energy mark": "energy record --mark",
    "export adapter": "export package",
    "export onnx": "export package",
    "export tflite": "export package --engine litert",
    "export tune": "bench device --tune",
    "pairs": "pull",
    "protocol decode": "report --frame",
    "protocol log": "report",
    "service ask": "generate --service",
    "top": "service top",
    "verifier mimic": "verifier check --device",
}
# What is a tool or a study now, outside the package.
GONE = {
    "bench chaos": "tools.chaos",
    "bench controllers": "studies.controllers",
    "bench draft": "tools.drafting",
    "bench fleet": "tools.fleet",
    "bench verifier --flood": "tools.peace",
    "bench evolve": "studies.evolve",
    "sampling speed": "studies.sampling --speed",
    "sampling table": "studies.sampling",
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

every command takes --help-all (what --help leaves out), --debug (show tracebacks)
and --no-color (also: NO_COLOR)
"""

INTERRUPTED = 130
# What no command can help: a medium that fails, no memory, no more files.
_OUTSIDE = (errno.EIO, errno.ESTALE, errno.ENOMEM, errno.EMFILE, errno.ENFILE)


class Parser(argparse.ArgumentParser):
    """Reports wrong usage as every other error is reported."""

    whole = False

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


class _Whole(Parser):
    """Its help has the options that are seldom needed too."""

    whole = True


class InternalError(DraftwireError):
    """A bug of ours."""

    default_hint = "run it again with --debug and report the traceback"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command of these words, by default the process's; return its exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in words[: words.index("--") if "--" in words else None]
    try:
        args = parse(words)
        if getattr(args, "json", None) or getattr(args, "plot", None):
            from draftwire.cli._common import check_outputs

            check_outputs(args)  # not after minutes of work
        code: int = args.run(args)
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
        from draftwire.io import FULL

        if isinstance(exc, OSError) and exc.errno in FULL:
            full = OutputError(f"cannot write the output: {exc.strerror}")
            return _complain(words, full)
        if isinstance(exc, OSError) and (exc.filename is not None or exc.errno in _OUTSIDE):
            what = f"{str(exc.filename or 'the system')[:200]}: {exc.strerror}"
            return _complain(words, ConfigError(what, hint="see --debug for where"))
        name = exc.name if isinstance(exc, ModuleNotFoundError) else ""
        if name and not name.startswith("draftwire"):
            return _complain(words, _missing(name.split(".")[0]))
        bug = InternalError(f"this is a bug: {type(exc).__name__}: {exc}")
        return _complain(words, bug)


def _missing(name: str) -> ConfigError:
    """Say which library is not installed, and what of ours brings it."""
    from importlib import metadata

    try:
        lines = metadata.requires("draftwire") or []
    except metadata.PackageNotFoundError:  # a checkout on PYTHONPATH
        lines = []
    pattern = name.replace("_", "[-_]") + r"\b.*extra == .([\w-]+)"
    brings = (re.match(pattern, line) for line in lines)
    wanted = next((f"'draftwire[{found[1]}]'" for found in brings if found), name)
    what = f"this needs {name}, which is not installed"
    return ConfigError(what, hint=f"pip install {wanted}")


def _drop_stdout() -> None:
    """What is still to be written goes nowhere, without further complaint."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _split_global(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Take what every command has out, wherever it stands before ``--``."""
    end = words.index("--") if "--" in words else len(words)
    everywhere = ("--debug", "--no-color", "--help-all")
    taken = [word for word in words[:end] if word in everywhere]
    rest = [word for word in words[:end] if word not in everywhere]
    asked = ["--help"] if "--help-all" in taken else []
    return _renamed(rest) + asked + list(words[end:]), taken


def _renamed(words: list[str]) -> list[str]:
    """Return the words of today (ConfigError: what they asked for is no part of the package
    now)."""
    for count in (3, 2, 1):
        name = " ".join(words[:count])
        if name in MOVED:
            return MOVED[name].split() + words[count:]
        if name in GONE:
            raise ConfigError(
                f"`draftwire {name}` is no part of the package now",
                hint=f"python -m {GONE[name]}, in a checkout",
            )
    return words


def _parser(names: Iterable[str], *, everything: bool = False) -> Parser:
    """Return the parser; the commands of ``names`` have their flags."""
    parser = Parser(
        prog="draftwire",
        description="A frozen draft model on the device, the target in the cloud.",
        epilog=EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    version = f"draftwire {__version__}"
    say = "show the version and exit"
    parser.add_argument("--version", action="version", version=version, help=say)
    commands = parser.add_subparsers(
        dest="command", metavar="COMMAND", parser_class=_Whole if everything else Parser
    )
    for name, summary in COMMANDS.items():
        if name not in names:
            commands.add_parser(name, help=summary)
            continue
        module = importlib.import_module(f"draftwire.cli.{name}")
        from draftwire.cli._leaf import add_leaf, add_leaves

        if hasattr(module, "LEAF"):
            add_leaf(commands, name, module.LEAF)
        else:
            group = commands.add_parser(name, help=summary, description=summary)
            add_leaves(group, module.LEAVES)
    return parser


def whole_parser() -> argparse.ArgumentParser:
    """Return the parser of all commands with all their flags."""
    return _parser(COMMANDS, everything=True)


def parse(words: Sequence[str]) -> argparse.Namespace:
    """Return what the words of a command ask for (ConfigError: they are no command)."""
    words, everywhere = _split_global(words)
    asked = next((word for word in words if not word.startswith("-")), "")
    if asked and asked not in COMMANDS:
        from draftwire.io import did_you_mean

        hint = did_you_mean(asked, COMMANDS, "see `draftwire --help`")
        raise ConfigError(f"there is no command {asked!r}", hint=hint)
    # Only the command that is asked for pays for its imports.
    parser = _parser((asked,), everything="--help-all" in everywhere)
    args = parser.parse_args(words)
    if args.command is None:
        parser.error("name a command")
    args.no_color, args.debug = "--no-color" in everywhere, "--debug" in everywhere
    return args


def _complain(words: Sequence[str], error: DraftwireError) -> int:
    """Say what went wrong, also to ``--json``; return the exit code."""
    from draftwire.cli._common import json_destination, say_error, write_json

    try:
        sys.stdout.flush()
    except OSError:  # full, or nobody reads: Python must not try again at its end
        _drop_stdout()
    say_error(error)
    destination = json_destination(words)
    if destination is not None and not isinstance(error, OutputError):  # it is there
        try:
            write_json({"error": error.to_dict()}, destination)
        except DraftwireError:
            pass  # the file may be what went wrong; stderr has said so
    return error.exit_code
