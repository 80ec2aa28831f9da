"""The driver's ports as they are live: a thread with an asyncio loop, an engine thread."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import TYPE_CHECKING, Any, Callable

from draftwire.clock import LoopClock
from draftwire.runtime.drafter import Drafter

if TYPE_CHECKING:
    from draftwire.runtime.driver import Driver


_JOIN_S = 30.0  # a step of a slow model may be at work


class LoopThread:
    """A thread that runs an asyncio loop; the driver lives in it, by its ``clock``."""

    def __init__(self) -> None:
        loop = asyncio.new_event_loop()
        self.clock = LoopClock(loop)
        self._loop = loop
        self._thread = threading.Thread(
            target=self.clock.run, name="draftwire-driver", daemon=True
        )
        self._thread.start()

    def call(self, what: Callable[..., Any], *args: Any) -> bool:
        """Have ``what(*args)`` called in the loop's thread; False when it has ended, or
        stayed behind at a fork."""
        if not self._thread.is_alive():
            return False
        try:
            self.clock.post(what, *args)
        except RuntimeError:
            return False
        return True

    def close(self, last: Callable[[], None]) -> None:
        """Call ``last()`` in the thread, and end it."""

        def end() -> None:
            try:
                last()
            finally:
                # What is on its way into a socket gets one more turn of the loop.
                self._loop.call_soon(self._loop.call_soon, self._loop.stop)

        if self.call(end) and self._thread is not threading.current_thread():
            self._thread.join(_JOIN_S)


class EngineThread:
    """Runs the steps of ``drafter`` in a thread of its own."""

    def __init__(self, drafter: Drafter) -> None:
        self._drafter = drafter
        self._driver: Driver | None = None
        self._post: Callable[..., None] | None = None
        self._event = threading.Event()
        self._closing = False
        self._thread = threading.Thread(
            target=self._run, name="draftwire-engine", daemon=True
        )

    def start(self, driver: Driver, post: Callable[..., None]) -> None:
        """Begin to work for ``driver``; ``post`` calls into its thread."""
        self._driver, self._post = driver, post
        self._thread.start()

    def wake(self) -> None:
        self._event.set()

    def close(self) -> None:
        """Stop after the step at work."""
        self._closing = True
        self._event.set()

    def join(self) -> None:
        """Wait for the thread, and let go of the model."""
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self._thread.join(_JOIN_S)
        self._drafter.forget()
        self._driver = self._post = None

    def _run(self) -> None:
        while True:
            self._event.wait()
            self._event.clear()
            while not self._closing and self._step():
                pass
            if self._closing:
                return

    def _step(self) -> bool:
        driver, post, drafter = self._driver, self._post, self._drafter
        assert driver is not None and post is not None
        began = time.perf_counter()
        try:
            step = drafter.step()
        except BaseException as error:  # noqa: BLE001 - a dead thread would hang all
            what, args = driver.engine_failed, (drafter.stream, error)
        else:
            if step is None:
                return False
            what, args = driver.stepped, (step, time.perf_counter() - began)  # type: ignore[assignment]
        try:
            post(what, *args)
        except RuntimeError:  # the driver has ended
            return False
        return True
