"""Coupled sampling: both sides race the same noise, and usually agree.

For every position ``t`` and token ``i`` both sides can compute the same exponential
noise ``E_t[i]`` from the seed. The device drafts ``argmin E_t / q``, the cloud commits
``argmin E_t / p``, which is a sample of ``p`` by the Gumbel-max trick whatever the
draft was. So the output is the target's own sample for that seed: exact, reproducible
with any draft, block size or network, and only token ids ever cross the wire.

Acceptance of one token is ``sum_j 1 / sum_i max(p_i / p_j, q_i / q_j)``, at least
``(1 - TV) / (1 + TV)``.

``match`` does without shared noise: the target samples its own token, and a draft that
equals it was a good guess. Only ids cross the network, and the output is the target's
sample for the seed, whatever was drafted. The device guesses its most likely token, which
is the best guess there is against an independent sample: it agrees with probability
``p(argmax q)``, far more seldom.

Source:
    Daliri, Musco, Suresh 2024, https://arxiv.org/abs/2408.07978. For ``match``:
    ``common/speculative.cpp`` and ``common/sampling.cpp`` of llama.cpp.
"""

from __future__ import annotations

import math

import numpy as np

from draftwire.sampling.laws import (
    Law,
    SamplingParams,
    draw_of,
    law_of,
    most_likely,
    peak,
    total_of,
)
from draftwire.sampling.philox import Domain
from draftwire.sampling.races import first_arrivals, keys_of, noise_of
from draftwire.sampling.scheme import ByToken, Card, Proposal, Proposer, Scheme

CARD = Card("coupled", exact=True, note="ids up; one id down; the noise is shared by seed")
MATCH_CARD = Card(
    "match",
    exact=True,
    note="ids up; one id down; the target samples alone, a draft must equal its sample",
)


def race(law: Law, seed: int, position: int, *, noise: str = "philox") -> int:
    """Return the winner of ``argmin E / p``: a sample of ``law`` fixed by the seed."""
    return _order(law, seed, position, noise, 1)[0]


def _order(law: Law, seed: int, position: int, noise: str, count: int) -> list[int]:
    """Return the first ``count`` to arrive; fewer where fewer can."""
    ids = np.arange(len(law.probs)) if law.ids is None else law.ids
    with np.errstate(divide="ignore", over="ignore"):  # probability 0: never the winner
        keys = keys_of(law.probs, ids, noise)
        times = noise_of(seed, position, keys, noise) / law.probs
    order = [int(np.argmin(times))]
    if count > 1 and len(times) > 1:
        times[order[0]] = np.inf
        second = int(np.argmin(times))
        order += [second] if times[second] < np.inf else []
    return [int(ids[i]) for i in order]


def _first(
    logits: np.ndarray, params: SamplingParams, position: int, count: int, *, sure: bool
) -> Proposal:
    """Return who comes first in the race over ``logits`` ``(vocab,)``.

    With ``count`` 2 the runner-up too, and its probability where that is to be ``sure``.
    """
    seed, noise, t = params.seed, params.noise, params.temperature
    at = params.moment(position)
    prob = None
    if 0 < params.top_k < len(logits) or params.top_p < 1 or params.min_p > 0:
        law = law_of(logits, params)
        order = _order(law, seed, at, noise, count)
        prob = law.prob(order[0]) if sure else None
    else:
        top = peak(logits)
        order = first_arrivals(logits, t, top, seed, at, noise=noise, count=count)
        if sure:
            weight = math.exp((float(logits[order[0]]) - top) / t)
            prob = weight / total_of(logits, t, top)[0]
    return Proposal(order[0], prob, runner_up=order[1] if len(order) > 1 else None)


class _Proposer(Proposer):
    def propose(self, logits: np.ndarray, position: int) -> Proposal:
        count = 2 if self.insight or self.second else 1
        return _first(logits, self._params, position, count, sure=True)


def _decider(params: SamplingParams, vocab_size: int) -> ByToken:
    def choose(logits: np.ndarray, position: int) -> int:
        return _first(logits, params, position, 1, sure=False).token

    return ByToken(CARD.name, choose)


class _Guesser(Proposer):
    def propose(self, logits: np.ndarray, position: int) -> Proposal:
        token = most_likely(logits)
        return Proposal(token, law_of(logits, self._params).prob(token))


def _alone(params: SamplingParams, vocab_size: int) -> ByToken:
    def choose(logits: np.ndarray, position: int) -> int:
        return draw_of(logits, params, params.coin(position, Domain.CORRECT))

    return ByToken(MATCH_CARD.name, choose)


SCHEME = Scheme(CARD, _Proposer, _decider)
MATCH_SCHEME = Scheme(MATCH_CARD, _Guesser, _alone)
