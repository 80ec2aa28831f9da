"""``draftwire bench compare``: every scheme beside every other, live or simulated."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from draftwire.cli._bench_common import filled, say_to, show
from draftwire.errors import ConfigError

__all__ = ["compare_flags", "run"]


def compare_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags."""
    what = parser.add_argument_group("what")
    what.add_argument(
        "--scheme",
        metavar="S,S",
        help="cloud, colocated, vanilla, await, flexspec, ahead, ahead2, earlyexit, "
        "earlyexit2, qs, picospec, cost, latency, latency-auto, ours-cost, ours-latency, "
        "or all; NAME:K has blocks of K tokens (default: the published ones and ours)",
    )
    what.add_argument(
        "--draft", type=Path, metavar="DIR", help="default: the reference one"
    )
    what.add_argument("--target", default="v1", help="v1, v2, v3 or a package (v1)")
    what.add_argument(
        "--prompt",
        action="append",
        nargs="+",
        metavar="TEXT",
        help="continue these texts (default: the demo's three)",
    )
    add = what.add_argument
    add("--tokens", type=int, default=64, metavar="N", help="of each text (64)")
    add(
        "--k",
        default="4",
        metavar="N|best",
        help="tokens of a fixed block (4); best: of each row, over each link, found by "
        "the simulator on the same texts",
    )
    add("--temperature", type=float, default=0.0, help="default: 0, greedy")
    add("--top-k", type=int, default=50, metavar="N", help="when sampling (50)")
    add("--top-p", type=float, default=1.0, help="when sampling (1)")
    add("--seed", type=int, default=1, help="default: %(default)s")
    add("--repeats", type=int, default=3, metavar="N", help="in turns: A B C A B C (3)")
    add("--threads", type=int, default=1, metavar="N", help="of either engine (1)")
    add = parser.add_argument_group("links").add_argument
    add(
        "--link",
        dest="links",
        action="append",
        default=[],
        metavar="SPEC",
        help="such as 40ms/10mbit; more than once for several (default: lan, wan, poor)",
    )
    add(
        "--trace",
        dest="traces",
        action="append",
        default=[],
        type=Path,
        metavar="FILE",
        help="a link of 40 ms whose rate moves; more than once for several",
    )
    add("--method", default="auto", help="auto, netem, tun or proxy (default: auto)")
    add = parser.add_argument_group("time").add_argument
    add(
        "--profile",
        metavar="NAME",
        help="stretch every forward to a timing profile (draftwire bench simulate "
        "--profiles; or a .toml file); default: the models' own time",
    )
    add(
        "--acceptance",
        metavar="LUCK",
        help="with --profile: play synthetic texts in place of the models, such as 0.8",
    )
    add(
        "--text",
        dest="recording",
        type=Path,
        metavar="FILE",
        help="with --profile: play a recording (draftwire bench simulate --record)",
    )
    add(
        "--texts",
        dest="count",
        type=int,
        default=3,
        metavar="N",
        help="how many are played (3)",
    )
    add(
        "--simulate",
        dest="simulated",
        action="store_true",
        help="in virtual time, nothing runs",
    )
    add = parser.add_argument_group("output").add_argument
    add("--plot", type=Path, metavar="FILE", help="a picture: .png, .pdf or .svg")
    add("--markdown", action="store_true", help="print one Markdown table instead")


def run(args: argparse.Namespace) -> int:
    """Run the command; 1 when a text is not the target's own."""
    from draftwire.bench.compare.run import Settings, compare
    from draftwire.bench.compare.show import markdown, plot, render
    from draftwire.bench.sim.schemes import DEFAULT_ROWS, ROWS, schemes_named

    played = args.acceptance is not None or args.recording is not None
    if (played or args.simulated) and args.prompt:
        raise ConfigError("texts that are played or simulated have prompts of their own")
    settings = filled(
        Settings,
        args,
        target=_target(args.target),
        entries=schemes_named(args.scheme or DEFAULT_ROWS, ROWS),
        prompts=() if played else _prompts(args),
        block=_block(args.k),
    )
    document = compare(settings, say_to(args))
    show(args, document, markdown if args.markdown else render)
    if args.plot is not None:
        plot(document, args.plot)
    for sentence in document["different"]:
        print(f"draftwire: error: law 1: {sentence}", file=sys.stderr)
    return 1 if document["different"] else 0


def _block(text: str) -> int | None:
    if text == "best":
        return None
    if not text.isdecimal():
        raise ConfigError(f"--k {text!r} is no block length", hint="1 to 64, or best")
    return int(text)


def _target(name: str) -> Path:
    from draftwire.reference import target_path

    return Path(name) if "/" in name or name.endswith(".target") else target_path(name)


def _prompts(args: argparse.Namespace) -> tuple[str, ...]:
    from draftwire.cli.demo import PROMPTS

    given = [text for texts in args.prompt or () for text in texts]
    return tuple(given or PROMPTS.get(args.target, PROMPTS["v1"]))
