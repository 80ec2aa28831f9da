"""``draftwire boards show``: what draftwire knows of one board."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from draftwire.cli import _boards_common as common
from draftwire.cli._boards_text import labelled, list_of
from draftwire.cli._common import write_json
from draftwire.errors import ConfigError

if TYPE_CHECKING:
    from draftwire.boards.profiles import Profile

__all__ = ["add_flags", "render", "run"]


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of the command."""
    parser.add_argument(
        "name", nargs="?", metavar="NAME", help="a board of `list` (default: this one)"
    )
    parser.add_argument(
        "--toml",
        action="store_true",
        help="print the profile's file: the start of a profile of your own",
    )
    common.add_profile_flag(parser)


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    from draftwire.boards.profiles import find_profile

    profile = find_profile(profiles=common.profiles(args), board=args.name).profile
    if args.toml:
        try:
            sys.stdout.write(profile.path.read_text(encoding="utf-8"))
        except OSError as exc:
            raise ConfigError(f"cannot read {profile.path}: {exc.strerror}") from exc
        return 0
    if args.json is not None:
        write_json({**profile.raw, "profile": str(profile.path)}, args.json)
    if args.json != "-":
        print(render(profile))
    return 0


def render(profile: Profile) -> str:
    """Return the lines for people."""
    raw = profile.raw
    chip = f"{profile.soc}, {profile.arch}" if profile.soc else profile.arch
    lines = [
        labelled("board", f"{profile.title} ({profile.name})"),
        labelled("chip", chip + (f", sm {raw['cuda_sm']}" if "cuda_sm" in raw else "")),
    ]
    if profile.variants:
        lines.append(labelled("variants", list_of(v.name for v in profile.variants)))
    cores = [f"{core.get('count')} x {core.get('kind')}" for core in raw.get("cores", ())]
    if cores:
        lines.append(labelled("cores", list_of(cores)))
    if raw.get("l4t"):
        lines.append(labelled("L4T", list_of(raw["l4t"])))
    lines.append(labelled("known by", list_of((*profile.compatible, *profile.models))))
    for i, sensor in enumerate(raw.get("sensor", ())):
        system = f" ({sensor['l4t']})" if sensor.get("l4t") else ""
        where = f" at {list_of(sensor['address'])}" if sensor.get("address") else ""
        text = f"{sensor.get('driver')}{where}{system}"
        lines.append(labelled("sensors" if i == 0 else "", text))
    totals = profile.rails.get("total", ())
    for i, total in enumerate(totals):
        rails = " + ".join(total.get("rails", ()))
        text = f"{total.get('scope')} = {rails}"
        lines.append(labelled("total" if i == 0 else "", text))
    if not totals:
        lines.append(labelled("total", "none: this board cannot measure itself"))
    if profile.rails.get("parts"):
        lines.append(labelled("parts of it", list_of(profile.rails["parts"])))
    for i, mode in enumerate(profile.modes):
        form = f"{mode['for']}: " if mode.get("for") else ""
        start = f" (default {mode['default']})" if mode.get("default") else ""
        text = f"{form}{list_of(mode.get('names', ()))}{start}"
        lines.append(labelled("power modes" if i == 0 else "", text))
    lines.append(labelled("engines", list_of(raw.get("engines", {}).get("packages", ()))))
    for label, texts in (
        ("note", profile.quirks),
        ("unverified", profile.unverified),
        ("source", profile.sources),
    ):
        lines += [labelled(label, text) for text in texts]
    lines.append(labelled("file", str(profile.path)))
    return "\n".join(lines)
