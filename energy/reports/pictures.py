"""Pictures of what ``energy report`` was given: one trace, or bars of several runs."""

from __future__ import annotations

from pathlib import Path
from typing import Sequence

from draftwire.energy.reports.page import write_page
from draftwire.energy.reports.plots import plot_rows, plot_trace
from draftwire.energy.reports.rows import Row
from draftwire.energy.reports.trace import Trace, trace_of
from draftwire.errors import ConfigError

__all__ = ["plot", "write_html"]


def plot(rows: Sequence[Row], path: Path) -> None:
    """Draw the power trace of one file, or bars when there are several.

    Raises:
        ConfigError: There is nothing to draw, or matplotlib is not there.
    """
    trace = _trace(rows[0]) if len(rows) == 1 else None
    if trace is not None:
        plot_trace(trace, rows[0], path)
    else:
        plot_rows(rows, path)


def write_html(rows: Sequence[Row], path: Path) -> None:
    """Write one page with every file.

    Raises:
        ConfigError: The file cannot be written.
    """
    names = list(dict.fromkeys(Path(row.file).name for row in rows))
    title = f"Energy: {', '.join(names[:4])}"
    write_page([(row, _trace(row)) for row in rows], path, title=title)


def _trace(row: Row) -> Trace | None:
    try:
        return None if row.recording is None else trace_of(row.recording())
    except ConfigError:
        return None  # a run of one sample has no trace; its row says so
