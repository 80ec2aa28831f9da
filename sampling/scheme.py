"""What every sampling scheme is made of: a device half and a cloud half.

The device half proposes tokens from the draft's logits and packs whatever the cloud
needs beside the ids (its *evidence*); the cloud half decides from the target's logits.
Both halves of a scheme live in one module, so that they can be read side by side.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, Sequence

import numpy as np

from draftwire.sampling.laws import SamplingParams

__all__ = ["Card", "Decider", "Decision", "Proposal", "Proposer", "Scheme"]


class Proposal(NamedTuple):
    """One drafted token.

    Attributes:
        token: Its id.
        confidence: The draft's probability of it, or None when not computed.
        evidence: What :meth:`Proposer.pack` will need; its type is the scheme's own.
    """

    token: int
    confidence: float | None = None
    evidence: Any = None


class Decision(NamedTuple):
    """The cloud's verdict on a block.

    Attributes:
        accepted: How many drafted tokens are kept, ``0..k``.
        token: The id that follows them (a correction, or a bonus after all ``k``);
            -1 when the device draws it from ``evidence``.
        evidence: Bytes for :meth:`Proposer.correct`; empty for most schemes.
    """

    accepted: int
    token: int
    evidence: bytes = b""


@dataclass(frozen=True)
class Card:
    """The name card of a scheme.

    Attributes:
        name: As in ``--scheme``.
        exact: True when the output has exactly the target's law.
        note: One line: what crosses the network, and what is lost if not exact.
        greedy: Works at temperature 0.
        sampled: Works above temperature 0.
    """

    name: str
    exact: bool
    note: str
    greedy: bool
    sampled: bool


class Proposer(Protocol):
    """Device half."""

    def propose(self, logits: np.ndarray, position: int) -> Proposal:
        """Choose a token for ``position`` from draft ``logits`` ``(vocab,)``."""

    def pack(self, proposals: Sequence[Proposal]) -> bytes:
        """Return the evidence of a block; empty when the ids say it all."""

    def correct(self, proposal: Proposal, evidence: bytes, position: int) -> int:
        """Draw the correction after ``proposal`` was rejected (``Decision.evidence``)."""


class Decider(Protocol):
    """Cloud half."""

    def decide(
        self, tokens: Sequence[int], evidence: bytes, logits: np.ndarray, position: int
    ) -> Decision:
        """Judge a block.

        Args:
            tokens: ``k`` drafted ids; ``tokens[0]`` would stand at ``position``.
            evidence: What the device half packed for exactly these tokens.
            logits: ``(k + 1, vocab)``; row ``j`` follows ``tokens[:j]``.
            position: Absolute position.

        Raises:
            ProtocolError: The evidence is not valid for this scheme.
        """


class Scheme(Protocol):
    """A module of this package that defines a scheme."""

    CARD: Card

    def make_proposer(self, params: SamplingParams, vocab_size: int) -> Proposer:
        """Return the device half."""

    def make_decider(self, params: SamplingParams, vocab_size: int) -> Decider:
        """Return the cloud half."""
