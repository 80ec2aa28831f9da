"""What the commands share: colours, tables, JSON output, settings as flags."""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import tempfile
from pathlib import Path
from typing import IO, Any, Iterable, Sequence

from draftwire.errors import ConfigError
from draftwire.settings import SETTINGS, Value, resolve

__all__ = [
    "add_common_flags",
    "add_settings",
    "connect_options",
    "format_table",
    "generate_options",
    "json_destination",
    "read_settings",
    "read_token",
    "start_logging",
    "wants_colour",
    "write_json",
]


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


def add_settings(parser: argparse.ArgumentParser, names: Iterable[str]) -> None:
    """Add a flag for each of these settings; `read_settings` checks the values."""
    for name in names:
        setting = SETTINGS[name]
        note = "" if setting.default is None else f" (default: {setting.default})"
        parser.add_argument(
            setting.flag,
            dest=name,
            metavar=name.upper(),
            help=setting.help.replace("%", "%%") + note,
        )


ENGINE_SETTINGS = ("precision", "engine", "provider", "threads")


def read_settings(args: argparse.Namespace) -> dict[str, Value]:
    """Return all settings, those of ``args`` before any other."""
    flags = {name: getattr(args, name, None) for name in SETTINGS}
    return resolve(flags, config=args.config)


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


def start_logging(*, verbose: bool) -> None:
    """Send the library's log to stderr: warnings, or everything when ``verbose``."""
    logging.basicConfig(
        stream=sys.stderr,
        level=logging.WARNING,
        format="%(levelname)s %(name)s: %(message)s",
    )
    logging.getLogger("draftwire").setLevel(logging.DEBUG if verbose else logging.WARNING)


def format_table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Return aligned columns: the first to the left, numbers to the right."""
    cells = [list(header)] + [[_cell(value) for value in row] for row in rows]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    lines = []
    for row in cells:
        first = row[0].ljust(widths[0])
        rest = [cell.rjust(width) for cell, width in zip(row[1:], widths[1:])]
        lines.append("  ".join([first, *rest]).rstrip())
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(lines)


def _cell(value: object) -> str:
    if value is None:
        return "-"
    return f"{value:.2f}" if isinstance(value, float) else str(value)


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


def write_json(document: object, destination: str) -> None:
    """Write ``document`` to stdout (``-``) or to a file, whole or not at all.

    Raises:
        ConfigError: The file cannot be written.
    """
    text = json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    if destination == "-":
        sys.stdout.write(text)
        sys.stdout.flush()
        return
    path = Path(destination)
    if path.exists() and not path.is_file():  # a pipe or /dev/null: nothing to replace
        _write_in_place(path, text)
        return
    name = ""
    try:
        with tempfile.NamedTemporaryFile(
            "w",
            encoding="utf-8",
            dir=str(path.parent),
            prefix=f".{path.name}.",
            delete=False,
        ) as handle:
            name = handle.name
            handle.write(text)
        os.chmod(name, 0o666 & ~_umask())
        os.replace(name, destination)
    except OSError as exc:
        if name and os.path.exists(name):
            os.unlink(name)
        raise ConfigError(f"cannot write {destination}: {exc.strerror}") from exc


def _write_in_place(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as exc:
        raise ConfigError(f"cannot write {path}: {exc.strerror}") from exc


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def generate_options(args: argparse.Namespace) -> dict[str, Any]:
    """Return what ``session.generate`` takes, from the flags and the settings.

    Raises:
        ConfigError: A value is out of range, or the scheme cannot do what is asked.
    """
    from draftwire import sampling

    values = {name: found.value for name, found in read_settings(args).items()}
    options = {name: values[name] for name in ("temperature", "top_k", "top_p")}
    options["scheme"] = values["scheme"]
    if options["scheme"] is None:
        options["scheme"] = "coupled" if options["temperature"] > 0 else "greedy"
    # Checked here, before a verifier is started or a model is loaded for nothing.
    seed = 0 if args.seed is None else args.seed
    sampling.make_proposer(sampling.SamplingParams(**options, seed=seed), 2)
    if args.max_new_tokens < 1:
        raise ConfigError(
            f"--max-new-tokens is {args.max_new_tokens}", hint="it must be 1 or more"
        )
    from draftwire.cli._mode_flags import mode_options

    return {
        **options,
        **mode_options(args),
        "seed": args.seed,
        "max_new_tokens": args.max_new_tokens,
        "block": values["block"],
    }


def connect_options(args: argparse.Namespace) -> dict[str, Any]:
    """Return what ``draftwire.connect`` takes beside the addresses, where it is set."""
    from draftwire.cli._mode_flags import cache_option

    values = read_settings(args)
    engine = {name: values[name].value for name in ENGINE_SETTINGS}
    given = {name: value for name, value in engine.items() if value is not None}
    return {**cache_option(args), **given}
