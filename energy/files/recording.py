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

import contextlib
import errno
import json
import math
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Iterator, Mapping, Sequence

from draftwire.energy.account.integrate import Vector
from draftwire.energy.account.result import Projector
from draftwire.energy.files.unpack import open_bytes, read_head
from draftwire.energy.rails import Accuracy, RailTable, Total, TotalChoice
from draftwire.energy.sources.base import UNKNOWN_RESPONSE, PowerSource, Reading
from draftwire.errors import ConfigError

SCHEMA = "draftwire.energy/1"
MAX_LINE = 1 << 20


class Recorder:
    """Writes samples as they come to a file that does not exist yet, unless ``force``; a
    full disk ends the file (``truncated`` says why) and not the measurement. By ``hz``
    readers tell a gap from a period. ConfigError: the file cannot be written."""

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
        choice, rails = projector.choice, projector.rails
        wanted = [choice.total] if choice.total else []
        totals = [{"scope": t.scope, "rails": t.rails} for t in (*wanted, *choice.others)]
        self._count = len(rails)
        self._put(
            {
                "schema": SCHEMA,
                "kind": "header",
                "source": source.name,
                "source_kind": source.kind,
                "rails": rails,
                "total": totals.pop(0) if wanted else None,
                "others": totals,
                "how": choice.how,
                "why_none": choice.why_none,
                "warnings": choice.warnings,
                "hz": hz,
                "board": board,
                "accuracy": {
                    rail: vars(source.accuracy.get(rail) or choice.accuracy(rail))
                    for rail in rails
                },
                "parts": choice.table.parts if choice.table else (),
                "update_s": source.update_s,
                "response": vars(getattr(source, "response", UNKNOWN_RESPONSE)),
                "notes": source.notes,
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
        with contextlib.suppress(OSError):  # a full disk fails once more
            if file is not None:
                file.close()

    def sample(self, t_ns: int, watts: Vector, joules: Vector | None) -> None:

        def clean(vector: Vector) -> list[float | None]:
            rails = vector[1 : 1 + self._count]
            return [round(v, 6) if math.isfinite(v) else None for v in rails]

        counters = {} if joules is None else {"c": clean(joules)}
        self._put({"t": t_ns, "w": clean(watts), **counters})
        self.samples += 1

    def phase(self, t_ns: int, name: str) -> None:
        self._put({"t": t_ns, "phase": name})

    def mark(self, t_ns: int, text: str) -> None:
        self._put({"t": t_ns, "mark": text})

    def tokens(self, **counts: int) -> None:
        self._put({"tokens": counts})

    def end(self, t_ns: int, result: dict[str, Any]) -> None:
        """Write the result and close the file."""
        self._put({"kind": "end", "t": t_ns, "result": result})
        self._abandon()


@dataclass
class Recording:
    """A recording that was read."""

    path: str  # the file
    header: dict[str, Any]  # its first line
    choice: TotalChoice  # which rails make the total, as recorded
    accuracy: dict[str, Accuracy]  # by rail, as recorded
    samples: list[Reading] = field(default_factory=list)
    phases: list[tuple[int, str]] = field(default_factory=list)  # ``(t_ns, name)``
    marks: list[tuple[int, str]] = field(default_factory=list)  # ``(t_ns, text)``
    tokens: dict[str, int] = field(default_factory=dict)  # counts, summed
    end_ns: int = 0  # when the recording was closed, or the last sample's time
    complete: bool = False  # false when the closing line is missing
    bad_lines: int = 0  # lines that could not be read
    result: dict[str, Any] = field(default_factory=dict)

    @property
    def rails(self) -> tuple[str, ...]:
        return tuple(self.header["rails"])

    @property
    def name(self) -> str:
        return str(self.header.get("source", "recording"))

    def take(self, line: Mapping[str, Any]) -> None:
        """Take in one line; KeyError, TypeError, ValueError or AttributeError: it is
        damaged."""
        if "w" in line:
            watts = self._by_rail(line["w"])
            joules = self._by_rail(line["c"]) if "c" in line else None
            self.samples.append(Reading(int(line["t"]), watts, joules))
        elif "phase" in line:
            self.phases.append((int(line["t"]), str(line["phase"])))
        elif "mark" in line:
            self.marks.append((int(line["t"]), str(line["mark"])))
        elif "tokens" in line:
            for name, count in line["tokens"].items():
                self.tokens[name] = self.tokens.get(name, 0) + int(count)
        elif line.get("kind") == "end":
            self.end_ns = int(line["t"])
            self.result = dict(line.get("result") or {})
            self.complete = True

    def _by_rail(self, values: Sequence[Any]) -> dict[str, float]:
        pairs = zip(self.header["rails"], values)
        return {rail: float(value) for rail, value in pairs if value is not None}


def is_recording(path: Path) -> bool:
    """Return True when the file starts like a recording."""
    try:
        return SCHEMA.encode() in read_head(path, 4096).split(b"\n", 1)[0]
    except ConfigError:
        return False


def read_recording(path: Path) -> Recording:
    """Read a recording, else a ConfigError; a cut last line is dropped and counted."""
    recording: Recording | None = None
    bad = 0
    for line in _lines(path):
        if line is not None and recording is None:
            recording = _header(path, line)
            continue
        try:
            if line is None:
                raise ValueError("cut, or rubbish")
            assert recording is not None
            recording.take(line)
        except (KeyError, TypeError, ValueError, AttributeError):
            bad += 1
    if recording is None:
        raise ConfigError(f"{path} is not a recording of draftwire energy")
    recording.bad_lines = bad
    if not recording.end_ns and recording.samples:
        recording.end_ns = recording.samples[-1].t_ns
    return recording


def _lines(path: Path) -> Iterator[dict[str, Any] | None]:
    with open_bytes(path) as file:
        for line in iter(lambda: file.readline(MAX_LINE), b""):
            try:
                value = json.loads(line)
            except ValueError:
                value = None
            yield value if isinstance(value, dict) else None


def _header(path: Path, line: dict[str, Any]) -> Recording:
    if line.get("schema") != SCHEMA or line.get("kind") != "header":
        hint = "tegrastats logs and meter files: `draftwire energy report`"
        raise ConfigError(
            f"{path} is not a recording of draftwire energy ({SCHEMA})", hint=hint
        )
    try:
        known = line.get("accuracy", {})
        accuracy = {rail: Accuracy(**figures) for rail, figures in known.items()}
        total = line.get("total")
        totals = [
            Total(t["scope"], tuple(t["rails"]))
            for t in ([] if total is None else [total]) + list(line.get("others", ()))
        ]
        choice = TotalChoice(
            None if total is None else totals.pop(0),
            tuple(totals),
            str(line.get("how", "")),
            str(line.get("why_none", "")),
            tuple(line.get("warnings", ())),
            RailTable(
                str(line.get("board")),
                parts=tuple(line.get("parts", ())),
                accuracy=accuracy,
            ),
        )
        line["rails"] = [str(rail) for rail in line["rails"]]
        return Recording(str(path), line, choice, accuracy)
    except (KeyError, TypeError) as exc:
        raise ConfigError(f"{path}: the header is damaged ({exc!r})") from exc
