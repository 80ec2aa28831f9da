"""Faults on purpose: a relay that cuts, tears and swallows, for tests and chaos."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from typing import Callable, Iterable


class FaultProxy:
    """A TCP relay on loopback in front of a verifier's port.

    Devices connect to its ``url``. Without ``open`` it refuses new connections; while
    ``swallow`` is set, all that comes is lost without a sign; ``acts`` counts (`after`).
    """

    def __init__(self, port: int) -> None:
        self._target = port
        self.open = True
        self.swallow = threading.Event()
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        self._left: set[socket.socket] = set()  # of flows that lead nowhere any more
        self._lock = threading.Lock()
        self._due: list[int] = []
        self.acts = 0
        self._act: Callable[[], object] = self.cut
        self._server = socket.create_server(("127.0.0.1", 0))
        self.url = f"ws://127.0.0.1:{self._server.getsockname()[1]}"
        self._accepting = threading.Thread(target=self._accept, daemon=True)
        self._accepting.start()

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
            for source, sink, down in ((near, far, False), (far, near, True)):
                threading.Thread(
                    target=self._relay, args=(source, sink, down), daemon=True
                ).start()

    def _relay(self, source: socket.socket, sink: socket.socket, down: bool) -> None:
        with contextlib.suppress(OSError):
            while True:
                data = source.recv(4096)
                if not data:
                    break
                if self.swallow.is_set() or source in self._left:
                    continue
                head = self._before_the_act(len(data)) if down else None
                sink.sendall(data[:head])
                if head is not None:
                    self._act()
                    sink.sendall(data[head:])
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def _before_the_act(self, size: int) -> int | None:
        with self._lock:
            if self._due:
                self._due[0] -= size
                if self._due[0] <= 0:
                    self.acts += 1
                    return size + self._due.pop(0)
        return None

    def after(self, sizes: Iterable[int], act: Callable[[], object] | None = None) -> None:
        """Act each time when so many more bytes have gone to devices.

        A reader of chunks that cuts may come late, when all has arrived; bytes cannot.

        Args:
            sizes: Of bytes down, each counted from the act before it (the answers to a
                device's upgrade and to its first open are some 580 of them).
            act: What to do; `cut` by default, which may tear a frame.
        """
        with self._lock:
            self._due, self._act = list(sizes), act or self.cut

    def shut(self) -> None:
        """End every connection, and refuse new ones until `open` is set."""
        self.open = False
        self.cut()

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
        # Woken and waited for: an accept that is left waiting takes the connections of
        # the next socket that gets its number.
        with contextlib.suppress(OSError):
            self._server.shutdown(socket.SHUT_RDWR)
        self._accepting.join()
        self._server.close()
        self.cut()
        for end in self._left:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
