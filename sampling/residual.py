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

from typing import Sequence

import numpy as np

from draftwire.errors import ConfigError, ProtocolError
from draftwire.sampling.evidence import Lattice
from draftwire.sampling.laws import Law, SamplingParams
from draftwire.sampling.rejection import Drawn, Judge, check_tokens
from draftwire.sampling.scheme import Card, Scheme

CARD = Card(
    "residual",
    exact=True,
    note="ids and the whole draft law in fp16 up; one id down",
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


class _Proposer(Drawn):
    def _round(self, law: Law, position: int) -> Lattice:
        return _lattice(law.dense(self._vocab_size).astype(_HALF))

    def _packed(self, draft: Lattice, token: int) -> bytes:
        return (draft.weights / _UNIT).astype(_HALF).tobytes()


def unpack(tokens: Sequence[int], evidence: bytes, vocab_size: int) -> list[Lattice]:
    """Return the law of each token; a ProtocolError where the evidence is not theirs."""
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


def _check(params: SamplingParams, vocab_size: int) -> None:
    if vocab_size > _MAX_VOCAB:
        raise ConfigError(
            f"scheme 'residual' holds at most {_MAX_VOCAB} token ids in fp16, the "
            f"vocabulary has {vocab_size}",
            hint="use --scheme coupled or qs",
        )


SCHEME = Scheme(CARD, _Proposer, lambda p, v: Judge(unpack, p, v), check=_check)
