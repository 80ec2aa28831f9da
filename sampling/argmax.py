"""Argmax: a drafted token stays iff it is the target's most likely one.

At temperature 0 this is greedy decoding, and exact. Above it the device samples its
drafts and the cloud still keeps only the target's most likely tokens, so the text is
the greedy one at every temperature: lossy, and kept as the published baseline it is.

Source:
    FlexSpec, https://arxiv.org/abs/2601.00644.
"""

from __future__ import annotations

import numpy as np

from draftwire.sampling.greedy import look_at
from draftwire.sampling.laws import SamplingParams, law_of, most_likely
from draftwire.sampling.philox import Domain
from draftwire.sampling.scheme import ByToken, Card, IdsOnly, Proposal, Scheme

CARD = Card(
    "argmax",
    exact=False,
    note="ids up; one id down; LOSSY above temperature 0: the text stays greedy",
    greedy=True,
    sampled=True,
)


class _Proposer(IdsOnly):
    def propose(self, logits: np.ndarray, position: int) -> Proposal:
        if self._params.temperature == 0:
            token = most_likely(logits)
            return look_at(logits, token) if self.insight else Proposal(token)
        law = law_of(logits, self._params)
        token = law.draw(self._params.coin(position, Domain.DRAFT))
        return Proposal(token, law.prob(token))


def _loss(params: SamplingParams, vocab_size: int) -> str:
    """Say what is lost: everything but the most likely text."""
    if params.temperature == 0:
        return ""
    return (
        "scheme 'argmax' keeps only the target's most likely tokens: the text is the "
        f"greedy one, not a sample at temperature {params.temperature:g}"
    )


SCHEME = Scheme(CARD, _Proposer, lambda *_: ByToken(CARD.name, most_likely), _loss)
