"""Rejection sampling, the cloud half that ``residual``, ``qs`` and ``separate`` share.

A drafted token ``x`` stays with probability ``min(1, p(x) / q(x))``. The first one that
does not is replaced by a draw from ``norm(max(0, p - q))``; after a block without a
rejection the target adds one token drawn from ``p``. The output then has exactly the
law ``p``, provided that ``x`` was drawn from this very ``q``, with noise that is
independent of the accept coin and of the correction's.

Source:
    Leviathan, Kalman, Matias 2023, https://arxiv.org/abs/2211.17192.
"""

from __future__ import annotations

from typing import Collection, Sequence

import numpy as np

from draftwire.errors import ProtocolError
from draftwire.sampling.lattice import Lattice
from draftwire.sampling.laws import Law, SamplingParams, law_of
from draftwire.sampling.philox import Domain
from draftwire.sampling.scheme import Decision

__all__ = ["check_tokens", "judge", "residual_of", "unforced", "with_forced"]


def check_tokens(tokens: Sequence[int], vocab_size: int) -> None:
    """Refuse ids that are no tokens.

    Raises:
        ProtocolError: An id is outside the vocabulary.
    """
    for token in tokens:
        if not 0 <= token < vocab_size:
            raise ProtocolError(
                f"token id {token} is outside the vocabulary of {vocab_size}"
            )


def unforced(tokens: Sequence[int], forced: Collection[int]) -> Sequence[int]:
    """Return the tokens that were drawn: those at no place of ``forced``."""
    return [t for j, t in enumerate(tokens) if j not in forced] if forced else tokens


def with_forced(
    tokens: Sequence[int], drafts: Sequence[Lattice], forced: Collection[int]
) -> Sequence[Lattice]:
    """Return the laws of all ``tokens``, given those of the ones that were drawn."""
    if not forced:
        return drafts
    rest, one = iter(drafts), np.ones(1, np.int64)
    return [
        Lattice(np.array([token]), one, 1) if j in forced else next(rest)
        for j, token in enumerate(tokens)
    ]


def residual_of(law: Law, draft: Lattice) -> Law:
    """Return ``norm(max(0, p - q))``, the law of the correction.

    Args:
        law: ``p``.
        draft: ``q``.
    """
    ids = np.arange(len(draft.weights)) if draft.ids is None else draft.ids
    probs = draft.weights / draft.total
    rest = law.probs.copy()
    if law.ids is None:
        rest[ids] -= probs
    else:
        at = np.minimum(np.searchsorted(law.ids, ids), len(law.ids) - 1)
        shared = law.ids[at] == ids
        rest[at[shared]] -= probs[shared]
    rest = np.maximum(rest, 0.0)
    total = rest.sum()
    # Equal laws up to rounding leave nothing, and are never rejected but by rounding.
    return Law(law.ids, rest / total) if total > 0 else law


def judge(
    tokens: Sequence[int],
    drafts: Sequence[Lattice],
    logits: np.ndarray,
    params: SamplingParams,
    position: int,
) -> Decision:
    """Judge a block whose draft laws are known.

    Args:
        tokens: ``k`` drafted ids.
        drafts: The law that each was drawn from; none gives its token weight 0.
        logits: ``(k + 1, vocab)`` of the target.
        params: Of the target's law; its seed moves the coins.
        position: Absolute position of ``tokens[0]``.
    """
    for j, token in enumerate(tokens):
        law, draft, at = law_of(logits[j], params), drafts[j], position + j
        coin = params.coin(at, Domain.ACCEPT)
        if coin * draft.weight(token) > law.prob(token) * draft.total:
            rest = residual_of(law, draft)
            return Decision(j, rest.draw(params.coin(at, Domain.CORRECT)))
    k = len(tokens)
    law = law_of(logits[k], params)
    return Decision(k, law.draw(params.coin(position + k, Domain.CORRECT)))
