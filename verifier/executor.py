"""Where forwards and judgements run: a worker thread, or nowhere, in virtual time.

Whoever asks an executor is called back in the thread of the clock, so that nothing else
has to know about threads.
"""

from __future__ import annotations

import functools
import time
from abc import ABC, abstractmethod
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Callable, List, Sequence, TypeVar, Union

import numpy as np

from draftwire.clock import Clock, Timer
from draftwire.verifier.backends.base import SlotInput, TargetBackend
from draftwire.verifier.beside import Drafting
from draftwire.verifier.beside import draft as draft_together

Rows = List["np.ndarray"]
T = TypeVar("T")
# Takes the number of an exit and its logits, for each part of the forward.
Heard = Callable[[int, Rows], None]
# Takes the logits of each part, or what went wrong, and the seconds of the forward.
Done = Callable[[Union[Rows, BaseException], float], None]

# Logits above this many numbers are judged in a helper thread: a full distribution over
# a large vocabulary takes milliseconds that all other devices would wait for.
_INLINE_LOGITS = 1 << 16


class BrokenOff(Exception):
    """Nobody waited for the forward any more."""


def _outcome(job: Callable[[], T]) -> T | Exception:
    try:
        return job()
    except Exception as error:  # noqa: BLE001 - whoever asked sorts them
        return error


class Executor(ABC):
    """Runs the forwards of one backend, one at a time, and calls back by the clock.

    ``over`` is True when the forward has ended; its ``done`` may still be on the way.
    """

    def __init__(self, backend: TargetBackend, clock: Clock) -> None:
        self._backend, self._clock = backend, clock
        self._unwanted = False
        self.over = True

    @abstractmethod
    def run(
        self, parts: Sequence[SlotInput], prefill: bool, heard: Heard | None, done: Done
    ) -> None:
        """Begin a forward over ``parts``, of prompts or not; the one before must be done.

        ``heard`` is told what early exits say, before ``done``; None is a forward in one
        piece. ``done`` is called once, never inside this call.
        """

    def break_off(self) -> None:
        """End the running forward at its next exit: nobody waits for it."""
        self._unwanted = True

    def judge(
        self, job: Callable[[], T], size: int, done: Callable[[T | Exception], None]
    ) -> None:
        """Run ``job``, in place unless it looks at many logits (``size``).

        It touches nothing that changes; ``done`` gets what it returns or raises, perhaps
        inside this call.
        """
        done(_outcome(job))

    @abstractmethod
    def draft(self, jobs: Sequence[Drafting], done: Callable[[float], None]) -> None:
        """Draft beside the target, where its forwards run; the one before must be done.

        ``done`` is called once, never inside this call, with the seconds of one draft, 0
        where none could be timed.
        """

    def aside(self, job: Callable[[], T], done: Callable[[T | Exception], None]) -> None:
        """Run ``job`` as :meth:`judge`, where it holds up nobody but its like."""
        done(_outcome(job))

    def close(self) -> None:  # noqa: B027 - in virtual time there is nothing to end
        """Take no more work; what runs ends by itself."""


class ThreadExecutor(Executor):
    """A worker thread for the forwards, some more for large judgements."""

    def __init__(self, backend: TargetBackend, clock: Clock) -> None:
        super().__init__(backend, clock)
        self._worker, self._judges, self._aside = self._pools = [
            ThreadPoolExecutor(threads, thread_name_prefix=f"draftwire-{what}")
            for what, threads in (("target", 1), ("judge", 4), ("aside", 1))
        ]

    def run(
        self, parts: Sequence[SlotInput], prefill: bool, heard: Heard | None, done: Done
    ) -> None:
        self.over = self._unwanted = False
        self._worker.submit(self._forward, parts, heard, done)

    def _forward(self, parts: Sequence[SlotInput], heard: Heard | None, done: Done) -> None:
        listen = {} if heard is None else {"on_exit": functools.partial(self._tell, heard)}
        begin = time.perf_counter()
        answer: Rows | BaseException
        try:
            answer = self._backend.forward(parts, **listen)
        except BaseException as error:  # noqa: BLE001 - engines raise their own classes
            answer = error
        seconds = time.perf_counter() - begin
        self.over = True
        self._post(done, answer, seconds)

    def draft(self, jobs: Sequence[Drafting], done: Callable[[float], None]) -> None:
        self._worker.submit(lambda: self._post(done, draft_together(jobs)[1]))

    def _tell(self, heard: Heard, number: int, rows: Rows) -> None:
        if self._unwanted or not self._post(heard, number, rows):
            raise BrokenOff

    def _post(self, what: Callable[..., None], *args: Any) -> bool:
        try:
            self._clock.post(what, *args)
        except RuntimeError:  # the loop has ended, and with it all that wait
            return False
        return True

    def judge(
        self, job: Callable[[], T], size: int, done: Callable[[T | Exception], None]
    ) -> None:
        if size <= _INLINE_LOGITS:
            done(_outcome(job))
        else:
            self._judges.submit(lambda: self._post(done, _outcome(job)))

    def aside(self, job: Callable[[], T], done: Callable[[T | Exception], None]) -> None:
        self._aside.submit(lambda: self._post(done, _outcome(job)))

    def close(self) -> None:
        for pool in self._pools:
            pool.shutdown(wait=False)


class VirtualExecutor(Executor):
    """Forwards that take the time they are said to take, on a clock nobody waits for.

    ``busy_s`` are the seconds of all forwards, ``draft_s`` of a draft beside the target.
    """

    def __init__(
        self,
        backend: TargetBackend,  # its forward runs in place, when it begins
        clock: Clock,
        # seconds of a forward, given its parts and whether they are prompts
        cost: Callable[[Sequence[SlotInput], bool], float],
        fractions: Sequence[float] = (),  # when each exit speaks, as a share of its forward
    ) -> None:
        super().__init__(backend, clock)
        self._cost, self._fractions = cost, fractions
        self._ahead: list[Timer] = []  # what the running forward will do
        self.busy_s = self.draft_s = 0.0

    def run(
        self, parts: Sequence[SlotInput], prefill: bool, heard: Heard | None, done: Done
    ) -> None:
        self.over = self._unwanted = False
        begin, seconds = self._clock.now(), self._cost(parts, prefill)
        said: list[tuple[int, Rows]] = []
        forward = functools.partial(self._backend.forward, parts)
        if heard is not None:
            forward.keywords["on_exit"] = lambda *exit: said.append(exit)
        answer = _outcome(forward)
        when = self._clock.call_at
        for number, rows in said:
            at = self._fractions[number] * seconds
            told = (heard, number, rows, at, done)
            self._ahead.append(when(begin + at, self._exit, *told))
        self._ahead.append(when(begin + seconds, self._end, answer, seconds, done))

    def draft(self, jobs: Sequence[Drafting], done: Callable[[float], None]) -> None:
        rounds, _ = draft_together(jobs)
        drafts = sum(job.taken for job in jobs)
        seconds = self.draft_s * rounds  # all streams in one forward
        self.busy_s += seconds
        one_s = seconds / drafts if drafts else 0.0
        self._clock.call_at(self._clock.now() + seconds, done, one_s)

    def _exit(self, heard: Heard, number: int, rows: Rows, at: float, done: Done) -> None:
        if self._unwanted:
            self._end(BrokenOff(), at, done)
        else:
            heard(number, rows)

    def _end(self, answer: Rows | Exception, seconds: float, done: Done) -> None:
        for timer in self._ahead:
            timer.cancel()
        self._ahead.clear()
        self.over = True
        self.busy_s += seconds
        done(answer, seconds)
