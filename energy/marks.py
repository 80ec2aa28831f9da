"""Phases of a program that `draftwire energy record -- COMMAND` watches from outside.

The recorder names a file in ``DRAFTWIRE_ENERGY_MARKS``; the program appends lines to
it. The monotonic clock is one for the whole machine, so the stamps agree.

    draftwire.energy.mark("draft")          # does nothing when nobody records
    draftwire.energy.mark(drafted=5, accepted=3, emitted=4)
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

__all__ = ["ENVIRONMENT", "MarkReader", "mark"]

ENVIRONMENT = "DRAFTWIRE_ENERGY_MARKS"


def mark(phase: str | None = None, **tokens: int) -> None:
    """Tell the recorder, if there is one, what happens now."""
    path = os.environ.get(ENVIRONMENT)
    if not path:
        return
    lines = []
    if phase is not None:
        lines.append({"t": time.monotonic_ns(), "phase": phase})
    if tokens:
        lines.append({"tokens": tokens})
    text = "".join(json.dumps(line) + "\n" for line in lines)
    fd = os.open(path, os.O_WRONLY | os.O_APPEND)
    try:
        os.write(fd, text.encode())  # one write: lines of threads do not mix
    finally:
        os.close(fd)


class MarkReader:
    """Reads what was appended since the last time."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._at = 0
        self.bad_lines = 0

    def new(self) -> list[dict[str, Any]]:
        """Return the new lines, checked for their keys."""
        try:
            with open(self.path, "rb") as file:
                file.seek(self._at)
                text = file.read()
        except OSError:
            return []
        whole = text.rfind(b"\n") + 1
        self._at += whole
        found = []
        for line in text[:whole].splitlines():
            try:
                value = json.loads(line)
                if "phase" in value:
                    found.append({"t": int(value["t"]), "phase": str(value["phase"])})
                elif "tokens" in value:
                    counts = {str(k): int(v) for k, v in value["tokens"].items()}
                    found.append({"tokens": counts})
            except (ValueError, TypeError, KeyError, AttributeError):
                self.bad_lines += 1
        return found
