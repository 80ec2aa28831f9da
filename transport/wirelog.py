"""What crosses the wire as JSON lines: for people, and for the simulator to replay.

A file begins with a line about itself, then a line for each event, in the order of time::

    {"schema": "draftwire.wirelog/1", "role": "device", "run": "6f0c...", "began": "..."}
    {"t_s": 0.412, "connection": 1, "direction": "up", "stream": 1, "kind": "block",
     "bytes": 9, "fields": {"epoch": 0, "base": 0, "tokens": [17, 3, 99, 41]}}

Times are a monotonic clock's, from the beginning of the log. ``direction`` is ``up`` from
the device, on whichever side the log is written, ``bytes`` the payload of the frame.
Messages say what they are by themselves (:func:`plain`), so this module knows none of
them. Beside them there are ``connect``, ``ping``, ``pong``, ``closed`` and ``lost`` (events
that were not written, with their number).

There is no text in it, but **token ids are**, since a replay needs them: who has the
tokenizer can read the text. Proofs of ownership are left out, and the file is its owner's
alone.

Writing never disturbs a stream: a thread writes, what it cannot keep up with is dropped
and counted, and an error ends the log with a warning and is raised when the log is closed.
Two files of ``max_bytes`` are kept.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import enum
import errno
import json
import logging
import math
import os
import queue
import threading
import time
from pathlib import Path
from typing import Any, Callable, Iterator, NamedTuple

from draftwire.errors import ConfigError, OutputError
from draftwire.io import parse_json

log = logging.getLogger("draftwire.wirelog")

SCHEMA = "draftwire.wirelog/1"
MAX_BYTES = 64 << 20
_WAITING = 20_000  # events that may wait for the disk
_LONGEST = 64  # bytes of evidence that are shown
_CLOSE_S = 5.0
_HIDDEN = frozenset({"secret"})


def plain(value: object) -> Any:
    """Return ``value`` as JSON has it: a dataclass by its fields but those at rest."""
    if isinstance(value, enum.Enum):
        return value.name.lower()
    if value is None or isinstance(value, (int, str)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, (bytes, bytearray)):
        cut = "" if len(value) <= _LONGEST else f"... ({len(value)} bytes)"
        return value[:_LONGEST].hex() + cut
    if dataclasses.is_dataclass(value):
        found = {}
        for field in dataclasses.fields(value):
            item = getattr(value, field.name)
            if field.name in _HIDDEN:
                found[field.name] = "(not shown)"
            elif type(item) is not type(field.default) or item != field.default:
                found[field.name] = plain(item)
        return found
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (tuple, list, set, frozenset)):
        return [plain(item) for item in value]
    return str(value)


def rotated(path: Path) -> Path:
    """Return where the older part of a log is."""
    return path.with_name(path.name + ".1")


class ConnectionLog:
    """The events of connection ``number``, from 1; without a log they go nowhere."""

    def __init__(self, log: WireLog | None = None, number: int = 0) -> None:
        self._log, self._number = log, number

    def message(
        self, direction: str, message: object, size: int, stream: int | None
    ) -> None:
        """Note a message, the bytes of its frame and its stream."""
        self._put(direction, stream, type(message).__name__.lower(), size, message)

    def event(self, kind: str, direction: str | None = None, **fields: object) -> None:
        """Note something else."""
        self._put(direction, None, kind, None, fields)

    def _put(self, *event: object) -> None:
        if self._log is not None:
            self._log.put(self._number, *event)


class WireLog:
    """Writes wire events of one process to a file.

    Args:
        path: The file; what is in it stays, up to `max_bytes`.
        role: ``"device"`` or ``"verifier"``.
        max_bytes: Of one file; a second one, older, lies beside it.
        clock: Seconds that never fall.

    Raises:
        ConfigError: The file cannot be written.
    """

    def __init__(
        self,
        path: Path,
        role: str,
        max_bytes: int = MAX_BYTES,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._path = path
        self._max_bytes = max_bytes
        self._clock = clock
        self._zero_s = clock()
        began = datetime.datetime.now(datetime.timezone.utc)
        self._head = {
            "schema": SCHEMA,
            "role": role,
            "run": os.urandom(8).hex(),
            "began": began.isoformat(timespec="milliseconds"),
        }
        self._connections = 0
        self._dropped, self._counting = 0, threading.Lock()
        self._failed: Exception | None = None
        self._queue: queue.Queue[tuple[Any, ...] | None] = queue.Queue(_WAITING)
        try:
            if path.exists() and not path.is_file():
                raise OSError(errno.EINVAL, "it is no file")
            self._open()
        except OSError as exc:
            raise ConfigError(
                f"cannot write the wire log {path}: {exc.strerror}",
                hint="name a file in a folder that you may write to",
            ) from exc
        self._thread = threading.Thread(
            target=self._run, name="draftwire-wirelog", daemon=True
        )
        self._thread.start()

    def connection(self, where: str) -> ConnectionLog:
        """Return the log of a new connection."""
        self._connections += 1
        found = ConnectionLog(self, self._connections)
        found.event("connect", where=where)
        return found

    def put(self, *event: object) -> None:
        """Have an event written, all of it but its time; never waits and never raises."""
        if self._failed is not None:
            return
        try:
            self._queue.put_nowait((self._clock() - self._zero_s, *event))
        except queue.Full:
            with self._counting:
                self._dropped += 1

    def close(self) -> None:
        """Write what waits, within a few seconds; harmless a second time.

        Raises:
            OutputError: The log is not whole: the disk is full, or its folder is gone.
        """
        if self._thread.is_alive():
            try:
                self._queue.put(None, timeout=_CLOSE_S)
            except queue.Full:
                return  # a disk that hangs: the thread is a daemon
            self._thread.join(_CLOSE_S)
        if self._failed is not None:
            why = getattr(self._failed, "strerror", None) or self._failed
            raise OutputError(f"the wire log {self._path} is not whole: {why}")

    # ---- in the thread

    def _open(self) -> None:
        import fcntl  # where there is none, there is no log

        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
        self._file = os.fdopen(os.open(self._path, flags, 0o600), "ab")
        try:  # two writers would tear each other's lines
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as exc:
            self._file.close()
            raise OSError(exc.errno, "it is being written already") from exc
        self._size = self._file.tell()
        # The line that a killed process left unfinished ends here.
        self._write(b"\n" if self._size else b"", json.dumps(self._head))

    def _write(self, start: bytes, line: str) -> None:
        data = start + line.encode("ascii", "backslashreplace") + b"\n"
        self._file.write(data)
        self._size += len(data)

    def _run(self) -> None:
        try:
            with_more = True
            while with_more:
                with_more = self._next()
                if self._queue.empty():
                    self._file.flush()
            self._file.close()
        except Exception as exc:  # noqa: BLE001 - a log must never be the reason
            self._failed = exc
            log.warning("the wire log %s ends here: %s", self._path, exc)
            with contextlib.suppress(OSError):
                self._file.close()

    def _next(self) -> bool:
        item = self._queue.get()
        with self._counting:
            dropped, self._dropped = self._dropped, 0
        if dropped:
            now_s = self._clock() - self._zero_s
            self._line(now_s, 0, None, None, "lost", None, {"events": dropped})
        if item is not None:
            self._line(*item)
        return item is not None

    def _line(self, t_s: float, *event: object) -> None:
        if self._size > self._max_bytes:
            self._file.close()
            os.replace(self._path, rotated(self._path))
            self._open()
        *named, what = event
        line = dict(zip(_KEYS, (round(t_s, 6), *named, plain(what))))
        self._write(b"", json.dumps(line, allow_nan=False, separators=(",", ":")))


class Event(NamedTuple):
    """One line of a wire log."""

    run: int  # number of the process that wrote it, from 1, in the order of the file
    role: str  # of that process
    t_s: float  # seconds since it began to write
    connection: int  # number within the run
    direction: str | None  # ``"up"``, ``"down"`` or None
    stream: int | None  # number on the connection, or None
    kind: str  # of the message in lower case, or another event
    bytes: int | None  # payload of the frame, or None
    fields: dict[str, Any]  # what it says


_KEYS = Event._fields[2:]  # of a line


def read_wire_log(path: Path) -> Iterator[Event]:
    """Yield the events of a log, the part that was rotated away first.

    A last line that a killed process left unfinished is left out.

    Raises:
        ConfigError: There is none, or it is no wire log; names the line.
    """
    run, role = 0, ""
    runs: dict[str, int] = {}
    older = rotated(path)
    for part in (older, path) if older.exists() else (path,):
        try:
            handle = part.open("rb")
        except OSError as exc:
            raise ConfigError(f"cannot read the wire log {part}: {exc.strerror}") from exc
        with handle:
            for number, line in enumerate(handle, 1):
                if not line.strip():
                    continue
                try:
                    found = parse_json(line)
                    if found.get("schema") == SCHEMA:
                        role = str(found["role"])
                        run = runs.setdefault(str(found["run"]), len(runs) + 1)
                        continue
                    event = _event(run, role, found)
                except (ValueError, KeyError, TypeError, AttributeError) as exc:
                    if run and not line.endswith(b"}\n"):
                        continue  # torn
                    raise ConfigError(
                        f"{part} line {number} is not of a wire log",
                        hint="they are written with --wire-log FILE",
                    ) from exc
                yield event


def _event(run: int, role: str, line: dict[str, Any]) -> Event:
    event = Event(run, role, *(line[key] for key in _KEYS))
    optional = [n for n in (event.bytes, event.stream) if n is not None]
    if not run or not all(type(n) is int and n >= 0 for n in (event.connection, *optional)):
        raise ValueError
    if event.direction not in ("up", "down", None) or not isinstance(event.fields, dict):
        raise ValueError
    if not abs(event.t_s) < 1e15:
        raise ValueError
    return event._replace(t_s=float(event.t_s), kind=str(event.kind))
