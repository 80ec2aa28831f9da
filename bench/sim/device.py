"""The board: the driver's engine port, with steps that take what they are said to take."""

from __future__ import annotations

from typing import TYPE_CHECKING, Callable

from draftwire.clock import Clock
from draftwire.runtime.drafter import Drafter, Step

if TYPE_CHECKING:
    from draftwire.runtime.driver import Driver


class VirtualEngine:
    """Runs a drafter's steps as the engine thread does, on any clock.

    A step takes its orders when it begins, and nothing cuts it short. The next one
    begins when it ends, before the driver has made anything of what it gave.

    Args:
        clock: Where everything happens.
        drafter: Whose steps.
        cost: Seconds of a step over so many tokens; None takes the time that it takes.
        lane: What another lane of the model adds, of a step.

    Attributes:
        driver: Told of each step; to be set before the first.
    """

    driver: Driver

    def __init__(
        self,
        clock: Clock,
        drafter: Drafter,
        cost: Callable[[int], float] | None,
        lane: float = 0.0,
    ) -> None:
        self._clock = clock
        self._drafter = drafter
        self._cost, self._lane = cost, lane
        self._busy = self._closed = False

    def wake(self) -> None:
        """There may be something to do."""
        if self._busy or self._closed:
            return
        if self._cost is None:  # it holds everything up: not in the middle of an event
            self._busy = True
            self._clock.post(self._begin)
        else:
            self._begin()

    def close(self) -> None:
        """Begin no other step."""
        self._closed = True

    def _begin(self) -> None:
        began_s = self._clock.now()
        self._busy = False
        if self._closed:
            return
        try:
            step = self._drafter.step()
        except Exception as error:  # noqa: BLE001 - engines raise their own classes
            self._clock.post(self.driver.engine_failed, self._drafter.stream, error)
            self.wake()
            return
        if step is not None:
            self._busy = True
            seconds = self._clock.now() - began_s
            if self._cost is not None:  # what an earlier forward said is there at once
                seconds = self._cost(step.fed + step.masks) if step.fed else 0.0
                seconds *= 1.0 + self._lane * (step.lanes - 1)
            self._clock.call_at(began_s + seconds, self._end, step, seconds)

    def _end(self, step: Step, seconds: float) -> None:
        self._begin()
        self.driver.stepped(step, seconds)
