"""Faults on purpose: a relay that cuts, tears and swallows, for tests and chaos."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading


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
