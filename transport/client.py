"""A greeted connection to a verifier for callers that wait, such as tools."""

from __future__ import annotations

import asyncio
import concurrent.futures
import queue
import threading
from typing import Any, Callable

from draftwire.errors import DraftwireError, TransportError
from draftwire.transport.messages import Frame, Hello, Message, Welcome
from draftwire.transport.wire import WebsocketNetwork


class Connection:
    """A connection whose loop runs in a thread of its own, and ends with it.

    Args:
        url: Of the verifier.
        hello: What this device says first.
        timeout: Seconds for connecting and greeting.
        **settings: See :class:`WebsocketNetwork`: token, insecure, tls, proxy.

    Attributes:
        welcome: The verifier's answer.
        traffic: Running byte counts.

    Raises:
        ConfigError: The URL is not usable, or the wanted target does not exist.
        TransportError: Nobody answers, or the connection breaks.
        RefusedError: The verifier answers and refuses.
        IncompatibleError: Draft and target do not belong together.
    """

    def __init__(
        self, url: str, hello: Hello, *, timeout: float = 10.0, **settings: Any
    ) -> None:
        self.url = url
        self._loop = asyncio.new_event_loop()
        self._inbox: queue.Queue[Welcome | Message | DraftwireError] = queue.Queue()
        try:
            network = WebsocketNetwork(self._loop, url, **settings)
            self._wire = network.connect(hello, _Inbox(self._inbox, self._loop), timeout)
        except BaseException:
            self._loop.close()
            raise
        self.traffic = self._wire.meter.total
        self._thread = threading.Thread(
            target=_run, args=(self._loop,), name="draftwire-connection", daemon=True
        )
        self._thread.start()
        try:
            answer = self._inbox.get()
            if isinstance(answer, DraftwireError):
                raise answer
            assert isinstance(answer, Welcome)
            self.welcome = answer
        except BaseException:
            self.close()
            raise

    @property
    def ports(self) -> tuple[int, int]:
        """Local and remote TCP port, ``(0, 0)`` once the connection is gone."""
        return self._wire.ports

    def send(self, message: Message, stream: int = 0) -> None:
        """Send ``message`` of a stream; callable from any thread, waits for no network.

        Raises:
            TransportError: The connection is lost.
        """
        sent: concurrent.futures.Future[int] = concurrent.futures.Future()

        def put() -> None:
            try:
                sent.set_result(self._wire.send(message, stream))
            except Exception as exc:  # noqa: BLE001 - the caller's, in the caller's thread
                sent.set_exception(exc)

        if self._call(put):
            while self._thread.is_alive() and not sent.done():
                concurrent.futures.wait([sent], timeout=1)
        if not sent.done() or not sent.result():
            raise TransportError(f"the link to {self.url} is gone")

    def receive(self, timeout: float | None = None) -> Message | None:
        """Return the next message, of whatever stream, or None after ``timeout`` seconds.

        One thread at a time; without a timeout it waits for ever.

        Raises:
            TransportError: The connection is lost.
            ProtocolError: What came is not valid.
        """
        try:
            answer = self._inbox.get(timeout=timeout)
        except queue.Empty:
            return None
        if isinstance(answer, DraftwireError):
            self._inbox.put(answer)  # for whoever asks again
            raise answer
        return answer

    def close(self) -> None:
        """Close the connection; harmless when it is closed already."""
        self._inbox.put(TransportError(f"the connection to {self.url} is closed"))
        if self._call(self._wire.close):
            self._call(self._loop.stop)
        if self._thread is not threading.current_thread():
            self._thread.join()

    def _call(self, what: Callable[[], Any]) -> bool:
        """Have ``what`` called in the loop's thread; False when that has ended."""
        try:
            self._loop.call_soon_threadsafe(what)
        except RuntimeError:  # closed
            return False
        return True


class _Inbox:
    """Puts what happens to a connection into a queue, and ends its loop with it."""

    def __init__(self, inbox: queue.Queue[Any], loop: asyncio.AbstractEventLoop) -> None:
        self.up: Callable[[Welcome], None] = inbox.put
        self._inbox, self._loop = inbox, loop

    def message(self, frame: Frame) -> None:
        """Hand the message over."""
        self._inbox.put(frame.message)

    def alive(self) -> None:
        """Nobody waits for it."""

    def down(self, error: DraftwireError) -> None:
        """Tell the reader, and end the thread."""
        self._inbox.put(error)
        self._loop.stop()


def _run(loop: asyncio.AbstractEventLoop) -> None:
    """Run ``loop`` until it is stopped, and what is left in it to its end."""
    try:
        loop.run_forever()
        turns = 4  # an aborted transport says so one turn later, TLS two
        while turns or asyncio.all_tasks(loop):
            turns = max(0, turns - 1)
            loop.call_soon(loop.stop)
            loop.run_forever()
    finally:
        loop.close()
