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
from typing import Any, Callable, Sequence, cast

import numpy as np

from draftwire.bench.sim.cloud import ForwardCost
from draftwire.runtime.drafter import Model
from draftwire.verifier.backends.base import ExitListener, SlotInput, TargetBackend

_AWAKE_S = 2e-4  # before what is waited for


@dataclass
class Pacer:
    """Waits until a time has passed, and counts."""

    count: int = 0  # waits so far
    missed: int = 0  # those whose time had passed already

    def until(self, due_s: float) -> None:
        """Return at ``due_s`` of ``time.perf_counter``, or at once when it is later."""
        self.count += 1
        left = due_s - time.perf_counter()
        self.missed += left < 0
        if left > _AWAKE_S:
            time.sleep(left - _AWAKE_S)
        while time.perf_counter() < due_s:  # a sleep ends a little late
            pass


def paced_draft(
    model: Model, cost: Callable[[int], float], lanes: int = 1, lane: float = 0.0
) -> Pacer:
    """Have forwards of ``model`` take a profile's time; return what counts them.

    Args:
        model: The real one, or a played one.
        cost: Seconds of a forward of so many tokens.
        lanes: It keeps so many or fewer.
        lane: What another lane adds to a step, of the step.
    """
    pacer, one = Pacer(), cast(Any, model)

    def stretched(forward: Callable[..., Any], seconds: Callable[..., float]) -> Any:
        def in_time(*fed: Any) -> Any:
            due_s = time.perf_counter() + seconds(*fed)
            found = forward(*fed)
            pacer.until(due_s)
            return found

        return in_time

    one.beside = tuple(getattr(model, "beside", ()))[: lanes - 1]
    for each in (one, *one.beside):
        each.forward = stretched(each.forward, lambda tokens: cost(len(tokens)))
    if getattr(model, "parallel", None) is not None:  # masks stand behind the tokens
        one.ahead = stretched(one.ahead, lambda tokens, n: cost(len(tokens) + n - 1))
    if one.beside:
        one.wide = stretched(
            one.wide, lambda fed: cost(1) * (1 + lane * (max(fed) - min(fed)))
        )
    return pacer


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
