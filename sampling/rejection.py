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

from typing import Callable, Collection, Sequence

import numpy as np

from draftwire.errors import ProtocolError
from draftwire.sampling.evidence import Lattice
from draftwire.sampling.laws import Law, SamplingParams, law_of
from draftwire.sampling.philox import Domain
from draftwire.sampling.scheme import Decision, Proposal, Proposer


def check_tokens(tokens: Sequence[int], vocab_size: int) -> None:
    """Raise a ProtocolError where an id is outside the vocabulary."""
    for token in tokens:
        if not 0 <= token < vocab_size:
            raise ProtocolError(
                f"token id {token} is outside the vocabulary of {vocab_size}"
            )


def residual_of(law: Law, draft: Lattice) -> Law:
    """Return ``norm(max(0, p - q))``, the law of a correction."""
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


class Drawn(Proposer):
    """What the device halves share that draw from a law in whole numbers, which goes up.

    A subclass gives ``_round`` (the law that is drawn from) and ``_packed`` (its bytes).
    """

    _round: Callable[[Law, int], Lattice]
    _packed: Callable[[Lattice, int], bytes]

    def propose(self, logits: np.ndarray, position: int) -> Proposal:
        """See :class:`~draftwire.sampling.scheme.Proposer`, as for the next two."""
        law = law_of(logits[: self._vocab_size], self._params)
        draft = self._round(law, position)
        token = draft.draw(self._params.coin(position, Domain.DRAFT))
        return Proposal(token, law.prob(token), draft)

    def pack(self, proposals: Sequence[Proposal]) -> bytes:
        """Return the laws of a block, one behind the other."""
        return b"".join([self._packed(p.evidence, p.token) for p in proposals])


class Judge:
    """The cloud half of schemes whose blocks bring something of the laws of their drafts.

    ``unpack`` returns that of each token, given tokens, evidence and vocabulary: a
    :class:`Lattice` that holds at least the token. ``params`` are of the target's law; its
    seed moves the coins.
    """

    def __init__(
        self,
        unpack: Callable[[Sequence[int], bytes, int], list[Lattice]],
        params: SamplingParams,
        vocab_size: int,
    ) -> None:
        self._unpack, self._params, self._vocab_size = unpack, params, vocab_size

    def decide(
        self,
        tokens: Sequence[int],
        evidence: bytes,
        logits: np.ndarray,
        position: int,
        forced: Collection[int] = (),
    ) -> Decision:
        """See :class:`~draftwire.sampling.scheme.Decider`."""
        params = self._params
        drawn = [t for j, t in enumerate(tokens) if j not in forced] if forced else tokens
        drafts = self._unpack(drawn, evidence, self._vocab_size)
        for j in sorted(forced):
            drafts.insert(j, Lattice(np.array([tokens[j]]), np.ones(1, np.int64), 1))
        for j, token in enumerate(tokens):
            law, draft, at = self._law(logits[j]), drafts[j], position + j
            coin = params.coin(at, Domain.ACCEPT)
            if coin * draft.weight(token) > law.prob(token) * draft.total:
                return Decision(j, *self._correction(law, draft, token, at))
        k = len(tokens)
        coin = params.coin(position + k, Domain.CORRECT)
        return Decision(k, self._law(logits[k]).draw(coin))

    def _law(self, logits: np.ndarray) -> Law:
        return law_of(logits, self._params)

    def _correction(
        self, law: Law, draft: Lattice, token: int, position: int
    ) -> tuple[int, bytes]:
        """Return the id in place of a rejected ``token``, or evidence to draw it from."""
        coin = self._params.coin(position, Domain.CORRECT)
        return residual_of(law, draft).draw(coin), b""
