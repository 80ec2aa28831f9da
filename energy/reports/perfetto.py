"""Power over phases in the Chrome trace format, for ui.perfetto.dev.

Source:
    "Trace Event Format", catapult project: complete events (``X``), counters (``C``).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Sequence

from draftwire.energy.reports.rows import Row
from draftwire.errors import ConfigError
from draftwire.io import write_text


def write_trace(rows: Sequence[Row], path: Path) -> None:
    """Write rails as counters and phases as slices, one process for each row."""
    events: list[dict[str, Any]] = []
    for pid, row in enumerate(rows, 1):
        if row.recording is None:
            continue
        found = row.recording()
        origin, total = found.samples[0].t_ns, found.choice.total
        name = {"ph": "M", "pid": pid, "name": "process_name", "args": {"name": row.file}}
        events.append(name)
        for sample in found.samples:
            at = {"ph": "C", "pid": pid, "ts": (sample.t_ns - origin) / 1e3}
            watts = dict(sample.watts)
            if total is not None and set(total.rails) <= set(watts):
                watts[total.scope] = sum(watts[rail] for rail in total.rails)
            for rail, watt in watts.items():
                events.append({**at, "name": f"{rail} (W)", "args": {"W": watt}})
        ends = [t for t, _ in found.phases[1:]] + [found.end_ns]
        for (start, phase), end in zip(found.phases, ends):
            at = {"ph": "X", "pid": pid, "tid": 1, "ts": (start - origin) / 1e3}
            events.append({**at, "name": phase, "dur": max(0, end - start) / 1e3})
    if not events:
        raise ConfigError("a run report has no trace", hint="give it a recording")
    write_text(path, json.dumps({"traceEvents": events, "displayTimeUnit": "ms"}))
