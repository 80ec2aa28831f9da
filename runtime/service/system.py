"""What the service tells systemd, and the counters that outlive it."""

from __future__ import annotations

import json
import logging
import os
import socket
from pathlib import Path
from typing import Any, Mapping

from draftwire.io import parse_json, replacing

_LOG = logging.getLogger("draftwire.service")
_MAX_BYTES = 1 << 16
_KEYS = ("starts", "clean_stops", "finished", "failed", "cancelled", "tokens")


class Notifier:
    """Sends to the socket that the environment names; without one it does nothing.

    Source:
        sd_notify(3): one datagram of ``KEY=VALUE`` lines to ``$NOTIFY_SOCKET``.
    """

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._address = environ.get("NOTIFY_SOCKET", "")
        self.watchdog_s: float | None = None
        usec, pid = environ.get("WATCHDOG_USEC", ""), environ.get("WATCHDOG_PID", "")
        if usec.isdecimal() and int(usec) and pid in ("", str(os.getpid())):
            self.watchdog_s = int(usec) / 1e6  # else it is meant for another process
        self._said = ""

    def status(self, sentence: str) -> None:
        """Show a sentence in ``systemctl status``, when it is a new one."""
        if sentence != self._said:
            self._said = sentence
            self.say("STATUS=" + sentence.replace("\n", " "))

    def say(self, text: str) -> None:
        """Send a line as it stands: READY=1, WATCHDOG=1, STOPPING=1."""
        if not self._address:
            return
        # An @ stands for the zero byte of an abstract address.
        address = self._address
        if address.startswith("@"):
            address = "\0" + address[1:]
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
                sender.sendto(text.encode("utf-8"), address)
        except OSError:
            pass  # systemd is restarting: the next word reaches it


class StateFile:
    """Counters over all runs, in ``folder``; without one, or on a read-only one, of this
    run."""

    def __init__(self, folder: Path | None) -> None:
        self._path = None if folder is None else folder / "state.json"
        self._before = self._read()
        self._written: dict[str, int] | None = None
        self.trouble: str | None = None

    def started(self) -> None:
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
            self._path.parent.mkdir(parents=True, exist_ok=True)
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
                raw = parse_json(file.read(_MAX_BYTES))
            for key in _KEYS:
                value = raw.get(key, 0)
                if isinstance(value, int) and 0 <= value < 1 << 60:
                    found[key] = value
        except FileNotFoundError:
            pass
        except (OSError, ValueError, AttributeError) as exc:
            _LOG.warning("the counters before are lost: %s", exc)
        return found
