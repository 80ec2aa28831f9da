"""Whole numbers in a row of bits, lowest first: how evidence is packed.

The row is one large integer, written little-endian and padded with zeros to a byte.
"""

from __future__ import annotations

from draftwire.errors import ProtocolError


class BitWriter:
    """Appends numbers of known width; ``bits`` are there so far, without padding."""

    def __init__(self) -> None:
        self.bits = 0
        self._row = 0

    def put(self, value: int, width: int) -> None:
        """Append ``value`` in ``width`` bits; a ValueError (our bug) where it is wider."""
        if value < 0 or value >> width:
            raise ValueError(f"{value} does not fit {width} bits")
        self._row |= value << self.bits
        self.bits += width

    def done(self) -> bytes:
        """Return the row in whole bytes."""
        return self._row.to_bytes((self.bits + 7) // 8, "little")


class BitReader:
    """Takes the numbers back in the same order, from whatever a stranger sent."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def take(self, width: int) -> int:
        """Return the next number of ``width`` bits; a ProtocolError where the data ends."""
        end = self._at + width
        if end > 8 * len(self._data):
            raise ProtocolError(f"the evidence is cut short at {len(self._data)} bytes")
        part = int.from_bytes(self._data[self._at >> 3 : (end + 7) >> 3], "little")
        value = part >> (self._at & 7) & ((1 << width) - 1)
        self._at = end
        return value

    def align(self) -> None:
        """Go on to the next whole byte; a ProtocolError where the padding is not zero."""
        if self.take(-self._at % 8):
            raise ProtocolError("padding bits of the evidence are not zero")

    def finish(self) -> None:
        """Raise a ProtocolError unless all was taken."""
        self.align()
        if self._at < 8 * len(self._data):
            raise ProtocolError(
                f"{len(self._data) - self._at // 8} bytes of evidence are left over"
            )
