"""The listening socket: who knocks, how often, and who only stands in the way.

A socket is a *stranger* until its device has said hello. Strangers are few: one more
shows out the oldest one of the address that has most of them, so that silent sockets
lock nobody out. An address that knocks too often, or shows unknown tokens, waits.
"""

from __future__ import annotations

import errno
import ipaddress
import logging
import os
import socket
import time
from collections import Counter, OrderedDict
from typing import Any, Callable, Sequence

from draftwire.errors import ConfigError
from draftwire.verifier.serving.limits import Limits, Rate

log = logging.getLogger("draftwire.verifier")

_EXHAUSTED = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
_ADDRESSES = 4096  # that are remembered
_MISS = 10.0  # knocks that an unknown token costs
_RETURNS_PER_S = 20.0  # devices that are asked to come back
_RETURN_S = 2.0, 60.0  # the soonest, the latest


class Lobby:
    """Strangers, the rates of their addresses, and when who is turned away may return.

    ``trusted`` tells whether an address is a proxy's, which knocks for many.
    """

    def __init__(
        self,
        limits: Limits,
        trusted: Callable[[str], bool] = lambda host: False,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._limits, self._trusted, self._now = limits, trusted, now
        self._strangers: dict[int, tuple[socket.socket, str]] = {}  # oldest first
        self._rates: OrderedDict[str, Rate] = OrderedDict()
        self._next_return = 0.0
        self._spare: int | None = os.open(os.devnull, os.O_RDONLY)
        self.turned_away = 0

    def close(self) -> None:
        """Give the spare file descriptor back."""
        if self._spare is not None:
            os.close(self._spare)
            self._spare = None

    @property
    def strangers(self) -> int:
        """Sockets whose device has not said hello."""
        self._strangers = {
            fd: (conn, host)
            for fd, (conn, host) in self._strangers.items()
            if conn.fileno() == fd
        }
        return len(self._strangers)

    def accept(self, door: Door) -> tuple[socket.socket, Any]:
        """Accept a connection of ``door``.

        Raises:
            BlockingIOError: There is none, or it was turned away.
        """
        try:
            conn, address = door.take()
        except OSError as error:
            if error.errno not in _EXHAUSTED or self._spare is None:
                raise
            log.error("out of file descriptors: turning connections away")
            self._show_out()
            self.close()  # the one that was kept for this: accept, and close at once
            try:
                door.take()[0].close()
            finally:
                self._spare = os.open(os.devnull, os.O_RDONLY)
            self.turned_away += 1
            raise BlockingIOError from None
        host = address[0]
        if not self._trusted(host) and self.knock(host) > 1.0:
            self.knock(host, -1.0)
            self.turned_away += 1
            log.warning("%s connects too often: turning it away", host)
            conn.close()
            raise BlockingIOError
        if self.strangers >= self._limits.strangers:
            self._show_out()
        self._strangers[conn.fileno()] = conn, host
        return conn, address

    def _show_out(self) -> None:
        if not self.strangers:
            return
        hosts = Counter(host for _, host in self._strangers.values())
        most = hosts.most_common(1)[0][0]
        fd = next(fd for fd, (_, host) in self._strangers.items() if host == most)
        conn, _ = self._strangers.pop(fd)
        try:
            conn.shutdown(socket.SHUT_RDWR)  # asyncio sees the end, in TLS or before
        except OSError:
            pass  # it has gone by itself

    def greeted(self, fd: int) -> None:
        """The device at this socket has said hello."""
        self._strangers.pop(fd, None)

    # ---- addresses

    def knock(self, host: str, knocks: float = 1.0) -> float:
        """Count knocks of an address; return the seconds until they are covered."""
        address, per_s = _address(host), self._limits.knocks_per_s
        key = str(address or host)
        if isinstance(address, ipaddress.IPv6Address):  # a network has an owner
            key = str(ipaddress.ip_network((int(address) >> 64 << 64, 64)))
        rate = self._rates.setdefault(key, Rate(per_s, 4.0 * per_s))
        self._rates.move_to_end(key)
        if len(self._rates) > _ADDRESSES:
            self._rates.popitem(last=False)
        return rate.take(knocks, self._now())

    def missed(self, host: str) -> None:
        """An unknown token came from this address."""
        self.knock(host, _MISS)

    def return_s(self) -> float:
        """Return when the next who is turned away may come back, in seconds.

        Each has a place of its own in time, so a fleet costs the same however large.
        """
        now = self._now()
        soonest, latest = _RETURN_S
        place = max(now + soonest, self._next_return + 1.0 / _RETURNS_PER_S)
        self._next_return = min(place, now + latest)
        return self._next_return - now


class Door(socket.socket):
    """A listening socket whose connections come through a :class:`Lobby`."""

    lobby: Lobby

    def take(self) -> tuple[socket.socket, Any]:
        """Accept as any socket does."""
        return super().accept()

    def accept(self) -> tuple[socket.socket, Any]:
        """Accept what the lobby lets in."""
        return self.lobby.accept(self)


def open_doors(host: str, port: int, lobby: Lobby) -> Sequence[Door]:
    """Return listening sockets, one for each address of ``host``, on one port.

    Raises:
        OSError: The address cannot be had.
    """
    doors: list[Door] = []
    try:
        for family, kind, number, _, address in dict.fromkeys(
            socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        ):
            door = Door(family, kind, number)
            door.lobby = lobby
            doors.append(door)
            door.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                door.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            door.bind((address[0], port, *address[2:]))
            door.setblocking(False)
            port = door.getsockname()[1]
    except OSError:
        for door in doors:
            door.close()
        raise
    return doors


class Forwarded:
    """Names devices by their address, or by what trusted proxies say of it.

    Anyone can write ``X-Forwarded-For``: its addresses are believed from the last to the
    first, for as long as the one who wrote them down is trusted: an address or network of
    proxies, such as ``"10.0.0.0/8"``.

    Raises:
        ConfigError: One of them is none.
    """

    def __init__(self, trusted: Sequence[str] = ()) -> None:
        self._trusted = []
        for word in trusted:
            try:
                self._trusted.append(ipaddress.ip_network(word, strict=False))
            except ValueError:
                raise ConfigError(
                    f"{word!r} is no address of a proxy",
                    hint="such as 127.0.0.1 or 10.0.0.0/8",
                ) from None

    def name(self, socket: Any) -> str:
        """Return what a log calls the device at the other end of an upgrade."""
        peer = socket.remote_address
        if not isinstance(peer, tuple):  # a Unix socket has none
            return "a local device"
        through = f"{peer[0]}:{peer[1]}"
        if not self.trusts(peer[0]):
            return through
        return f"{self.address(socket)} (through {through})"

    def address(self, socket: Any) -> str:
        """Return the address of that device, as far as it can be told."""
        peer = socket.remote_address
        if not isinstance(peer, tuple):
            return ""
        address = str(peer[0])
        lines = socket.request.headers.get_all("X-Forwarded-For")
        words = ",".join(lines).split(",")
        while words and self.trusts(address):
            earlier = _address(words.pop().strip())
            if earlier is None:  # what is before it cannot be told either
                return str(_address(address))
            address = str(earlier)
        return address

    def trusts(self, host: str) -> bool:
        """Return whether a trusted proxy has this address."""
        address = _address(host)
        return address is not None and any(address in net for net in self._trusted)


def _address(word: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        found = ipaddress.ip_address(word.partition("%")[0])
    except ValueError:
        return None
    return getattr(found, "ipv4_mapped", None) or found
