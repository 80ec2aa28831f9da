"""Match: the target samples its own token, and a draft that equals it was a good guess.

Only ids cross the network, and the output is the target's sample for the seed, whatever
was drafted. The device guesses its most likely token, which is the best guess there is
against an independent sample: it agrees with probability ``p(argmax q)``. ``coupled``
does the same with shared noise and agrees far more often.

Source:
    ``common/speculative.cpp`` and ``common/sampling.cpp`` of llama.cpp.
"""

from __future__ import annotations

import numpy as np

from draftwire.sampling.laws import SamplingParams, draw_of, law_of, most_likely
from draftwire.sampling.philox import Domain
from draftwire.sampling.scheme import ByToken, Card, IdsOnly, Proposal, Scheme

CARD = Card(
    "match",
    exact=True,
    note="ids up; one id down; the target samples alone, a draft must equal its sample",
)


class _Proposer(IdsOnly):
    def propose(self, logits: np.ndarray, position: int) -> Proposal:
        token = most_likely(logits)
        return Proposal(token, law_of(logits, self._params).prob(token))


def _decider(params: SamplingParams, vocab_size: int) -> ByToken:
    def choose(logits: np.ndarray, position: int) -> int:
        coin = params.coin(position, Domain.CORRECT)
        return draw_of(logits, params, coin)

    return ByToken(CARD.name, choose)


SCHEME = Scheme(CARD, _Proposer, _decider)
