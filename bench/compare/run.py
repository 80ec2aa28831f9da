"""``draftwire bench compare``: every scheme beside every other, live or simulated.

One table from one run: the same target, prompts and seeds for all rows, over the same
links, in turns. Every run checks law 1: rows whose text is decided by the target and the
seed must have written the same text to the token.
"""

from __future__ import annotations

import datetime
import os
from typing import Any, Callable

from draftwire.bench.compare.settings import Settings, links_of, usable, why_not
from draftwire.bench.compare.simulated import run_simulated
from draftwire.bench.compare.table import different_texts, rows_of
from draftwire.bench.link.emulate import choose_method
from draftwire.bench.machine import machine
from draftwire.bench.sim.facts import find

__all__ = ["SCHEMA", "Settings", "compare"]

SCHEMA = "draftwire.bench.compare/1"


def compare(settings: Settings, say: Callable[[str], None]) -> dict[str, Any]:
    """Run a comparison; return the document for ``--json``.

    That has settings, rows, the run reports that they were made from, and under
    ``different`` a sentence for each text that broke law 1. A ConfigError where a setting,
    a package, a link or a profile is wrong, a TransportError where the verifier does not
    start, a BoardError where the link cannot be emulated.
    """
    links = links_of(settings)
    if not settings.simulated:
        for link in links:
            choose_method(link, settings.method)  # before anything is started for nothing
    profile = None if settings.profile is None else find(settings.profile)
    begun = datetime.datetime.now(datetime.timezone.utc)
    about = machine()  # before the load is ours
    used = usable(settings, profile)
    if settings.simulated:
        found = run_simulated(settings, used, profile, links, say)
    else:
        from draftwire.bench.compare.live import run_live

        found = run_live(settings, used, profile, links, say)
    left_out = [
        {"scheme": entry.name, "why": why_not(entry, settings, profile)}
        for entry in settings.entries
        if entry not in used
    ]
    return {
        "schema": SCHEMA,
        "command": "bench compare",
        "simulated": settings.simulated,
        "date": begun.strftime("%Y-%m-%d %H:%M UTC"),
        "machine": {**about, "scheduling": _scheduling()},
        "paced_to": None if profile is None else profile.name,
        "text": found.text,
        "tokens": settings.tokens,
        "repeats": settings.repeats,
        "block": settings.block,
        "temperature": settings.temperature,
        "seed": settings.seed,
        "links": found.links,
        "left_out": left_out,
        "rows": rows_of(found.reports),
        "different": different_texts(found.reports, found.known),
        "compared": sum(1 for report in found.reports if report["bench"]["same_text"]),
        "schemes": [entry.name for entry in used],
        "runs": found.reports,
    }


def _scheduling() -> str:
    """Return how the kernel schedules this process."""
    names = {os.SCHED_FIFO: "fifo", os.SCHED_RR: "rr", os.SCHED_OTHER: "normal"}
    return names.get(os.sched_getscheduler(0), "other")
