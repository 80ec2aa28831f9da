"""Faults on purpose: a relay that cuts, tears and swallows; a verifier that dies.

Unprivileged and on loopback; used by the tests of lost links and by
``python -m tools.chaos``.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Sequence

from draftwire.bench.child import environment
from draftwire.errors import TransportError

_START_S = 60.0


class VerifierProcess:
    """A verifier in a process of its own that can be killed, frozen and restarted.

    Args:
        targets: Target packages.
        flags: More words for ``draftwire verifier serve``.
        log: Where its stderr goes.
        command: ``"serve"``, or ``"gateway"``.
    """

    def __init__(
        self,
        targets: Sequence[Path],
        *,
        flags: Sequence[str] = (),
        log: Path | None = None,
        command: str = "serve",
    ) -> None:
        self._log = log
        with socket.socket() as probe:  # a port that stays the same over restarts
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]
        self._words = [sys.executable, "-m", "draftwire", "verifier", command]
        for target in targets:
            self._words += ["--target", str(target)]
        self._words += ["--port", str(self.port), *flags]
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it and wait until it listens.

        Raises:
            TransportError: It does not.
        """
        with open(os.devnull if self._log is None else self._log, "ab") as log:
            self._process = subprocess.Popen(
                self._words, env=environment(), stdout=subprocess.DEVNULL, stderr=log
            )
        deadline = time.monotonic() + _START_S
        while time.monotonic() < deadline and self._process.poll() is None:
            with contextlib.suppress(OSError):
                socket.create_connection(("127.0.0.1", self.port), 1).close()
                return
            time.sleep(0.02)
        raise TransportError("the verifier process did not start to listen")

    @property
    def pid(self) -> int:
        """Of the process that runs."""
        assert self._process is not None
        return self._process.pid

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"ws://127.0.0.1:{self.port}"

    def drain(self) -> None:
        """End it as an operator does (SIGTERM), without waiting for it."""
        if self._process is not None:
            self._process.terminate()

    def kill(self) -> None:
        """End it as ``kill -9`` does."""
        if self._process is not None:
            self.thaw()
            self._process.kill()
            self._process.wait()

    def freeze(self) -> None:
        """Stop it (SIGSTOP): the port stays open, nobody answers."""
        if self._process is not None:
            self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let a frozen one go on."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGCONT)


class FaultProxy:
    """A TCP relay on loopback in front of a port.

    Args:
        port: Where the verifier listens.

    Attributes:
        url: What devices connect to.
        open: False refuses new connections.
        swallow: When set, everything that comes is lost without a sign.
    """

    def __init__(self, port: int) -> None:
        self._target = port
        self.open = True
        self.swallow = threading.Event()
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        self._left: set[socket.socket] = set()  # of flows that lead nowhere any more
        self._server = socket.create_server(("127.0.0.1", 0))
        self.url = f"ws://127.0.0.1:{self._server.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._server.accept()
            except OSError:
                return
            if not self.open:
                near.close()
                continue
            try:
                far = socket.create_connection(("127.0.0.1", self._target), 5)
            except OSError:
                near.close()
                continue
            far.settimeout(None)
            for end in (near, far):
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._pairs.append((near, far))
            for source, sink in ((near, far), (far, near)):
                threading.Thread(
                    target=self._relay, args=(source, sink), daemon=True
                ).start()

    def _relay(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                data = source.recv(4096)
                if not data:
                    break
                if not self.swallow.is_set() and source not in self._left:
                    sink.sendall(data)
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def roam(self) -> None:
        """Swallow what comes on the connections there are; new ones are served."""
        pairs, self._pairs = self._pairs, []
        for pair in pairs:
            self._left.update(pair)

    def cut(self, *, torn: bool = False, reset: bool = False) -> None:
        """End every connection.

        Args:
            torn: Send the device the beginning of a frame first.
            reset: End with a TCP reset.
        """
        pairs, self._pairs = self._pairs, []
        for near, far in pairs:
            with contextlib.suppress(OSError):
                if torn:  # a binary frame of 256 bytes, of which none comes
                    near.sendall(b"\x82\x7e\x01")
                if reset:
                    linger = struct.pack("ii", 1, 0)
                    near.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                    # A thread that reads it would keep it open, and nobody be told.
                    near.shutdown(socket.SHUT_RD)
                    near.close()
                else:
                    near.shutdown(socket.SHUT_RDWR)
            with contextlib.suppress(OSError):
                far.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Stop relaying."""
        self._server.close()
        self.cut()
        for end in self._left:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
