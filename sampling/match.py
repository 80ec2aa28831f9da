"""Match: the target samples its own token, and a draft that equals it was a good guess.

Only ids cross the network, and the output is the target's sample for the seed, whatever
was drafted. The device guesses its most likely token, which is the best guess there is
against an independent sample: it agrees with probability ``p(argmax q)``. ``coupled``
does the same with shared noise and agrees far more often.

Source:
    ``common/speculative.cpp`` and ``common/sampling.cpp`` of llama.cpp.
"""

from __future__ import annotations

from typing import Sequence

import numpy as np

from draftwire.sampling import philox
from draftwire.sampling.laws import SamplingParams, law_of
from draftwire.sampling.philox import Domain
from draftwire.sampling.scheme import (
    Card,
    Decision,
    IdsOnly,
    Proposal,
    Scheme,
    refuse_evidence,
)

__all__ = ["CARD", "SCHEME", "make_decider", "make_proposer"]

CARD = Card(
    "match",
    exact=True,
    note="ids up; one id down; the target samples alone, a draft must equal its sample",
    greedy=False,
    sampled=True,
)


class _Proposer(IdsOnly):
    def __init__(self, params: SamplingParams) -> None:
        self._params = params

    def propose(self, logits: np.ndarray, position: int) -> Proposal:
        token = int(logits.argmax())
        return Proposal(token, law_of(logits, self._params).prob(token))


class _Decider:
    def __init__(self, params: SamplingParams) -> None:
        self._params = params

    def decide(
        self, tokens: Sequence[int], evidence: bytes, logits: np.ndarray, position: int
    ) -> Decision:
        refuse_evidence(CARD.name, evidence)
        for j in range(len(tokens) + 1):
            law = law_of(logits[j], self._params)
            coin = philox.coin(self._params.seed, position + j, Domain.CORRECT)
            token = law.draw(coin)
            if j == len(tokens) or token != tokens[j]:
                return Decision(j, token)
        raise AssertionError("unreachable: the last row always decides")


def make_proposer(params: SamplingParams, vocab_size: int) -> _Proposer:
    """Return the device half."""
    return _Proposer(params)


def make_decider(params: SamplingParams, vocab_size: int) -> _Decider:
    """Return the cloud half."""
    return _Decider(params)


SCHEME = Scheme(CARD, make_proposer, make_decider)
