"""One device's websocket: the asyncio shell around a dialogue.

Two tasks share a connection: one reads frames, one sends what stands in the outbox, so
that a device that reads slowly holds up nobody. When the link is lost the stream is kept
(:mod:`draftwire.verifier.streams`) for another connection to go on with.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
from collections import deque
from typing import TYPE_CHECKING, Any

from websockets.exceptions import ConnectionClosed

from draftwire.errors import ProtocolError
from draftwire.transport.codec import Codec
from draftwire.transport.dial import SESSION_HEADER, key_of
from draftwire.transport.messages import (
    Block,
    Error,
    Frame,
    Grammar,
    Hello,
    Message,
    Open,
    Resume,
)
from draftwire.verifier.dialogue import Dialogue
from draftwire.verifier.greeting import (
    DRAINING,
    REVOKED,
    check_room,
    choose,
    error_of,
    fatal,
    welcome_to,
)
from draftwire.verifier.serving.accounts import Usage
from draftwire.verifier.serving.limits import FatalError, Refusal, prompt_limit
from draftwire.verifier.streams import Terms

if TYPE_CHECKING:
    from draftwire.verifier.serving.service import VerifierService

log = logging.getLogger("draftwire.verifier")

_OPEN_COST = 10  # frames that an open or an error counts for
_LATER = ("busy", "limit", "draining")
_CLOSE_CODES = {"protocol": 1002, "version": 1002, "draining": 1001, "internal": 1011}
_OUTBOX = 64  # frames that may wait before nothing more is read


class Websocket:
    """A device's websocket, upgraded and authorised: when something was heard of it."""

    def __init__(self, socket: Any, service: VerifierService, usage: Usage) -> None:
        self._socket, self._service, self.usage = socket, service, usage
        self._clock = asyncio.get_running_loop().time
        self.active_s = self._clock()  # when the last frame came or went
        # since when the device reads nothing of what is sent, or None
        self.blocked_s: float | None = None
        self.expired = False  # true once it is being shown out

    def abort(self) -> None:
        """Cut the connection without a word: nobody reads at its other end."""
        self._socket.transport.abort()

    def _no_stranger(self) -> None:
        raw = self._socket.transport.get_extra_info("socket")
        if raw is not None:
            self._service.lobby.greeted(raw.fileno())

    async def _receive(self) -> bytes:
        data = await self._socket.recv()
        self.active_s = self._clock()
        if not isinstance(data, bytes) or not data:
            raise ProtocolError("a text frame; every message is a binary frame")
        self._service.bytes_in += len(data)
        return data


class Connection(Websocket):
    """Serves streams until it ends."""

    dialogue_class = Dialogue

    def __init__(self, socket: Any, service: VerifierService, usage: Usage) -> None:
        super().__init__(socket, service, usage)
        self._codec = Codec()
        name = service.name_of(socket)
        self._dialogue = self.dialogue_class(service.kept, self._greet, self, name)
        self._log = service.log_of(socket)
        self._outbox: deque[bytes] = deque()
        self._wake = asyncio.Event()  # there is something to send
        self._room = asyncio.Event()  # something was sent
        self._closing: tuple[int, str] | None = None  # after the last frame

    @property
    def greeted(self) -> bool:
        """True once the welcome is out."""
        return self._dialogue.terms is not None

    @property
    def running(self) -> int:
        """How many streams run."""
        return self._dialogue.running

    async def run(self) -> None:
        """Greet, serve streams, close; returns when the connection has ended."""
        dialogue = self._dialogue
        sender = asyncio.ensure_future(self._write())
        try:
            while not dialogue.over:
                frame = await self._next()
                dialogue.take(frame.message, frame.stream)
                # A burst of frames is there at once: others want their turn as well.
                await asyncio.sleep(0)
        except ConnectionClosed as closed:
            said = closed.rcvd
            if self._closing is None and said is not None and said.code == 1000:
                dialogue.lost(closed=True)
        except Exception as error:  # noqa: BLE001 - a bug of ours ends this connection only
            dialogue.leave(error_of(error))
        finally:
            if self._closing is None:
                dialogue.lost()  # harmless a second time
                sender.cancel()
            end = self._closing
            self._log.event("closed", why="link lost" if end is None else end[1] or "done")
            if dialogue.terms is not None:
                self._service.registry.leave(dialogue.terms.served)
            await asyncio.wait([sender])

    def expire(self) -> None:
        """Show out a device that has been silent for too long."""
        self.expired = True
        error = Error("limit", "no hello came after the upgrade")
        if self.greeted:
            idle_s = self._service.limits.idle_s
            hint = "connect again when there is something to verify"
            error = Error("limit", f"no message for {idle_s:g} seconds", hint)
        self._dialogue.leave(error, park=self.greeted)

    def revoke(self) -> None:
        """End the connection and its streams: its token is not valid any more."""
        self._dialogue.leave(Error("limit", REVOKED))

    def drain(self, *, now: bool) -> None:
        """End the connection because the verifier goes away, see :class:`Dialogue`."""
        self._dialogue.drain(now=now)

    def _greet(self, hello: Hello) -> Terms:
        service, account = self._service, self.usage.account
        if service.draining:
            raise fatal(DRAINING)
        check_room(service.greeted, service.limits, self.usage)
        served = choose(hello, service.registry)
        welcome = welcome_to(hello, served, service.limits, account.context)
        service.registry.enter(served)
        self._no_stranger()
        key = key_of(self._socket.request.headers.get_all(SESSION_HEADER))
        return Terms(served, self.usage, welcome, key)

    # ---- reading

    async def _next(self) -> Frame:
        while len(self._outbox) > _OUTBOX:  # who does not read is not read either
            self._room.clear()
            await self._room.wait()
        data = await self._receive()
        frame = self._codec.decode(data)
        self._log.message("up", frame.message, len(data), frame.stream)
        if isinstance(frame.message, (Open, Resume, Grammar)):
            self._socket.charge(_OPEN_COST)
        blocks = int(isinstance(frame.message, Block))
        try:
            wait = self.usage.pace(len(data), blocks, self.active_s)
        except Refusal as error:
            raise FatalError(error.code, str(error), error.hint) from None
        if wait:  # what is not read slows the sender
            await asyncio.sleep(wait)
        return frame

    # ---- the dialogue's way to the device

    def send(self, message: Message, stream: int = 0) -> None:
        """Put ``message`` of a stream in the outbox."""
        if isinstance(message, Error):
            self._service.refused(message.code)
            self._socket.charge(_OPEN_COST)
            if message.code in _LATER and message.retry_after_ms is None:
                later_ms = round(1e3 * self._service.lobby.return_s())
                message = dataclasses.replace(message, retry_after_ms=later_ms)
        whose = stream if getattr(message, "fatal", False) is False else None
        self._outbox.append(self._codec.encode(message, stream))
        self._log.message("down", message, len(self._outbox[-1]), whose)
        terms = self._dialogue.terms
        if terms is not None and message is terms.welcome:
            limit = prompt_limit(terms.welcome.context)
            self._codec = Codec.of(terms.welcome, limit)
        self._wake.set()

    def close(self, error: Error | None) -> None:
        """Send ``error`` after what is in the outbox, and hang up."""
        if error is not None:
            self.send(error)
        code = 1000 if error is None else _CLOSE_CODES.get(error.code, 1008)
        self._closing = code, "" if error is None else error.code
        self._wake.set()

    async def _write(self) -> None:
        """Send what stands in the outbox; close after the last."""
        try:
            while True:
                while self._outbox:
                    frame = self._outbox.popleft()
                    self._service.bytes_out += len(frame)
                    self.active_s = self.blocked_s = self._clock()
                    await self._socket.send(frame)
                    self.blocked_s = None
                    self._room.set()
                if self._closing is not None:
                    await self._socket.close(*self._closing)
                    return
                self._wake.clear()
                await self._wake.wait()
        except ConnectionClosed:
            pass  # the reader sees it too
        finally:
            self._outbox.clear()
            self._room.set()
