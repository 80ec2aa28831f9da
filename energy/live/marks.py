"""Phases of a program that is recorded from outside, while it runs.

``draftwire energy record`` and ``watch`` listen on a socket.  A program that they start
finds it in ``DRAFTWIRE_ENERGY_MARKS``; one that runs already, or a shell, uses
``draftwire energy record --mark``.  The monotonic clock is one for the whole machine, so
stamps agree.

    draftwire.energy.mark("draft")          # does nothing when nobody records
    draftwire.energy.mark(drafted=5, accepted=3, emitted=4, requests=1)
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from draftwire.errors import ConfigError
from draftwire.io import parse_json

ENVIRONMENT = "DRAFTWIRE_ENERGY_MARKS"
_NAME = "draftwire-energy-"
_sockets: dict[str, socket.socket] = {}


def sending() -> bool:
    """Tell whether somebody records this process."""
    return bool(os.environ.get(ENVIRONMENT))


def mark(phase: str | None = None, **tokens: int) -> None:
    """Tell the recorder, if there is one, what happens now."""
    if sending():
        send(os.environ[ENVIRONMENT], phase, tokens)


def send(
    path: str, phase: str | None, tokens: dict[str, int], t_ns: int | None = None
) -> bool:
    """Send a mark to a listener; return False when nobody listens any more."""
    line: dict[str, Any] = {"t": time.monotonic_ns() if t_ns is None else t_ns}
    line.update({} if phase is None else {"phase": phase})
    line.update({"tokens": tokens} if tokens else {})
    if path not in _sockets:
        _sockets[path] = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        _sockets[path].settimeout(0.05)  # never hold the program that is measured
    try:
        _sockets[path].sendto(json.dumps(line).encode(), path)
    except OSError:
        return False
    return True


def _folder() -> Path:
    return Path(os.environ.get("XDG_RUNTIME_DIR") or tempfile.gettempdir())


def find_listener() -> str:
    """Return the socket of the newest recording; a ConfigError if nothing is recorded."""
    if sending():
        return os.environ[ENVIRONMENT]
    found = sorted(_folder().glob(f"{_NAME}*.sock"), key=lambda p: -p.stat().st_mtime)
    for path in map(str, found):
        if send(path, None, {}):
            return path
    hint = "start `draftwire energy record --out FILE` first"
    raise ConfigError("nothing is being recorded on this machine", hint=hint)


class MarkListener:
    """Receives marks on a thread of its own, so that no sender has to wait."""

    def __init__(self) -> None:
        self.path = str(_folder() / f"{_NAME}{os.getpid()}-{id(self) & 0xFFFF:x}.sock")
        self.bad_lines = 0
        self._lines: list[dict[str, Any]] = []
        self._lock = threading.Lock()
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        try:
            self._socket.bind(self.path)
            os.chmod(self.path, 0o600)
        except OSError as exc:
            self._socket.close()
            raise ConfigError(f"cannot listen for marks at {self.path}: {exc}") from exc
        threading.Thread(target=self._run, name="draftwire-marks", daemon=True).start()

    def _run(self) -> None:
        with contextlib.suppress(OSError):
            for data in iter(lambda: self._socket.recv(65536), b"end"):
                try:
                    value = parse_json(data)
                    phase = {"phase": str(value["phase"])} if "phase" in value else {}
                    tokens = {str(k): int(v) for k, v in value.get("tokens", {}).items()}
                    line = {"t": int(value["t"]), **phase, "tokens": tokens}
                except (ValueError, TypeError, KeyError, AttributeError):
                    self.bad_lines += 1
                    continue
                with self._lock:
                    self._lines.append(line)

    def new(self) -> list[dict[str, Any]]:
        """Return the marks since the last call, in the order of their times."""
        with self._lock:
            lines, self._lines = self._lines, []
        return sorted(lines, key=lambda line: line["t"])

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._socket.sendto(b"end", self.path)
        self._socket.close()
        if os.path.exists(self.path):
            os.unlink(self.path)
