"""Recordings: one JSON object a line, readable even when the board died half-way.

Lines, told by their keys::

    {"schema": "draftwire.energy/1", "kind": "header", "source": ..., "rails": [...], ...}
    {"t": 123456789, "w": [4.1, 0.5]}           watts by rail, null where unreadable
    {"t": 123456789, "w": [...], "c": [...]}    beside them running joules of counters
    {"t": 123456789, "phase": "draft"}          the device does something else
    {"t": 123456789, "mark": "pulse on"}        anything worth a time stamp
    {"tokens": {"drafted": 5, "accepted": 3, "emitted": 4}}
    {"kind": "end", "t": 123456789, "result": {...}}

``t`` is nanoseconds of the recording machine's monotonic clock.  A recording is
appended to in place and not written beside and renamed: half of it is worth having.
"""

from __future__ import annotations

import errno
import json
import math
import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Iterator

from draftwire.energy.account.integrate import Vector
from draftwire.energy.account.result import Projector
from draftwire.energy.files.unpack import UNPACK_ERRORS, open_bytes
from draftwire.energy.rails import Accuracy, RailTable, Total, TotalChoice
from draftwire.energy.sources.base import UNKNOWN_RESPONSE, PowerSource, Reading
from draftwire.errors import ConfigError

__all__ = ["Recorder", "Recording", "SCHEMA", "read_recording"]

SCHEMA = "draftwire.energy/1"
MAX_LINE = 1 << 20


class Recorder:
    """Writes samples as they come; a full disk ends the file, not the measurement.

    Args:
        path: A file that does not exist yet, unless ``force``.
        source: The source, for the header.
        projector: The signals that the meter samples.
        hz: The meter's rate; readers tell a gap from a period by it.
        board: Name of the board's profile, or None.
        context: Power mode, clocks and temperatures at the start.
        force: Overwrite.

    Attributes:
        truncated: Why the file ends early, or "".

    Raises:
        ConfigError: The file exists or cannot be written.
    """

    def __init__(
        self,
        path: Path,
        source: PowerSource,
        projector: Projector,
        *,
        hz: float | None = None,
        board: str | None = None,
        context: dict[str, Any] | None = None,
        extra: dict[str, Any] | None = None,
        force: bool = False,
    ) -> None:
        self.path = path
        self.truncated = ""
        self.samples = 0
        try:
            # Line buffered: after a power cut at most the last line is lost to us.
            self._file: IO[str] | None = open(  # noqa: SIM115
                path, "w" if force else "x", encoding="utf-8", buffering=1
            )
        except FileExistsError as exc:
            raise ConfigError(f"{path} exists", hint="name another, or --force") from exc
        except OSError as exc:
            raise ConfigError(f"cannot write {path}: {exc}") from exc
        choice = projector.choice
        self._count = len(projector.rails)
        self._put(
            {
                "schema": SCHEMA,
                "kind": "header",
                "source": source.name,
                "source_kind": source.kind,
                "rails": list(projector.rails),
                "total": _total(choice.total),
                "others": [_total(other) for other in choice.others],
                "how": choice.how,
                "why_none": choice.why_none,
                "warnings": list(choice.warnings),
                "hz": hz,
                "board": board,
                "accuracy": {
                    rail: vars(source.accuracy.get(rail) or choice.accuracy(rail))
                    for rail in projector.rails
                },
                "parts": list(choice.table.parts) if choice.table else [],
                "update_s": source.update_s,
                "response": vars(getattr(source, "response", UNKNOWN_RESPONSE)),
                "notes": list(source.notes),
                "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
                "context": context or {},
                **(extra or {}),
            }
        )

    def _put(self, line: dict[str, Any]) -> None:
        if self._file is None:
            return
        try:
            self._file.write(json.dumps(line, allow_nan=False) + "\n")
        except OSError as exc:
            reason = "the disk is full" if exc.errno == errno.ENOSPC else str(exc)
            self.truncated = f"{self.path} ends early: {reason}"
            self._abandon()

    def _abandon(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            try:
                file.close()
            except OSError:
                os.close(os.open(os.devnull, os.O_RDONLY))  # nothing left to flush to

    def sample(self, t_ns: int, watts: Vector, joules: Vector | None) -> None:
        """Write one sample of the meter."""
        rails = slice(1, 1 + self._count)
        line: dict[str, Any] = {"t": t_ns, "w": [_clean(w) for w in watts[rails]]}
        if joules is not None:
            line["c"] = [_clean(c) for c in joules[rails]]
        self._put(line)
        self.samples += 1

    def phase(self, t_ns: int, name: str) -> None:
        """Write that the device does something else."""
        self._put({"t": t_ns, "phase": name})

    def mark(self, t_ns: int, text: str) -> None:
        """Write a mark."""
        self._put({"t": t_ns, "mark": text})

    def tokens(self, **counts: int) -> None:
        """Write token counts."""
        self._put({"tokens": counts})

    def end(self, t_ns: int, result: dict[str, Any]) -> None:
        """Write the result and close the file."""
        self._put({"kind": "end", "t": t_ns, "result": result})
        self._abandon()


@dataclass
class Recording:
    """A recording that was read.

    Attributes:
        path: The file.
        header: Its first line.
        choice: Which rails make the total, as recorded.
        accuracy: By rail, as recorded.
        samples: ``(t_ns, watts by rail, joules by rail or None)``.
        phases: ``(t_ns, name)``.
        marks: ``(t_ns, text)``.
        tokens: Counts, summed.
        end_ns: When the recording was closed, or the last sample's time.
        complete: False when the closing line is missing.
        bad_lines: Lines that could not be read.
    """

    path: str
    header: dict[str, Any]
    choice: TotalChoice
    accuracy: dict[str, Accuracy]
    samples: list[Reading] = field(default_factory=list)
    phases: list[tuple[int, str]] = field(default_factory=list)
    marks: list[tuple[int, str]] = field(default_factory=list)
    tokens: dict[str, int] = field(default_factory=dict)
    end_ns: int = 0
    complete: bool = False
    bad_lines: int = 0
    result: dict[str, Any] = field(default_factory=dict)

    @property
    def rails(self) -> tuple[str, ...]:
        """Names of the rails."""
        return tuple(self.header["rails"])

    @property
    def name(self) -> str:
        """Name of the source."""
        return str(self.header.get("source", "recording"))


def is_recording(path: Path) -> bool:
    """Return True when the file starts like a recording."""
    try:
        with open_bytes(path) as file:
            return SCHEMA.encode() in file.read(4096).split(b"\n", 1)[0]
    except (ConfigError, *UNPACK_ERRORS):
        return False


def read_recording(path: Path) -> Recording:
    """Read a recording; a cut last line is dropped and counted.

    Raises:
        ConfigError: It is not a recording.
    """
    recording: Recording | None = None
    bad = 0
    for line in _lines(path):
        if line is None:
            bad += 1
            continue
        if recording is None:
            recording = _header(path, line)
            continue
        try:
            _take(recording, line)
        except (KeyError, TypeError, ValueError):
            bad += 1
    if recording is None:
        raise ConfigError(f"{path} is not a recording of draftwire energy")
    recording.bad_lines = bad
    if not recording.end_ns and recording.samples:
        recording.end_ns = recording.samples[-1].t_ns
    return recording


def _lines(path: Path) -> Iterator[dict[str, Any] | None]:
    try:
        with open_bytes(path) as file:
            while True:
                line = file.readline(MAX_LINE)
                if not line:
                    return
                try:
                    value = json.loads(line)
                except ValueError:  # cut, or rubbish
                    value = None
                yield value if isinstance(value, dict) else None
    except UNPACK_ERRORS as exc:
        raise ConfigError(f"cannot read {path}: {exc}") from exc


def _header(path: Path, line: dict[str, Any]) -> Recording:
    if line.get("schema") != SCHEMA or line.get("kind") != "header":
        raise ConfigError(
            f"{path} is not a recording of draftwire energy ({SCHEMA})",
            hint="tegrastats logs and meter files: `draftwire energy import`",
        )
    try:
        parts = tuple(line.get("parts", ()))
        accuracy = {
            rail: Accuracy(**known) for rail, known in line.get("accuracy", {}).items()
        }
        total = line.get("total")
        choice = TotalChoice(
            None if total is None else Total(total["scope"], tuple(total["rails"])),
            tuple(Total(o["scope"], tuple(o["rails"])) for o in line.get("others", ())),
            str(line.get("how", "")),
            str(line.get("why_none", "")),
            tuple(line.get("warnings", ())),
            RailTable(str(line.get("board")), parts=parts, accuracy=accuracy),
        )
        line["rails"] = [str(rail) for rail in line["rails"]]
        return Recording(str(path), line, choice, accuracy)
    except (KeyError, TypeError) as exc:
        raise ConfigError(f"{path}: the header is damaged ({exc!r})") from exc


def _take(recording: Recording, line: dict[str, Any]) -> None:
    if "w" in line:
        rails = recording.rails
        watts = {r: float(w) for r, w in zip(rails, line["w"]) if w is not None}
        joules = None
        if "c" in line:
            joules = {r: float(c) for r, c in zip(rails, line["c"]) if c is not None}
        recording.samples.append(Reading(int(line["t"]), watts, joules))
    elif "phase" in line:
        recording.phases.append((int(line["t"]), str(line["phase"])))
    elif "mark" in line:
        recording.marks.append((int(line["t"]), str(line["mark"])))
    elif "tokens" in line:
        for name, count in line["tokens"].items():
            recording.tokens[name] = recording.tokens.get(name, 0) + int(count)
    elif line.get("kind") == "end":
        recording.end_ns = int(line["t"])
        recording.result = dict(line.get("result") or {})
        recording.complete = True


def _total(total: Total | None) -> dict[str, Any] | None:
    return None if total is None else {"scope": total.scope, "rails": list(total.rails)}


def _clean(value: float) -> float | None:
    return round(value, 6) if math.isfinite(value) else None
