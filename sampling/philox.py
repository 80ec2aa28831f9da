"""Counter-based noise that the device and the cloud compute alike.

Philox 4x32-10 turns (key, counter) into four 32-bit words without any state, so the
noise of one token at one position can be had alone: only the support that top-k or
top-p leave is ever computed. Layout (``transport/PROTOCOL.md`` fixes it)::

    key      (seed low 32 bits, seed high 32 bits)
    counter  (token id >> 1, position, sample, domain)
    words    0 and 1 belong to the even token id, 2 and 3 to the odd one

Functions here take the position and the sample as one number, ``position + (sample <<
32)``: see ``SamplingParams.moment``.

Source:
    Salmon, Moraes, Dror, Shaw 2011, "Parallel random numbers: as easy as 1, 2, 3",
    https://doi.org/10.1145/2063384.2063405; known-answer vectors of Random123 1.09.
"""

from __future__ import annotations

import enum
from functools import lru_cache

import numpy as np

M0, M1 = 0xD2511F53, 0xCD9E8D57
MASK = 0xFFFFFFFF
_MULTIPLIERS = np.array([[M0], [M1]], np.uint64)
_W0, _W1 = 0x9E3779B9, 0xBB67AE85
_LOW = np.uint64(0xFFFFFFFF)
_S32, _S5, _S6 = np.uint64(32), np.uint64(5), np.uint64(6)
_TWO26 = np.float64(2.0**26)
_UNIT = np.float64(2.0**-53)
_ROUNDS = 10


class Domain(enum.IntEnum):
    """What the noise is for; two uses that shared a stream would bias the output.

    Attributes:
        COUPLED: One number for each token id, known to both sides.
        DRAFT: Draws the drafted token.
        ACCEPT: Decides whether it stays.
        CORRECT: Draws what the target puts there instead, or after a full block.
    """

    COUPLED = 0
    DRAFT = 1
    ACCEPT = 2
    CORRECT = 3


def philox4x32(
    counter: tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray], key: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return the four output words of Philox 4x32 with ten rounds.

    Args:
        counter: Four arrays ``(n,)`` of uint64 that hold 32-bit words, as the answer does.
        key: Two 32-bit words.
    """
    # Both multiplications of a round in one call each: for the few ids of a top-k law
    # the time is that of the calls, not of the numbers.
    left, right = np.array(counter[0::2]), np.array(counter[1::2])
    for round_key in _round_keys(key):
        product = _MULTIPLIERS * left
        left = (product >> _S32)[::-1] ^ right ^ round_key
        right = (product & _LOW)[::-1]
    return left[0], right[0], left[1], right[1]


@lru_cache(maxsize=64)
def _round_keys(key: tuple[int, int]) -> tuple[np.ndarray, ...]:
    both = round_keys(key[0] | key[1] << 32)
    return tuple(np.array([[k0], [k1]], np.uint64) for k0, k1 in both)


@lru_cache(maxsize=64)
def round_keys(seed: int) -> tuple[tuple[int, int], ...]:
    """Return both key words of each of the ten rounds."""
    k0, k1 = seed & MASK, seed >> 32 & MASK
    return tuple((k0 + i * _W0 & MASK, k1 + i * _W1 & MASK) for i in range(_ROUNDS))


def _words(
    seed: int, position: int, cells: np.ndarray, domain: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    fixed = position & MASK, position >> 32 & MASK, domain
    low, high, of = (np.full_like(cells, word) for word in fixed)
    return philox4x32((cells, low, high, of), (seed & MASK, seed >> 32 & MASK))


def _unit(high: np.ndarray, low: np.ndarray) -> np.ndarray:
    # 27 + 26 bits, then one added: (0, 1] in steps of 2**-53, all exact in float64. A
    # float32 uniform would cut the tail of the noise and with it rare tokens.
    n = (high >> _S5).astype(np.float64) * _TWO26 + (low >> _S6).astype(np.float64)
    unit: np.ndarray = (n + 1.0) * _UNIT
    return unit


def uniforms(
    seed: int, position: int, ids: np.ndarray, *, domain: int = Domain.COUPLED
) -> np.ndarray:
    """Return the number of each of ``ids`` ``(n,)`` at ``position``: float64 in (0, 1].

    They are multiples of 2**-53; ``domain`` is one of :class:`Domain`.
    """
    cells = np.asarray(ids).astype(np.uint64)
    w0, w1, w2, w3 = _words(seed, position, cells >> np.uint64(1), domain)
    odd = (cells & np.uint64(1)).astype(bool)
    return _unit(np.where(odd, w2, w0), np.where(odd, w3, w1))


def coin(seed: int, position: int, domain: int) -> float:
    """Return ``uniforms(seed, position, [0], domain=domain)[0]``, in plain integers.

    For a single number numpy's overhead is ten times the work.
    """
    c0, c1, c2, c3 = 0, position & MASK, position >> 32 & MASK, int(domain)
    for k0, k1 in round_keys(seed):
        p0, p1 = M0 * c0, M1 * c2
        c0, c1, c2, c3 = (p1 >> 32) ^ c1 ^ k0, p1 & MASK, (p0 >> 32) ^ c3 ^ k1, p0 & MASK
    return (((c0 >> 5) << 26 | c1 >> 6) + 1) * 2.0**-53


def exponentials(seed: int, position: int, ids: np.ndarray | int) -> np.ndarray:
    """Return the exponential noise ``-ln u`` of ids at ``position``, ``(n,)`` above 0.

    ``argmin(E / p)`` chooses what ``argmax(ln p - ln E)`` does, Gumbel's trick, with one
    logarithm fewer. ``ids`` are ``(n,)`` token ids, or a size for all ids below it.
    """
    if isinstance(ids, (int, np.integer)):
        cells = np.arange((int(ids) + 1) // 2, dtype=np.uint64)
        w0, w1, w2, w3 = _words(seed, position, cells, Domain.COUPLED)
        unit = np.empty(2 * len(cells))
        unit[0::2], unit[1::2] = _unit(w0, w1), _unit(w2, w3)
        unit = unit[: int(ids)]
    else:
        unit = uniforms(seed, position, ids)
    return _exponential(unit)


def exponentials_of(high: np.ndarray, low: np.ndarray) -> np.ndarray:
    """Return the exponential noise that two words ``(n,)`` of a token stand for."""
    return _exponential(_unit(high, low))


def _exponential(unit: np.ndarray) -> np.ndarray:
    # u = 1 gives E = 0 once in 2**53; half a step keeps it a number.
    noise: np.ndarray = np.maximum(-np.log(unit), 2.0**-54)
    return noise
