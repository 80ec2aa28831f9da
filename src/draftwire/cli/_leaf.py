"""How a command is declared: a :class:`Leaf`, with its flags as the lines of its help.

A flag is a line of text. What it is called and takes stands before two spaces, what it
is for behind them, as in ``--help``; a further line that is indented goes on with it::

    --draft DIR                     default: the reference one
    --seconds S:positive =60        of a run
    --backend {auto,onnx,hf} =auto  who computes
    --target PATH... >targets       may be repeated
    --prompt TEXT+                  may be repeated, and takes several at once
    --out FILE !                    must be given
    --http [PORT]                   may stand alone: an empty text
    --plain,--bare                  a switch, by either name
    [NAME]                          an argument that may be left out
    FILES...:path                   one or more
    output:                         a heading: a group of its own in the help

``:type`` is a name of :data:`TYPES`; without one ``FILE``, ``DIR``, ``PEM`` and ``PATH``
are paths, ``N`` is a count, and all else is text. ``=`` is the default, ``>`` the name that
the value has, where that is not the flag's.
"""

from __future__ import annotations

import argparse
import importlib
import re
from pathlib import Path
from typing import Any, Callable, Iterator, Mapping, NamedTuple

from draftwire.io import parse_json, parse_seconds
from draftwire.options import OPTIONS, Option, Options, options_of
from draftwire.rules import Rule, number, whole

# What every command has.
COMMON = """
--json [FILE]:output  write the result as JSON to FILE (alone or -: to stdout)
-q,--quiet            say less
-v,--verbose          log what happens to stderr
--config FILE         read settings from FILE, not ./draftwire.toml
"""
# What several have.
EXPLAIN = "--explain  say on stderr why each block ended where it did"
LOG_FORMAT = """
--log-format {text,json} =text  of the log on stderr; json is an object a line
"""
PROFILES = """
--profile-dir,--profiles DIR...  folder with board profiles of your own, before those of
                      DRAFTWIRE_PROFILE_DIR and ~/.config/draftwire/boards (may be repeated)
"""
NUMERICS = """
--numerics {exact,close}  exact: the same bits however a position was asked for; close: up
                      to near ties, which are counted (default: close in float32, exact
                      below it)
"""


class Leaf(NamedTuple):
    """One command that runs."""

    summary: str  # one line for the list of commands
    # ``"module:function"``, which gets the parsed arguments and returns the exit code, or
    # nothing for 0; imported when it runs
    run: str
    flags: str = ""  # its flags, a line each
    about: str = ""  # for its own help, if more than the summary
    settings: tuple[str, ...] = ()  # options that are flags of it
    # more of them by groups (also ``"module:class"``): the common ones first, the others
    # under their group's title in the help of --help-all alone
    groups: tuple[type[Options] | str, ...] = ()
    defaults: Mapping[str, Any] = {}  # those of this command's own


def named(word: Any) -> Any:
    """Return what ``"module:name"`` stands for; what is no text stands for itself."""
    if not isinstance(word, str):
        return word
    module, _, name = word.partition(":")
    return getattr(importlib.import_module(module), name)


def ruled(rule: Rule) -> Callable[[str], Any]:
    """Return what turns the text of a flag into a value that ``rule`` allows."""

    def read(text: str) -> Any:
        try:
            return rule.read(rule.convert(text))
        except (ValueError, TypeError, OverflowError):
            message = f"{text!r} is not {rule.wants}"
            raise argparse.ArgumentTypeError(message) from None

    return read


def _words(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no count, a whole number from 1")
    return int(text)


def _counts(text: str) -> tuple[int, ...]:
    return tuple(_count(part.strip()) for part in text.split(","))


def _address(text: str) -> tuple[str, int]:
    host, colon, port = text.rpartition(":")
    if not (colon and host and port.isdecimal() and int(port) < 65536):
        raise argparse.ArgumentTypeError(f"{text!r} is no HOST:PORT")
    return host.strip("[]"), int(port)


def _json(text: str) -> dict[str, Any]:
    try:
        found = parse_json(text)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise argparse.ArgumentTypeError(f"{text!r} is no JSON object")
    return found


TYPES: dict[str, Callable[[str], Any]] = {
    "address": _address,
    "count": _count,
    "counts": _counts,
    "int": int,
    "json": _json,
    "output": lambda text: text or "-",
    "path": Path,
    "pause": lambda text: parse_seconds(text, zero=True),
    "port": ruled(whole(0, 65535)),
    "positive": ruled(number(0, 1e9, above=True)),
    "number": ruled(number(0, 1e9)),
    "share": ruled(number(0, 1)),
    "text": str,
    "time": parse_seconds,
    "whole": ruled(whole(0, 2**64 - 1)),
    "words": _words,
}
_BY_NAME = {**dict.fromkeys(("FILE", "DIR", "PEM", "PATH"), "path"), "N": "count"}


def flag_lines(text: str) -> dict[str, str]:
    """Return lines by the names of their flags, for commands that share them."""
    names = {line: line.split(" ")[0].split(",")[0] for line in _lines(text)}
    return {name.strip("-").replace("-", "_"): line for line, name in names.items()}


def add_flags(parser: argparse.ArgumentParser, text: str) -> None:
    """Add the flags that the lines of ``text`` say."""
    group: argparse._ActionsContainer = parser
    for line in _lines(text):
        if line.endswith(":") and " " not in line.rstrip(":"):
            group = parser.add_argument_group(line[:-1].replace("_", " "))
        else:
            spec, _, about = line.partition("  ")
            _add_flag(group, spec.split(" "), about.strip())


def _lines(text: str) -> Iterator[str]:
    """Yield each line with those that go on with it."""
    found: list[str] = []
    for line in filter(str.strip, text.splitlines()):
        if line[0] == " " and found:
            found[-1] += " " + line.strip()
        else:
            found.append(line.rstrip())
    return iter(found)


def _add_flag(group: argparse._ActionsContainer, spec: list[str], about: str) -> None:
    name, *rest = spec
    words: dict[str, Any] = {}
    if not name.startswith("-"):  # an argument: what it is called is what it takes
        rest.insert(0, name.strip("[]"))
        name = re.sub(r"[^A-Z_].*", "", rest[0]).lower()
        if "..." in rest[0] or spec[0].startswith("["):
            words["nargs"] = "?" if "..." not in rest[0] else "*" if "[" in spec[0] else "+"
    kind = ""
    for part in rest:
        value = part[1:]
        if part[0] == "=":
            words["default"] = value
        elif part[0] == ">":
            words["dest"] = value
        elif part[0] == "!":
            words["required"] = True
        else:
            found = re.fullmatch(r"(.+?)(\.\.\.|\+)?(?::([a-z]+))?", part)
            assert found is not None
            if part[0] == "{":
                words["choices"] = tuple(found[1].strip("{}").split(","))
                words.pop("metavar", None)
            elif part[0] == "[":  # the flag may stand alone: an empty text
                words.update(metavar=found[1].strip("[]"), nargs="?", const="")
            else:
                words["metavar"] = found[1]
            kind = found[3] or _BY_NAME.get(found[1], "text")
            if found[2] and name.startswith("-"):
                several = {"action": "extend", "nargs": "+"}
                words.update(
                    several if found[2] == "+" else {"action": "append"}, default=[]
                )
    if not kind:
        words["action"] = "store_true"
    else:
        words["type"] = TYPES[kind]
        default = words.get("default")
        if isinstance(default, str):
            words["default"] = TYPES[kind](default)
            note = f"(default: {default})" if about else f"default: {default}"
            about = f"{about} {note}".strip() if default else about
    group.add_argument(*name.split(","), help=about.replace("%", "%%"), **words)


class _Switch(argparse.Action):
    """``--cut`` and ``--no-cut``: either wins over a file."""

    def __call__(
        self, parser: Any, space: Any, values: Any, word: str | None = None
    ) -> None:
        setattr(space, self.dest, not str(word).startswith("--no-"))


def _add_settings(parser: argparse.ArgumentParser, leaf: Leaf) -> None:
    """Add the flags that are options, whose values `read_settings` checks."""
    found = [(parser, OPTIONS[name], True) for name in leaf.settings]
    for group in map(named, leaf.groups):
        place: Any = parser.add_argument_group(group.title)
        for option in options_of(group):
            where = parser if option.common else place
            shown = option.common or getattr(parser, "whole", False)
            found += [] if option.secret else [(where, option, shown)]
    for where, option, shown in found:
        default = leaf.defaults.get(option.name, option.default)
        _add_option(where, option, default, shown=shown)
    parser.set_defaults(settings=[o.name for _, o, _ in found], defaults=leaf.defaults)
    hidden = sum(not shown for _, _, shown in found)
    if hidden:
        parser.epilog = f"--help-all shows {hidden} more options"


def _add_option(group: Any, option: Option, default: Any, *, shown: bool) -> None:
    words: dict[str, Any] = {"dest": option.name, "default": None}
    names = [option.flag]
    if option.rule.kind is bool:
        words.update(action=_Switch, nargs=0)
        names.append("--no-" + option.flag[2:])
    else:
        words["metavar"] = option.rule.shown
        if option.rule.kind is tuple:
            words["action"] = "append"
    note = "" if default in (None, False, (), "") else f" (default: {default})"
    text = option.help.replace("%", "%%") + note
    group.add_argument(*names, help=text if shown else argparse.SUPPRESS, **words)


def add_leaf(commands: Any, name: str, leaf: Leaf) -> None:
    """Add a command to those of a parser."""
    about = leaf.about or leaf.summary
    parser = commands.add_parser(name, help=leaf.summary, description=about)
    add_flags(parser, leaf.flags)
    _add_settings(parser, leaf)
    add_flags(parser, COMMON)
    parser.usage = " ".join([parser.prog, "[OPTIONS]", *_arguments(leaf.flags)])

    def run(args: argparse.Namespace) -> int:
        return int(named(leaf.run)(args) or 0)

    parser.set_defaults(run=run)


def _arguments(text: str) -> Iterator[str]:
    """Yield the arguments that are no flags, as a usage line names them."""
    for line in _lines(text):
        word = line.split(" ")[0].split(":")[0]
        if not word.startswith("-") and not line.endswith(":"):
            yield word


def add_leaves(parser: argparse.ArgumentParser, leaves: dict[str, Leaf]) -> None:
    """Add the commands of a group."""
    commands = parser.add_subparsers(dest="leaf", metavar="WHAT", required=True)
    for name, leaf in leaves.items():
        add_leaf(commands, name, leaf)
