"""What rejection schemes send: laws in whole numbers, in nearly as few bits as they need.

Such a scheme is exact only if the device draws from the very law that the cloud verifies
with. So the draft's law is rounded first, to weights that are whole numbers (a
:class:`Lattice`), and everything after that (the draw, the wire, the accept test) is exact
arithmetic.

Whole numbers go into a row of bits, which is one large integer, lowest bits first, written
little-endian and padded with zeros to a byte.

A set of ``k`` out of ``n`` has a rank ``sum_i C(c_i, i + 1)`` over its sorted members,
which fits ``ceil(log2 C(n, k))`` bits. The binomials of a large vocabulary have a
thousand bits, so ids are first cut in two: the low ``r`` bits travel as they are, the
high parts repeat and become a set after adding ``i`` to the i-th. With at least ``4 k``
high parts this costs at most ``k / 5`` bits and keeps the binomials in a small table.

Source:
    Cover 1973, "Enumerative source encoding", https://doi.org/10.1109/TIT.1973.1054929;
    the cut is that of Elias 1974, https://doi.org/10.1145/321812.321820.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from itertools import accumulate
from typing import NamedTuple, Sequence

import numpy as np

from draftwire.errors import ProtocolError

MAX_MEMBERS = 127
MAX_SMALL = 1151  # largest n of a table look-up: 8 * MAX_MEMBERS + MAX_MEMBERS, rounded
# Column k holds C(n, k) for n = 0..MAX_SMALL; made when a set of that size first comes.
_columns: list[list[int]] = [[1] * (MAX_SMALL + 1)]


class Lattice(NamedTuple):
    """A law whose probabilities are ``weights / total``."""

    ids: np.ndarray | None  # ``(n,)`` int64 token ids, or None for all ids in order
    weights: np.ndarray  # ``(n,)`` int64, not negative
    total: int  # their sum

    def weight(self, token: int) -> int:
        """Return the weight of ``token``, 0 outside the support."""
        if self.ids is None:
            return int(self.weights[token])
        found = np.flatnonzero(self.ids == token)
        return int(self.weights[found[0]]) if len(found) else 0

    def draw(self, unit: float) -> int:
        """Return the token that a uniform number in (0, 1] falls on."""
        ticket = min(max(math.ceil(unit * self.total), 1), self.total)
        at = int(np.searchsorted(np.cumsum(self.weights), ticket))
        return at if self.ids is None else int(self.ids[at])


def quantise(probs: np.ndarray, resolution: int) -> np.ndarray:
    """Return ``(n,)`` int64 that sum to ``resolution``, nearly as ``probs`` ``(n,)``.

    A sum of these below 1 (a cut tail) is made up for where it errs least.

    Source:
        The lattice quantiser of https://arxiv.org/abs/2507.00605.
    """
    scaled = probs * resolution
    weights = np.floor(scaled + 0.5).astype(np.int64)
    short = resolution - int(weights.sum())
    while short:
        error = weights - scaled
        if short > 0:
            order = np.argsort(error, kind="stable")[:short]
            weights[order] += 1
        else:
            error[weights == 0] = -np.inf
            order = np.argsort(-error, kind="stable")[:-short]
            weights[order] -= 1
        short = resolution - int(weights.sum())
    return weights


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


def _column(k: int) -> list[int]:
    while len(_columns) <= k:
        _columns.append([0, *accumulate(_columns[-1])][: MAX_SMALL + 1])
    return _columns[k]


def _width(n: int, k: int) -> int:
    return (_column(k)[n] - 1).bit_length()


def _cut(universe: int, k: int) -> int:
    """Return how many low bits travel as they are."""
    return max(0, (universe // (4 * k)).bit_length() - 1)


def put_small(bits: BitWriter, members: Sequence[int], n: int) -> None:
    """Write a set out of ``0..n-1``, which the reader knows: rising, ``n`` to MAX_SMALL."""
    rank = sum([_column(i)[c] for i, c in enumerate(members, 1)])
    bits.put(rank, _width(n, len(members)))


def get_small(bits: BitReader, k: int, n: int) -> list[int]:
    """Undo :func:`put_small`; a ProtocolError where there is no such set."""
    if k > n:
        raise ProtocolError(f"a set of {k} cannot be drawn from {n}")
    rank = bits.take(_width(n, k))
    if rank >= _column(k)[n]:
        raise ProtocolError(f"no set of {k} out of {n} has such a rank")
    members, top = [0] * k, n
    for i in range(k, 0, -1):
        column = _column(i)
        top = bisect_right(column, rank, 0, top) - 1
        rank -= column[top]
        members[i - 1] = top
    return members


def put_set(bits: BitWriter, ids: Sequence[int], universe: int) -> None:
    """Write a set of at most ``MAX_MEMBERS`` rising ids below ``universe``."""
    k = len(ids)
    if not k:
        return
    r = _cut(universe, k)
    if not r:
        put_small(bits, ids, universe)
        return
    highs = [(c >> r) + i for i, c in enumerate(ids)]
    put_small(bits, highs, ((universe - 1) >> r) + k)
    low, mask = 0, (1 << r) - 1
    for c in reversed(ids):
        low = low << r | (c & mask)
    bits.put(low, r * k)


def get_set(bits: BitReader, k: int, universe: int) -> list[int]:
    """Undo :func:`put_set`; a ProtocolError where there is no such set."""
    if not k:
        return []
    r = _cut(universe, k)
    if not r:
        return get_small(bits, k, universe)
    highs = get_small(bits, k, ((universe - 1) >> r) + k)
    low, mask = bits.take(r * k), (1 << r) - 1
    ids, last = [], -1
    for i, high in enumerate(highs):
        token = (high - i) << r | (low & mask)
        low >>= r
        if not last < token < universe:
            raise ProtocolError(f"token id {token} is out of order or out of range")
        ids.append(token)
        last = token
    return ids
