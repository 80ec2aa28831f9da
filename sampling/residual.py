"""Residual: the whole draft law goes up, and the cloud corrects the draft by it.

The conventional baseline. Each drafted token brings ``vocab`` probabilities in fp16.
The device draws from those very fp16 numbers: they are multiples of 2**-24, so their
sum is exact in any order on any machine, and both sides hold the same law to the last
bit.

Evidence up: for each token ``vocab`` little-endian IEEE 754 half floats.

Source:
    Leviathan, Kalman, Matias 2023, https://arxiv.org/abs/2211.17192.
"""

from __future__ import annotations

from typing import Collection, Sequence

import numpy as np

from draftwire.errors import ConfigError, ProtocolError
from draftwire.sampling.lattice import Lattice
from draftwire.sampling.laws import SamplingParams, law_of
from draftwire.sampling.philox import Domain
from draftwire.sampling.rejection import check_tokens, judge, unforced, with_forced
from draftwire.sampling.scheme import Card, Decision, Proposal, Scheme

__all__ = ["CARD", "SCHEME", "make_decider", "make_proposer", "unpack"]

CARD = Card(
    "residual",
    exact=True,
    note="ids and the whole draft law in fp16 up; one id down",
    greedy=False,
    sampled=True,
    any_draft=False,
)

_UNIT = 2**24  # the smallest half float is 2**-24
_HALF = np.dtype("<f2")
_MAX_VOCAB = 2**20  # beyond it, fp16 cannot tell a flat law from nothing
_SLACK = 0.05  # how far rounding may move the sum, at _MAX_VOCAB


def _lattice(halves: np.ndarray) -> Lattice:
    # float32 holds a half times 2**24 exactly, and half the memory of float64.
    weights = (halves.astype(np.float32) * np.float32(_UNIT)).astype(np.int64)
    return Lattice(None, weights, int(weights.sum()))


class _Proposer:
    def __init__(self, params: SamplingParams, vocab_size: int) -> None:
        self._params = params
        self._vocab_size = vocab_size

    def propose(self, logits: np.ndarray, position: int) -> Proposal:
        law = law_of(logits[: self._vocab_size], self._params)
        halves = law.dense(self._vocab_size).astype(_HALF)
        coin = self._params.coin(position, Domain.DRAFT)
        token = _lattice(halves).draw(coin)
        return Proposal(token, law.prob(token), halves.tobytes())

    def pack(self, proposals: Sequence[Proposal]) -> bytes:
        return b"".join([p.evidence for p in proposals])

    def correct(self, proposal: Proposal, evidence: bytes, position: int) -> int:
        raise ProtocolError("residual: the cloud draws every correction")


def unpack(tokens: Sequence[int], evidence: bytes, vocab_size: int) -> list[Lattice]:
    """Return the law that each token was drawn from.

    Raises:
        ProtocolError: The evidence is not that of these tokens.
    """
    size = _HALF.itemsize * vocab_size
    if len(evidence) != size * len(tokens):
        raise ProtocolError(
            f"{len(evidence)} bytes of evidence for {len(tokens)} tokens of "
            f"{vocab_size} half floats each"
        )
    check_tokens(tokens, vocab_size)
    drafts = []
    for j, token in enumerate(tokens):
        halves = np.frombuffer(evidence, _HALF, vocab_size, j * size)
        # One comparison refuses NaN, infinity, negative numbers and those above 1.
        if not ((halves >= 0) & (halves <= 1)).all():
            raise ProtocolError("a draft law holds a number that is no probability")
        draft = _lattice(halves)
        if not abs(draft.total / _UNIT - 1) <= _SLACK:
            raise ProtocolError(f"a draft law sums to {draft.total / _UNIT:.4f}, not 1")
        if not draft.weights[token]:
            raise ProtocolError(f"token {token} has probability 0 in its own draft law")
        drafts.append(draft)
    return drafts


class _Decider:
    def __init__(self, params: SamplingParams, vocab_size: int) -> None:
        self._params = params
        self._vocab_size = vocab_size

    def decide(
        self,
        tokens: Sequence[int],
        evidence: bytes,
        logits: np.ndarray,
        position: int,
        forced: Collection[int] = (),
    ) -> Decision:
        drafts = unpack(unforced(tokens, forced), evidence, self._vocab_size)
        whole = with_forced(tokens, drafts, forced)
        return judge(tokens, whole, logits, self._params, position)


def _check(vocab_size: int) -> None:
    if vocab_size > _MAX_VOCAB:
        raise ConfigError(
            f"scheme 'residual' holds at most {_MAX_VOCAB} token ids in fp16, the "
            f"vocabulary has {vocab_size}",
            hint="use --scheme coupled or qs",
        )


def make_proposer(params: SamplingParams, vocab_size: int) -> _Proposer:
    """Return the device half.

    Raises:
        ConfigError: The vocabulary is too large for fp16 probabilities.
    """
    _check(vocab_size)
    return _Proposer(params, vocab_size)


def make_decider(params: SamplingParams, vocab_size: int) -> _Decider:
    """Return the cloud half.

    Raises:
        ConfigError: The vocabulary is too large for fp16 probabilities.
    """
    _check(vocab_size)
    return _Decider(params, vocab_size)


SCHEME = Scheme(CARD, make_proposer, make_decider)
