"""From logits to the law a token is drawn from: temperature, top-k, top-p.

The same function runs on both sides: the cloud's result is the law of the output, the
device's mirrors it so that the draft is drawn from a like one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from draftwire.errors import ConfigError

__all__ = ["Law", "SamplingParams", "largest", "law_of"]

_FIRST_GUESS = 256  # top-p rarely keeps more; doubled until it suffices


@dataclass(frozen=True)
class SamplingParams:
    """What the user asked for.

    Attributes:
        scheme: Name of a scheme, see ``draftwire.sampling.SCHEMES``.
        temperature: 0 means the most likely token, always.
        top_k: Keep the k most likely tokens; 0 keeps all.
        top_p: Then keep the fewest tokens whose probability reaches this; 1 keeps all.
        seed: 64 bits, of all noise.

    Raises:
        ConfigError: A value is out of range.
    """

    scheme: str = "greedy"
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.temperature) and 0 <= self.temperature <= 100):
            raise ConfigError(
                f"temperature {self.temperature} is outside 0..100",
                hint="0 is greedy, 0.7 to 1.0 is usual",
            )
        if not 0 <= self.top_k < 2**32:
            raise ConfigError(f"top_k {self.top_k} is outside 0..{2**32 - 1}")
        if not 0 < self.top_p <= 1:
            raise ConfigError(f"top_p {self.top_p} is outside (0, 1]")
        if not 0 <= self.seed < 2**64:
            raise ConfigError(f"seed {self.seed} is outside 0..2**64 - 1")


@dataclass(frozen=True)
class Law:
    """A probability law over token ids, with only its support written out.

    Attributes:
        ids: ``(n,)`` int64, most likely first, or None for all ids in order.
        probs: ``(n,)`` float64, sums to 1.
    """

    ids: np.ndarray | None
    probs: np.ndarray

    def dense(self, vocab_size: int) -> np.ndarray:
        """Return the law as ``(vocab_size,)`` float64."""
        if self.ids is None:
            return self.probs
        full = np.zeros(vocab_size)
        full[self.ids] = self.probs
        return full

    def prob(self, token: int) -> float:
        """Return the probability of ``token``."""
        if self.ids is None:
            return float(self.probs[token])
        found = np.flatnonzero(self.ids == token)
        return float(self.probs[found[0]]) if len(found) else 0.0

    def draw(self, unit: float) -> int:
        """Return the token that a uniform number in (0, 1] falls on."""
        sums = np.cumsum(self.probs)
        # The first sum to reach a number above 0 is never that of a zero probability.
        at = int(np.searchsorted(sums, unit * sums[-1]))
        return at if self.ids is None else int(self.ids[at])


def largest(values: np.ndarray, n: int) -> np.ndarray:
    """Return the ids of the ``n`` largest values, largest first, ties by id.

    Args:
        values: ``(vocab,)`` floats.
        n: How many; more than there are means all.
    """
    if n < len(values):
        ids = np.sort(np.argpartition(-values, n - 1)[:n])
    else:
        ids = np.arange(len(values))
    return ids[np.argsort(-values[ids], kind="stable")]


def law_of(logits: np.ndarray, params: SamplingParams) -> Law:
    """Return the law that ``params`` makes of ``logits``.

    Top-k cuts first, top-p then measures the mass of what is left (the order of the
    Hugging Face processors); the most likely token always stays.

    Args:
        logits: ``(vocab,)`` floats.
        params: Temperature (above 0), top-k, top-p.

    Raises:
        ValueError: The temperature is 0: greedy decoding has no law to draw from.
    """
    if params.temperature <= 0:
        raise ValueError("temperature 0 has no law: take the argmax")
    scaled = np.asarray(logits, np.float64) / params.temperature
    weights = np.exp(scaled - scaled.max())
    vocab = len(weights)
    keep = min(params.top_k or vocab, vocab)
    if params.top_p >= 1.0:
        if keep == vocab:
            return Law(None, weights / weights.sum())
        ids = largest(weights, keep)
        return Law(ids, weights[ids] / weights[ids].sum())
    count = keep if keep < vocab else min(_FIRST_GUESS, vocab)
    total = None if keep < vocab else float(weights.sum())
    while True:
        ids = largest(weights, count)
        sums = np.cumsum(weights[ids])
        goal = params.top_p * (float(sums[-1]) if total is None else total)
        # In floating point the sum of a part may miss the whole by a rounding error.
        enough = int(np.searchsorted(sums, goal * (1 - 1e-12))) + 1
        if enough <= count or count == keep:
            ids = ids[: min(enough, count)]
            kept = weights[ids]
            return Law(ids, kept / kept.sum())
        count = min(count * 2, keep)
