"""The driver's three ports to the world: a clock, a network, an engine.

Live they are an asyncio loop, a websocket and a thread that runs the draft model; in the
simulator and under generated histories they are virtual. The driver
(:mod:`draftwire.runtime.driver`) is the same. Whatever fails behind a port comes out of
it as one of our errors; nothing here blocks, and everything is called in the clock's
thread.
"""

from __future__ import annotations

from typing import Protocol

from draftwire.clock import Clock, Timer
from draftwire.errors import DraftwireError
from draftwire.transport.messages import Frame, Hello, Message, Welcome
from draftwire.transport.traffic import Meter

__all__ = ["Clock", "EnginePort", "Network", "Timer", "Wire", "WireEvents"]


class WireEvents(Protocol):
    """What becomes of one connection."""

    # The verifier has greeted; at most once, before any message.
    def up(self, welcome: Welcome) -> None: ...
    def message(self, frame: Frame) -> None: ...
    def alive(self) -> None: ...  # a ping was answered
    # The connection is over, or never came to be; once, and nothing follows.
    def down(self, error: DraftwireError) -> None: ...


class Wire(Protocol):
    """One connection, from the first packet of its set-up on."""

    meter: Meter  # bytes and frames so far

    # Put a message in the outbox; never blocks. Bytes on the wire, 0 when it is over.
    def send(self, message: Message, stream: int = 0) -> int: ...
    def ping(self) -> int: ...  # ask for a sign of life; likewise
    def close(self) -> None: ...  # at once, without waiting; no event follows


class Network(Protocol):
    """Makes connections to one verifier."""

    # Begin to connect and to greet within ``timeout_s``; ``events`` is told what becomes of
    # this connection alone, and never inside this call.
    def connect(self, hello: Hello, events: WireEvents, timeout_s: float) -> Wire: ...


class EnginePort(Protocol):
    """Runs the steps of a :class:`~draftwire.runtime.drafter.Drafter`, one at a time."""

    def wake(self) -> None: ...  # there may be something to do
    def close(self) -> None: ...  # after the step at work
