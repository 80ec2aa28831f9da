"""``draftwire report FILE...``: run reports as a table, as JSON, as a plot."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Sequence

from draftwire.cli._common import add_common_flags, give_json
from draftwire.errors import ConfigError
from draftwire.io import write_whole

if TYPE_CHECKING:
    from draftwire.runtime.summary import Summary

__all__ = ["register"]


def register(commands: argparse._SubParsersAction[Any]) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "report",
        help="run reports as a table",
        description="Show what runs did: files that --json wrote, one or many.",
    )
    parser.add_argument("files", nargs="+", metavar="FILE", help="a run report")
    parser.add_argument(
        "--plot",
        metavar="FILE.png",
        help="draw acceptance and speed (needs matplotlib)",
    )
    add_common_flags(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Read, summarise, print."""
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


def _plot(summaries: Sequence[Summary], target: str) -> None:
    try:
        import matplotlib
    except ImportError as exc:
        raise ConfigError(
            "--plot needs matplotlib, which is not installed",
            hint="pip install 'draftwire[plots]'",
        ) from exc
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(10, 4))
    for summary in summaries:
        shares = summary.by_position or ()
        places = range(1, len(shares) + 1)
        left.plot(
            places,
            [float("nan") if share is None else share for share in shares],
            marker="o",
            label=summary.label,
        )
    left.set(xlabel="position in the block", ylabel="share accepted", ylim=(0, 1.02))
    if any(summary.by_position for summary in summaries):
        left.legend(fontsize="small")
    measured = [s for s in summaries if s.tokens_per_s is not None]
    right.barh([s.label for s in measured], [s.tokens_per_s or 0.0 for s in measured])
    right.set(xlabel="tokens/s")
    figure.tight_layout()
    kind = target.rpartition(".")[2].lower()
    try:
        if kind not in figure.canvas.get_supported_filetypes():
            raise ConfigError(
                f"--plot {target}: the name must end in a kind of picture",
                hint="for example out.png",
            )
        write_whole(Path(target), lambda path: figure.savefig(path, format=kind))
    finally:
        pyplot.close(figure)
