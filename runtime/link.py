"""A connection that comes back: receive, notice the loss, reconnect with patience.

One thread receives for as long as the session lives. When the connection is lost it
tells the session, tries again with growing, jittered pauses, and tells it when there is
a new one. What to do with a stream meanwhile is the session's business.
"""

from __future__ import annotations

import random
import threading
import time
from dataclasses import dataclass
from typing import Callable, Protocol

from draftwire.errors import DraftwireError, ProtocolError, RefusedError, TransportError
from draftwire.transport.client import Connection
from draftwire.transport.messages import Message
from draftwire.transport.traffic import Traffic

__all__ = ["Link", "LinkEvents", "LinkState"]

_FIRST_PAUSE_S = 0.1
_LONGEST_PAUSE_S = 5.0


@dataclass(frozen=True)
class LinkState:
    """What a user may know about the link.

    Attributes:
        state: ``"up"``, ``"reconnecting"``, ``"closed"`` or ``"failed"``.
        reconnects: Times that a lost link came back.
        attempts: Tries since the link was lost.
        down_s: Seconds since the link was lost, 0 while it is up.
        error: Why it is not up, or "".
    """

    state: str
    reconnects: int
    attempts: int
    down_s: float
    error: str


class LinkEvents(Protocol):
    """What the owner of a link is told, all in the link's thread."""

    def link_message(self, message: Message) -> None:
        """Take a message; may raise DraftwireError, which ends the link for good."""

    def link_quiet(self) -> bool:
        """Nothing came for a while; return True if something should have come."""

    def link_lost(self, error: DraftwireError) -> None:
        """The connection is gone; tries to reconnect follow."""

    def link_still_down(self, error: DraftwireError, down_s: float) -> None:
        """Another try failed."""

    def link_up(self) -> None:
        """There is a new connection."""

    def link_failed(self, error: DraftwireError) -> None:
        """No further try makes sense: refused, incompatible, or a broken protocol."""


class Link:
    """Owns the connection of a session.

    Args:
        connect: Makes a greeted connection; the first one is made here and now.
        events: The owner.
        silence_s: A verdict that takes longer means that the link is dead, even if
            TCP has not noticed.
        jitter: Source of the jitter on pauses.
    """

    def __init__(
        self,
        connect: Callable[[], Connection],
        events: LinkEvents,
        *,
        silence_s: float = 15.0,
        jitter: random.Random | None = None,
    ) -> None:
        self._connect = connect
        self._events = events
        self._silence_s = silence_s
        self._jitter = jitter or random.Random()
        self._closed = threading.Event()
        self._past = Traffic()
        self._lost_at: float | None = None
        self._error: DraftwireError | None = None
        self._failed = False
        self._attempts = 0
        self._reconnects = 0
        self.connection = connect()
        self._thread = threading.Thread(
            target=self._run, name="draftwire-receiver", daemon=True
        )

    def start(self) -> None:
        """Begin to receive."""
        self._thread.start()

    @property
    def up(self) -> bool:
        """True while there is a connection."""
        return self._lost_at is None and not self._failed

    @property
    def error(self) -> DraftwireError | None:
        """Why the link is not up."""
        return self._error

    @property
    def failed(self) -> bool:
        """True when no further try will be made."""
        return self._failed

    @property
    def reconnects(self) -> int:
        """Times that a lost link came back."""
        return self._reconnects

    def state(self) -> LinkState:
        """Return a snapshot for the user."""
        lost_at = self._lost_at
        name = "failed" if self._failed else "up" if lost_at is None else "reconnecting"
        return LinkState(
            "closed" if self._closed.is_set() else name,
            self._reconnects,
            self._attempts,
            0.0 if lost_at is None else time.monotonic() - lost_at,
            str(self._error) if self._error is not None and name != "up" else "",
        )

    def traffic(self) -> Traffic:
        """Return the bytes of all connections so far."""
        return self._past.plus(self.connection.traffic)

    def send(self, message: Message) -> None:
        """Send ``message``, or drop it when the link is gone.

        A loss is noticed by the receiving thread, which tells the owner; a message that
        was lost with the link is said again by whoever resumes.
        """
        try:
            self.connection.send(message)
        except ProtocolError:
            raise
        except TransportError:
            self.connection.close()

    def drop(self) -> None:
        """Break the connection on purpose: the next one may serve better."""
        self.connection.close()

    def close(self) -> None:
        """End the connection and the thread."""
        self._closed.set()
        self.connection.close()
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self._thread.join(timeout=10)

    def _run(self) -> None:
        while not self._closed.is_set():
            try:
                message = self.connection.receive(self._silence_s)
                if message is not None:
                    self._events.link_message(message)
                elif self._events.link_quiet():
                    raise TransportError(
                        f"no word from {self.connection.url} for {self._silence_s:g} s"
                    )
            except DraftwireError as exc:
                if self._closed.is_set():
                    return
                if not _may_pass(exc):
                    return self._fail(exc)
                if not self._come_back(exc):
                    return

    def _fail(self, error: DraftwireError) -> None:
        self._error, self._failed = error, True
        self.connection.close()
        if not self._closed.is_set():
            self._events.link_failed(error)

    def _come_back(self, error: DraftwireError) -> bool:
        """Reconnect; return False when that is over."""
        self._error = error
        self._lost_at = lost_at = time.monotonic()
        self._attempts = 0
        self.connection.close()
        self._past = self._past.plus(self.connection.traffic)
        self.connection.traffic = Traffic()
        self._events.link_lost(error)
        pause = _FIRST_PAUSE_S
        # Jitter keeps a fleet that lost the same verifier from returning as one.
        while not self._closed.wait(pause * self._jitter.uniform(0.5, 1.0)):
            pause = min(pause * 2, _LONGEST_PAUSE_S)
            self._attempts += 1
            try:
                self.connection = self._connect()
            except DraftwireError as exc:
                if not _may_pass(exc):
                    self._fail(exc)
                    return False
                self._error = exc
                self._events.link_still_down(exc, time.monotonic() - lost_at)
                continue
            self._lost_at = None
            self._reconnects += 1
            self._events.link_up()
            return True
        return False


def _may_pass(error: DraftwireError) -> bool:
    """Return whether trying again may help."""
    if isinstance(error, RefusedError):
        return error.transient
    return isinstance(error, TransportError) and not isinstance(error, ProtocolError)
