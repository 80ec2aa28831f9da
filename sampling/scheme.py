"""What every sampling scheme is made of: a device half and a cloud half.

The device half proposes tokens from the draft's logits and packs whatever the cloud
needs beside the ids (its *evidence*); the cloud half decides from the target's logits.
Both halves of a scheme live in one module, so that they can be read side by side.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Callable, Collection, NamedTuple, Protocol, Sequence

import numpy as np

from draftwire.errors import ProtocolError
from draftwire.sampling.laws import SamplingParams


class Proposal(NamedTuple):
    """One drafted token."""

    token: int  # its id
    confidence: float | None = None  # the draft's probability of it, if computed
    evidence: Any = None  # what :meth:`Proposer.pack` will need, of the scheme's own type
    runner_up: int | None = None  # the id it would have been otherwise, if computed
    then: tuple[int, ...] = ()  # ids that a grammar forces behind it
    forced: bool = False  # by a grammar: it was not drawn, and is not sent
    last: bool = False  # a grammar has nothing that could follow
    depth: int = 0  # masks that stood between its row of logits and the text


class Decision(NamedTuple):
    """The cloud's verdict on a block."""

    accepted: int  # how many drafted tokens are kept, ``0..k``
    # the id that follows them (a correction, or a bonus after all ``k``); -1 when the
    # device draws it from ``evidence``
    token: int
    evidence: bytes = b""  # bytes for :meth:`Proposer.correct`; empty for most schemes


@dataclass(frozen=True)
class Card:
    """The name card of a scheme."""

    name: str  # as in ``--scheme``
    # true when the output has exactly the target's law with every setting that the scheme
    # takes. Ask ``draftwire.sampling.loss_of`` about given settings.
    exact: bool
    note: str  # one line: what crosses the network, and what is lost if not exact
    greedy: bool = False  # works at temperature 0
    sampled: bool = True  # works above temperature 0
    # true when drafted tokens may come from anywhere (a suffix cache, a user), and be
    # dropped after a look at them. Otherwise every token must come from
    # :meth:`Proposer.propose`, and whether it is sent must be settled before it is drawn: a
    # block may end after a weak token, not before it.
    any_draft: bool = True
    own_corrections: bool = False  # the device draws what follows a rejection

    @property
    def racing(self) -> bool:
        """Whether it may race: there which blocks count must not depend on drawn values."""
        return self.any_draft


class Proposer:
    """Device half, of a scheme whose blocks carry ids alone unless it says else.

    Attributes:
        insight: Also say how sure the draft is of each token, and of the next best.
        second: Also say the next best. Both where ids are all that a block carries.
    """

    insight = second = False

    def __init__(self, params: SamplingParams, vocab_size: int) -> None:
        self._params, self._vocab_size = params, vocab_size

    def propose(self, logits: np.ndarray, position: int) -> Proposal:
        """Choose a token for ``position`` from draft ``logits`` ``(vocab,)``."""
        raise NotImplementedError

    def pack(self, proposals: Sequence[Proposal]) -> bytes:
        """Return the evidence of a block; empty when the ids say it all.

        ``pack(a + b) == pack(a) + pack(b)``: blocks are cut and joined anywhere.
        """
        return b""

    def correct(self, proposal: Proposal, evidence: bytes, position: int) -> int:
        """Draw the correction after ``proposal`` was rejected at ``position``.

        Raises:
            ProtocolError: ``Decision.evidence`` is not valid, or the cloud draws it.
        """
        raise ProtocolError(f"{self._params.scheme}: the cloud draws every correction")


class Decider(Protocol):
    """Cloud half."""

    def decide(
        self,
        tokens: Sequence[int],
        evidence: bytes,
        logits: np.ndarray,
        position: int,
        forced: Collection[int] = (),
    ) -> Decision:
        """Judge a block.

        Args:
            tokens: ``k`` drafted ids; ``tokens[0]`` would stand at ``position``.
            evidence: What the device half packed for exactly these tokens, forced ones
                left out.
            logits: ``(k + 1, vocab)``; row ``j`` follows ``tokens[:j]``.
            position: Absolute position.
            forced: Places in ``tokens`` of ids that nobody drew: a grammar leaves no
                other there, and its mask makes them certain.

        Raises:
            ProtocolError: The evidence is not valid for this scheme.
        """


class ByToken:
    """What the cloud halves share that choose a token at each place by themselves.

    Drafts are kept for as long as they are that token: ``choose`` returns the target's own,
    given logits ``(vocab,)`` and the position.
    """

    def __init__(self, name: str, choose: Callable[[np.ndarray, int], int]) -> None:
        self._name, self._choose = name, choose

    def decide(
        self,
        tokens: Sequence[int],
        evidence: bytes,
        logits: np.ndarray,
        position: int,
        forced: Collection[int] = (),
    ) -> Decision:
        """See :class:`Decider`; a ProtocolError where there is evidence."""
        refuse_evidence(self._name, evidence)
        for j, drafted in enumerate(tokens):
            token = self._choose(logits[j], position + j)
            if token != drafted:
                return Decision(j, token)
        last = len(tokens)
        return Decision(last, self._choose(logits[last], position + last))


@dataclass(frozen=True)
class Scheme:
    """Both halves, made for parameters and a vocabulary size, and the name card."""

    card: Card
    make_proposer: Callable[[SamplingParams, int], Proposer]
    make_decider: Callable[[SamplingParams, int], Decider]
    # says in one sentence what the output of these parameters loses against the target's
    # law, "" when nothing
    loss: Callable[[SamplingParams, int], str] = lambda params, vocab_size: ""
    # raises a ConfigError where the scheme cannot be used so
    check: Callable[[SamplingParams, int], None] = lambda params, vocab_size: None


def refuse_evidence(scheme: str, evidence: bytes) -> None:
    """Raise a ProtocolError where there is evidence, and the ids say it all."""
    if evidence:
        raise ProtocolError(
            f"scheme {scheme!r} takes no evidence, but {len(evidence)} bytes came"
        )
