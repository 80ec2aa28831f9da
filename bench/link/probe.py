"""What a link is measured with: a server that echoes, swallows or pours, and pings."""

from __future__ import annotations

import contextlib
import socket
import socketserver
import threading
import time

PING = 64  # bytes
_BLOCK = bytes(65536)


class Server(socketserver.ThreadingTCPServer):
    """Echoes, swallows or pours: the first byte of a connection says which."""

    daemon_threads, request_queue_size = True, 128

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Visit)
        self.port: int = self.server_address[1]
        self.arrivals: list[tuple[float, int]] = []
        threading.Thread(target=self.serve_forever, args=(0.1,), daemon=True).start()

    def close(self) -> None:
        """Let nobody in any more."""
        self.shutdown()
        self.server_close()


class _Visit(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        link: socket.socket = self.request
        link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with contextlib.suppress(OSError):
            what = link.recv(1)
            if what == b"e":
                while data := link.recv(4096):
                    link.sendall(data)
            elif what == b"s":
                assert isinstance(self.server, Server)
                self.server.arrivals = swallow(link, None)
                link.sendall(b"!")
            elif what == b"p":
                pour(link, int.from_bytes(exactly(link, 8), "big"))
                link.recv(1)


def exactly(link: socket.socket, count: int) -> bytes:
    """Read ``count`` bytes (OSError: the other end closed the connection before that)."""
    data = b""
    while len(data) < count:
        piece = link.recv(count - len(data))
        if not piece:
            raise OSError("the other end closed the connection")
        data += piece
    return data


def swallow(link: socket.socket, count: int | None) -> list[tuple[float, int]]:
    """Read ``count`` bytes, or to the end; return what came when."""
    got, arrivals = 0, []
    while count is None or got < count:
        piece = len(link.recv(65536))
        if not piece:
            break
        got += piece
        arrivals.append((time.monotonic(), piece))
    return arrivals


def pour(link: socket.socket, count: int) -> None:
    """Write ``count`` bytes."""
    while count > 0:
        link.sendall(_BLOCK[: min(count, len(_BLOCK))])
        count -= len(_BLOCK)


def round_trips(port: int, count: int, most_s: float) -> list[float]:
    """Return two or more round trips of ``PING`` bytes to a `Server`, seconds, sorted."""
    trips: list[float] = []
    with socket.create_connection(("127.0.0.1", port), timeout=120) as link:
        link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        link.sendall(b"e")
        link.sendall(bytes(PING))  # the way is open before the first that counts
        exactly(link, PING)
        end = time.monotonic() + most_s
        while len(trips) < count and (len(trips) < 2 or time.monotonic() < end):
            start = time.perf_counter()
            link.sendall(bytes(PING))
            exactly(link, PING)
            trips.append(time.perf_counter() - start)
    return sorted(trips)
