"""What the commands share: settings, tokens, colours, the log, JSON output."""

from __future__ import annotations

import argparse
import dataclasses
import errno
import json
import logging
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import IO, Any, Callable, Mapping, Sequence, TypeVar

from draftwire import tracing
from draftwire.errors import ConfigError, DraftwireError, OutputError
from draftwire.io import read_token_text, replacing
from draftwire.options import Options, options_of
from draftwire.settings import Value, resolve

_T = TypeVar("_T")


def read_settings(args: argparse.Namespace) -> dict[str, Value]:
    """Return all settings, those of ``args`` before any other."""
    flags = {name: getattr(args, name) for name in args.settings}
    return resolve(flags, config=args.config, defaults=args.defaults)


def fields_of(kind: Any, args: argparse.Namespace) -> dict[str, Any]:
    """Return those of ``args`` that are fields of a dataclass."""
    names = (field.name for field in dataclasses.fields(kind))
    return {name: getattr(args, name) for name in names if hasattr(args, name)}


def filled(kind: Callable[..., _T], args: argparse.Namespace, **others: Any) -> _T:
    """Return a dataclass whose fields are the flags of the same names, and ``others``."""
    return kind(**{**fields_of(kind, args), **others})


def say_error(error: DraftwireError, who: str = "draftwire: ") -> None:
    """Tell of an error on stderr, and what to do about it."""
    print(plain(f"{who}error: {error}"), file=sys.stderr)
    if error.hint:
        print(plain(f"hint: {error.hint}"), file=sys.stderr)


def progress(args: argparse.Namespace) -> Callable[[str], None]:
    """Return what shows on a terminal what takes time, in one line that goes away with
    the next, or with ""."""

    def tell(text: str) -> None:
        if sys.stderr.isatty() and not args.quiet:
            more = f"{text} ..." if text else ""
            print(f"\r\x1b[K{more}", end="", file=sys.stderr, flush=True)

    return tell


def say_block(line: str) -> None:
    """Say why a block left."""
    print(f"block: {line}", file=sys.stderr)


def option_values(values: Mapping[str, Value], *groups: type[Options]) -> dict[str, Any]:
    """Return the values of the options of ``groups``, by name."""
    return {option.name: values[option.name].value for option in options_of(*groups)}


def stream_options(values: Mapping[str, Value]) -> dict[str, Any]:
    """Return what ``session.generate`` takes of the settings (ConfigError: they do not go
    together; that is said before a verifier is started or a model is loaded for nothing).
    """
    from draftwire.options import STREAM_GROUPS, Pacing, Power, Sampling
    from draftwire.runtime.options import check_stream

    found = option_values(values, *STREAM_GROUPS)
    check_stream(Sampling.pick(found), Pacing.pick(found), Power.pick(found))
    return found


def session_options(values: Mapping[str, Value]) -> dict[str, Any]:
    """Return what ``draftwire.connect`` takes of the settings (ConfigError: no verifier is
    set, or the token file does not hold a token)."""
    from draftwire.options import CONNECT_GROUPS

    if not values["verifier"].value:
        hint = "give --verifier ws://HOST:PORT, or verifier = ... in draftwire.toml"
        raise ConfigError("no verifier is set", hint=hint)
    found = option_values(values, *CONNECT_GROUPS)
    draft, file = values["draft"].value, values["token_file"]
    if draft is None:
        from draftwire.reference import draft_path

        draft = draft_path()
    if file.value is not None:
        if found["token"] is not None:
            hint = f"leave out one of {values['token'].origin} and {file.origin}"
            raise ConfigError("both a token and a token file are set", hint=hint)
        found["token"] = read_token(file.value)
    where = {"url": str(values["verifier"].value), "draft": draft}
    return {**found, **where, "offline": values["offline"].value or "wait"}


def read_token(path: Path, hint: str = "") -> str:
    """Return the bearer token in ``path`` (ConfigError: the file is missing, empty or holds
    more than one word; ``hint`` says what to do then)."""
    holds = "it holds the one line that the verifier's --token-file holds"
    token = read_token_text(path, hint or holds).strip()
    if len(token.split()) != 1:
        message = f"the token file {path} must hold one line with one token"
        raise ConfigError(message, hint=hint or "copy the verifier's token file")
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


class _Lines(logging.Formatter):
    """Lines of the log: for people, for the journal, or an object each."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self._form = form

    def format(self, record: logging.LogRecord) -> str:
        if self._form == "json":
            return _as_json(
                record, record.exc_info and self.formatException(record.exc_info)
            )
        text = plain(super().format(record))
        if self._form == "journal":  # sd-daemon(3) wants the priority; it knows the time
            levels = {"DEBUG": 7, "INFO": 6, "WARNING": 5, "ERROR": 3, "CRITICAL": 2}
            return f"<{levels.get(record.levelname, 5)}>{record.name}: {text}"
        return f"{record.levelname} {record.name}: {text}"


def _as_json(record: logging.LogRecord, exception: Any) -> str:
    """Return one object; ``event`` is the same for all lines of a kind."""
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
        line["args"] = [a if isinstance(a, (int, float)) else str(a) for a in args]
    if exception:
        line["exception"] = exception
    return json.dumps(line)


def start_logging(*, verbose: bool, form: str | None = None) -> None:
    """Send the library's log to stderr (``verbose``: all of it), and traces where the
    environment says; ``form`` is ``--log-format`` of what runs for long."""
    handler = logging.StreamHandler(sys.stderr)
    if form == "text" and os.environ.get("JOURNAL_STREAM"):
        form = "journal"
    handler.setFormatter(_Lines(form or "text"))
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
    """See that a result can be written to ``destination``, before there is one
    (ConfigError: it cannot)."""
    if destination in (None, "-"):
        return
    path = Path(str(destination))
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
        what, hint = f"cannot write {destination}: {why}", "name another place"
        raise ConfigError(what, hint=hint) from exc


def check_outputs(args: argparse.Namespace) -> None:
    """See that what ``--json`` and ``--plot`` ask for can be written, before there is
    something to write (ConfigError: it cannot)."""
    check_output(getattr(args, "json", None))
    plot = getattr(args, "plot", None)
    if plot is not None:
        from draftwire.energy.reports.plots import check_picture

        check_picture(plot)
        check_output(str(plot))


def give_json(args: argparse.Namespace, document: object) -> bool:
    """Write what ``--json`` asks for; return whether stdout is still for people."""
    if args.json is not None:
        write_json(document, args.json)
    return bool(args.json != "-")


def show(args: argparse.Namespace, document: Any, render: Callable[[Any], str]) -> None:
    """Write the document to ``--json``, and its text to stdout."""
    if give_json(args, document):
        print(render(document))


def write_json(document: object, destination: str) -> None:
    """Write ``document`` to stdout (``-``) or to a file, whole or not at all (OutputError:
    the file cannot be written)."""
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
