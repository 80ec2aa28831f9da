"""What the verbs of ``draftwire energy`` share: options, the meter, output."""

from __future__ import annotations

import argparse
import functools
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Sequence

from draftwire.cli._common import write_json
from draftwire.errors import ConfigError

if TYPE_CHECKING:
    from draftwire.energy.account.meter import Meter
    from draftwire.energy.rails import RailTable

COLUMNS = "time=NAME:ms,voltage=NAME,current=NAME:mA"

# Options that several verbs share: flags, and what argparse wants to know.
_OPTIONS: dict[str, dict[str, dict[str, Any]]] = {
    "json": {
        "--json": {
            "nargs": "?",
            "const": "-",
            "metavar": "FILE",
            "help": "JSON to FILE, or to stdout without one",
        }
    },
    "board": {
        "--board": {"help": "board profile; found by itself when left out"},
        "--rails": {"help": "rails to add up, comma between, when no profile knows them"},
        "--scope": {"help": "which total: module, board, ..."},
        "--profiles": {"type": Path, "help": "folder with profiles of your own"},
    },
    "root": {"--root": {"type": Path, "default": Path("/"), "help": argparse.SUPPRESS}},
    "live": {
        "--source": {"default": "auto", "help": "auto, sysfs, pmic, jtop, ..."},
        "--hz": {"type": float, "default": 20.0, "help": "samples a second"},
        "--replay": {"type": Path, "help": "play a recording as the source"},
        "--speed": {"type": float, "default": 1.0, "help": "of --replay"},
    },
    "window": {"--window": {"help": "a:b, seconds from the first sample"}},
    "logs": {
        "--interval": {"type": float, "metavar": "MS", "help": "of unstamped logs"},
        "--duration": {"type": float, "metavar": "S", "help": "of unstamped logs"},
    },
    "tokens": {
        "--tokens": {"help": "N emitted, or drafted=N,accepted=N,emitted=N", "metavar": "N"}
    },
    "meter": {
        "--columns": {"help": COLUMNS},
        "--voltage": {"type": float, "help": "of the supply, for current alone"},
        "--meter": {"help": "ppk2, otii, js220, fnb58, um25c, ..."},
        "--accuracy": {"help": "of the meter, e.g. 0.5%%+2mW"},
    },
}
LIVE = ("live", "root", "board")
FILES = ("window", "logs", "board", "meter")


def add(parser: argparse.ArgumentParser, *groups: str, **more: Any) -> None:
    """Add groups of shared options, and options of the verb's own."""
    for group in groups:
        for flag, known in _OPTIONS[group].items():
            parser.add_argument(flag, **known)
    for name, known in more.items():
        known = {"help": known} if isinstance(known, str) else known
        parser.add_argument("--" + name.replace("_", "-"), **known)


def meter_options(args: argparse.Namespace) -> dict[str, Any]:
    pairs = [part.partition("=") for part in split(args.columns) or []]
    wrong = next((name for name, equals, value in pairs if not equals or not value), None)
    if wrong is not None:
        why = f"--columns {args.columns}: {wrong!r} has no =NAME"
        raise ConfigError(why, hint=f"--columns {COLUMNS}")
    return {
        "columns": {name.strip(): value for name, _, value in pairs},
        "voltage": args.voltage,
        "meter": args.meter,
        "accuracy": args.accuracy,
    }


def log_options(args: argparse.Namespace) -> dict[str, Any]:
    return {
        # Logs come from other machines: only what the user names counts.
        "board": None if args.board in (None, "auto") else board_name(args, Path("/")),
        "rails": split(args.rails),
        "scope": args.scope,
        "interval_s": args.interval / 1000 if args.interval else None,
        "duration_s": args.duration,
    }


def rail_tables(args: argparse.Namespace) -> Sequence[RailTable]:
    return _tables(args.profiles)


@functools.lru_cache(maxsize=1)  # a command asks for each of its files
def _tables(folder: Path | None) -> Sequence[RailTable]:
    from draftwire.energy.rails import load_tables

    return load_tables(*([folder] if folder else []))


def board_name(args: argparse.Namespace, root: Path) -> str | None:
    """Return the profile of a machine, or None for one that we do not know."""
    from draftwire.boards.profiles import find_profile, load_profiles

    profiles = load_profiles(*([args.profiles] if args.profiles else []))
    profile = find_profile(root, profiles, board=args.board).profile
    return None if profile.generic else profile.name


def split(text: str | None) -> list[str] | None:
    return [part.strip() for part in text.split(",") if part.strip()] if text else None


def counts(text: str | None) -> dict[str, int]:
    found = {}
    for part in text.split(",") if text else ():
        name, equals, number = part.partition("=")
        if not equals:
            name, number = "emitted", part
        if name not in ("drafted", "accepted", "emitted") or not number.strip().isdigit():
            raise ConfigError(f"--tokens {text!r}: N, or drafted=N,accepted=N,emitted=N")
        found[name] = int(number)
    return found


def open_live(args: argparse.Namespace) -> tuple[Meter, str | None]:
    """Return a started meter and the board's name."""
    from draftwire.energy.sources.choose import open_meter

    board = board_name(args, args.root)
    meter = open_meter(
        rail_tables(args),
        hz=args.hz,
        root=args.root,
        name=f"replay:{args.replay},{args.speed}" if args.replay else args.source,
        board=board,
        rails=split(args.rails),
        scope=args.scope,
    )
    choice = meter.projector.choice
    for warning in choice.warnings:
        say(f"warning: {warning}")
    if choice.total is None:
        say(f"no total: {choice.why_none}")
    meter.start()
    return meter, board


def say(text: str) -> None:
    print(text, file=sys.stderr)


def emit(args: argparse.Namespace, document: Any) -> bool:
    """Write the document where ``--json`` wants it; return False without the option."""
    if args.json is None:
        return False
    write_json(document, args.json)
    return True


def seconds_of(text: str | None) -> float | None:
    from draftwire.io import parse_seconds

    return None if text is None else parse_seconds(text)


def sentence(entry: dict[str, Any]) -> str:
    if entry["joules"] is None:
        return f"no joules: {entry['why_null']}"
    from draftwire.io import quantity

    text = quantity(entry["joules"], entry["uncertainty"])
    text += " (resolution only)" if entry["resolution_only"] else ""
    if entry["net"] is not None:
        text += f" ({quantity(entry['net'], entry['net_uncertainty'])} above idle)"
    text += f" in {sum(entry['seconds_by_phase'].values()):.2f} s"
    if entry["coverage"] is not None and entry["coverage"] < 0.9995:
        text += f", {100 * entry['coverage']:.1f} % covered"
    flags = f" [{', '.join(entry['flags'])}]" if entry["flags"] else ""
    return f"{text}, scope {entry['scope']}, source {entry['source']}{flags}"
