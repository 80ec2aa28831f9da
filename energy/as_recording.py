"""Files of other tools as recordings: a meter's table, a run of a tegrastats log."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from draftwire.energy.recording import Recording
from draftwire.energy.sources.base import Reading
from draftwire.energy.sources.meter_csv import MeterCsvSource

__all__ = ["recording_of_log", "recording_of_meter"]


def recording_of_meter(path: Path, **options: Any) -> Recording:
    """Read a meter's file whole, as a recording."""
    from draftwire.energy.choose import total_of
    from draftwire.energy.sources.replay import RecordingEnded

    source = MeterCsvSource(path, **options)
    header = {
        "source": source.name,
        "source_kind": source.kind,
        "rails": list(source.rails),
        "notes": list(source.notes),
    }
    recording = Recording(str(path), header, total_of(source, ()), dict(source.accuracy))
    while True:
        try:
            recording.samples.append(source.read())
        except RecordingEnded:
            break
    if source.bad_rows:
        recording.header["notes"].append(f"{source.bad_rows} rows could not be read")
    recording.end_ns = recording.samples[-1].t_ns
    return recording


def recording_of_log(path: Path, first_sample: int | None = None) -> Recording:
    """Read one run of a stamped tegrastats log as a recording, for a picture.

    Raises:
        ConfigError: It is no log.
    """
    from draftwire.energy import tegra_log
    from draftwire.energy.rails import choose_total, load_tables
    from draftwire.energy.tegra_clock import set_clock

    log = tegra_log.read_log(path)
    set_clock(log)
    runs = [r for r in log.runs if first_sample in (None, r.first_sample)]
    run = runs[0]
    header = {"source": "tegrastats-log", "rails": list(run.rails)}
    choice = choose_total(run.rails, load_tables())
    recording = Recording(str(path), header, choice, {})
    for segment in run.segments:
        rows = run.rows(segment.first, segment.last)
        for t, row in zip(segment.times(), rows):
            watts = {
                rail: int(milli) * 1e-3
                for rail, milli in zip(run.rails, row)
                if milli != tegra_log.MISSING
            }
            recording.samples.append(Reading(int(t * 1e9), watts))
    return recording
