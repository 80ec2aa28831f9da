"""Greedy decoding that carries a published scheme's bytes: for comparisons only.

A baseline that sends distributions has no use for them under greedy decoding, where the
cloud compares ids. Leaving them out would flatter it, so they are carried all the same:
each drafted token brings as many bytes of evidence as the published scheme would send,
through the same codec, socket and link, and the cloud checks their number and looks no
further. The scheme exists in the processes of a comparison alone.
"""

from __future__ import annotations

import contextlib
from functools import partial
from typing import Collection, Iterator, Sequence

import numpy as np

from draftwire import sampling
from draftwire.errors import ProtocolError
from draftwire.sampling import Decision, Proposal, Proposer, SamplingParams, greedy
from draftwire.sampling.scheme import Card, Scheme


class _Proposer(Proposer):
    def __init__(self, size: int, params: SamplingParams, vocab_size: int) -> None:
        super().__init__(params, vocab_size)
        self._size = size
        self._greedy = greedy.SCHEME.make_proposer(params, vocab_size)

    def propose(self, logits: np.ndarray, position: int) -> Proposal:
        self._greedy.insight = self.insight  # schemes that prepare outcomes live by it
        found = self._greedy.propose(logits, position)
        # A law that starts with the draft's own probabilities, in fp16: real content.
        law = np.exp((logits - logits[found.token]).astype(np.float32))
        content = (law / law.sum()).astype("<f2").tobytes()[: self._size]
        return found._replace(evidence=content.ljust(self._size, b"\0"))

    def pack(self, proposals: Sequence[Proposal]) -> bytes:
        return b"".join([p.evidence for p in proposals])


class _Decider:
    def __init__(self, size: int, params: SamplingParams, vocab_size: int) -> None:
        self._size = size
        self._greedy = greedy.SCHEME.make_decider(params, vocab_size)

    def decide(
        self,
        tokens: Sequence[int],
        evidence: bytes,
        logits: np.ndarray,
        position: int,
        forced: Collection[int] = (),
    ) -> Decision:
        if len(evidence) != self._size * (len(tokens) - len(forced)):
            raise ProtocolError(
                f"{len(evidence)} bytes of evidence for {len(tokens)} tokens, "
                f"{self._size} each were agreed on"
            )
        return self._greedy.decide(tokens, b"", logits, position)


def carried_scheme(size: int) -> Scheme:
    """Return greedy decoding with ``size`` bytes beside each drafted token."""
    card = Card(
        f"greedy+{size}",
        exact=True,
        note=f"ids and {size} bytes a token up, which greedy decoding does not need",
        greedy=True,
        sampled=False,
        any_draft=False,
    )

    return Scheme(card, partial(_Proposer, size), partial(_Decider, size))


@contextlib.contextmanager
def carrying(sizes: Sequence[int]) -> Iterator[None]:
    """Know these schemes in this process, for as long as the ``with`` lasts."""
    added = {scheme.card.name: scheme for scheme in map(carried_scheme, sizes)}
    sampling.SCHEMES.update(added)
    try:
        yield
    finally:
        for name in added:
            sampling.SCHEMES.pop(name, None)
