"""Races over a whole vocabulary that look at few of its tokens.

A race gives token ``i`` the time ``E[i] / w[i]``, with exponential noise ``E`` and weight
``w[i] = exp((x[i] - top) / T)``; the first to arrive is a sample. Both ways here return
exactly who comes first, and compute the noise of the few that can:

``philox``
    The noise of :mod:`draftwire.sampling.philox`. A token of small weight must draw a
    very small number to win, which the first word of its cipher tells; so all words are
    computed, and the logarithms of almost none.
``sparse``
    Exponential noise as the first of two clocks: arrivals before ``EPS``, which are
    listed cell by cell (4 on average among 4,096 tokens), and ``EPS`` plus an
    exponential number, which matters for likely tokens alone. Nearly independent of the
    vocabulary's size. ``transport/PROTOCOL.md`` fixes the numbers.
``murmur3/vllm``, ``murmur3/sglang``
    The seeded noise of stock servers, of all tokens: a device that knows it drafts what
    they will sample. vLLM's V2 runner takes ``argmax(logits / T + G)``, SGLang's
    deterministic sampler as well, with ``G = -ln E`` of a MurmurHash3 of seed, position and
    token id. SGLang sorts a batch by probability where any request in it is greedy or has
    a top-k or top-p, and then hashes ranks in place of ids: with ranks always, by a top-k
    that keeps all, a text does not depend on its neighbours. So that is what we have it
    do. ``E`` is computed here in float64; vLLM's is float32, so two tokens that are that
    close may change places: there the texts agree up to ties, as the numerics of such a
    server say.

Source:
    Screening and both clocks are ours; the hash of ``sparse`` is SplitMix64 (Steele, Lea,
    Flood 2014, https://doi.org/10.1145/2660193.2660195). vLLM 0.32,
    ``v1/worker/gpu/sample/gumbel.py``; SGLang 0.5.23, ``layers/sampler.py``,
    ``top_k_top_p_min_p_sampling_from_probs_torch``. MurmurHash3 (x86, 32 bits): Austin
    Appleby, public domain.
"""

from __future__ import annotations

import math
import threading
from functools import lru_cache

import numpy as np

from draftwire.sampling import philox
from draftwire.sampling.laws import above, weights_of

# Tokens whose logit is so many temperatures below the top have a weight below 0.001.
_SPAN = 7.0
_MANY = 2048  # likely tokens beyond which a sample of them bounds the race as well
_SAMPLE = 512

_FEW = 4096  # tokens up to which it is quicker to let all of them run
_NEVER = 1e300


def first_arrivals(
    logits: np.ndarray,
    temperature: float,
    top: float,
    seed: int,
    position: int,
    *,
    noise: str = "philox",
    count: int = 1,
) -> list[int]:
    """Return the first ``count`` (1 or 2) tokens of the race over all ``logits``
    ``(vocab,)``.

    ``top`` is the largest of them, the temperature above 0; a vocabulary of one token has
    one.
    """
    if noise.startswith("murmur3"):
        finish = _Finish(logits, temperature, top)
        every = np.arange(len(logits))
        drawn = noise_of(seed, position, keys_of(logits, every, noise), noise)
        finish.add(every, drawn, min(count, len(every)))
        return finish.order()
    race = _sparse_race if noise == "sparse" else _philox_race
    return race(logits, temperature, top, seed, position, min(count, len(logits)))


def keys_of(weights: np.ndarray, ids: np.ndarray, noise: str) -> np.ndarray:
    """Return by what noise is drawn for ``ids`` ``(n,)`` of these weights or logits.

    The ids; of ``murmur3/sglang`` their ranks, 0 the heaviest, equal ones in order.
    """
    if noise != "murmur3/sglang":
        return ids
    ranks = np.empty(len(ids), np.int64)
    ranks[np.argsort(-weights, kind="stable")] = np.arange(len(ids))
    return ranks


def noise_of(seed: int, position: int, ids: np.ndarray, noise: str) -> np.ndarray:
    """Return the exponential noise of ``ids`` ``(n,)``, rising, float64 above 0.

    Of the murmur3 profiles ids need not rise; see :func:`keys_of`.
    """
    if noise.startswith("murmur3"):
        return murmur_noise(noise, seed, position, ids)
    if noise != "sparse":
        return philox.exponentials(seed, position, ids)
    key = _key(seed, position)
    late: np.ndarray = EPS + _late(key, ids)
    early, times = _early(key, int(ids[-1]) + 1 if len(ids) else 0)
    at = np.minimum(np.searchsorted(ids, early), len(ids) - 1)
    hit = ids[at] == early
    late[at[hit]] = times[hit]
    return late


class _Finish:
    """Who has come first so far."""

    def __init__(self, logits: np.ndarray, temperature: float, top: float) -> None:
        self._logits, self._temperature, self._top = logits, temperature, top
        self._best: dict[int, float] = {}

    def add(self, ids: np.ndarray, noise: np.ndarray, count: int) -> None:
        """Let ``ids`` run; keep the ``count`` first of all that ran, ties by id."""
        if not len(ids):
            return
        weights = weights_of(self._logits[ids], self._temperature, self._top)
        with np.errstate(divide="ignore", over="ignore"):
            times = np.minimum(noise / weights, _NEVER)  # weight 0: never
        limit = np.inf
        if len(ids) > count:
            limit = times.min() if count == 1 else np.partition(times, count - 1)[count - 1]
        for i in np.flatnonzero(times <= limit).tolist():
            token, time = int(ids[i]), float(times[i])
            if time < self._best.get(token, math.inf):
                self._best[token] = time
        order = sorted(self._best.items(), key=lambda entry: (entry[1], entry[0]))
        self._best = dict(order[:count])

    def bound(self, count: int) -> float:
        """Return when the ``count``-th arrived, infinity when fewer have."""
        times = list(self._best.values())
        return times[count - 1] if len(times) >= count else math.inf

    def order(self) -> list[int]:
        """Return the ids, first one first, without those that never arrive."""
        return [token for token, time in self._best.items() if time < _NEVER]


# ---- philox: all words, few logarithms


def _philox_race(
    logits: np.ndarray, temperature: float, top: float, seed: int, position: int, count: int
) -> list[int]:
    finish = _Finish(logits, temperature, top)
    if len(logits) <= _FEW:
        every = np.arange(len(logits))
        finish.add(every, philox.exponentials(seed, position, len(logits)), count)
        return finish.order()
    likely = above(logits, top - _SPAN * temperature)
    most = math.exp(-_SPAN)  # weight of the heaviest token outside of them
    if len(likely) > _MANY or len(likely) < count:
        likely = likely[:: max(1, len(likely) // _SAMPLE)]
        most = 1.0
    finish.add(likely, philox.exponentials(seed, position, likely), count)
    # Who else may be earlier has E <= bound * most, so u >= exp(-that): its first word
    # is above a limit, which is lowered for all rounding there may be.
    slowest = finish.bound(count) * most
    limit = max(int(math.exp(-slowest * (1 + 1e-9)) * 2**27) - 2, 0) << 5
    ids, high, low = _screen(seed, position, len(logits), limit)
    finish.add(ids, philox.exponentials_of(high, low), count)
    return finish.order()


_BLOCK = 1 << 15  # cells at once: their words stay in the cache


class _Scratch(threading.local):
    """Buffers of one thread: fresh ones cost more in page faults than all arithmetic."""

    def __init__(self) -> None:
        self.rows = np.empty((6, _BLOCK), np.uint64)


_scratch = _Scratch()
_LOW, _S32 = np.uint64(0xFFFFFFFF), np.uint64(32)
_M0, _M1 = np.uint64(philox.M0), np.uint64(philox.M1)


@lru_cache(maxsize=2)
def _cell_products(cells: int) -> tuple[np.ndarray, np.ndarray]:
    """Return both halves of the first round's product, the same for every position."""
    product = np.arange(cells, dtype=np.uint64) * _M0
    return product >> _S32, product & _LOW


def _screen(
    seed: int, position: int, vocab_size: int, limit: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the ids whose first word reaches ``limit``, and both their words.

    Ten rounds of Philox 4x32 over all cells; what is the same for all is plain integers.
    """
    cells = (vocab_size + 1) // 2
    high0, low0 = _cell_products(cells)
    keys = philox.round_keys(seed)
    product = philox.M1 * (position >> 32 & philox.MASK)
    c0 = (product >> 32) ^ (position & philox.MASK) ^ keys[0][0]
    c1 = product & philox.MASK
    in2 = np.uint64(philox.Domain.COUPLED ^ keys[0][1])
    product = philox.M0 * c0
    from1 = np.uint64(c1 ^ keys[1][0])
    in3 = np.uint64((product >> 32) ^ keys[1][1])
    c3 = product & philox.MASK
    found = []
    for start in range(0, cells, _BLOCK):
        end = min(start + _BLOCK, cells)
        w0, w1, w2, w3, left, right = _scratch.rows[:, : end - start]
        np.bitwise_xor(high0[start:end], in2, out=right)
        right *= _M1
        np.right_shift(right, _S32, out=w0)
        w0 ^= from1
        np.bitwise_and(right, _LOW, out=w1)
        np.bitwise_xor(low0[start:end], in3, out=w2)
        w3.fill(c3)
        for round_number in range(2, 10):
            key0, key1 = keys[round_number]
            np.multiply(w0, _M0, out=left)
            np.multiply(w2, _M1, out=right)
            np.right_shift(right, _S32, out=w0)
            w0 ^= w1
            w0 ^= np.uint64(key0)
            np.right_shift(left, _S32, out=w2)
            w2 ^= w3
            w2 ^= np.uint64(key1)
            if round_number < 9:
                np.bitwise_and(right, _LOW, out=w1)
                np.bitwise_and(left, _LOW, out=w3)
        for odd, first, second in ((0, w0, right), (1, w2, left)):
            at = np.flatnonzero(first >= np.uint64(limit))
            if len(at):
                found.append((2 * (at + start) + odd, first[at], second[at] & _LOW))
    if not found:
        return np.empty(0, np.int64), np.empty(0, np.uint64), np.empty(0, np.uint64)
    ids, high, low = (np.concatenate(part) for part in zip(*found))
    inside = ids < vocab_size
    return ids[inside], high[inside], low[inside]


# ---- sparse: a list of early arrivals, and the likely tokens

EPS = 2.0**-10
CELL = 4096
_SLOTS = 32  # of a cell; it holds at most 31 arrivals
_GOLDEN = 0x9E3779B97F4A7C15
_U64 = 2**64 - 1
_CELLS_AT, _SLOTS_AT = 1 << 40, 1 << 41  # beyond all token ids


@lru_cache(maxsize=1)
def _arrivals_table() -> np.ndarray:
    """Return ``floor(2**64 P(N <= n))``, ``n = 0..30``, of a Poisson number of mean 4.

    In whole numbers: the table must not depend on somebody's ``exp``.
    """
    unit = 10**90
    term, whole, n = unit, unit, 0
    while term:  # exp(4)
        n += 1
        term = term * 4 // n
        whole += term
    table, term, total = [], unit * unit // whole, 0
    for n in range(1, _SLOTS):
        total += term
        table.append(min(total * 2**64 // unit, _U64))
        term = term * 4 // n
    return np.array(table, np.uint64)


def _mix_int(x: int) -> int:
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 & _U64
    x = (x ^ x >> 27) * 0x94D049BB133111EB & _U64
    return x ^ x >> 31


def _mix(x: np.ndarray) -> np.ndarray:
    """Return SplitMix64's finaliser of ``x``, which is overwritten."""
    x ^= x >> np.uint64(30)
    x *= np.uint64(0xBF58476D1CE4E5B9)
    x ^= x >> np.uint64(27)
    x *= np.uint64(0x94D049BB133111EB)
    x ^= x >> np.uint64(31)
    return x


def _key(seed: int, position: int) -> np.uint64:
    start = _mix_int(seed + _GOLDEN & _U64)
    return np.uint64(_mix_int(start + position * _GOLDEN & _U64))


def _late(key: np.uint64, ids: np.ndarray) -> np.ndarray:
    """Return the exponential number of each id's second clock."""
    counters = (ids.astype(np.uint64) + np.uint64(1)) * np.uint64(_GOLDEN)
    unit = (_mix(counters + key) >> np.uint64(11)).astype(np.float64)
    late: np.ndarray = np.maximum(-np.log((unit + 1.0) * 2.0**-53), 2.0**-54)
    return late


@lru_cache(maxsize=4)
def _cells_of(vocab_size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    cells = np.arange(-(-vocab_size // CELL), dtype=np.uint64)
    slots = cells[:, None] * np.uint64(_SLOTS) + np.arange(_SLOTS, dtype=np.uint64)
    golden = np.uint64(_GOLDEN)
    return (
        (cells + np.uint64(_CELLS_AT)) * golden,
        (slots + np.uint64(_SLOTS_AT)) * golden,
        (cells * np.uint64(CELL)).astype(np.int64),
    )


def _early(key: np.uint64, vocab_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the ids that arrive before EPS, rising, and when each first does."""
    cells, slots, starts = _cells_of(vocab_size)
    counts = np.searchsorted(_arrivals_table(), _mix(cells + key), side="right")
    most = int(counts.max()) if len(counts) else 0
    words = _mix(slots[:, :most] + key)
    here = np.arange(most) < counts[:, None]
    ids = (starts[:, None] + (words & np.uint64(CELL - 1)).astype(np.int64))[here]
    times = ((words[here] >> np.uint64(12)).astype(np.float64) + 1.0) * (EPS * 2.0**-52)
    order = np.lexsort((times, ids))
    ids, times = ids[order], times[order]
    first = np.ones(len(ids), bool)
    np.not_equal(ids[1:], ids[:-1], out=first[1:])
    first &= ids < vocab_size
    return ids[first], times[first]


def _sparse_race(
    logits: np.ndarray, temperature: float, top: float, seed: int, position: int, count: int
) -> list[int]:
    key = _key(seed, position)
    finish = _Finish(logits, temperature, top)
    finish.add(*_early(key, len(logits)), count)
    span = _SPAN
    while True:
        likely = above(logits, top - span * temperature)
        finish.add(likely, EPS + _late(key, likely), count)
        # Any other token comes after EPS / w: too late once w is below EPS / bound.
        bound = finish.bound(count)
        needed = math.log(bound / EPS) if bound < _NEVER else math.inf
        if needed <= span or len(likely) == len(logits):
            return finish.order()
        span = max(needed + 1e-3, span + 1.0)


# ---- murmur3: of stock servers

_C1, _C2 = 0xCC9E2D51, 0x1B873593


def hashes(seed: int, position: int, ids: np.ndarray) -> np.ndarray:
    """Return MurmurHash3 ``(n,)`` of (seed low, seed high, position, id), 32 bits each, as
    uint64.
    """
    h = np.zeros(len(ids), np.uint64)
    for word in (seed & philox.MASK, seed >> 32, position & philox.MASK, np.asarray(ids)):
        key = np.asarray(word, dtype=np.uint64) * np.uint64(_C1) & _LOW
        key = (key << np.uint64(15) | key >> np.uint64(17)) & _LOW
        h = h ^ (key * np.uint64(_C2) & _LOW)
        h = (h << np.uint64(13) | h >> np.uint64(19)) & _LOW
        h = h * np.uint64(5) + np.uint64(0xE6546B64) & _LOW
    h ^= np.uint64(16)  # bytes that were mixed in
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        h = (h ^ h >> np.uint64(shift)) * np.uint64(factor) & _LOW
    return h ^ h >> np.uint64(16)


def murmur_noise(kind: str, seed: int, position: int, ids: np.ndarray) -> np.ndarray:
    """Return the exponential noise ``(n,)`` of ids, float64 above 0, as a server of
    ``kind`` has it.

    ``position`` is that of the token that is chosen; both servers hash that of the one
    before. For SGLang ``ids`` are ranks.
    """
    drawn = hashes(seed, position - 1, ids).astype(np.float64)
    if kind == "murmur3/vllm":
        noise: np.ndarray = -np.log1p(-(drawn + 0.5) * 2.0**-32)
    else:
        with np.errstate(divide="ignore"):  # a hash of 0 never wins
            noise = np.maximum(-np.log(drawn / philox.MASK), 2.0**-32)
    return noise
