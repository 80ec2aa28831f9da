"""Time as an argument: one protocol, a live clock and a virtual one.

Whoever waits for something asks a :class:`Clock`. Live it is an asyncio loop; in
simulations and under generated histories it is a :class:`VirtualClock`, which nobody
waits for.
"""

from __future__ import annotations

import heapq
from typing import TYPE_CHECKING, Any, Callable, List, Protocol

if TYPE_CHECKING:
    import asyncio


class Timer(Protocol):
    """Something that will happen."""

    def cancel(self) -> None:
        """Let it not happen; harmless when it has, or was cancelled before."""


class Clock(Protocol):
    """Monotonic seconds, and one thread that things happen in, one after another."""

    def now(self) -> float:
        """Return the time in seconds, of no particular origin."""

    def call_at(self, when: float, what: Callable[..., None], *args: Any) -> Timer:
        """Call ``what(*args)`` at ``when`` (soon, if that is past), in this thread."""

    def post(self, what: Callable[..., None], *args: Any) -> None:
        """Call ``what(*args)`` soon, in order; callable from any thread."""


class LoopClock:
    """The clock of an asyncio loop, which runs in the thread that things happen in."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.now = loop.time
        self.call_at = loop.call_at
        self.post: Callable[..., Any] = loop.call_soon_threadsafe

    def run(self) -> None:
        """Run the loop in this thread until it is stopped, and end what is left in it."""
        import asyncio

        loop = self.loop
        asyncio.set_event_loop(loop)
        loop.run_forever()
        left = asyncio.all_tasks(loop)  # a connection may be in the making
        for task in left:
            task.cancel()
        loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))
        for _ in range(3):  # transports close a turn after they were told to
            loop.run_until_complete(asyncio.sleep(0))
        loop.close()


class _Entry(List[Any]):
    """``[time, number, what, arguments]``: a heap orders it by the first two."""

    __slots__ = ()

    def cancel(self) -> None:
        self[2:] = (None, ())


class VirtualClock:
    """Virtual time and what happens in it.

    Things of the same time happen in the order in which they were asked for, so that a
    run is the same bit for bit every time.
    """

    def __init__(self) -> None:
        self.now_s = 0.0  # seconds since the start
        self.events = 0  # how many things have happened
        self._queue: list[_Entry] = []
        self._asked = 0

    def now(self) -> float:
        """Return the seconds since the start."""
        return self.now_s

    def now_ns(self) -> int:
        """Return the time in whole nanoseconds, for accounts that count in them."""
        return round(self.now_s * 1e9)

    def call_at(self, when: float, what: Callable[..., None], *args: Any) -> _Entry:
        """Call ``what(*args)`` at ``when``, or now when that is past."""
        self._asked += 1
        now_s = self.now_s
        entry = _Entry((when if when > now_s else now_s, self._asked, what, args))
        heapq.heappush(self._queue, entry)
        return entry

    def call_later(self, seconds: float, what: Callable[..., None], *args: Any) -> _Entry:
        """Call ``what(*args)`` in so many seconds."""
        return self.call_at(self.now_s + seconds, what, *args)

    def post(self, what: Callable[..., None], *args: Any) -> None:
        """Call ``what(*args)`` now, after what is asked for already."""
        self.call_at(self.now_s, what, *args)

    def jump(self, seconds: float) -> None:
        """Let time pass in which nothing happens, as while a device is suspended."""
        self.now_s += seconds

    def run(self, done: Callable[[], bool] | None = None) -> bool:
        """Let things happen until there are none left, or ``done()`` says so; return False
        when none is left and it was never true."""
        queue, pop = self._queue, heapq.heappop
        while queue:
            entry = pop(queue)
            when, _, what, args = entry
            if what is None:
                continue
            entry[2] = None  # it has happened
            if when > self.now_s:
                self.now_s = when  # `jump` may have passed it
            self.events += 1
            what(*args)
            if done is not None and done():
                return True
        return done is None
