"""The board in virtual time: the drafter, and the session's orders carried out."""

from __future__ import annotations

from collections import deque
from typing import Callable, Sequence

from draftwire.bench.sim.events import Loop
from draftwire.bench.sim.facts import Profile
from draftwire.runtime.actions import Draft
from draftwire.runtime.drafter import Model
from draftwire.sampling import Proposal, Proposer

__all__ = ["SimDrafter", "StepCost"]

_CHUNK = 256  # as the real drafter: prompt tokens between two looks at the inbox


class StepCost:
    """What a forward of the draft takes.

    Args:
        step_s: A forward of few tokens.
        few: So many tokens cost no more than one.
        read_s: Each token beyond.
    """

    def __init__(self, step_s: float, few: int = 16, read_s: float = 0.0) -> None:
        self.step_s = step_s
        self._few = few
        self._read_s = read_s

    @classmethod
    def of(cls, profile: Profile) -> StepCost:
        """Return the costs of a profile's board."""
        return cls(
            profile.seconds("draft.step_ms"),
            int(profile["draft.step_tokens"]),
            profile.seconds("draft.read_ms_per_token"),
        )

    def __call__(self, tokens: int) -> float:
        """Return the seconds of a forward of ``tokens``."""
        return self.step_s + self._read_s * max(0, tokens - self._few)


class SimDrafter:
    """The drafting thread (:class:`~draftwire.runtime.drafter.Drafter`) in virtual time.

    It does what the real one does, in the same order: orders edit the sequence, a new
    order is looked at when the forward at work has ended, and then the order before it
    is over. A forward is not cut short; what it gives still goes to the session.

    Args:
        loop: The clock.
        cost: Of the forwards.
        vocab_size: Of the connection.
        on_proposal: As the real one's.

    Attributes:
        draft_s: Seconds spent on drafting since :meth:`begin`.
        prefill_s: Seconds spent on reading text since :meth:`begin`.
        last_step_s: What the last proposal took.
        steps: Forwards that proposed since :meth:`begin`.
    """

    def __init__(
        self,
        loop: Loop,
        cost: StepCost,
        vocab_size: int,
        on_proposal: Callable[[int, Proposal], None],
    ) -> None:
        self._loop = loop
        self._cost = cost
        self._vocab_size = vocab_size
        self._on_proposal = on_proposal
        self._model: Model | None = None
        self._proposer: Proposer | None = None
        self._orders: deque[Draft] = deque()
        self._sequence: list[int] = []
        self._order: Draft | None = None
        self._left = 0
        self._busy = False
        self._stream = 0
        self.draft_s = self.prefill_s = self.last_step_s = 0.0
        self.steps = 0

    def begin(self, model: Model, proposer: Proposer) -> None:
        """Start a new stream."""
        self._model, self._proposer = model, proposer
        self._orders.clear()
        self._sequence = []
        self._order = None
        self._left = 0
        self._stream += 1  # a forward of the stream before says nothing any more
        self._busy = False
        self.draft_s = self.prefill_s = 0.0
        self.steps = 0

    @property
    def busy(self) -> bool:
        """True while a forward runs."""
        return self._busy

    def submit(self, order: Draft) -> None:
        """Take an order."""
        self._orders.append(order)
        if not self._busy:
            self._next()

    def _take_orders(self) -> None:
        model, sequence, orders = self._model, self._sequence, self._orders
        assert model is not None
        while orders:
            order = orders.popleft()
            sequence[order.valid :] = order.tokens
            if model.length > order.valid:
                model.rewind(order.valid)
        if order.count and model.length >= len(sequence):
            model.rewind(len(sequence) - 1)
        self._order = order
        self._left = order.count

    def _next(self) -> None:
        """Begin a forward, if there is reason for one."""
        if self._orders:
            self._take_orders()
        if not self._left:
            return
        assert self._model is not None
        waiting = len(self._sequence) - self._model.length
        fed = min(waiting, _CHUNK)
        reads = waiting > _CHUNK
        seconds = self._cost(fed)
        self._busy = True
        self._loop.after(seconds, self._done, self._stream, fed, reads, seconds)

    def _done(self, stream: int, fed: int, reads: bool, seconds: float) -> None:
        if stream != self._stream:
            return
        model, proposer, order = self._model, self._proposer, self._order
        assert model is not None and proposer is not None and order is not None
        self._busy = False
        sequence = self._sequence
        at = model.length
        logits = model.forward(sequence[at : at + fed])
        if reads:
            self.prefill_s += seconds
            self._next()
            return
        if fed > 1:
            self.prefill_s += seconds
        else:
            self.draft_s += seconds
        self.steps += 1
        self.last_step_s = seconds
        proposal = proposer.propose(logits[: self._vocab_size], len(sequence))
        sequence.append(proposal.token)
        self._left -= 1
        self._busy = True  # what the session says now is looked at below, not inside
        self._on_proposal(order.branch, proposal)
        if stream == self._stream:
            self._busy = False
            self._next()


def sequence_of(drafter: SimDrafter) -> Sequence[int]:
    """Return what the drafter holds, for tests."""
    return tuple(drafter._sequence)
