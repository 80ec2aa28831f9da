"""Separate: one number up per token; on a rejection the device draws the correction.

The device sends the probability ``q(x)`` of each drafted token and keeps the rest of
``q``. The cloud runs the accept test. Only on a rejection do the ``SUPPORT`` largest
entries of the target's law ``p`` come down, once, and the device draws from
``norm(max(0, p - q))``.

``q`` is rounded to multiples of 2**-24 before the draw, and so is a ``p`` that the
entries cover, before the accept test: what crosses the network is what was used. With
``1 <= top_k <= SUPPORT`` they do cover it and the output has the target's law (rounded
to 2**-24). Without it the correction cannot reach the tail: ``separate`` refuses, and
``separate-lossy``, the scheme as published, says so.

Evidence up: for each token ``q(x) * 2**24 - 1`` in 3 bytes, little-endian. Evidence
down: 7 bits for the number ``n`` of entries, their ids (``bits.put_set``, without
the rejected token, ids above it lowered by 1), then for each in rising order
``p * 2**24 - 1`` in 24 bits.

Source:
    PicoSpec, https://arxiv.org/abs/2603.19133.
"""

from __future__ import annotations

from typing import Sequence

import numpy as np

from draftwire.errors import ConfigError, ProtocolError
from draftwire.sampling.evidence import (
    BitReader,
    BitWriter,
    Lattice,
    get_set,
    put_set,
    quantise,
)
from draftwire.sampling.laws import Law, SamplingParams, largest, law_of
from draftwire.sampling.philox import Domain
from draftwire.sampling.rejection import Drawn, Judge, check_tokens
from draftwire.sampling.scheme import Card, Proposal, Scheme

SUPPORT = 64  # entries of the target's law that come down on a rejection
_BITS = 24
_ONE = 1 << _BITS

CARD = Card(
    "separate",
    exact=True,
    note=f"ids and 3 bytes a token up; {SUPPORT} entries down on a rejection; "
    f"needs top-k of 1..{SUPPORT}",
    any_draft=False,
    own_corrections=True,
)
LOSSY_CARD = Card(
    "separate-lossy",
    exact=False,
    note=f"as separate with any top-k; LOSSY where {SUPPORT} entries do not cover the "
    "target's law",
    any_draft=False,
    own_corrections=True,
)


def _covers(params: SamplingParams, vocab_size: int) -> bool:
    """Return whether ``SUPPORT`` entries always hold the whole law."""
    return min(params.top_k or vocab_size, vocab_size) <= SUPPORT


def _loss(params: SamplingParams, vocab_size: int) -> str:
    """Say what the corrections lose, "" when nothing."""
    if _covers(params, vocab_size):
        return ""
    return (
        f"scheme 'separate-lossy' approximates: corrections come from the {SUPPORT} "
        f"largest entries of the target's law, which top-k {params.top_k} does not fit"
    )


class _Proposer(Drawn):
    def _round(self, law: Law, position: int) -> Lattice:
        return Lattice(law.ids, quantise(law.probs, _ONE), _ONE)

    def _packed(self, draft: Lattice, token: int) -> bytes:
        return (draft.weight(token) - 1).to_bytes(3, "little")

    def correct(self, proposal: Proposal, evidence: bytes, position: int) -> int:
        token, draft = proposal.token, proposal.evidence
        ids, target = unpack_entries(evidence, token, self._vocab_size)
        if draft.ids is None:
            known = draft.weights[ids]
        else:
            at = np.minimum(np.searchsorted(draft.ids, ids), len(draft.ids) - 1)
            known = np.where(draft.ids[at] == ids, draft.weights[at], 0)
        rest = np.maximum(target - known, 0)
        total = int(rest.sum())
        if not total:
            if _covers(self._params, self._vocab_size):
                raise ProtocolError("the target's entries leave no correction to draw")
            rest, total = target, int(target.sum())  # the tail is what we lack
        coin = self._params.coin(position, Domain.CORRECT)
        return Lattice(ids, rest, total).draw(coin)


def unpack(tokens: Sequence[int], evidence: bytes, vocab_size: int) -> list[Lattice]:
    """Return each token with ``q(x) * 2**24`` alone, or raise a ProtocolError."""
    if len(evidence) != 3 * len(tokens):
        raise ProtocolError(
            f"{len(evidence)} bytes of evidence for {len(tokens)} tokens, 3 bytes each"
        )
    check_tokens(tokens, vocab_size)
    parts = [evidence[at : at + 3] for at in range(0, len(evidence), 3)]
    weights = [int.from_bytes(part, "little") + 1 for part in parts]
    return [
        Lattice(np.array([token]), np.array([weight]), _ONE)
        for token, weight in zip(tokens, weights)
    ]


def _pack_entries(
    ids: np.ndarray, weights: np.ndarray, token: int, vocab_size: int
) -> bytes:
    """Return the evidence that goes down: rising ids without ``token``, and weights."""
    bits = BitWriter()
    bits.put(len(ids), 7)
    put_set(bits, (ids - (ids > token)).tolist(), vocab_size - 1)
    for weight in weights.tolist():
        bits.put(weight - 1, _BITS)
    return bits.done()


def unpack_entries(
    evidence: bytes, token: int, vocab_size: int
) -> tuple[np.ndarray, np.ndarray]:
    """Undo what :class:`_Decider` sends; a ProtocolError where it is no part of a law."""
    bits = BitReader(evidence)
    count = bits.take(7)
    if not 1 <= count <= min(SUPPORT, vocab_size - 1):
        raise ProtocolError(f"{count} entries of the target's law")
    ids = np.array(get_set(bits, count, vocab_size - 1), np.int64)
    weights = np.array([bits.take(_BITS) + 1 for _ in range(count)], np.int64)
    bits.finish()
    if weights.sum() > _ONE + SUPPORT:  # each may be rounded up
        raise ProtocolError("the entries of the target's law sum to more than 1")
    return ids + (ids >= token), weights


class _Decider(Judge):
    def __init__(self, params: SamplingParams, vocab_size: int) -> None:
        super().__init__(unpack, params, vocab_size)
        self._exact = _covers(params, vocab_size)

    def _law(self, logits: np.ndarray) -> Law:
        law = law_of(logits[: self._vocab_size], self._params)
        if not self._exact:
            return law
        return Law(law.ids, quantise(law.probs, _ONE) / _ONE)

    def _correction(
        self, law: Law, draft: Lattice, token: int, position: int
    ) -> tuple[int, bytes]:
        best = largest(law.probs, SUPPORT + 1)
        ids = best if law.ids is None else law.ids[best]
        weights = np.maximum(np.rint(law.probs[best] * _ONE), 1).astype(np.int64)
        kept = np.flatnonzero((ids != token) & (law.probs[best] > 0))[:SUPPORT]
        kept = kept[np.argsort(ids[kept])]
        return -1, _pack_entries(ids[kept], weights[kept], token, self._vocab_size)


def _check(params: SamplingParams, vocab_size: int) -> None:
    if not _covers(params, vocab_size):
        raise ConfigError(
            f"scheme 'separate' sends {SUPPORT} entries of the target's law, which "
            f"top-k {params.top_k} does not fit: corrections would be biased",
            hint=f"use --top-k {SUPPORT} or less, or --scheme separate-lossy",
        )


SCHEME = Scheme(CARD, _Proposer, _Decider, check=_check)
LOSSY_SCHEME = Scheme(LOSSY_CARD, _Proposer, _Decider, _loss)
