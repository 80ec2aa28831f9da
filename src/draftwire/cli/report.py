"""``draftwire report FILE...``: run reports as a table, as JSON, as a plot; wire logs."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Sequence

from draftwire.cli import _wire
from draftwire.cli._common import give_json
from draftwire.cli._leaf import Leaf
from draftwire.errors import ConfigError

if TYPE_CHECKING:
    from draftwire.runtime.summary import Summary

__all__ = ["LEAF"]


LEAF = Leaf(
    "what runs did, what crossed the wire",
    "draftwire.cli.report:run",
    """
[FILES...]            run reports, as a table; or one wire log, event by event
--plot FILE           draw acceptance and speed (needs matplotlib)
wire:
--connection N        of a log: only this one
--kind WORD           of a log: only messages of this kind
--frame HEX+          explain a frame (the payload of one binary websocket message): spaces,
                      ':' and '|' are skipped, - reads stdin
--vocab N             vocab_size of the connection's welcome, to read its token ids
""",
    about="Show what runs did: files that --json wrote, one or many. Or the events of a "
    "file that --wire-log wrote: seconds, run and connection, -> from the device, <- from "
    "the verifier, the kind and its stream, bytes of payload, fields. Or explain a frame "
    "of draftwire.v2 (transport/PROTOCOL.md) field by field, exit code 4 when it is not "
    "valid.",
)


def run(args: argparse.Namespace) -> int:
    """Read, summarise, print."""
    if args.frame:
        return _wire.decode(args)
    if not args.files:
        raise ConfigError("no FILE", hint="run reports, or what --wire-log wrote")
    if len(args.files) == 1 and _wire.is_log(args.files[0]):
        return _wire.log(args, args.files[0])
    from draftwire.runtime.summary import (
        load_reports,
        positions_table,
        preemption_table,
        summarise,
        table,
    )

    reports = load_reports(args.files)
    summaries = [summarise(label, report) for label, report in reports]
    if args.plot is not None:
        _plot(summaries, args.plot)
    runs = [asdict(summary) for summary in summaries]
    if give_json(args, {"schema": "draftwire.summary/1", "runs": runs}):
        print(table(summaries))
        labels, documents = zip(*reports) if reports else ((), ())
        more = (positions_table(summaries), preemption_table(labels, documents))
        for extra in filter(None, more):
            print(f"\n{extra}")
    return 0


def _plot(summaries: Sequence[Summary], target: Path) -> None:
    from draftwire.energy.reports.plots import picture

    with picture(target) as pyplot:
        _, (left, right) = pyplot.subplots(1, 2, figsize=(10, 4))
        for summary in summaries:
            shares = [float("nan") if s is None else s for s in summary.by_position or ()]
            places = range(1, len(shares) + 1)
            left.plot(places, shares, marker="o", label=summary.label)
        left.set(xlabel="position in the block", ylabel="share accepted", ylim=(0, 1.02))
        if any(summary.by_position for summary in summaries):
            left.legend(fontsize="small")
        measured = [s for s in summaries if s.tokens_per_s is not None]
        right.barh([s.label for s in measured], [s.tokens_per_s or 0.0 for s in measured])
        right.set(xlabel="tokens/s")
