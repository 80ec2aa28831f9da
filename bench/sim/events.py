"""A clock that nobody waits for: things to do, in the order of their times."""

from __future__ import annotations

import heapq
from typing import Any, Callable

__all__ = ["Loop"]


class Loop:
    """Virtual time and what happens in it.

    Things of the same time happen in the order in which they were asked for, so that a
    run is the same bit for bit every time.

    Attributes:
        now_s: Seconds since the start.
        events: How many things have happened.
    """

    def __init__(self) -> None:
        self.now_s = 0.0
        self.events = 0
        self._queue: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._asked = 0

    def at(self, time_s: float, what: Callable[..., None], *args: Any) -> None:
        """Call ``what(*args)`` at ``time_s``, or now when that is past."""
        if time_s < self.now_s:
            time_s = self.now_s
        self._asked += 1
        heapq.heappush(self._queue, (time_s, self._asked, what, args))

    def after(self, seconds: float, what: Callable[..., None], *args: Any) -> None:
        """Call ``what(*args)`` in so many seconds."""
        self.at(self.now_s + seconds, what, *args)

    def now_ns(self) -> int:
        """Return the time in whole nanoseconds, for accounts that count in them."""
        return round(self.now_s * 1e9)

    def run(self, done: Callable[[], bool] | None = None) -> bool:
        """Let things happen until there are none left, or ``done()`` says so.

        Returns:
            False when nothing is left to happen and ``done`` was never true.
        """
        queue, pop = self._queue, heapq.heappop
        while queue:
            self.now_s, _, what, args = pop(queue)
            self.events += 1
            what(*args)
            if done is not None and done():
                return True
        return done is None
