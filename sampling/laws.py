"""From logits to the law a token is drawn from: temperature, top-k, top-p, min-p.

What depends on the text comes before: :mod:`draftwire.sampling.shape`. The same function
runs on both sides: the cloud's result is the law of the output, the device's mirrors it
so that the draft is drawn from a like one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from draftwire.errors import ConfigError, ModelError
from draftwire.sampling import philox
from draftwire.sampling.philox import Domain

NOISES = ("philox", "sparse", "murmur3/vllm", "murmur3/sglang")
MAX_BIASES, MAX_WORDS, MAX_WORD = 1024, 256, 64
# Name, lowest, highest, whether it must be above the lowest, what else to say.
_RANGES = (
    ("temperature", 0, 100, False, "0 is greedy, 0.7 to 1.0 is usual"),
    ("top_k", 0, 2**32 - 1, False, ""),
    ("top_p", 0, 1, True, ""),
    ("seed", 0, 2**64 - 1, False, ""),
    ("sample", 0, 2**32 - 1, False, "number the texts that share a seed from 0"),
    ("min_p", 0, 1, False, ""),
    ("repetition_penalty", 0, 100, True, "1 does nothing, 1.1 to 1.3 is usual"),
    ("presence_penalty", -2, 2, False, ""),
    ("frequency_penalty", -2, 2, False, ""),
)
_FIRST_SPAN = 7.0  # a logit so many temperatures below the top has weight 0.001
_WIDTH = 512  # tokens that are summed together
_ERROR32 = 4e-6  # of a sum of float32 exponentials; 2.4e-7 is the largest one seen


@dataclass(frozen=True)
class SamplingParams:
    """What the user asked for.

    Raises:
        ConfigError: A value is out of range.
    """

    scheme: str = "greedy"  # name of a scheme, see ``draftwire.sampling.SCHEMES``
    temperature: float = 0.0  # 0 means the most likely token, always
    top_k: int = 0  # keep the k most likely tokens; 0 keeps all
    # then keep the fewest tokens whose probability reaches this; 1 keeps all
    top_p: float = 1.0
    # 64 bits, of all noise. Noise depends on seed, sample and position alone: two texts
    # with the same seed and sample share theirs.
    seed: int = 0
    # of ``coupled``: "philox", or another of ``NOISES`` where both sides know it; those of
    # stock servers have no samples but 0
    noise: str = "philox"
    sample: int = 0  # which of the texts that share a seed, from 0; 32 bits
    # then keep the tokens that are at least so likely against the likeliest
    min_p: float = 0.0
    # logits of tokens that the prompt or the text holds are divided by it, or multiplied
    # where they are below 0; 1 does nothing
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0  # taken from the logits of tokens that the text holds
    frequency_penalty: float = 0.0  # taken from them for each time that it does
    # added to the logits of some ids: ``((id, value), ...)``, binary32
    logit_bias: tuple[tuple[int, float], ...] = ()
    bad_words: tuple[tuple[int, ...], ...] = ()  # rows of ids that shall not come

    def __post_init__(self) -> None:
        for name, low, high, above_low, hint in _RANGES:
            value = getattr(self, name)
            if not low <= value <= high or (above_low and value == low):
                span = f"({low}, {high}]" if above_low else f"{low}..{high}"
                raise ConfigError(f"{name} {value} is outside {span}", hint=hint)
        if self.noise not in NOISES:
            known = ", ".join(NOISES)
            raise ConfigError(f"unknown noise {self.noise!r}", hint=f"known: {known}")
        if self.sample and self.noise.startswith("murmur3"):
            raise ConfigError(
                f"the noise {self.noise} has no samples",
                hint="give each text a seed of its own",
            )
        ids = [i for i, _ in self.logit_bias]
        if len(set(ids)) < len(ids) or len(ids) > MAX_BIASES:
            raise ConfigError(f"logit_bias is for at most {MAX_BIASES} ids, each once")
        for i, value in self.logit_bias:
            if not -100 <= value <= 100:
                raise ConfigError(f"logit_bias of token {i} is {value}, outside -100..100")
        lengths = [len(word) for word in self.bad_words]
        if len(lengths) > MAX_WORDS or not all(0 < n <= MAX_WORD for n in lengths):
            raise ConfigError(
                f"bad_words are at most {MAX_WORDS} words of 1 to {MAX_WORD} tokens"
            )

    @property
    def penalised(self) -> bool:
        """Whether logits depend on which tokens came before."""
        none = (1.0, 0.0, 0.0)
        given = self.repetition_penalty, self.presence_penalty, self.frequency_penalty
        return given != none

    @property
    def shaped(self) -> bool:
        """Whether logits are changed before they become a distribution."""
        return self.penalised or bool(self.logit_bias or self.bad_words)

    @property
    def processed(self) -> bool:
        """Whether a peer needs the capability ``processors`` for this."""
        return self.shaped or self.min_p > 0

    def moment(self, position: int) -> int:
        """Return what noise is keyed by beside the seed: position and sample in one."""
        return position + (self.sample << 32)

    def coin(self, position: int, domain: Domain) -> float:
        """Return the uniform number in (0, 1] of ``position`` in ``domain``."""
        return philox.coin(self.seed, self.moment(position), domain)


@dataclass(frozen=True)
class Law:
    """A probability law over token ids, with only its support written out."""

    ids: np.ndarray | None  # ``(n,)`` int64, rising, or None for all ids in order
    probs: np.ndarray  # ``(n,)`` float64, sums to 1

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
        at = int(np.searchsorted(self.ids, token))
        found = at < len(self.ids) and self.ids[at] == token
        return float(self.probs[at]) if found else 0.0

    def draw(self, unit: float) -> int:
        """Return the token that a uniform number in (0, 1] falls on."""
        sums = np.cumsum(self.probs)
        # The first sum to reach a number above 0 is never that of a zero probability.
        at = int(np.searchsorted(sums, unit * sums[-1]))
        return at if self.ids is None else int(self.ids[at])


def largest(values: np.ndarray, n: int) -> np.ndarray:
    """Return the ids of the ``n`` largest of ``values``, largest first, ties by id."""
    found = np.flatnonzero(values >= _floor(values, n)) if n < len(values) else None
    ids = np.arange(len(values)) if found is None else found
    order: np.ndarray = ids[np.argsort(-values[ids], kind="stable")[:n]]
    return order


def _floor(values: np.ndarray, n: int) -> float:
    """Return a number that at least ``n`` values reach, and not many more.

    The n-th largest of columns' maxima, found at the speed of memory: a partition of all
    values would leave ties at its edge to the library.
    """
    rows = max(1, min(64, len(values) // (4 * n)))
    width = len(values) // rows
    maxima = values[: rows * width].reshape(rows, width).max(axis=0)
    return float(np.partition(maxima, width - n)[width - n])


def peak(logits: np.ndarray) -> float:
    """Return the largest of ``logits`` ``(vocab,)``; a ModelError for no numbers."""
    top = float(logits.max())  # NaN if any is
    if not math.isfinite(top):
        raise ModelError(
            f"the model gave logits that are no numbers (largest: {top})",
            hint="choose another precision, or check the model",
        )
    return top


def most_likely(logits: np.ndarray, position: int = 0) -> int:
    """Return the id of the largest of ``logits`` ``(vocab,)``, ties to the smaller."""
    token = int(logits.argmax())
    if not math.isfinite(logits[token]):  # argmax stops at a NaN
        peak(logits)
    return token


def weights_of(logits: np.ndarray, temperature: float, top: float) -> np.ndarray:
    """Return ``exp((x - top) / T)`` in float64, as every distribution is made of it."""
    scaled: np.ndarray = np.divide(logits, temperature, dtype=np.float64)
    scaled -= top / temperature
    np.exp(scaled, out=scaled)
    return scaled


def above(logits: np.ndarray, limit: float) -> np.ndarray:
    """Return the ids of all logits that reach ``limit``, and maybe some just below."""
    if logits.dtype != np.float64:  # compared as float32: never above the limit
        limit = np.nextafter(np.float32(limit), np.float32(-np.inf))
    return np.flatnonzero(logits >= limit)


def total_of(logits: np.ndarray, temperature: float, top: float) -> tuple[float, float]:
    """Return the sum of all weights, and its largest relative error.

    In float32 where the logits are: an eighth of the time of float64.
    """
    if logits.dtype == np.float64:
        return float(weights_of(logits, temperature, top).sum()), 1e-12
    return float(_weights32(logits, temperature, top).sum()), _ERROR32


def _weights32(logits: np.ndarray, temperature: float, top: float) -> np.ndarray:
    part = logits.astype(np.float32)
    part -= np.float32(top)
    part *= np.float32(1 / temperature)
    return np.exp(part, out=part)


def log_probs(logits: np.ndarray, token: int, most: int) -> list[tuple[int, float]]:
    """Return log-probabilities of the softmax of ``logits`` ``(vocab,)``, within 1e-5.

    That of ``token``, then those of the ``most`` likeliest ids, likeliest first.

    Raises:
        ModelError: The logits are no numbers.
    """
    top = peak(logits)
    whole = top + math.log(total_of(logits, 1.0, top)[0])
    ids = [token, *largest(logits, most).tolist()] if most else [token]
    return [(i, float(logits[i]) - whole) for i in ids]


def law_of(logits: np.ndarray, params: SamplingParams) -> Law:
    """Return the law that ``params`` makes of shaped ``logits`` ``(vocab,)``.

    Top-k cuts first, top-p then measures the mass of what is left, min-p comes last (the
    order of the Hugging Face processors); the most likely token always stays.

    Raises:
        ModelError: The logits are no numbers.
        ValueError: The temperature is 0: greedy decoding has no law to draw from.
    """
    temperature = params.temperature
    if temperature <= 0:
        raise ValueError("temperature 0 has no law: take the argmax")
    logits = np.asarray(logits)
    top = peak(logits)
    if 0 < params.top_k < len(logits):
        ids = largest(logits, params.top_k)
        weights = weights_of(logits[ids], temperature, top)
        if params.top_p < 1.0:
            kept = _reached(np.cumsum(weights), params.top_p * float(weights.sum()))
            ids, weights = ids[:kept], weights[:kept]
    elif params.top_p < 1.0:
        ids, weights = _nucleus(logits, temperature, top, params.top_p)
    elif params.min_p > 0:
        limit = top + (math.log(params.min_p) - 1e-6) * temperature
        ids = above(logits, limit - 1e-12 * abs(top))
        weights = weights_of(logits[ids], temperature, top)
    else:
        weights = weights_of(logits, temperature, top)
        weights /= weights.sum()
        return Law(None, weights)
    if params.min_p > 0:
        likely = weights >= params.min_p
        ids, weights = ids[likely], weights[likely]
    order = np.argsort(ids)
    weights = weights[order]
    return Law(ids[order], weights / weights.sum())


def draw_of(logits: np.ndarray, params: SamplingParams, unit: float) -> int:
    """Return the token of :func:`law_of` that ``unit`` in (0, 1] falls on.

    Of a large vocabulary most is summed in float32; where the edge of a token is nearer
    than what that may be wrong, all of it in float64. The token is the same.

    Raises:
        ModelError: The logits are no numbers.
    """
    cut = 0 < params.top_k < len(logits) or params.top_p < 1 or params.min_p > 0
    if not cut and params.temperature > 0 and logits.dtype == np.float32:
        top, rows = peak(logits), len(logits) // _WIDTH
        weights = _weights32(logits, params.temperature, top)
        sums = weights[: rows * _WIDTH].reshape(rows, _WIDTH).sum(1)
        ends = np.cumsum(np.append(sums, weights[rows * _WIDTH :].sum()), dtype=np.float64)
        goal, error = unit * ends[-1], 2 * _ERROR32 * ends[-1]
        row = int(np.searchsorted(ends, goal))
        start = float(ends[row - 1]) if row else 0.0
        part = logits[row * _WIDTH : (row + 1) * _WIDTH]
        edges = start + np.cumsum(weights_of(part, params.temperature, top))
        at = int(np.searchsorted(edges, goal))
        before = float(edges[at - 1]) if at else start
        if at < len(edges) and before + error < goal < edges[at] - error:
            return row * _WIDTH + at
    return law_of(logits, params).draw(unit)


def _reached(sums: np.ndarray, goal: float) -> int:
    """Return how many of the likeliest it takes for their ``sums`` to reach a goal."""
    # In floating point the sum of a part may miss the whole by a rounding error.
    return min(int(np.searchsorted(sums, goal * (1 - 1e-12))) + 1, len(sums))


def _nucleus(
    logits: np.ndarray, temperature: float, top: float, share: float
) -> tuple[np.ndarray, np.ndarray]:
    """Return the ids that top-p keeps, likeliest first, and their weights."""
    total, error = total_of(logits, temperature, top)
    span = _FIRST_SPAN
    while True:
        ids = above(logits, top - span * temperature)
        weights = weights_of(logits[ids], temperature, top)
        if weights.sum() >= share * total * (1 + error) or len(ids) == len(logits):
            break
        span += 2.0 if span < 40 else span
    order = np.argsort(-logits[ids], kind="stable")
    ids, weights = ids[order], weights[order]
    sums = np.cumsum(weights)
    kept = _reached(sums, share * total * (1 - error))
    if kept != _reached(sums, share * total * (1 + error)):
        # The edge lies within the rounding of float32: measure exactly.
        kept = _reached(sums, share * float(weights_of(logits, temperature, top).sum()))
    return ids[:kept], weights[:kept]
