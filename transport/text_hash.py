"""The hash that both ends keep of a stream's text (PROTOCOL.md 4.6)."""

from __future__ import annotations

import hashlib
import sys
from array import array
from typing import Iterable

_CODE = next(code for code in "ILQ" if array(code).itemsize == 4)


class TextHash:
    """SHA-256 over token ids, four bytes each, little-endian; it grows with the text."""

    def __init__(self, ids: Iterable[int] = ()) -> None:
        self._hash = hashlib.sha256()
        self.extend(ids)

    def extend(self, ids: Iterable[int]) -> None:
        """Add ``ids`` behind the others."""
        words = array(_CODE, ids)
        if sys.byteorder == "big":
            words.byteswap()
        self._hash.update(words.tobytes())

    def digest(self, size: int = 8) -> bytes:
        """Return the first ``size`` bytes of the hash of all ids so far."""
        return self._hash.digest()[:size]
