"""``draftwire energy``: measured joules, for the person at the bench."""

from __future__ import annotations

import argparse
from typing import Callable

from draftwire.cli import _energy_files, _energy_live

__all__ = ["register"]

_VERBS: dict[str, tuple[Callable[..., None], Callable[..., int], str]] = {
    "sources": (
        _energy_live.add_sources,
        _energy_live.run_sources,
        "what can be measured here, and what is missing",
    ),
    "watch": (
        _energy_live.add_watch,
        _energy_live.run_watch,
        "live view of rails, phases and session",
    ),
    "record": (
        _energy_live.add_record,
        _energy_live.run_record,
        "record a command, a time, or until Ctrl-C",
    ),
    "import": (
        _energy_files.add_import,
        _energy_files.run_import,
        "read a tegrastats log or a meter's file",
    ),
    "report": (
        _energy_files.add_report,
        _energy_files.run_report,
        "tables, CSV, Prometheus, plots from recordings",
    ),
    "compare": (
        _energy_files.add_compare,
        _energy_files.run_compare,
        "is B really thriftier than A?",
    ),
    "sweep": (
        _energy_live.add_sweep,
        _energy_live.run_sweep,
        "one command over power modes, with a Pareto chart",
    ),
    "calibrate": (
        _energy_live.add_calibrate,
        _energy_live.run_calibrate,
        "measure how late and how blurred this board's sensor is",
    ),
    "mark": (
        _energy_live.add_mark,
        _energy_live.run_mark,
        "tell a recording that runs what happens now",
    ),
    "export": (
        _energy_live.add_export,
        _energy_live.run_export,
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
    for name, (add, run, text) in _VERBS.items():
        verb = verbs.add_parser(name, help=text, description=text)
        add(verb)
        verb.set_defaults(run=run)
