"""Greedy decoding: the most likely token of the target, always.

The device drafts its own most likely token; the cloud keeps it while it equals the
target's. Ties go to the smallest id on both sides (``laws.most_likely``).
"""

from __future__ import annotations

import numpy as np

from draftwire.sampling.laws import most_likely
from draftwire.sampling.scheme import ByToken, Card, IdsOnly, Proposal, Scheme

CARD = Card("greedy", exact=True, note="ids up; one id down", greedy=True, sampled=False)


def look_at(logits: np.ndarray, token: int) -> Proposal:
    """Return the proposal of ``token``, the likeliest of ``logits``, with all insight."""
    rest = logits.astype(np.float32)
    rest -= rest[token]
    return Proposal(token, 1.0 / float(np.exp(rest).sum()), runner_up=_next(rest, token))


def _next(logits: np.ndarray, token: int) -> int | None:
    """Return the most likely id beside ``token``, None for none; takes ``logits``."""
    logits[token] = -np.inf
    second = int(logits.argmax())
    return second if logits[second] > -np.inf else None


class _Proposer(IdsOnly):
    def propose(self, logits: np.ndarray, position: int) -> Proposal:
        token = most_likely(logits)
        if self.insight:
            return look_at(logits, token)
        return Proposal(
            token, runner_up=_next(logits.copy(), token) if self.second else None
        )


SCHEME = Scheme(CARD, _Proposer, lambda *_: ByToken(CARD.name, most_likely))
