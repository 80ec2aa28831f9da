"""Which of many verifiers a stream belongs to: consistent hashing on its id.

The first four bytes of a stream id are its *key*: the device names them when it connects
(``X-Session-Id``, PROTOCOL.md section 1), and a verifier lets the ids of that connection's
streams begin with them. A key belongs to the verifier whose point follows it on a ring of
points, so whoever knows the names of the verifiers finds a stream without asking anybody,
and a verifier that comes or goes moves only the keys next to its points.

Source: D. Karger et al., "Consistent Hashing and Random Trees", STOC 1997.
"""

from __future__ import annotations

import bisect
import hashlib
import secrets
from typing import Iterable

from draftwire.transport.dial import KEY_BYTES

__all__ = ["Ring"]

_POINTS = 128  # of each verifier: shares then differ by about 9 %, its root's inverse


class Ring:
    """Names of verifiers, and whose a key is.

    Args:
        names: Of the verifiers; the same in whatever order make the same ring.
        points: Of each on the ring.
    """

    def __init__(self, names: Iterable[str], points: int = _POINTS) -> None:
        self.names = sorted(set(names))
        placed = sorted(
            (_place(f"{name}#{i}".encode()), name)
            for name in self.names
            for i in range(points)
        )
        self._places = [place for place, _ in placed]
        self._owners = [name for _, name in placed]

    def owner(self, key: bytes) -> str:
        """Return whose ``key`` is.

        Raises:
            LookupError: There are no verifiers.
        """
        return next(iter(self.order(key)))

    def order(self, key: bytes) -> Iterable[str]:
        """Yield whose ``key`` is, then who would be next if that one were gone, and so on.

        Raises:
            LookupError: There are no verifiers.
        """
        if not self._owners:
            raise LookupError("no verifiers")
        at = bisect.bisect(self._places, _place(key))
        seen: set[str] = set()
        for i in range(len(self._owners)):
            name = self._owners[(at + i) % len(self._owners)]
            if name not in seen:
                seen.add(name)
                yield name
                if len(seen) == len(self.names):
                    return

    def key_for(self, name: str) -> bytes:
        """Return a random key of ``name``; takes about as many draws as there are names."""
        while True:
            key = secrets.token_bytes(KEY_BYTES)
            if self.owner(key) == name:
                return key


def _place(data: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "big")
