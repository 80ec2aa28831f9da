"""``draftwire export exits``: early exits for a target package."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any, Mapping

from draftwire.errors import ConfigError

__all__ = ["exits", "exits_arguments", "show", "summary"]


def exits_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of ``export exits``."""
    add = parser.add_argument
    add("target", metavar="TARGET", type=Path, help="a target package, whole or evolved")
    add(
        "--data",
        nargs="+",
        type=Path,
        default=[],
        metavar="FILE",
        help="text to learn from, each file a kind of its own (default: the target "
        "writes its own)",
    )
    add(
        "--held-out",
        nargs="+",
        type=Path,
        default=[],
        metavar="FILE",
        help="text to calibrate and measure on, one file for each of --data (default: a "
        "tenth of it)",
    )
    add(
        "--out",
        type=Path,
        metavar="NAME.target",
        help="the package to write (default: in the place of TARGET)",
    )
    add(
        "--layers",
        metavar="N[,N...]",
        help="after how many layers each exit sits (default: one third and two thirds)",
    )
    add(
        "--rank",
        type=int,
        metavar="R",
        help="of each exit's residual (default: 256, at most the target's width)",
    )
    add(
        "--agreement",
        type=float,
        default=0.9,
        metavar="SHARE",
        help="how often an exit that speaks shall agree with the target (default: 0.9)",
    )
    add(
        "--tokens",
        type=int,
        default=400_000,
        metavar="N",
        help="to learn from (default: %(default)s, a few minutes for the reference family)",
    )
    add(
        "--reuse",
        type=Path,
        metavar="OTHER.target",
        help="take over the exits of this target: thresholds are calibrated, nothing is "
        "trained",
    )
    add("--seed", type=int, default=1, metavar="N", help="of everything random")
    add(
        "--replace",
        action="store_true",
        help="put them in the place of older ones",
    )


def exits(args: argparse.Namespace) -> list[Path]:
    """Train and calibrate exits; return the package's folder."""
    from draftwire.export.exits.make import ExitSettings, export_exits

    quiet = args.quiet

    def say(line: str) -> None:
        if not quiet:
            print(line, file=sys.stderr, flush=True)

    out = export_exits(
        args.target,
        data=args.data,
        held_out=args.held_out,
        out=args.out,
        reuse=args.reuse,
        settings=ExitSettings(
            layers=_layers(args.layers),
            rank=args.rank,
            agreement=args.agreement,
            tokens=args.tokens,
            seed=args.seed,
        ),
        replace=args.replace,
        say=say,
    )
    return [out]


def _layers(text: str | None) -> tuple[int, ...]:
    if text is None:
        return ()
    try:
        return tuple(int(word) for word in text.split(","))
    except ValueError:
        raise ConfigError(
            f"--layers {text} is no list of numbers", hint="such as --layers 2,4"
        ) from None


def summary(package: Any) -> dict[str, Any]:
    """Return what a report says about the exits of a package, if it has any."""
    section = package.raw.get("exits")
    if getattr(package, "exits", None) is None:
        return {}
    size = sum(entry["bytes"] for entry in section["files"].values())
    return {"exits": section["exits"], "exits_bytes": size}


def show(report: Mapping[str, Any]) -> None:
    """Print it."""
    for found in report.get("exits", ()):
        measured = found.get("measured")
        agrees = "none" if measured is None else f"{measured:.1%}"
        print(
            f"  exit after layer {found['layer']}: speaks from {found['threshold']:.3f} "
            f"on, at {found.get('speaks') or 0:.1%} of the positions; agrees at {agrees} "
            f"of those (calibrated to {found['agreement']:.0%})"
        )
    if "exits_bytes" in report:
        print(f"  exits take {report['exits_bytes'] / 1e6:.2f} MB")
