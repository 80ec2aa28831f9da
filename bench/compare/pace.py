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
from typing import Any, Callable, Sequence

import numpy as np

from draftwire.bench.sim.cloud import ForwardCost
from draftwire.runtime.drafter import Model
from draftwire.verifier.backends.base import ExitListener, SlotInput, TargetBackend


@dataclass
class Pacer:
    """Waits until a time has passed, and counts."""

    count: int = 0  # waits so far
    missed: int = 0  # those whose time had passed already

    def until(self, due_s: float) -> None:
        """Return at ``due_s`` of ``time.perf_counter``, or at once when it is later."""
        self.count += 1
        left = due_s - time.perf_counter()
        if left < 0:
            self.missed += 1
        else:
            time.sleep(left)


class PacedDraft:
    """A draft model that takes a profile's time; what the drafter's ``Model`` is.

    Args:
        model: The real one.
        cost: Seconds of a forward of so many tokens.
    """

    def __init__(self, model: Model, cost: Callable[[int], float]) -> None:
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


def paced(backend: TargetBackend, cost: ForwardCost, layers: int = 1) -> TargetBackend:
    """Return ``backend``, whose forwards take a profile's time from now on.

    An exit after ``layer`` of ``layers`` speaks when that share of a forward's time has
    passed.
    """
    pacer, forward = Pacer(), backend.forward

    def in_time(
        batch: Sequence[SlotInput], on_exit: ExitListener | None = None
    ) -> list[np.ndarray[Any, Any]]:
        began_s = time.perf_counter()
        seconds = cost.of_batch(batch, all(item.rows == 0 for item in batch))

        def hold(number: int, rows: list[np.ndarray[Any, Any]]) -> None:
            assert on_exit is not None
            share = backend.exits[number].layer / layers
            pacer.until(began_s + share * seconds)
            on_exit(number, rows)

        answers = forward(batch, None if on_exit is None else hold)
        pacer.until(began_s + seconds)
        return answers

    backend.forward = in_time  # type: ignore[method-assign]
    return backend
