"""The board: the driver's engine port, with steps that take what they are said to take."""

from __future__ import annotations

from typing import TYPE_CHECKING, Callable

from draftwire.clock import Clock
from draftwire.runtime.drafter import Drafter, Step

if TYPE_CHECKING:
    from draftwire.runtime.driver import Driver


class Accelerator:
    """What engines run on, one step of one of them at a time.

    Where several have something to do, those that draft behind text that stands take turns
    first, in the order in which they came to it; then those that run ahead of text that is
    not judged yet, the least far first. As AsymSpec, https://arxiv.org/abs/2608.04974.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._asking: list[VirtualEngine] = []
        self._busy = False
        self.engines = 0  # that it serves

    def ask(self, engine: VirtualEngine) -> None:
        """``engine`` may have something to do."""
        if engine not in self._asking:
            self._asking.append(engine)
            engine.ready_s = self._clock.now()
        self._look()
        if self._busy:
            return
        if engine.own_pace:  # it holds everything up: not in the middle of an event
            self._busy = True
            self._clock.post(self.turn)
        else:
            self.turn()

    def turn(self) -> None:
        """Begin the next step, now that none is at work."""
        asking, self._busy = self._asking, False
        self._look()
        while asking and not self._busy:
            engine = min(asking, key=lambda engine: engine.ahead)
            self._busy = engine.begin()
            if not self._busy:
                asking.remove(engine)

    def _look(self) -> None:
        """Put engines whose next step stands elsewhere now behind the others."""
        if self.engines > 1:  # a stable sort: the others keep their order
            self._asking.sort(key=VirtualEngine.moved)


class VirtualEngine:
    """Runs a drafter's steps as the engine thread does, on any clock.

    A step takes its orders when it begins, and nothing cuts it short. The next one
    begins when it ends, before the driver has made anything of what it gave. Where others
    had their turns first, the driver hears of a step that took as long as that.

    Args:
        clock: Where everything happens.
        drafter: Whose steps.
        cost: Seconds of a step over so many tokens; None takes the time that it takes.
        lane: What another lane of the model adds, of a step.
        accelerator: That it shares with other engines; None gives it one of its own.

    Attributes:
        driver: Told of each step; to be set before the first.
        own_pace: Its steps take the time that they take.
        ahead: Drafts that its stream had out, not judged, when it was last looked at.
        ready_s: When its next step could have begun.
    """

    driver: Driver

    def __init__(
        self,
        clock: Clock,
        drafter: Drafter,
        cost: Callable[[int], float] | None,
        lane: float = 0.0,
        accelerator: Accelerator | None = None,
    ) -> None:
        self._clock = clock
        self._drafter = drafter
        self._cost, self._lane = cost, lane
        self._accelerator = accelerator or Accelerator(clock)
        self._accelerator.engines += 1
        self._closed = False
        self.own_pace = cost is None
        self.ahead, self.ready_s = 0, 0.0

    def wake(self) -> None:
        """There may be something to do."""
        if not self._closed:
            self._accelerator.ask(self)

    def close(self) -> None:
        """Begin no other step."""
        self._closed = True

    def moved(self) -> bool:
        """Look how far its next step is ahead of what is judged; False: as far as when it
        was last looked at."""
        run, before = self.driver.streams.get(self._drafter.stream), self.ahead
        self.ahead = 0 if run is None else run.machine.out[1]
        return self.ahead != before

    def begin(self) -> bool:
        """Begin a step; False where there is nothing to do."""
        began_s = self._clock.now()
        if self._closed:
            return False
        try:
            step = self._drafter.step()
        except Exception as error:  # noqa: BLE001 - engines raise their own classes
            self._clock.post(self.driver.engine_failed, self._drafter.stream, error)
            return self.begin()
        if step is None:
            return False
        seconds, waited_s = self._clock.now() - began_s, 0.0
        if self._cost is not None:  # what an earlier forward said is there at once
            seconds = self._cost(step.fed + step.masks) if step.fed else 0.0
            seconds *= 1.0 + self._lane * (step.lanes - 1)
            waited_s = began_s - self.ready_s
        self._clock.call_at(began_s + seconds, self._end, step, seconds + waited_s)
        return True

    def _end(self, step: Step, seconds: float) -> None:
        self.ready_s = self._clock.now()
        self._accelerator.turn()
        self.driver.stepped(step, seconds)
