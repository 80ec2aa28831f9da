"""What the verbs of ``draftwire energy`` share: options, the meter, output."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Sequence

from draftwire.errors import ConfigError

if TYPE_CHECKING:
    from draftwire.energy.meter import Meter
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


def rail_tables(args: argparse.Namespace) -> Sequence[RailTable]:
    """Join the rooms: boards know the profiles, energy takes their rail tables."""
    from draftwire.boards.profiles import load_profiles
    from draftwire.energy.rails import RailTable

    profiles = load_profiles(*([args.profiles] if args.profiles else []))
    return [RailTable.from_dict(p.name, p.rails) for p in profiles.values()]


def board_name(args: argparse.Namespace) -> str | None:
    """Return the profile of this machine, or None for one that we do not know."""
    from draftwire.boards.profiles import find_profile, load_profiles

    profiles = load_profiles(*([args.profiles] if args.profiles else []))
    match = find_profile(args.root, profiles, board=args.board)
    return None if match.profile.generic else match.profile.name


def named_board(args: argparse.Namespace) -> str | None:
    """Return the board that the user names for a log; logs come from other machines."""
    if args.board in (None, "auto"):
        return None
    from draftwire.boards.profiles import find_profile, load_profiles

    profiles = load_profiles(*([args.profiles] if args.profiles else []))
    return find_profile(profiles=profiles, board=args.board).profile.name


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
    from draftwire.energy.choose import open_meter, total_of
    from draftwire.energy.meter import Meter

    tables, board = rail_tables(args), board_name(args)
    options: dict[str, Any] = {"rails": split(args.rails), "scope": args.scope}
    if args.replay:
        from draftwire.energy.sources.replay import ReplaySource

        replay = ReplaySource(args.replay, speed=args.speed)
        choice = replay.recording.choice
        if options["rails"] or options["scope"]:
            choice = total_of(replay, tables, board=board, **options)
        meter = Meter(replay, choice, hz=args.hz)
    else:
        meter = open_meter(
            tables, hz=args.hz, root=args.root, name=args.source, board=board, **options
        )
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
    text = json.dumps(document, indent=2, allow_nan=False, default=str) + "\n"
    if args.json == "-":
        sys.stdout.write(text)
    else:
        from draftwire.energy.export import write_whole

        write_whole(Path(args.json), lambda path: put(path, text))
    return True


def put(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


def seconds_of(text: str | None) -> float | None:
    if text is None:
        return None
    units = {"ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0, "": 1.0}
    number = text.rstrip("msh")
    try:
        value = float(number) * units[text[len(number) :]]
    except (KeyError, ValueError) as exc:
        raise ConfigError(f"{text!r} is no time", hint="e.g. 500ms, 60s, 5m") from exc
    if not value > 0:
        raise ConfigError(f"{text!r} is not a positive time")
    return value


def watts(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f} W"


def sentence(entry: dict[str, Any]) -> str:
    if entry["joules"] is None:
        return f"no joules: {entry['why_null']}"
    from draftwire.energy.export import quantity

    energy = quantity(entry["joules"], entry["uncertainty"])
    flags = f" [{', '.join(entry['flags'])}]" if entry["flags"] else ""
    seconds = sum(entry["seconds_by_phase"].values())
    return (
        f"{energy} in {seconds:.2f} s, scope {entry['scope']}, "
        f"source {entry['source']}{flags}"
    )
