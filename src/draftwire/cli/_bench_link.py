"""``draftwire bench link``: put a link between two programs, or measure one."""

from __future__ import annotations

import argparse
import contextlib
import signal
import sys
import time
from typing import Any

from draftwire.cli._bench_common import show
from draftwire.cli._common import format_table, write_json
from draftwire.errors import BoardError, ConfigError

__all__ = ["check", "run"]


def run(args: argparse.Namespace) -> int:
    """Offer a port that leads to ``--to`` over the link, until Ctrl-C."""
    from draftwire.bench.link.emulate import emulate

    link = _spec(args)
    host, port = _target(args.to)
    # SIGTERM ends it like Ctrl-C; the finally below must run.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with emulate(
        link,
        port,
        args.method,
        target_host=host,
        listen_port=args.listen,
        calibrate=not args.no_calibrate,
    ) as running:
        if args.json is not None:
            write_json(_started(running, args.to), args.json)
        if args.json != "-":
            here = f"127.0.0.1:{running.url_port}"
            print(f"{here} -> {args.to} over {link.name}, by {running.method}", flush=True)
        for note in running.notes if not args.quiet else ():
            print(note, file=sys.stderr)
        with contextlib.suppress(KeyboardInterrupt):
            while running.alive:
                time.sleep(0.2)
            raise BoardError("the link ended by itself", hint="run it again with -v")
        if not args.quiet:
            with contextlib.suppress(BoardError, KeyboardInterrupt):
                _say_counts(running.stats())
    return 0


def check(args: argparse.Namespace) -> int:
    """Measure the emulation beside the ideal."""
    from draftwire.bench.link.check import check_link

    document = check_link(
        _spec(args),
        args.method,
        pings=args.pings,
        seconds=args.seconds,
        calibrate=not args.no_calibrate,
    )
    return show(args, document, _shown)


def _shown(document: dict[str, Any]) -> str:
    from draftwire.bench.link.check import render

    head = (
        f"{document['link']['name']} by {document['method']}, "
        f"{document['scheduling']} scheduling, load {document['machine']['load_1min']}"
    )
    table = format_table(["", "ideal", "measured"], render(document))
    return "\n".join([head, table, *document["notes"]])


def _spec(args: argparse.Namespace) -> Any:
    from draftwire.bench.link import LinkSpec

    if args.spec is None:
        raise ConfigError("no --spec", hint="such as --spec 40ms/10mbit or --spec poor")
    return LinkSpec.parse(args.spec)


def _target(text: str | None) -> tuple[str, int]:
    host, _, port = (text or "").rpartition(":")
    if not port.isdecimal() or not 0 < int(port) < 65536:
        raise ConfigError(
            "--to must be HOST:PORT" if text is None else f"{text!r} is no HOST:PORT",
            hint="where the verifier listens, such as --to 127.0.0.1:8765",
        )
    return host.strip("[]") or "127.0.0.1", int(port)


def _started(running: Any, target: str) -> dict[str, Any]:
    return {
        "schema": "draftwire.bench.link.run/1",
        "port": running.url_port,
        "target": target,
        "method": running.method,
        "notes": running.notes,
        "detour_us": running.detour_us,
        "scheduling": running.scheduling,
        "link": running.spec.to_dict(),
    }


def _say_counts(stats: dict[str, Any]) -> None:
    for way in ("up", "down"):
        counts = ", ".join(f"{value} {name}" for name, value in stats[way].items())
        print(f"{way}: {counts}", file=sys.stderr)
    late = stats["lateness"]
    if late["count"]:
        print(
            f"lateness: median {late['median_us']} us, p99 {late['p99_us']} us",
            file=sys.stderr,
        )
