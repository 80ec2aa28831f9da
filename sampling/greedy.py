"""Greedy decoding: the most likely token of the target, always.

The device drafts its own most likely token; the cloud keeps it while it equals the
target's. Ties go to the smallest id on both sides (``laws.most_likely``).

``argmax`` is that at temperature 0. Above it the device samples its drafts and the cloud
still keeps only the target's most likely tokens, so the text is the greedy one at every
temperature: lossy, and kept as the published baseline it is.

Source:
    For ``argmax``: FlexSpec, https://arxiv.org/abs/2601.00644.
"""

from __future__ import annotations

import numpy as np

from draftwire.sampling.laws import SamplingParams, law_of, most_likely
from draftwire.sampling.philox import Domain
from draftwire.sampling.scheme import ByToken, Card, Proposal, Proposer, Scheme

CARD = Card("greedy", exact=True, note="ids up; one id down", greedy=True, sampled=False)
ARGMAX_CARD = Card(
    "argmax",
    exact=False,
    note="ids up; one id down; LOSSY above temperature 0: the text stays greedy",
    greedy=True,
)


def _look_at(logits: np.ndarray, token: int) -> Proposal:
    """Return the proposal of ``token``, the likeliest of ``logits``, with all insight."""
    rest = logits.astype(np.float32)
    rest -= rest[token]
    return Proposal(token, 1.0 / float(np.exp(rest).sum()), runner_up=_next(rest, token))


def _next(logits: np.ndarray, token: int) -> int | None:
    """Return the most likely id beside ``token``, None for none; takes ``logits``."""
    logits[token] = -np.inf
    second = int(logits.argmax())
    return second if logits[second] > -np.inf else None


class _Proposer(Proposer):
    def propose(self, logits: np.ndarray, position: int) -> Proposal:
        token = most_likely(logits)
        if self.insight:
            return _look_at(logits, token)
        return Proposal(
            token, runner_up=_next(logits.copy(), token) if self.second else None
        )


class _Sampler(Proposer):
    def propose(self, logits: np.ndarray, position: int) -> Proposal:
        if self._params.temperature == 0:
            token = most_likely(logits)
            return _look_at(logits, token) if self.insight else Proposal(token)
        law = law_of(logits, self._params)
        token = law.draw(self._params.coin(position, Domain.DRAFT))
        return Proposal(token, law.prob(token))


def _loss(params: SamplingParams, vocab_size: int) -> str:
    if params.temperature == 0:
        return ""
    return (
        "scheme 'argmax' keeps only the target's most likely tokens: the text is the "
        f"greedy one, not a sample at temperature {params.temperature:g}"
    )


SCHEME = Scheme(CARD, _Proposer, lambda *_: ByToken(CARD.name, most_likely))
ARGMAX_SCHEME = Scheme(
    ARGMAX_CARD, _Sampler, lambda *_: ByToken(ARGMAX_CARD.name, most_likely), _loss
)
