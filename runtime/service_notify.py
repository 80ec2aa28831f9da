"""Tells systemd how the service is: ready, alive, stopping.

Source:
    sd_notify(3): one datagram of ``KEY=VALUE`` lines to ``$NOTIFY_SOCKET``.
"""

from __future__ import annotations

import os
import socket
from typing import Mapping

__all__ = ["Notifier"]


class Notifier:
    """Sends to the socket that the environment names; without one it does nothing.

    Args:
        environ: The environment of the process.

    Attributes:
        watchdog_s: Seconds within which systemd wants to hear that we live, or None.
    """

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._address = environ.get("NOTIFY_SOCKET", "")
        self.watchdog_s = self._watchdog(environ)
        self._said = ""

    @staticmethod
    def _watchdog(environ: Mapping[str, str]) -> float | None:
        pid = environ.get("WATCHDOG_PID", "")
        if pid and pid != str(os.getpid()):
            return None  # meant for another process
        try:
            wanted = int(environ.get("WATCHDOG_USEC", "")) / 1e6
        except ValueError:
            return None
        return wanted if wanted > 0 else None

    def ready(self) -> None:
        """Say that requests are taken."""
        self._send("READY=1")

    def alive(self) -> None:
        """Say that nothing hangs."""
        self._send("WATCHDOG=1")

    def stopping(self) -> None:
        """Say that we are on our way out."""
        self._send("STOPPING=1")

    def status(self, sentence: str) -> None:
        """Show a sentence in ``systemctl status``, when it is a new one."""
        if sentence != self._said:
            self._said = sentence
            self._send("STATUS=" + sentence.replace("\n", " "))

    def _send(self, text: str) -> None:
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
