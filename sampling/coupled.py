"""Coupled sampling: both sides race the same noise, and usually agree.

For every position ``t`` and token ``i`` both sides can compute the same exponential
noise ``E_t[i]`` from the seed. The device drafts ``argmin E_t / q``, the cloud commits
``argmin E_t / p``, which is a sample of ``p`` by the Gumbel-max trick whatever the
draft was. So the output is the target's own sample for that seed: exact, reproducible
with any draft, block size or network, and only token ids ever cross the wire.

Acceptance of one token is ``sum_j 1 / sum_i max(p_i / p_j, q_i / q_j)``, at least
``(1 - TV) / (1 + TV)``.

Source:
    Daliri, Musco, Suresh 2024, https://arxiv.org/abs/2408.07978.
"""

from __future__ import annotations

import numpy as np

from draftwire.sampling.laws import Law, SamplingParams, law_of
from draftwire.sampling.philox import exponentials
from draftwire.sampling.scheme import (
    ByToken,
    Card,
    IdsOnly,
    Proposal,
    Scheme,
)

__all__ = ["CARD", "SCHEME", "make_decider", "make_proposer", "race"]

CARD = Card(
    "coupled",
    exact=True,
    note="ids up; one id down; the noise is shared by seed",
    greedy=False,
    sampled=True,
)


def race(law: Law, seed: int, position: int) -> int:
    """Return the winner of ``argmin E / p``: a sample of ``law`` fixed by the seed.

    Args:
        law: What to sample.
        seed: 64 bits.
        position: Absolute position of the token.
    """
    winner = int(np.argmin(_times(law, seed, position)))
    return winner if law.ids is None else int(law.ids[winner])


def _times(law: Law, seed: int, position: int) -> np.ndarray:
    """Return when each token of ``law`` arrives; the first one wins."""
    ids = len(law.probs) if law.ids is None else law.ids
    with np.errstate(divide="ignore"):  # probability 0: never the winner
        times: np.ndarray = exponentials(seed, position, ids) / law.probs
    return times


def _first_two(law: Law, seed: int, position: int) -> tuple[int, int | None]:
    times = _times(law, seed, position)
    first = int(np.argmin(times))
    times[first] = np.inf
    second = int(np.argmin(times))
    found = (first, second) if len(times) > 1 else (first, first)
    if law.ids is not None:
        found = (int(law.ids[found[0]]), int(law.ids[found[1]]))
    return found[0], None if found[0] == found[1] else found[1]


class _Proposer(IdsOnly):
    def __init__(self, params: SamplingParams) -> None:
        self._params = params

    def propose(self, logits: np.ndarray, position: int) -> Proposal:
        law = law_of(logits, self._params)
        if self.insight:
            token, second = _first_two(law, self._params.seed, position)
            return Proposal(token, law.prob(token), runner_up=second)
        token = race(law, self._params.seed, position)
        return Proposal(token, law.prob(token))


def make_proposer(params: SamplingParams, vocab_size: int) -> _Proposer:
    """Return the device half."""
    return _Proposer(params)


def make_decider(params: SamplingParams, vocab_size: int) -> ByToken:
    """Return the cloud half."""

    def choose(logits: np.ndarray, position: int) -> int:
        return race(law_of(logits, params), params.seed, position)

    return ByToken(CARD.name, choose)


SCHEME = Scheme(CARD, make_proposer, make_decider)
