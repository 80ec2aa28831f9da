"""``draftwire bench WHAT``: measure the parts. A leaf is a line of ``LEAVES``."""

from __future__ import annotations

import argparse
import importlib
from pathlib import Path
from typing import Any, Callable, NamedTuple

from draftwire.cli._bench_common import filled, say_to, show
from draftwire.cli._bench_compare import compare_flags
from draftwire.cli._bench_simulate import simulate_flags
from draftwire.cli._common import add_common_flags
from draftwire.errors import ConfigError

__all__ = ["LEAVES", "Leaf", "register"]


class Leaf(NamedTuple):
    """One ``draftwire bench`` command.

    Attributes:
        summary: One line for ``draftwire bench --help``.
        add_flags: Adds the leaf's own flags.
        run: Name of the function in this module, or ``"module:function"``; gets the
            parsed arguments and returns the exit code.
    """

    summary: str
    add_flags: Callable[[argparse.ArgumentParser], None]
    run: str


def _package_flags(parser: argparse.ArgumentParser, *kinds: str) -> None:
    for kind in kinds:
        what = f"{kind} package (default: the reference one)"
        parser.add_argument(f"--{kind}", type=Path, metavar="DIR", help=what)


def _draft_flags(parser: argparse.ArgumentParser) -> None:
    _package_flags(parser, "draft")
    parser.add_argument("--precision", help="which of its models (default: int8)")
    parser.add_argument(
        "--contexts",
        type=_counts,
        default=(32, 256, 1024),
        metavar="N,N",
        help="tokens in the KV cache (default: 32,256,1024)",
    )
    parser.add_argument("--threads", type=_count, default=1, help="default: %(default)s")
    parser.add_argument(
        "--blocks",
        type=_count,
        default=60,
        help="undisturbed rounds of 16 tokens for each context (default: 60)",
    )
    parser.add_argument(
        "--no-genai", action="store_true", help="leave onnxruntime-genai out"
    )
    parser.add_argument(
        "--no-spawn", action="store_true", help="leave import time and memory out"
    )


def _draft(args: argparse.Namespace) -> int:
    from draftwire.bench.draft import Settings, bench_draft, render

    spawn = 0 if args.no_spawn else 5
    settings = filled(Settings, args, spawn=spawn, genai=not args.no_genai)
    return show(args, bench_draft(settings), render)


def _chaos_flags(parser: argparse.ArgumentParser) -> None:
    _package_flags(parser, "draft", "target")
    parser.add_argument(
        "--faults", type=_count, default=200, help="how many (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=1, help="default: %(default)s")


def _chaos(args: argparse.Namespace) -> int:
    from draftwire.bench.chaos import render, run_chaos

    result = run_chaos(
        args.draft, args.target, faults=args.faults, seed=args.seed, say=say_to(args)
    )
    show(args, result.report(), render)
    # A lost or changed token is a broken law: say so to scripts too.
    return 1 if result.wrong else 0


def _fleet_flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    _package_flags(parser, "draft", "target")
    add("--verifiers", type=_count, default=3, metavar="N", help="default: %(default)s")
    add("--devices", type=_count, default=6, metavar="N", help="default: %(default)s")
    add("--rounds", type=_count, default=1, metavar="N", help="of all events (1)")
    add("--seconds", type=float, default=6.0, metavar="S", help="for each event (6)")
    add("--tokens", type=_count, default=96, help="of a text (default: %(default)s)")


def _fleet(args: argparse.Namespace) -> int:
    from draftwire.bench.fleet import Settings, bench_fleet, render

    if not args.seconds > 0 or args.verifiers < 2:
        raise ConfigError("--seconds must be above 0, and --verifiers at least 2")
    document = bench_fleet(filled(Settings, args), say_to(args))
    show(args, document, render)
    return 1 if document["wrong"] else 0


def _verifier_flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    _package_flags(parser, "target")
    add("--devices", type=_count, default=64, metavar="N", help="default: %(default)s")
    add("--seconds", type=float, default=60.0, metavar="S", help="a run (default: 60)")
    add("--block", type=_count, default=4, help="drafted tokens (default: %(default)s)")
    add("--acceptance", type=float, default=0.8, help="of a draft (default: %(default)s)")
    add("--tokens", type=_count, default=64, help="of a text (default: %(default)s)")
    add("--think-ms", type=float, default=0.0, metavar="MS", help="drafting takes so long")
    add("--threads", type=_count, metavar="N", help="of the verifier's engine")
    add("--no-compare", action="store_true", help="leave the run without batching out")
    add("--flood", action="store_true", help="one device beside a flood of cheap frames")
    add("--attack", action="store_true", help="one device beside every attack there is")
    add = parser.add_argument_group("numerics").add_argument
    add(
        "--numerics",
        action="store_true",
        help="instead: what exact numerics cost here, and whether texts stay the same",
    )
    add("--texts", type=int, default=60, metavar="N", help="written twice, 0 for none (60)")
    add("--cases", type=_words, metavar="C,C", help="such as k = 4, race (default: all)")
    add(
        "--dtypes",
        type=_words,
        default=("float32",),
        metavar="T,T",
        help="of a checkpoint: float32 (default), bfloat16, float16",
    )


def _verifier(args: argparse.Namespace) -> int:
    if args.numerics:
        return _numerics(args)
    from draftwire.bench.verifier import Load, bench_verifier, render

    if not (args.seconds > 0 and 0 <= args.acceptance <= 1 and args.think_ms >= 0):
        raise ConfigError("--seconds, --acceptance or --think-ms is out of range")
    load = filled(Load, args, think_s=args.think_ms / 1e3)
    if args.flood or args.attack:
        from draftwire.bench import peace

        found = peace.bench_peace(load, attack=args.attack, say=say_to(args))
        show(args, found, peace.render)
        hurt = [
            row["attack"]
            for row in found["attacks"]
            if row["share"] < peace.ENOUGH or row["times_worst"] > peace.TIMES
        ]
        return 1 if hurt else 0
    document = bench_verifier(
        load,
        (None,) if args.no_compare else (None, 1),
    )
    show(args, document, render)
    return 1 if any(run["errors"] for run in document["runs"]) else 0


def _numerics(args: argparse.Namespace) -> int:
    from draftwire.bench.numerics import (
        CASES,
        Settings,
        bench_numerics,
        differing,
        render,
    )

    cases = args.cases or tuple(CASES)
    unknown = sorted(set(cases) - set(CASES))
    if unknown:
        raise ConfigError(
            f"there is no case {unknown[0]!r}", hint="one of " + ", ".join(CASES)
        )
    settings = filled(Settings, args, targets=(args.target,), seed=1, cases=cases)
    document = bench_numerics(settings, say_to(args, terminal=True))
    show(args, document, render)
    return 1 if differing(document) else 0


def _link_flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("what", nargs="?", default="run", choices=("run", "check"), help="default: run")
    add(
        "--spec",
        metavar="LINK",
        help="such as 40ms/10mbit, 80ms/2mbit/loss=1%%, driving-5g/20mbit, trace:FILE, "
        "poor (required)",
    )
    add("--to", metavar="HOST:PORT", help="run: the server behind the link")
    add("--listen", type=int, default=0, metavar="PORT", help="run: default: any")
    add("--method", default="auto", help="auto, netem, tun or proxy (default: auto)")
    add("--pings", type=_count, default=200, help="check: default: %(default)s")
    add("--seconds", type=float, default=4.0, metavar="S", help="check: bulk, each way")
    add("--no-calibrate", action="store_true", help="do not take the detour off the delay")


def _link(args: argparse.Namespace) -> int:
    from draftwire.cli._bench_link import check, run

    return check(args) if args.what == "check" else run(args)


def _device_flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    _package_flags(parser, "draft")
    add(
        "--engines",
        type=_words,
        default=(),
        metavar="E[,E]",
        help="onnxruntime, litert (default: installed)",
    )
    add(
        "--precisions",
        type=_words,
        default=(),
        metavar="P[,P]",
        help="default: all that the draft has",
    )
    add("--threads", type=_counts, default=(), metavar="N,N", help="default: 1, 2, 4")
    add("--provider", help="of onnxruntime: auto (default), cpu, cuda, tensorrt")
    add("--rounds", type=_count, default=30, help="of 16 tokens (default: %(default)s)")
    add("--spawn", type=_count, default=3, help="processes a line (default: %(default)s)")
    add("--no-energy", action="store_true", help="leave the power meter out")


def _device(args: argparse.Namespace) -> int:
    from draftwire.bench.device import Settings, bench_device, render

    settings = filled(Settings, args, energy=not args.no_energy)
    return show(args, bench_device(settings), render)


STUDIES = ("controllers", "evolve")  # leaves once, and now outside the package
LEAVES = {
    "draft": Leaf("drafting beside the bare engine", _draft_flags, "_draft"),
    "device": Leaf("size, start, memory and speed here", _device_flags, "_device"),
    "verifier": Leaf("many devices at once on one verifier", _verifier_flags, "_verifier"),
    "fleet": Leaf("verifiers behind a gateway come and go", _fleet_flags, "_fleet"),
    "link": Leaf("a slow link between two programs, or check it", _link_flags, "_link"),
    "compare": Leaf(
        "every scheme beside every other, live",
        compare_flags,
        "draftwire.cli._bench_compare:run",
    ),
    "simulate": Leaf(
        "every scheme in virtual time",
        simulate_flags,
        "draftwire.cli._bench_simulate:run",
    ),
    "chaos": Leaf("faults by the hundred, not a token lost", _chaos_flags, "_chaos"),
}


def register(subparsers: Any) -> None:
    """Add the command and its leaves."""
    parser = subparsers.add_parser(
        "bench", help="measure the parts", description="Measure the parts."
    )
    leaves = parser.add_subparsers(dest="leaf", metavar="WHAT", required=True)
    for name, leaf in LEAVES.items():
        one = leaves.add_parser(name, help=leaf.summary, description=leaf.summary)
        leaf.add_flags(one)
        add_common_flags(one)
        one.set_defaults(run=_run)
    for name in STUDIES:  # not in the help; whatever flags follow are not looked at
        gone = leaves.add_parser(name, add_help=False, prefix_chars="\0")
        gone.add_argument("words", nargs="*")
        gone.set_defaults(run=_gone)


def _gone(args: argparse.Namespace) -> int:
    raise ConfigError(
        f"`draftwire bench {args.leaf}` is a study now, outside the package",
        hint=f"python -m studies.{args.leaf}, in a checkout",
    )


def _run(args: argparse.Namespace) -> int:
    from draftwire.reference import draft_path, target_path

    for kind, path in (("draft", draft_path), ("target", lambda: target_path("v1"))):
        if getattr(args, kind, "") is None:
            setattr(args, kind, path())
    module, _, name = LEAVES[args.leaf].run.rpartition(":")
    run = getattr(importlib.import_module(module), name) if module else globals()[name]
    return int(run(args))


def _words(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(","))


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise ConfigError(f"{text!r} is no count", hint="a whole number from 1")
    return int(text)


def _counts(text: str) -> tuple[int, ...]:
    return tuple(_count(part.strip()) for part in text.split(","))
