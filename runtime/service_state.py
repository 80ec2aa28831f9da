"""The counters that outlive the service: one small file, written seldom and whole."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any, Mapping

from draftwire.io import replacing

__all__ = ["StateFile"]

_LOG = logging.getLogger("draftwire.service")
_NAME = "state.json"
_MAX_BYTES = 1 << 16
_KEYS = ("starts", "clean_stops", "finished", "failed", "cancelled", "tokens")


class StateFile:
    """Counters over all runs; without a folder, or on a read-only one, of this run.

    Args:
        folder: Where ``state.json`` lies, or None.
    """

    def __init__(self, folder: Path | None) -> None:
        self._path = None if folder is None else folder / _NAME
        self._before = self._read()
        self._written: dict[str, int] | None = None
        self.trouble: str | None = None

    def started(self) -> None:
        """Count a start."""
        self._before["starts"] += 1
        self.save({})

    def stopped(self, counts: Mapping[str, int]) -> None:
        """Count a stop that was asked for."""
        self._before["clean_stops"] += 1
        self.save(counts)

    def save(self, counts: Mapping[str, int]) -> None:
        """Write the file if something changed; that it fails is said once and borne."""
        found = self._sum(counts)
        if self._path is None or found == self._written:
            return
        try:
            with replacing(self._path) as fresh:
                fresh.write_text(json.dumps(found) + "\n", encoding="ascii")
        except OSError as exc:
            if self.trouble is None:
                _LOG.warning("counters are not kept: %s", exc)
            self.trouble = str(exc)
        else:
            self._written, self.trouble = found, None

    def document(self, counts: Mapping[str, int]) -> dict[str, Any]:
        """Return the counters over all runs, and why they are not kept."""
        kept = self._path is not None and self.trouble is None
        why = self.trouble or ("no state folder" if self._path is None else None)
        return {**self._sum(counts), "kept": kept, "why_not_kept": why}

    def _sum(self, counts: Mapping[str, int]) -> dict[str, int]:
        return {key: self._before[key] + counts.get(key, 0) for key in _KEYS}

    def _read(self) -> dict[str, int]:
        found = dict.fromkeys(_KEYS, 0)
        if self._path is None:
            return found
        try:
            with open(self._path, "rb") as file:
                raw = json.loads(file.read(_MAX_BYTES).decode("ascii"))
            for key in _KEYS:
                value = raw.get(key, 0)
                if isinstance(value, int) and 0 <= value < 1 << 60:
                    found[key] = value
        except FileNotFoundError:
            pass
        except (OSError, ValueError, AttributeError, RecursionError) as exc:
            _LOG.warning("the counters before are lost: %s", exc)
        return found
