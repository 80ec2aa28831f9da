"""Pictures of what ``energy report`` was given: one trace, or bars of several runs."""

from __future__ import annotations

from pathlib import Path
from typing import Sequence

from draftwire.energy.as_recording import recording_of_log, recording_of_meter
from draftwire.energy.page import write_page
from draftwire.energy.plots import plot_rows, plot_trace
from draftwire.energy.recording import Recording, is_recording, read_recording
from draftwire.energy.report import Row
from draftwire.energy.trace import Trace, trace_of
from draftwire.errors import ConfigError

__all__ = ["plot", "write_html"]


def plot(files: Sequence[Path], rows: Sequence[Row], path: Path) -> None:
    """Draw the power trace of one file, or bars when there are several.

    Raises:
        ConfigError: There is nothing to draw, or matplotlib is not there.
    """
    if len(rows) == 1:
        trace = _trace(Path(rows[0].file))
        if trace is not None:
            plot_trace(trace, rows[0], path)
            return
    plot_rows(rows, path)


def write_html(files: Sequence[Path], rows: Sequence[Row], path: Path) -> None:
    """Write one page with every file.

    Raises:
        ConfigError: The file cannot be written.
    """
    entries = [(row, _trace(Path(row.file), row)) for row in rows]
    title = f"Energy: {', '.join(file.name for file in files[:4])}"
    write_page(entries, path, title=title)


def _trace(path: Path, row: Row | None = None) -> Trace | None:
    recording: Recording | None = None
    if is_recording(path):
        recording = read_recording(path)
    elif path.suffix.lower() in (".csv", ".tsv"):
        recording = recording_of_meter(path)
    elif path.suffix.lower() not in (".json", ".jsonl") and path.is_file():
        first = None if row is None else row.first_sample
        recording = recording_of_log(path, first)
    if recording is None:
        return None
    try:
        return trace_of(recording)
    except ConfigError:
        return None  # a run of one sample has no trace; its row says so
