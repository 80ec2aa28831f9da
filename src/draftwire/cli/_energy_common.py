"""What the verbs of ``draftwire energy`` share: options, the meter, output."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Sequence

from draftwire.cli._common import write_json
from draftwire.errors import ConfigError

if TYPE_CHECKING:
    from draftwire.energy.account.meter import Meter
    from draftwire.energy.rails import RailTable

# Options that several verbs share.


def add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--json",
        nargs="?",
        const="-",
        metavar="FILE",
        help="JSON to FILE, or to stdout without one",
    )


def add_board(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--board", help="board profile; found by itself when left out")
    parser.add_argument(
        "--rails", help="rails to add up, comma between, when no profile knows them"
    )
    parser.add_argument("--scope", help="which total: module, board, ...")
    parser.add_argument("--profiles", type=Path, help="folder with profiles of your own")


def add_live(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--source", default="auto", help="auto, sysfs, pmic, jtop, ...")
    parser.add_argument("--hz", type=float, default=20.0, help="samples a second")
    parser.add_argument("--root", type=Path, default=Path("/"), help=argparse.SUPPRESS)
    parser.add_argument("--replay", type=Path, help="play a recording as the source")
    parser.add_argument("--speed", type=float, default=1.0, help="of --replay")
    add_board(parser)


def add_logs(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--window", help="a:b, seconds from the first sample")
    parser.add_argument("--interval", type=float, metavar="MS", help="of unstamped logs")
    parser.add_argument("--duration", type=float, metavar="S", help="of unstamped logs")
    add_board(parser)


def add_tokens(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--tokens", help="N emitted, or drafted=N,accepted=N,emitted=N", metavar="N"
    )


def add_meter(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--columns", help="time=NAME:ms,voltage=NAME,current=NAME:mA")
    parser.add_argument("--voltage", type=float, help="of the supply, for current alone")
    parser.add_argument("--meter", help="ppk2, otii, js220, fnb58, um25c, ...")
    parser.add_argument("--accuracy", help="of the meter, e.g. 0.5%%+2mW")


def meter_options(args: argparse.Namespace) -> dict[str, Any]:
    pairs = [part.partition("=") for part in split(args.columns) or []]
    wrong = next((name for name, equals, value in pairs if not equals or not value), None)
    if wrong is not None:
        raise ConfigError(
            f"--columns {args.columns}: {wrong!r} has no =NAME",
            hint="--columns time=NAME:ms,voltage=NAME,current=NAME:mA",
        )
    return {
        "columns": {name.strip(): value for name, _, value in pairs},
        "voltage": args.voltage,
        "meter": args.meter,
        "accuracy": args.accuracy,
    }


def rail_tables(args: argparse.Namespace) -> Sequence[RailTable]:
    from draftwire.energy.rails import load_tables

    return load_tables(*([args.profiles] if args.profiles else []))


def board_name(args: argparse.Namespace, *, here: bool = True) -> str | None:
    """Return the profile of this machine, or None for one that we do not know.

    Logs come from other machines (``here`` is False): only what the user names counts.
    """
    if not here and args.board in (None, "auto"):
        return None
    from draftwire.boards.profiles import find_profile, load_profiles

    profiles = load_profiles(*([args.profiles] if args.profiles else []))
    root = args.root if here else Path("/")
    profile = find_profile(root, profiles, board=args.board).profile
    return None if profile.generic else profile.name


def split(text: str | None) -> list[str] | None:
    return [part.strip() for part in text.split(",") if part.strip()] if text else None


def counts(text: str | None) -> dict[str, int]:
    if not text:
        return {}
    counts = {}
    for part in text.split(","):
        name, equals, number = part.partition("=")
        if not equals:
            name, number = "emitted", part
        if name not in ("drafted", "accepted", "emitted") or not number.strip().isdigit():
            raise ConfigError(f"--tokens {text!r}: N, or drafted=N,accepted=N,emitted=N")
        counts[name] = int(number)
    return counts


def open_live(args: argparse.Namespace) -> tuple[Meter, str | None]:
    """Return a started meter and the board's name."""
    from draftwire.energy.sources.choose import open_meter

    name = f"replay:{args.replay},{args.speed}" if args.replay else args.source
    meter = open_meter(
        rail_tables(args),
        hz=args.hz,
        root=args.root,
        name=name,
        board=board_name(args),
        rails=split(args.rails),
        scope=args.scope,
    )
    board = board_name(args)
    for warning in meter.projector.choice.warnings:
        say(f"warning: {warning}")
    if meter.projector.choice.total is None:
        say(f"no total: {meter.projector.choice.why_none}")
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


def watts(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f} W"


def sentence(entry: dict[str, Any]) -> str:
    if entry["joules"] is None:
        return f"no joules: {entry['why_null']}"
    from draftwire.io import quantity

    only = " (resolution only)" if entry["resolution_only"] else ""
    energy = quantity(entry["joules"], entry["uncertainty"]) + only
    net = ""
    if entry["net"] is not None:
        net = f" ({quantity(entry['net'], entry['net_uncertainty'])} above idle)"
    flags = f" [{', '.join(entry['flags'])}]" if entry["flags"] else ""
    seconds = sum(entry["seconds_by_phase"].values())
    covered = ""
    if entry["coverage"] is not None and entry["coverage"] < 0.9995:
        covered = f", {100 * entry['coverage']:.1f} % covered"
    return (
        f"{energy}{net} in {seconds:.2f} s{covered}, scope {entry['scope']}, "
        f"source {entry['source']}{flags}"
    )
