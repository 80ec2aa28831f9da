"""``draftwire bench WHAT``: measure the parts. A leaf is a line of ``LEAVES``."""

from __future__ import annotations

import argparse
import importlib
from pathlib import Path
from typing import Any, Callable, NamedTuple

from draftwire.cli._bench_compare import compare_flags
from draftwire.cli._bench_simulate import simulate_flags
from draftwire.cli._common import add_common_flags, write_json
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


def _draft_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--draft",
        type=Path,
        metavar="DIR",
        help="draft package (default: the reference draft)",
    )
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
    from draftwire.reference import draft_path

    document = bench_draft(
        Settings(
            draft=draft_path() if args.draft is None else args.draft,
            precision=args.precision,
            contexts=args.contexts,
            threads=args.threads,
            blocks=args.blocks,
            spawn=0 if args.no_spawn else 5,
            genai=not args.no_genai,
        )
    )
    if args.json is not None:
        write_json(document, args.json)
    if args.json != "-":
        print(render(document))
    return 0


def _chaos_flags(parser: argparse.ArgumentParser) -> None:
    for flag, what in (("--draft", "draft package"), ("--target", "target package")):
        parser.add_argument(
            flag, type=Path, metavar="DIR", help=f"{what} (default: the reference one)"
        )
    parser.add_argument(
        "--faults", type=_count, default=200, help="how many (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=1, help="default: %(default)s")


def _chaos(args: argparse.Namespace) -> int:
    import sys

    from draftwire.bench.chaos import run_chaos
    from draftwire.reference import draft_path, target_path

    result = run_chaos(
        draft_path() if args.draft is None else args.draft,
        target_path("v1") if args.target is None else args.target,
        faults=args.faults,
        seed=args.seed,
        say=lambda line: print(line, file=sys.stderr, flush=True),
    )
    document = result.report()
    if args.json is not None:
        write_json(document, args.json)
    if args.json != "-":
        by_kind = document.pop("recovery_by_kind")
        for name, value in document.items():
            print(f"{name:15s} {value}")
        for kind, times in by_kind.items():
            print(f"{kind:15s} p50 {times['p50_s']} s, worst {times['worst_s']} s")
    # A lost or changed token is a broken law: say so to scripts too.
    return 1 if result.wrong else 0


def _verifier_flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--target", type=Path, metavar="DIR", help="default: the reference target v1")
    add("--devices", type=_count, default=64, metavar="N", help="default: %(default)s")
    add("--seconds", type=float, default=60.0, metavar="S", help="a run (default: 60)")
    add("--block", type=_count, default=4, help="drafted tokens (default: %(default)s)")
    add("--acceptance", type=float, default=0.8, help="of a draft (default: %(default)s)")
    add("--tokens", type=_count, default=64, help="of a text (default: %(default)s)")
    add("--think-ms", type=float, default=0.0, metavar="MS", help="drafting takes so long")
    add("--threads", type=_count, metavar="N", help="of the verifier's engine")
    add("--no-compare", action="store_true", help="leave the run without batching out")


def _verifier(args: argparse.Namespace) -> int:
    from draftwire.bench.verifier import Load, bench_verifier, render
    from draftwire.reference import target_path

    if not (args.seconds > 0 and 0 <= args.acceptance <= 1 and args.think_ms >= 0):
        raise ConfigError("--seconds, --acceptance or --think-ms is out of range")
    document = bench_verifier(
        Load(
            target=target_path("v1") if args.target is None else args.target,
            devices=args.devices,
            seconds=args.seconds,
            block=args.block,
            acceptance=args.acceptance,
            tokens=args.tokens,
            think_s=args.think_ms / 1e3,
            threads=args.threads,
        ),
        (None,) if args.no_compare else (None, 1),
    )
    if args.json is not None:
        write_json(document, args.json)
    if args.json != "-":
        print(render(document))
    return 1 if any(run["errors"] for run in document["runs"]) else 0


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
    add("--draft", type=Path, metavar="DIR", help="default: the reference draft")
    add("--engines", metavar="E[,E]", help="onnxruntime, litert (default: installed)")
    add("--precisions", metavar="P[,P]", help="default: all that the draft has")
    add("--threads", type=_counts, default=(), metavar="N,N", help="default: 1, 2, 4")
    add("--provider", help="of onnxruntime: auto (default), cpu, cuda, tensorrt")
    add("--rounds", type=_count, default=30, help="of 16 tokens (default: %(default)s)")
    add("--spawn", type=_count, default=3, help="processes a line (default: %(default)s)")
    add("--no-energy", action="store_true", help="leave the power meter out")


def _device(args: argparse.Namespace) -> int:
    from draftwire.bench.device import Settings, bench_device, render
    from draftwire.reference import draft_path

    document = bench_device(
        Settings(
            draft=draft_path() if args.draft is None else args.draft,
            engines=args.engines.split(",") if args.engines else (),
            precisions=args.precisions.split(",") if args.precisions else (),
            threads=args.threads,
            provider=args.provider,
            rounds=args.rounds,
            spawn=args.spawn,
            energy=not args.no_energy,
        )
    )
    if args.json is not None:
        write_json(document, args.json)
    if args.json != "-":
        print(render(document))
    return 0


STUDIES = ("controllers", "evolve")  # leaves once, and now outside the package
LEAVES = {
    "draft": Leaf("drafting beside the bare engine", _draft_flags, "_draft"),
    "device": Leaf("size, start, memory and speed here", _device_flags, "_device"),
    "verifier": Leaf("many devices at once on one verifier", _verifier_flags, "_verifier"),
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
    module, _, name = LEAVES[args.leaf].run.rpartition(":")
    run = getattr(importlib.import_module(module), name) if module else globals()[name]
    return int(run(args))


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise ConfigError(f"{text!r} is no count", hint="a whole number from 1")
    return int(text)


def _counts(text: str) -> tuple[int, ...]:
    return tuple(_count(part.strip()) for part in text.split(","))
