"""A quantised draft law in few bits: support and weights, both as ranks of sets.

One token's evidence, bits from the lowest up, padded to a byte::

    support - 1            7 bits    n, at most 128 tokens, all of weight above 0
    resolution             4 bits    index into RESOLUTIONS; absent when n is 1
    the n - 1 other ids    a set out of vocab - 1, see bits.put_set
    the weights            a set of n - 1 cuts out of resolution - 1, see put_small

The drafted token itself is known from the block, so the set holds the others only, each
id above the drafted one lowered by 1. Weights are in the order of rising ids; the cuts
are their running sums, less 1. A law on one token takes one byte.
"""

from __future__ import annotations

from bisect import bisect_left
from itertools import accumulate

import numpy as np

from draftwire.errors import ProtocolError
from draftwire.sampling.evidence.bits import (
    BitReader,
    BitWriter,
    get_set,
    get_small,
    put_set,
    put_small,
)
from draftwire.sampling.evidence.lattice import Lattice

MAX_SUPPORT = 128
MAX_BYTES = 512  # of one token: 127 ids of 24 bits are far from it
RESOLUTIONS = (2, 4, 8, 12, 16, 24, 32, 48, 64, 100, 128, 200, 256, 400, 512, 768)
_CODES = {resolution: code for code, resolution in enumerate(RESOLUTIONS)}


def encode(draft: Lattice, token: int, vocab_size: int) -> bytes:
    """Return the evidence of ``token``, which was drawn from ``draft``.

    That has rising ids, weights above 0 and a total out of ``RESOLUTIONS`` (or one token
    of weight 1).
    """
    assert draft.ids is not None
    ids: list[int] = draft.ids.tolist()
    bits = BitWriter()
    bits.put(len(ids) - 1, 7)
    if len(ids) > 1:
        bits.put(_CODES[draft.total], 4)
        at = bisect_left(ids, token)
        others = ids[:at] + [i - 1 for i in ids[at + 1 :]]
        put_set(bits, others, vocab_size - 1)
        cuts = [c - 1 for c in accumulate(draft.weights.tolist()[:-1])]
        put_small(bits, cuts, draft.total - 1)
    return bits.done()


def decode(bits: BitReader, token: int, vocab_size: int) -> Lattice:
    """Undo :func:`encode`; the reader stands at the next token's evidence then.

    Raises:
        ProtocolError: The bits are no law on this vocabulary.
    """
    count = bits.take(7) + 1
    if count > vocab_size:
        raise ProtocolError(f"a support of {count} tokens out of {vocab_size}")
    if count == 1:
        bits.align()
        return Lattice(np.array([token], np.int64), np.ones(1, np.int64), 1)
    total = RESOLUTIONS[bits.take(4)]
    if count > total:
        raise ProtocolError(f"{count} weights above 0 cannot sum to {total}")
    others = get_set(bits, count - 1, vocab_size - 1)
    at = bisect_left(others, token)
    ids = others[:at] + [token] + [i + 1 for i in others[at:]]
    cuts = [0, *(c + 1 for c in get_small(bits, count - 1, total - 1)), total]
    bits.align()
    return Lattice(np.array(ids, np.int64), np.diff(np.array(cuts, np.int64)), total)
