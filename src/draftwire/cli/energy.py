"""``draftwire energy``: measured joules, for the person at the bench."""

from __future__ import annotations

import argparse

from draftwire.cli import _energy_files as files
from draftwire.cli import _energy_live as live

__all__ = ["register"]

_VERBS = {  # what adds its options, what runs it, and what it is for
    "sources": (
        live.add_sources,
        live.run_sources,
        "what can be measured here, and what is missing",
    ),
    "watch": (live.add_watch, live.run_watch, "live view of rails, phases and session"),
    "record": (
        live.add_record,
        live.run_record,
        "record a command, a time, or until Ctrl-C",
    ),
    "import": (
        files.add_import,
        files.run_import,
        "read a tegrastats log or a meter's file",
    ),
    "report": (
        files.add_report,
        files.run_report,
        "tables, CSV, Prometheus, plots from recordings",
    ),
    "compare": (files.add_compare, files.run_compare, "is B really thriftier than A?"),
    "sweep": (
        live.add_sweep,
        live.run_sweep,
        "one command over power modes, with a Pareto chart",
    ),
    "calibrate": (
        live.add_calibrate,
        live.run_calibrate,
        "measure how late and how blurred this board's sensor is",
    ),
    "mark": (live.add_mark, live.run_mark, "tell a recording that runs what happens now"),
    "export": (
        live.add_export,
        live.run_export,
        "serve live power to Prometheus and Grafana",
    ),
}


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command and its verbs."""
    energy = subparsers.add_parser(
        "energy",
        help="measured joules: sources, recordings, logs, reports",
        description="Joules with their source, scope and uncertainty. "
        "What was not measured is null with a reason, never 0.",
    )
    verbs = energy.add_subparsers(dest="verb", metavar="VERB", required=True)
    for name, (options, run, text) in _VERBS.items():
        verb = verbs.add_parser(name, help=text, description=text)
        options(verb)
        verb.set_defaults(run=run)
