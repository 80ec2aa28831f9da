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
from typing import IO, Any, Mapping, Sequence

from draftwire.energy.account.integral import Projector, Vector
from draftwire.energy.files import open_bytes, read_head
from draftwire.energy.rails import Accuracy, RailTable, Total, TotalChoice, choose_total
from draftwire.energy.sources.base import PowerSource, Reading, response_of
from draftwire.errors import ConfigError, SensorError
from draftwire.io import parse_json, writing

SCHEMA = "draftwire.energy/1"
MAX_LINE = 1 << 20
# What may stand in a file: 0.0 for a number, "" for a text, (...) where null may be; key
# "" is any.
_LOOK: Any = {"heat_c": {"": 0.0}, "power_mode": ""}
CONTEXT: Any = {"heat_c": {"": ({"": 0.0},)}, "start": _LOOK, "end": _LOOK}
_TOTAL: Any = {"scope": "", "rails": [""]}
_ACCURACY: Any = {"step_w": 0.0, "offset_w": 0.0, "gain": 0.0, "source": ""}
_HEADER: Any = {
    **{"context": _LOOK, "total": _TOTAL, "others": [(_TOTAL,)], "board": ""},
    **dict.fromkeys(("command", "notes", "parts", "warnings"), [""]),
    **dict.fromkeys(("hz", "update_s", "baseline_w", "baseline_u_w"), 0.0),
    "accuracy": {"": _ACCURACY},
}


class Recorder:
    """Writes samples as they come to a file that does not exist yet, unless ``force``, or
    nowhere (None); a full disk ends the file (``truncated`` says why) and not the
    measurement. By ``hz`` readers tell a gap from a period; ``known``: what else the header
    has, such as ``board``, ``context``, ``command``. ConfigError: the file cannot be
    written."""

    def __init__(
        self,
        path: Path | None,
        source: PowerSource,
        projector: Projector,
        *,
        hz: float | None = None,
        force: bool = False,
        **known: Any,
    ) -> None:
        self.path = path
        self.truncated = ""
        self.samples = 0  # in the file
        self._file: IO[str] | None = None
        # Line buffered: after a power cut at most the last line is lost to us.
        mode = "w" if force else "x"
        if path is not None:
            if path.exists() and not force:
                raise ConfigError(f"{path} exists", hint="name another, or --force")
            with writing(path):
                self._file = open(path, mode, encoding="utf-8", buffering=1)  # noqa: SIM115
        choice, self._rails = projector.choice, projector.rails
        totals = [
            total and {"scope": total.scope, "rails": total.rails}
            for total in (choice.total, *choice.others)
        ]
        accuracy = {r: source.accuracy.get(r) or choice.accuracy(r) for r in self._rails}
        self._put(
            schema=SCHEMA,
            kind="header",
            source=source.name,
            source_kind=source.kind,
            rails=self._rails,
            total=totals[0],
            others=totals[1:],
            how=choice.how,
            why_none=choice.why_none,
            warnings=choice.warnings,
            hz=hz,
            accuracy={rail: vars(known) for rail, known in accuracy.items()},
            parts=choice.table.parts if choice.table else (),
            update_s=source.update_s,
            response=vars(source.response),
            notes=source.notes,
            started=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            **known,
        )

    def _put(self, **line: Any) -> None:
        if self._file is None:
            return
        try:
            self._file.write(json.dumps(line, allow_nan=False) + "\n")
            self.samples += "w" in line
        except OSError as exc:
            reason = "the disk is full" if exc.errno == errno.ENOSPC else str(exc)
            self.truncated = f"{self.path} ends early: {reason}"
            self._close()

    def _close(self) -> None:
        file, self._file = self._file, None
        with contextlib.suppress(OSError):  # a full disk fails once more
            if file is not None:
                file.close()

    def sample(self, t_ns: int, watts: Vector, joules: Vector | None) -> None:
        """Write a sample of the projector's signals."""
        vectors = {"w": watts} if joules is None else {"w": watts, "c": joules}
        clean = {
            key: [
                round(value, 6) if math.isfinite(value) else None
                for value in vector[1 : 1 + len(self._rails)]
            ]
            for key, vector in vectors.items()
        }
        self._put(t=t_ns, **clean)

    def phase(self, t_ns: int, name: str) -> None:
        self._put(t=t_ns, phase=name)

    def mark(self, t_ns: int, text: str) -> None:
        self._put(t=t_ns, mark=text)

    def tokens(self, **counts: int) -> None:
        self._put(tokens=counts)

    def end(self, t_ns: int, result: dict[str, Any]) -> None:
        """Write the result and close the file."""
        self._put(kind="end", t=t_ns, result=result)
        self._close()


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

    def total_of(self, rails: Sequence[str] | None, scope: str | None) -> TotalChoice:
        """Return the total: as recorded, or of these rails or this scope."""
        table = self.choice.table
        if table is None or not (rails or scope):
            return self.choice
        return choose_total(
            self.rails, [table], board=table.board, user_rails=rails, scope=scope
        )

    def take(self, line: Mapping[str, Any]) -> None:
        """Take in one line; KeyError, TypeError, ValueError or AttributeError: it is
        damaged."""

        def by_rail(values: Sequence[Any]) -> dict[str, float]:
            pairs = zip(self.header["rails"], values)
            known = {rail: float(value) for rail, value in pairs if value is not None}
            return {rail: value for rail, value in known.items() if abs(value) < 1e100}

        def whole(value: Any) -> int:
            if not abs(value) < 1 << 63:
                raise ValueError
            return int(value)

        if "w" in line:
            joules = by_rail(line["c"]) if "c" in line else None
            self.samples.append(Reading(whole(line["t"]), by_rail(line["w"]), joules))
        elif "phase" in line:
            self.phases.append((whole(line["t"]), str(line["phase"])))
        elif "mark" in line:
            self.marks.append((whole(line["t"]), str(line["mark"])))
        elif "tokens" in line:
            for name, count in line["tokens"].items():
                self.tokens[name] = self.tokens.get(name, 0) + whole(count)
        elif line.get("kind") == "end":
            self.end_ns = whole(line["t"])
            self.result = dict(line.get("result") or {})
            self.complete = True


def check_shape(value: Any, shape: Any, where: str) -> None:
    """See that what others may have written is of a shape (ConfigError: it is not)."""
    if isinstance(shape, tuple):
        if value is not None:
            check_shape(value, shape[0], where)
        return
    right = isinstance(value, (int, float) if isinstance(shape, float) else type(shape))
    if not right or isinstance(value, (int, float)) and not abs(value) < 1e300:
        hint = "it is damaged, or no file of ours"
        raise ConfigError(f"{where} is {str(value)[:60]!r}", hint=hint)
    if isinstance(shape, dict):
        for key, inner in value.items():
            if "" in shape or key in shape:
                then = shape[""] if "" in shape else (shape[key],)
                check_shape(inner, then, f"{where} {key}")
    elif isinstance(shape, list):
        for inner in value:
            check_shape(inner, shape[0], where)


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
    with open_bytes(path) as file:
        for text in iter(lambda: file.readline(MAX_LINE), b""):
            try:
                line = parse_json(text)
                if recording is not None:
                    recording.take(line)
                else:
                    recording = _header(path, dict(line))
            except (KeyError, TypeError, ValueError, AttributeError, OverflowError):
                bad += 1
    if recording is None:
        raise ConfigError(f"{path} is not a recording of draftwire energy")
    recording.bad_lines = bad
    if not recording.end_ns and recording.samples:
        recording.end_ns = recording.samples[-1].t_ns
    return recording


def _header(path: Path, line: dict[str, Any]) -> Recording:
    if line.get("schema") != SCHEMA or line.get("kind") != "header":
        why = f"{path} is not a recording of draftwire energy ({SCHEMA})"
        hint = "tegrastats logs and meter files: `draftwire energy report`"
        raise ConfigError(why, hint=hint)
    check_shape(line, _HEADER, f"{path}:")
    try:
        figures = line.get("accuracy", {}).items()
        accuracy = {rail: Accuracy(**known) for rail, known in figures}
        total, *others = (
            Total(t["scope"], tuple(t["rails"])) if t else None
            for t in (line.get("total"), *line.get("others", ()))
        )
        parts, board = tuple(line.get("parts") or ()), str(line.get("board"))
        known = tuple(one for one in (total, *others) if one)
        choice = TotalChoice(
            total,
            known[1:],
            str(line.get("how", "")),
            str(line.get("why_none", "")),
            tuple(line.get("warnings") or ()),
            RailTable(board, known, parts, accuracy=accuracy),
        )
        line["rails"] = [str(rail) for rail in line["rails"]]
        return Recording(str(path), line, choice, accuracy)
    except (KeyError, TypeError) as exc:
        raise ConfigError(f"{path}: the header is damaged ({exc!r})") from exc


class ReplaySource(PowerSource):
    """Plays a recording: speed 1 as it was, 10 ten times faster, 0 all at once."""

    paced = True

    def __init__(self, recording: Recording | Path, *, speed: float = 0.0) -> None:
        super().__init__()
        if isinstance(recording, Path):
            recording = read_recording(recording)
        self.recording = recording
        header, total = recording.header, recording.choice.total
        self.name = f"replay:{recording.name}"
        self.kind = str(header.get("source_kind", "measured"))
        self.rails = recording.rails
        self.scope, self.total = (total.scope, total.rails) if total else (None, ())
        self.accuracy = recording.accuracy
        self.lag_s: float | None = header.get("update_s")
        self.update_s = 1.0 / header["hz"] if header.get("hz") else self.lag_s
        self.response = response_of(header.get("response"))
        self.notes = tuple(header.get("notes") or ())
        self._speed = speed
        self._next, self._begin = 0, 0

    def read(self) -> Reading:
        """Return the next reading; a SensorError at the end."""
        samples = self.recording.samples
        if self._next >= len(samples):
            self.over = True
            raise SensorError(f"{self.recording.path} ended")
        reading = samples[self._next]
        self._next += 1
        if self._speed <= 0:
            return reading
        if self._next == 1:
            self._begin = self._clock()
        t_ns = self._begin + int((reading.t_ns - samples[0].t_ns) / self._speed)
        wait_s = (t_ns - self._clock()) * 1e-9
        if wait_s > 0:
            time.sleep(wait_s)
        return Reading(t_ns, reading.watts, reading.joules)
