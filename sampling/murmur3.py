"""The seeded noise of stock servers: a device that knows it drafts what they will sample.

vLLM's V2 runner takes ``argmax(logits / T + G)``, SGLang's deterministic sampler as well,
with ``G = -ln E`` of a MurmurHash3 of seed, position and token id. SGLang sorts a batch by
probability where any request in it is greedy or has a top-k or top-p, and then hashes ranks
in place of ids: with ranks always, by a top-k that keeps all, a text does not depend on its
neighbours. So that is what we have it do. ``E`` is computed here in float64; vLLM's is
float32, so two tokens that are that close may change places: there the texts agree up to
ties, as the numerics of such a server say.

Source:
    vLLM 0.32, ``v1/worker/gpu/sample/gumbel.py``; SGLang 0.5.23, ``layers/sampler.py``,
    ``top_k_top_p_min_p_sampling_from_probs_torch``. MurmurHash3 (x86, 32 bits): Austin
    Appleby, public domain.
"""

from __future__ import annotations

import numpy as np

_MASK = 0xFFFFFFFF
_C1, _C2 = 0xCC9E2D51, 0x1B873593


def hashes(seed: int, position: int, ids: np.ndarray) -> np.ndarray:
    """Return MurmurHash3 ``(n,)`` of (seed low, seed high, position, id), 32 bits each, as
    uint64.
    """
    h = np.zeros(len(ids), np.uint64)
    low = np.uint64(_MASK)
    for word in (seed & _MASK, seed >> 32, position & _MASK, np.asarray(ids)):
        key = np.asarray(word, dtype=np.uint64) * np.uint64(_C1) & low
        key = (key << np.uint64(15) | key >> np.uint64(17)) & low
        h = h ^ (key * np.uint64(_C2) & low)
        h = (h << np.uint64(13) | h >> np.uint64(19)) & low
        h = h * np.uint64(5) + np.uint64(0xE6546B64) & low
    h ^= np.uint64(16)  # bytes that were mixed in
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        h = (h ^ h >> np.uint64(shift)) * np.uint64(factor) & low
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
            noise = np.maximum(-np.log(drawn / _MASK), 2.0**-32)
    return noise
