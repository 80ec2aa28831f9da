"""Small pieces of the wire: varints, packed token ids, twelve-bit times."""

from __future__ import annotations

from typing import Sequence

import numpy as np

from draftwire.errors import ProtocolError

MAX_VARINT = 2**64 - 1
_SMALL = 32  # ids: below this, plain integers beat numpy
_PIECE = 4096  # ids; a multiple of 8, so that a piece begins with a whole byte


def varint(value: int) -> bytes:
    """Return ``value``, 0 to 2**64 - 1, as LEB128: seven bits a byte, lowest first."""
    if 0 <= value < 0x80:
        return bytes((value,))
    if not 0 <= value <= MAX_VARINT:
        raise ValueError(f"{value} does not fit a varint")
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def id_bits(vocab_size: int) -> int:
    """Return the bits of one token id: ``ceil(log2 vocab_size)``, at least 1."""
    return max(1, (vocab_size - 1).bit_length())


def packed_size(count: int, bits: int) -> int:
    """Return the bytes of ``count`` packed ids."""
    return (count * bits + 7) // 8


def pack_ids(ids: Sequence[int], bits: int) -> bytes:
    """Pack ids at ``bits`` each, first id in the lowest bits, little-endian.

    Raises:
        ValueError: An id does not fit (our bug).
    """
    size = packed_size(len(ids), bits)
    if len(ids) <= _SMALL:
        joined = 0
        for i, token in enumerate(ids):
            if token < 0 or token >> bits:
                raise ValueError(f"token id {token} does not fit {bits} bits")
            joined |= int(token) << (i * bits)
        return joined.to_bytes(size, "little")
    values = np.asarray(ids, np.int64)
    if values.min() < 0 or int(values.max()) >> bits:
        raise ValueError(f"a token id does not fit {bits} bits")
    spread = (values[:, None] >> np.arange(bits)) & 1
    return np.packbits(spread.astype(np.uint8).ravel(), bitorder="little").tobytes()


def unpack_ids(data: bytes, count: int, bits: int, vocab_size: int) -> tuple[int, ...]:
    """Undo :func:`pack_ids`.

    Raises:
        ProtocolError: An id is outside the vocabulary, or a spare bit is set.
    """
    if count <= _SMALL:
        joined = int.from_bytes(data, "little")
        mask = (1 << bits) - 1
        ids = tuple((joined >> (i * bits)) & mask for i in range(count))
        spare = joined >> (count * bits)
    else:
        # Piece by piece: spread bits take 64 times the memory of the frame.
        pieces: list[int] = []
        for first in range(0, count, _PIECE):
            part = np.frombuffer(data, np.uint8)[first * bits // 8 :]
            n = min(_PIECE, count - first)
            flat = np.unpackbits(part[: packed_size(n, bits)], bitorder="little")
            used = flat[: n * bits].reshape(n, bits).astype(np.int64)
            pieces += (used << np.arange(bits)).sum(axis=1).tolist()
        ids = tuple(pieces)
        spare = data[-1] >> (count * bits % 8) if count * bits % 8 else 0
    if spare:
        raise ProtocolError("spare bits after packed token ids are not zero")
    if ids and max(ids) >= vocab_size:
        raise ProtocolError(
            f"token id {max(ids)} is outside the vocabulary of {vocab_size}"
        )
    return ids


def pack_time(seconds: float) -> int:
    """Return a duration as 12 bits: 5 of exponent, 7 of mantissa, in microseconds.

    Exact below 128 us, within 0.4 % above, up to 76 hours.
    """
    micros = min(max(0, round(seconds * 1e6)), 255 << 30)
    if micros < 128:
        return micros
    exponent = micros.bit_length() - 7
    mantissa = (micros + (1 << exponent >> 2)) >> (exponent - 1)
    if mantissa > 255:  # rounding carried into the next power of two
        exponent, mantissa = exponent + 1, 128
    return exponent << 7 | (mantissa - 128)


def unpack_time(code: int) -> float:
    """Undo :func:`pack_time`; seconds."""
    exponent, mantissa = code >> 7, code & 0x7F
    micros = mantissa if exponent == 0 else (128 + mantissa) << (exponent - 1)
    return micros * 1e-6


class Reader:
    """Reads the pieces of one frame from left to right, from byte ``at`` on."""

    def __init__(self, data: bytes, at: int = 0) -> None:
        self._data = data
        self.at = at

    def left(self) -> int:
        """Return how many bytes remain."""
        return len(self._data) - self.at

    def byte(self) -> int:
        """Return the next byte."""
        if self.at >= len(self._data):
            raise ProtocolError("the frame is cut short")
        self.at += 1
        return self._data[self.at - 1]

    def take(self, count: int) -> bytes:
        """Return the next ``count`` bytes."""
        if count > self.left():
            raise ProtocolError(
                f"the frame is cut short: {count} bytes announced, {self.left()} left"
            )
        self.at += count
        return self._data[self.at - count : self.at]

    def varint(self, limit: int, what: str) -> int:
        """Return the next varint.

        Raises:
            ProtocolError: Cut short, longer than needed, or above ``limit``.
        """
        value = shift = 0
        while True:
            byte = self.byte()
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                break
            shift += 7
            if shift > 63:
                raise ProtocolError(f"{what}: a varint of more than ten bytes")
        if shift and byte == 0:
            raise ProtocolError(f"{what}: a varint longer than it needs to be")
        if value > limit:
            raise ProtocolError(f"{what} is {value}, the limit is {limit}")
        return value

    def end(self) -> None:
        """Raise a ProtocolError where something is left."""
        if self.left():
            raise ProtocolError(f"{self.left()} bytes after the end of the message")
