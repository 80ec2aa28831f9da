"""Models that take the time of other machines: stretched to a timing profile by sleeping.

A forward of the real model (or of a played text) is done first, and then waited for
until the profile's time for it has passed. So a laptop core stands in for a board and a
data centre, and everything else is real: processes, sockets, sessions, threads. Only
``bench`` uses this; no verifier that serves can be told to.

Pacing holds as long as the real forward is shorter than the profile's; how often it was
not is counted, and a report says so.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any, Protocol, Sequence

import numpy as np

from draftwire.bench.sim.cloud import ForwardCost
from draftwire.bench.sim.device import StepCost
from draftwire.packages import Exit
from draftwire.runtime.drafter import Model
from draftwire.verifier.backends.base import ExitListener, SlotInput, TargetBackend


class DraftCost(Protocol):
    """Seconds of a forward of the draft."""

    def __call__(self, tokens: int) -> float:
        """Return the seconds of a forward of so many tokens."""


@dataclass
class Pacer:
    """Waits until a time has passed, and counts."""

    count: int = 0  # waits so far
    missed: int = 0  # those whose time had passed already
    worst_s: float = 0.0  # by how much, at most

    def until(self, due_s: float) -> None:
        """Return at ``due_s`` of ``time.perf_counter``, or at once when it is later."""
        self.count += 1
        left = due_s - time.perf_counter()
        if left < 0:
            self.missed += 1
            self.worst_s = max(self.worst_s, -left)
            return
        time.sleep(left)


class PacedDraft:
    """A draft model that takes a profile's time; what the drafter's ``Model`` is.

    Args:
        model: The real one.
        cost: Seconds of a forward.
    """

    def __init__(self, model: Model, cost: DraftCost | StepCost) -> None:
        self._model = model
        self._cost = cost
        self.pacer = Pacer()

    @property
    def length(self) -> int:
        """Tokens in the KV cache."""
        return self._model.length

    def forward(self, tokens: Sequence[int]) -> np.ndarray:
        """Feed ``tokens``; return logits ``(vocab,)`` after the last one, in due time."""
        due_s = time.perf_counter() + self._cost(len(tokens))
        logits = self._model.forward(tokens)
        self.pacer.until(due_s)
        return logits

    def rewind(self, length: int) -> None:
        """Forget all but the first ``length`` tokens; takes no time."""
        self._model.rewind(length)


class PacedTarget:
    """A target backend that takes a profile's time, early exits included.

    An exit after ``layer`` of ``layers`` speaks when that share of the forward's time
    has passed.

    Args:
        backend: The real one.
        cost: Seconds of a forward.
        layers: Of the target, for its exits.
    """

    def __init__(self, backend: TargetBackend, cost: ForwardCost, layers: int = 1) -> None:
        self._backend = backend
        self._cost = cost
        self._layers = layers
        self.pacer = Pacer()
        self.id = backend.id
        self.name = backend.name
        self.version = backend.version
        self.family = backend.family
        self.vocab_size = backend.vocab_size
        self.context = backend.context
        self.bos_id = backend.bos_id
        self.eos_ids = backend.eos_ids
        self.slots = backend.slots
        self.exits: tuple[Exit, ...] = backend.exits
        self.numerics, self.logit_error = backend.numerics, backend.logit_error

    def allocate(self) -> int:
        """Take a KV slot."""
        return self._backend.allocate()

    def release(self, slot: int) -> None:
        """Give a slot back."""
        self._backend.release(slot)

    def seconds(self, batch: Sequence[SlotInput]) -> float:
        """Return what a forward over ``batch`` takes."""
        tokens = sum(len(item) for item in batch)
        if all(item.rows == 0 for item in batch):
            return self._cost.reading(tokens)
        return self._cost(tokens, len(batch))

    def forward(
        self, batch: Sequence[SlotInput], on_exit: ExitListener | None = None
    ) -> list[np.ndarray[Any, Any]]:
        """Run one forward; return in due time."""
        began_s = time.perf_counter()
        seconds = self.seconds(batch)
        hold: ExitListener | None = None
        if on_exit is not None:
            listener = on_exit

            def hold(number: int, rows: list[np.ndarray[Any, Any]]) -> None:
                share = self.exits[number].layer / self._layers
                self.pacer.until(began_s + share * seconds)
                listener(number, rows)

        answers = self._backend.forward(batch, hold)
        self.pacer.until(began_s + seconds)
        return answers
