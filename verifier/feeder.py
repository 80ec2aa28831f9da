"""What a scheduler is to slots, for engines that keep streams themselves: it counts.

The engine batches, pages and decodes on its own; what is left to us is how many streams it
shall have at once, and what it did.
"""

from __future__ import annotations

from draftwire.clock import Clock
from draftwire.errors import DraftwireError, RefusedError
from draftwire.verifier.backends.streaming import (
    OnEnd,
    OnStep,
    Order,
    Push,
    Run,
    Step,
    StreamBackend,
)
from draftwire.verifier.scheduler import Counters

__all__ = ["Feeder"]


class Feeder:
    """The streams of one engine.

    Args:
        clock: When, and in whose thread.
    """

    def __init__(self, backend: StreamBackend, clock: Clock) -> None:
        self.backend = backend
        self.clock = clock
        self.counters = Counters()  # what the engine did for streams so far
        self.waiting = 0  # streams whose prompt it has not read yet
        self._running = 0
        self._forward = 0  # number of the last one
        self._streams = 0  # of it
        self._closed = False

    def check_room(self) -> None:
        """Raise RefusedError unless the engine may have one more stream."""
        if self._closed:
            raise RefusedError("the verifier is shutting down")
        if self._running >= self.backend.slots:
            raise RefusedError(
                f"{self._running} streams run on target {self.backend.name} "
                f"{self.backend.version}, that is its limit",
                hint="try again later, or raise --slots",
            )

    def open(self, order: Order, on_step: OnStep, on_end: OnEnd) -> Run:
        """Open a stream: see :meth:`StreamBackend.open`."""
        fed = _Fed(self, on_step, on_end)
        fed.run = self.backend.open(order, self.clock, fed.stepped, fed.ended)
        self._running += 1
        self.waiting += 1
        return fed

    def close(self) -> None:
        """End the engine."""
        if not self._closed:
            self._closed = True
            self.backend.close()

    def _count(self, step: Step) -> None:
        counters = self.counters
        counters.tokens += step.drafted + bool(step.tokens)
        if step.forward and step.forward == self._forward:
            counters.batch_sizes[self._streams] -= 1
            self._streams += 1
        else:
            self._forward, self._streams = step.forward, 1
            counters.forwards += 1
            counters.compute_s += step.compute_s
        sizes = counters.batch_sizes
        sizes[self._streams] = sizes.get(self._streams, 0) + 1


class _Fed:
    """A run that is counted."""

    run: Run

    def __init__(self, feeder: Feeder, on_step: OnStep, on_end: OnEnd) -> None:
        self._feeder, self._on_step, self._on_end = feeder, on_step, on_end
        self._waits = self._open = True

    def push(self, push: Push) -> None:
        self.run.push(push)

    def close(self) -> None:
        if self._open:
            self._feeder.counters.cancelled += self._waits
            self._leave()
            self.run.close()

    def _leave(self) -> None:
        self._open = False
        self._feeder._running -= 1
        self._read()

    def _read(self) -> None:
        self._feeder.waiting -= self._waits
        self._waits = False

    def stepped(self, step: Step) -> None:
        if self._open:
            if step.tokens:
                self._read()
            self._feeder._count(step)
            self._on_step(step)

    def ended(self, error: DraftwireError, again: bool) -> None:
        if self._open:
            self._leave()
            self._feeder.counters.failed += not again
            self._on_end(error, again)
