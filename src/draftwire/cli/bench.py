"""``draftwire bench WHAT``: measure the parts."""

from __future__ import annotations

import argparse
import contextlib
import signal
import sys
import time
from typing import Any, Callable

from draftwire.cli._common import filled, show, write_json
from draftwire.cli._leaf import Leaf
from draftwire.errors import BoardError, ConfigError
from draftwire.io import format_table

_HERE = "draftwire.cli.bench"
LEAVES = {
    "device": Leaf(
        "size, start, memory and speed of a draft here",
        f"{_HERE}:device",
        """
--draft DIR                draft package (default: the reference one)
--engines E[,E]:words =    onnxruntime, litert (default: installed)
--precisions P[,P]:words =  (default: all that the draft has)
--threads N,N:counts       default: 1, 2, 4
--provider NAME            of onnxruntime: auto (default), cpu, cuda, tensorrt
--rounds N =30             of 16 tokens
--spawn N =3               processes a line
--no-energy                leave the power meter out
tune:
--tune DRAFT:path          choose the model of this draft package (engine, precision,
                           threads) that gives the most accepted tokens a second, and a
                           joule where watts are known
--board NAME               for this board, not for the one that this is
--times FILE               what `bench device --json FILE` wrote on that board
--target DIR               who accepts: a package or checkpoint
--prompts FILE             a prompt a line
--block N =4               drafted tokens
--tokens N =64             for each prompt
--write                    write acceptance and choice into draft.json; the id stays
""",
    ),
    "verifier": Leaf(
        "many devices at once on one verifier",
        f"{_HERE}:verifier",
        """
--target DIR             target package (default: the reference one)
--devices N =64          at the same time
--seconds S:positive =60  a run
--block N =4             drafted tokens
--acceptance P:share =0.8  of a draft
--tokens N =64           of a text
--think-ms MS:number =0  drafting takes so long
--threads N              of the verifier's engine
--no-compare             leave the run without batching out
numerics:
--numerics               instead: what exact numerics cost here, and whether texts stay the
                         same
--texts N:whole =60      written twice, 0 for none
--cases C,C:words        such as k = 4, race (default: all)
--dtypes T,T:words =float32  of a checkpoint: float32, bfloat16, float16
""",
    ),
    "link": Leaf(
        "a slow link between two programs, or check it",
        f"{_HERE}:link",
        """
[WHAT] {run,check} =run  run it until Ctrl-C, or measure it beside the ideal
--spec LINK              such as 40ms/10mbit, 80ms/2mbit/loss=1%, driving-5g/20mbit,
                         trace:FILE, poor (required)
--to HOST:PORT:address   run: the server behind the link
--listen PORT:port =0     run: 0 takes any
--method NAME =auto      auto, netem or proxy
--pings N =200           check
--seconds S:positive =4     check: bulk, each way
--no-calibrate           do not take the detour off the delay
""",
    ),
    "compare": Leaf(
        "every scheme beside every other, live",
        f"{_HERE}:compare",
        """
what:
--scheme S,S >schemes    cloud, colocated, vanilla, await, flexspec, ahead, ahead2,
                         earlyexit, earlyexit2, qs, qsv, picospec, cost, latency,
                         latency-auto, ours-cost, ours-latency, pipesd, ucb, auto, hybrid,
                         dssd, asymspec, acespec, ssd, or all; NAME:K has blocks of K tokens
                         (default: the published ones and ours)
--draft DIR              draft package (default: the reference one)
--target NAME =v1        v1, v2, v3 or a package
--prompt TEXT+           continue these texts (default: the demo's three)
--tokens N:int =64       of each text
--k N|best =4 >block     tokens of a fixed block; best: of each row, over each link, found
                         by the simulator on the same texts
--temperature T:number =0   0 is greedy
--top-k N:int =50        when sampling
--top-p P:share =1       when sampling
--seed N:int =1
--repeats N:int =3 >rounds  in turns: A B C A B C
--threads N:int =1       of either engine
links:
--link SPEC... >links    such as 40ms/10mbit; may be repeated (default: lan, wan, poor)
--trace FILE... >traces  a link of 40 ms whose rate moves; may be repeated
--method NAME =auto      auto, netem or proxy
time:
--profile NAME           stretch every forward to a timing profile (bench simulate
                         --profiles; or a .toml file); default: the models' own time
--acceptance LUCK        with --profile: play synthetic texts in place of the models, such
                         as 0.8
--text FILE >recording   with --profile: play a recording (bench simulate --record)
--texts N:int =3 >streams  how many are played
--simulate >simulated    in virtual time, nothing runs
output:
--plot FILE              a picture: .png, .pdf or .svg
--markdown               print one Markdown table instead
""",
    ),
    "simulate": Leaf(
        "every scheme in virtual time",
        f"{_HERE}:simulate",
        """
--profile NAME =nano-a100  timings: a name, or a .toml file
--profiles               list the profiles, and stop
--link SPEC              such as 40ms/10mbit (default: the profile's)
--scheme S,S >schemes    cloud, colocated, vanilla, await, flexspec, earlyexit, qs,
                         picospec, race, ours-cost, ours-latency, pipesd, ucb, auto,
                         or all;
                         race+lookup has that help of the verifier, await+leaves that
                         of both ends
--k N|best >block        drafted tokens of a block; best tries 1 to 16
--objective WHAT         latency, cost or energy: of --k best (default: latency), and of
                         ours (default: cost for ours-cost, latency for ours-latency)
--acceptance LUCK        0.8, markov:0.8:0.5, regimes:0.9:0.5:40 or steps:0.8,0.4@2000
--confidence WHAT =calibrated  of a synthetic draft: calibrated, noise or none
--repeats SHARE:share =0  of a synthetic text that repeats what stands before it
--text FILE >recording   play a recording of real models
--real V                 run the reference models with target V, e.g. v1
--record FILE            record what the reference models write (target: --real, else v1),
                         and stop
--replay FILE            take link, board, target and texts from a device's --wire-log, and
                         compare with what was recorded; --scheme adds others
--streams N =4
--tokens N =400          of each stream
--hours H:positive       virtual time instead of --streams
--sessions N =1          devices on one verifier
--gateway                they are one gateway: one link, and one draft accelerator whose
                         steps go first to who drafts behind judged text
--seed N:int =1
--runs                   put every run's report into --json
--plot FILE              a picture: .png, .pdf or .svg
""",
    ),
}


def _say_to(args: argparse.Namespace, *, terminal: bool = False) -> Callable[[str], None]:
    """Return who is told of progress: stderr, unless quiet or (``terminal``) unwatched."""

    def say(line: str) -> None:
        if not args.quiet and (sys.stderr.isatty() or not terminal):
            print(line, file=sys.stderr, flush=True)

    return say


def device(args: argparse.Namespace) -> None:
    """Measure a draft here, or choose which of its models a board shall run."""
    from draftwire.bench.device import Settings, bench_device, render
    from draftwire.reference import draft_path

    more: dict[str, Any] = {"threads": args.threads or (), "energy": not args.no_energy}
    if args.tune is not None:
        from draftwire.bench import tune

        wanted = filled(tune.Tuning, args, draft=args.tune, **more)
        return show(args, tune.tune(wanted), tune.render)
    draft = args.draft or draft_path()
    settings = filled(Settings, args, draft=draft, **more)
    show(args, bench_device(settings), render)


def verifier(args: argparse.Namespace) -> int:
    """Load a verifier; 1 when a device met an error."""
    from draftwire.bench.verifier import Load, bench_verifier, render
    from draftwire.reference import target_path

    args.target = args.target or target_path("v1")
    if args.numerics:
        return _numerics(args)
    load = filled(Load, args, think_s=args.think_ms / 1e3)
    document = bench_verifier(load, (None,) if args.no_compare else (None, 1))
    show(args, document, render)
    return 1 if any(run["errors"] for run in document["runs"]) else 0


def _numerics(args: argparse.Namespace) -> int:
    from draftwire.bench.numerics import CASES, Settings, bench_numerics, differing, render
    from draftwire.io import did_you_mean

    cases = args.cases or tuple(CASES)
    for case in set(cases) - set(CASES):
        hint = did_you_mean(case, CASES, "one of " + ", ".join(CASES))
        raise ConfigError(f"there is no case {case!r}", hint=hint)
    settings = filled(Settings, args, seed=1, cases=cases)
    document = bench_numerics(settings, _say_to(args, terminal=True))
    show(args, document, render)
    return 1 if differing(document) else 0


def compare(args: argparse.Namespace) -> int:
    """Compare the schemes; 1 when a text is not the target's own."""
    from draftwire.bench.compare.run import Settings, compare
    from draftwire.bench.sim.schemes import DEFAULT_ROWS
    from draftwire.bench.sim.show import markdown, plot, render_compared

    schemes = DEFAULT_ROWS if args.schemes is None else args.schemes
    more = {"profile": args.profile or "", "schemes": schemes, "prompts": args.prompt or ()}
    settings = filled(Settings, args, **more)
    document = compare(settings, _say_to(args))
    show(args, document, markdown if args.markdown else render_compared)
    if args.plot is not None:
        plot(document, args.plot)
    for sentence in document["different"]:
        print(f"draftwire: error: law 1: {sentence}", file=sys.stderr)
    return 1 if document["different"] else 0


def simulate(args: argparse.Namespace) -> None:
    """Run the schemes in virtual time."""
    from draftwire.bench.sim.command import Question, answer, write_recording
    from draftwire.bench.sim.facts import profiles
    from draftwire.bench.sim.show import plot, render

    if args.profiles:
        found = [(profile.name, profile.title) for profile in profiles().values()]
        names = [{"name": name, "title": title} for name, title in found]
        return show(args, names, lambda _: format_table(("profile", "what"), found))
    if args.record is not None:
        document = write_recording(args.record, args.real or "v1", args.tokens)
        return show(
            args, document, lambda d: "\n".join(f"{k:12s} {v}" for k, v in d.items())
        )
    document = answer(filled(Question, args), _say_to(args, terminal=True))
    show(args, document, render)
    if args.plot is not None:
        plot(document, args.plot)


def link(args: argparse.Namespace) -> None:
    """Put a link between two programs, or measure one."""
    from draftwire.bench.link import LinkSpec

    if args.spec is None:
        raise ConfigError("no --spec", hint="such as --spec 40ms/10mbit or --spec poor")
    spec = LinkSpec.parse(args.spec)
    (_check_link if args.what == "check" else _run_link)(args, spec)


def _run_link(args: argparse.Namespace, spec: Any) -> None:
    """Offer a port that leads to ``--to`` over the link, until Ctrl-C."""
    from draftwire.bench.link.emulate import emulate

    if args.to is None:
        hint = "where the verifier listens, such as --to 127.0.0.1:8765"
        raise ConfigError("--to must be HOST:PORT", hint=hint)
    host, port = args.to
    to = f"{host}:{port}"
    # SIGTERM ends it like Ctrl-C; the finally below must run.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    how: dict[str, Any] = {"listen_port": args.listen, "calibrate": not args.no_calibrate}
    with emulate(spec, port, args.method, target_host=host, **how) as running:
        started = {
            "schema": "draftwire.bench.link.run/1",
            "port": running.url_port,
            "target": to,
            "method": running.method,
            "notes": running.notes,
            "detour_us": running.detour_us,
            "scheduling": running.scheduling,
            "link": running.spec.to_dict(),
        }
        if args.json is not None:
            write_json(started, args.json)
        if args.json != "-":
            here = f"127.0.0.1:{running.url_port}"
            print(f"{here} -> {to} over {spec.name}, by {running.method}", flush=True)
        for note in running.notes if not args.quiet else ():
            print(note, file=sys.stderr)
        with contextlib.suppress(KeyboardInterrupt):
            while running.alive:
                time.sleep(0.2)
            raise BoardError("the link ended by itself", hint="run it again with -v")
        if not args.quiet:
            with contextlib.suppress(BoardError, KeyboardInterrupt):
                _say_counts(running.stats())


def _say_counts(stats: dict[str, Any]) -> None:
    for way in ("up", "down"):
        counts = ", ".join(f"{value} {name}" for name, value in stats[way].items())
        print(f"{way}: {counts}", file=sys.stderr)
    late = stats["lateness"]
    if late["count"]:
        text = f"lateness: median {late['median_us']} us, p99 {late['p99_us']} us"
        print(text, file=sys.stderr)


def _check_link(args: argparse.Namespace, spec: Any) -> None:
    """Measure the emulation beside the ideal."""
    from draftwire.bench.link.check import check_link, render

    how = {"pings": args.pings, "seconds": args.seconds}
    document = check_link(spec, args.method, **how, calibrate=not args.no_calibrate)

    def shown(document: dict[str, Any]) -> str:
        head = (
            f"{document['link']['name']} by {document['method']}, "
            f"{document['scheduling']} scheduling, load {document['machine']['load_1min']}"
        )
        table = format_table(["", "ideal", "measured"], render(document))
        return "\n".join([head, table, *document["notes"]])

    show(args, document, shown)
