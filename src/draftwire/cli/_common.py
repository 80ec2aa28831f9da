"""What the commands share: colours, tables, JSON output, settings as flags."""

from __future__ import annotations

import argparse
import errno
import json
import logging
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import IO, Any, Callable, Iterable, Mapping, Sequence

from draftwire import tracing
from draftwire.errors import ConfigError, OutputError
from draftwire.io import replacing
from draftwire.options import OPTIONS, Option, Options, options_of
from draftwire.rules import Rule
from draftwire.settings import Value, resolve

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


def add_common_flags(parser: argparse.ArgumentParser) -> None:
    """Add ``--json [FILE]``, ``-q``, ``-v`` and ``--config FILE``."""
    parser.add_argument(
        "--json",
        nargs="?",
        const="-",
        metavar="FILE",
        help="write the result as JSON to FILE (alone or -: to stdout)",
    )
    parser.add_argument("-q", "--quiet", action="store_true", help="say less")
    parser.add_argument(
        "-v", "--verbose", action="store_true", help="log what happens to stderr"
    )
    parser.add_argument(
        "--config",
        type=Path,
        metavar="FILE",
        help="read settings from FILE, not ./draftwire.toml",
    )


def ruled(rule: Rule) -> Callable[[str], Any]:
    """Return what turns the text of a flag into a value that ``rule`` allows."""

    def read(text: str) -> Any:
        try:
            return rule.read(rule.convert(text))
        except (ValueError, TypeError, OverflowError):
            message = f"{text!r} is not {rule.wants}"
            raise argparse.ArgumentTypeError(message) from None

    return read


class _Switch(argparse.Action):
    """``--cut`` and ``--no-cut``: either wins over a file."""

    def __call__(
        self, parser: Any, space: Any, values: Any, word: str | None = None
    ) -> None:
        setattr(space, self.dest, not str(word).startswith("--no-"))


def _add_option(group: Any, option: Option, default: Any, *, shown: bool = True) -> None:
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


def _note(parser: argparse.ArgumentParser, options: Iterable[Option]) -> None:
    """Remember which flags are settings, for :func:`read_settings`."""
    names = [option.name for option in options if not option.secret]
    parser.set_defaults(settings=(parser.get_default("settings") or []) + names)


def add_settings(parser: argparse.ArgumentParser, names: Iterable[str]) -> None:
    """Add a flag for each of these options; `read_settings` checks the values."""
    options = [OPTIONS[name] for name in names]
    for option in options:
        _add_option(parser, option, option.default)
    _note(parser, options)


def add_options(
    parser: argparse.ArgumentParser,
    groups: Sequence[type[Options]],
    *,
    defaults: Mapping[str, Any] | None = None,
) -> None:
    """Add a flag for each option of ``groups``: the common ones first, then by title.

    What is not common is in the help of ``--help-all`` alone. ``defaults`` are those of a
    command that has its own.
    """
    whole = getattr(parser, "whole", False)
    defaults = dict(defaults or {})
    hidden = 0
    for group in groups:
        place = parser.add_argument_group(group.title)
        wanted = [option for option in options_of(group) if not option.secret]
        for option in wanted:
            where = parser if option.common else place
            shown = option.common or whole
            hidden += not shown
            default = defaults.get(option.name, option.default)
            _add_option(where, option, default, shown=shown)
        _note(parser, wanted)
    parser.set_defaults(defaults=defaults)
    if hidden:
        parser.epilog = f"--help-all shows {hidden} more options"


def read_settings(args: argparse.Namespace) -> dict[str, Value]:
    """Return all settings, those of ``args`` before any other."""
    flags = {name: getattr(args, name) for name in getattr(args, "settings", ())}
    defaults = getattr(args, "defaults", None)
    return resolve(flags, config=args.config, defaults=defaults)


def say_block(line: str) -> None:
    """Say why a block left."""
    print(f"block: {line}", file=sys.stderr)


def verifier_url(values: Mapping[str, Value]) -> str:
    """Return the verifier's address.

    Raises:
        ConfigError: There is none.
    """
    if not values["verifier"].value:
        raise ConfigError(
            "no verifier is set",
            hint="give --verifier ws://HOST:PORT, or verifier = ... in draftwire.toml",
        )
    return str(values["verifier"].value)


def option_values(values: Mapping[str, Value], *groups: type[Options]) -> dict[str, Any]:
    """Return the values of the options of ``groups``, by name."""
    return {option.name: values[option.name].value for option in options_of(*groups)}


def stream_options(values: Mapping[str, Value]) -> dict[str, Any]:
    """Return what ``session.generate`` takes of the settings.

    Raises:
        ConfigError: They do not go together; that is said before a verifier is started
            or a model is loaded for nothing.
    """
    from draftwire.options import STREAM_GROUPS, Pacing, Power, Sampling
    from draftwire.runtime.options import check_stream

    found = option_values(values, *STREAM_GROUPS)
    check_stream(Sampling.pick(found), Pacing.pick(found), Power.pick(found))
    return found


def session_options(values: Mapping[str, Value]) -> dict[str, Any]:
    """Return what ``draftwire.connect`` takes of the settings, but the URL.

    Raises:
        ConfigError: The token file does not hold a token.
    """
    from draftwire.options import CONNECT_GROUPS

    found = option_values(values, *CONNECT_GROUPS)
    draft, file = values["draft"].value, values["token_file"]
    if draft is None:
        from draftwire.reference import draft_path

        draft = draft_path()
    if file.value is not None:
        if found["token"] is not None:
            raise ConfigError(
                "both a token and a token file are set",
                hint=f"leave out one of {values['token'].origin} and {file.origin}",
            )
        found["token"] = read_token(file.value)
    return {**found, "draft": draft, "offline": values["offline"].value or "wait"}


def read_token(path: Path) -> str:
    """Return the bearer token in ``path``.

    Raises:
        ConfigError: The file is missing, empty or holds more than one word.
    """
    try:
        token = path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as exc:
        raise ConfigError(
            f"cannot read the token file {path}: {exc}",
            hint="it holds the one line that the verifier's --token-file holds",
        ) from exc
    if not token or len(token.split()) != 1:
        raise ConfigError(
            f"the token file {path} must hold one line with one token",
            hint="copy the verifier's token file",
        )
    return token


def wants_colour(stream: IO[str], *, never: bool = False) -> bool:
    """Return whether to colour what goes to ``stream``.

    ``--no-color`` (``never``) and ``NO_COLOR`` say no, ``FORCE_COLOR`` says yes, and a
    terminal that is not dumb is the default.

    Source:
        https://no-color.org, https://force-color.org: set and not empty.
    """
    if never or os.environ.get("NO_COLOR"):
        return False
    if os.environ.get("FORCE_COLOR"):
        return True
    return stream.isatty() and os.environ.get("TERM", "") != "dumb"


def plain(text: object) -> str:
    """Return ``text`` without what a terminal obeys; it may hold words of a peer."""
    return "".join(c if c.isprintable() or c in "\n\t" else " " for c in str(text))


class _Plain(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return plain(super().format(record))


class _ForJournal(_Plain):
    """Puts the priority of sd-daemon(3) in front; the journal knows the time."""

    def format(self, record: logging.LogRecord) -> str:
        levels = {"DEBUG": 7, "INFO": 6, "WARNING": 5, "ERROR": 3, "CRITICAL": 2}
        return f"<{levels.get(record.levelname, 5)}>{super().format(record)}"


class _Json(logging.Formatter):
    """One object a line; ``event`` is the same for all lines of a kind."""

    def format(self, record: logging.LogRecord) -> str:
        when = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line: dict[str, Any] = {
            "time": f"{when}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            "event": str(record.msg),
        }
        if record.args:
            args = record.args if isinstance(record.args, tuple) else (record.args,)
            numbers = (int, float)
            line["args"] = [a if isinstance(a, numbers) else str(a) for a in args]
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line)


def start_logging(*, verbose: bool, form: str | None = None) -> None:
    """Send the library's log to stderr, and traces where the environment says.

    Args:
        verbose: Everything, not only warnings.
        form: ``--log-format`` of what runs for long; None for what a person started.
    """
    handler = logging.StreamHandler(sys.stderr)
    if form == "json":
        handler.setFormatter(_Json())
    elif form and os.environ.get("JOURNAL_STREAM"):
        handler.setFormatter(_ForJournal("%(name)s: %(message)s"))
    else:
        handler.setFormatter(_Plain("%(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(handlers=[handler], level=logging.WARNING)
    tracing.from_environment()
    logging.getLogger("draftwire").setLevel(logging.DEBUG if verbose else logging.WARNING)


def json_destination(words: Sequence[str]) -> str | None:
    """Return where ``--json`` among ``words`` points: a file, ``-``, or None."""
    for i, word in enumerate(words):
        if word == "--":
            break
        if word.startswith("--json="):
            return word[len("--json=") :] or "-"
        if word == "--json":
            following = words[i + 1] if i + 1 < len(words) else "-"
            return "-" if following.startswith("-") else following
    return None


def check_output(destination: str | None) -> None:
    """See that a result can be written to ``destination``, before there is one.

    Raises:
        ConfigError: It cannot.
    """
    if destination is None or destination == "-":
        return
    path = Path(destination)
    try:
        if path.exists() and not path.is_file():
            if path.is_dir():
                raise IsADirectoryError(errno.EISDIR, "it is a folder")
            if not os.access(path, os.W_OK):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        else:  # it is replaced: what counts is the folder
            with tempfile.NamedTemporaryFile(dir=str(path.parent), prefix=f".{path.name}."):
                pass
    except (OSError, ValueError) as exc:
        why = getattr(exc, "strerror", None) or exc
        raise ConfigError(f"cannot write {destination}: {why}") from exc


def give_json(args: argparse.Namespace, document: object) -> bool:
    """Write what ``--json`` asks for; return whether stdout is still for people."""
    if args.json is not None:
        write_json(document, args.json)
    return bool(args.json != "-")


def show(args: argparse.Namespace, document: Any, render: Callable[[Any], str]) -> int:
    """Write the document to ``--json`` and its text to stdout; return the exit code 0."""
    if give_json(args, document):
        print(render(document))
    return 0


def write_json(document: object, destination: str) -> None:
    """Write ``document`` to stdout (``-``) or to a file, whole or not at all.

    Raises:
        OutputError: The file cannot be written.
    """
    text = json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    # What is no Unicode (half of a surrogate pair) becomes the JSON escape that it is.
    data = text.encode("utf-8", "backslashreplace")
    if destination == "-":
        sys.stdout.write(data.decode("utf-8"))
        sys.stdout.flush()
        return
    try:
        with replacing(Path(destination)) as path:
            path.write_bytes(data)
    except OSError as exc:
        raise OutputError(f"cannot write {destination}: {exc.strerror}") from exc
