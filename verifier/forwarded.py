"""Who a device is behind proxies: what a log calls it."""

from __future__ import annotations

import ipaddress
from typing import Any, Sequence, Union

from draftwire.errors import ConfigError

__all__ = ["Forwarded"]

_Address = Union[ipaddress.IPv4Address, ipaddress.IPv6Address]


class Forwarded:
    """Names devices by their address, or by what trusted proxies say of it.

    Anyone can write ``X-Forwarded-For``: its addresses are believed from the last to the
    first, for as long as the one who wrote them down is trusted.

    Args:
        trusted: Addresses or networks of proxies, such as ``"10.0.0.0/8"``.

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
        address = _address(peer[0])
        if not self._trusts(address):
            return str(peer[0])
        lines = socket.request.headers.get_all("X-Forwarded-For")
        for word in reversed(",".join(lines).split(",")):
            earlier = _address(word.strip())
            if earlier is None:  # what is before it cannot be told either
                break
            address = earlier
            if not self._trusts(address):
                break
        return str(address)

    def trusts(self, host: str) -> bool:
        """Return whether a trusted proxy has this address."""
        return self._trusts(_address(host))

    def _trusts(self, address: _Address | None) -> bool:
        return address is not None and any(address in net for net in self._trusted)


def _address(word: str) -> _Address | None:
    try:
        found = ipaddress.ip_address(word.partition("%")[0])
    except ValueError:
        return None
    return getattr(found, "ipv4_mapped", None) or found
