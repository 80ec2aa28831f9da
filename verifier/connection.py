"""One device's connection: greeting, then streams, one at a time.

The asyncio shell around plain code. Two tasks share a connection: one reads frames and
hands them to the open stream, one sends what stands in the outbox, so that a device that
reads slowly holds up nobody. When the link is lost the stream is kept
(:mod:`draftwire.verifier.streams`) for another connection to go on with.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
from collections import deque
from typing import TYPE_CHECKING, Any

from websockets.exceptions import ConnectionClosed

from draftwire.errors import ConfigError, ProtocolError, RefusedError
from draftwire.transport.codec import SUBPROTOCOL, Codec
from draftwire.transport.messages import (
    Block,
    Bye,
    Error,
    Hello,
    Message,
    Open,
    Opened,
    Resume,
)
from draftwire.verifier.accounts import LimitError, Usage
from draftwire.verifier.greeting import (
    DRAINING,
    FatalError,
    check_room,
    choose,
    error_of,
    welcome_to,
)
from draftwire.verifier.limits import prompt_limit
from draftwire.verifier.streams import Stream, Terms

if TYPE_CHECKING:
    from draftwire.verifier.service import VerifierService

__all__ = ["Connection"]

log = logging.getLogger("draftwire.verifier")

_CLOSE_CODES = {"protocol": 1002, "version": 1002, "draining": 1001, "internal": 1011}
_OUTBOX = 64  # frames that may wait before nothing more is read


class Connection:
    """Serves one websocket until it ends.

    Args:
        socket: A ``websockets.asyncio`` server connection, upgraded and authorised.
        service: Registry, limits and counters.
        usage: Of the account that the device belongs to.

    Attributes:
        active_s: When the last frame came or went.
        blocked_s: Since when the device reads nothing of what is sent, or None.
        expired: True once it is being shown out.
    """

    def __init__(self, socket: Any, service: VerifierService, usage: Usage) -> None:
        self._socket = socket
        self._service = service
        self._usage = usage
        self._codec = Codec()
        self._terms: Terms | None = None
        self._stream: Stream | None = None  # running, or with an end to be seen
        self._outbox: deque[bytes] = deque()
        self._wake = asyncio.Event()  # there is something to send
        self._room = asyncio.Event()  # something was sent
        self._closing: Error | None = None  # the last thing to send
        self._clock = asyncio.get_running_loop().time
        self.active_s = self._clock()
        self.blocked_s: float | None = None
        self.expired = False
        self._draining = False

    @property
    def greeted(self) -> bool:
        """True once the welcome is out."""
        return self._terms is not None

    @property
    def busy(self) -> bool:
        """True while a stream is running."""
        return self._stream is not None and not self._stream.session.done

    async def run(self) -> None:
        """Greet, serve streams, close; returns when the connection has ended."""
        sender = asyncio.ensure_future(self._write())
        try:
            await self._greet()
            while self._closing is None:
                await self._take(await self._receive())
                # A burst of frames is there at once: others want their turn as well.
                await asyncio.sleep(0)
        except ConnectionClosed:
            pass
        except Exception as error:  # noqa: BLE001 - a bug of ours ends this connection only
            self._leave(error_of(error))
        finally:
            self._end_stream(park=self._closing is None)
            if self._terms is not None:
                self._service.registry.leave(self._terms.served)
            if self._closing is None:
                sender.cancel()
            await asyncio.wait([sender])

    def expire(self) -> None:
        """Show out a device that has been silent for too long."""
        self.expired = True
        self._end_stream(park=True)
        if self._terms is None:
            self._leave(Error("limit", "no hello came after the upgrade"))
            return
        idle_s = self._service.limits.idle_s
        hint = "connect again when there is something to verify"
        self._leave(Error("limit", f"no message for {idle_s:g} seconds", hint))

    def abort(self) -> None:
        """Cut the connection without a word: nobody reads at its other end."""
        self._socket.transport.abort()

    def drain(self, *, now: bool) -> None:
        """End the connection because the verifier goes away.

        Args:
            now: Also when a stream is running; otherwise that one may finish first.
        """
        self._draining = True
        if now or not self.busy:
            self._leave(DRAINING)

    async def _greet(self) -> None:
        if self._socket.subprotocol != SUBPROTOCOL:
            raise FatalError(
                "version",
                f"this verifier speaks {SUBPROTOCOL}, the device did not offer it",
                "connect with that websocket subprotocol",
            )
        hello = await self._receive()
        if not isinstance(hello, Hello):
            raise ProtocolError(f"the first message is {_name(hello)}, not a hello")
        service, account = self._service, self._usage.account
        if service.draining:
            raise FatalError.of(DRAINING)
        check_room(len(service.connections), service.limits, self._usage)
        served = choose(hello, service.registry)
        welcome = welcome_to(hello, served.backend, service.limits, account.context)
        service.registry.enter(served)
        self._terms = Terms(served, self._usage, welcome)
        self._send(welcome)
        self._codec = Codec(welcome.vocab_size, max_ids=prompt_limit(welcome.context))
        log.info(
            "%s: %r on %s", self._socket.remote_address, hello.agent[:80], served.label
        )

    # ---- reading

    async def _receive(self) -> Message:
        while len(self._outbox) > _OUTBOX:  # who does not read is not read either
            self._room.clear()
            await self._room.wait()
        frame = await self._socket.recv()
        self.active_s = self._clock()
        if not isinstance(frame, bytes):
            raise ProtocolError("a text frame; every message is a binary frame")
        self._service.bytes_in += len(frame)
        message = self._codec.decode(frame)
        await self._pace(len(frame), isinstance(message, Block))
        return message

    async def _pace(self, size: int, is_block: bool) -> None:
        """Wait as the account's rates demand: what is not read slows the sender."""
        try:
            wait = self._usage.pace(size, int(is_block), self.active_s)
        except LimitError as error:
            raise FatalError("limit", str(error), error.hint) from None
        if wait:
            await asyncio.sleep(wait)

    async def _take(self, message: Message) -> None:
        if isinstance(message, Block):
            if self._stream is not None:  # else of a stream that ended meanwhile
                self._stream.receive(message)
        elif isinstance(message, Open):
            self._open(message)
        elif isinstance(message, Resume):
            self._resume(message)
        elif isinstance(message, (Bye, Error)):
            self._end_stream(park=False)
            if self._draining:
                raise FatalError.of(DRAINING)
            if isinstance(message, Error) and message.fatal:
                await self._socket.close(1000)
        else:
            raise ProtocolError(f"{_name(message)} does not go to a verifier")

    # ---- streams

    def _open(self, request: Open) -> None:
        terms = self._ready("an open")
        self._end_stream(park=False)  # whoever opens the next has seen the last one end
        try:
            stream = self._service.kept.open(request, terms, self)
        except (ConfigError, RefusedError) as error:
            self._send(error_of(error))  # the connection stays
            return
        self._begin(stream, terms, Opened(request.stream, stream.id, stream.secret))

    def _resume(self, request: Resume) -> None:
        terms = self._ready("a resume")
        try:
            stream, answer = self._service.kept.resume(request, terms, self)
        except RefusedError as error:
            self._send(error_of(error))
            return
        if self._stream is not stream:
            self._end_stream(park=True)
        self._begin(stream, terms, answer)

    def _ready(self, what: str) -> Terms:
        if self.busy:
            raise ProtocolError(f"{what} while a stream is running")
        if self._draining:
            raise FatalError.of(DRAINING)
        assert self._terms is not None
        return self._terms

    def _begin(self, stream: Stream, terms: Terms, answer: Message) -> None:
        self._stream = stream
        self._send(answer)
        stream.start(exits="exits" in terms.welcome.capabilities)

    def _end_stream(self, *, park: bool) -> None:
        """End the stream, or keep it for its device to come back."""
        stream, self._stream = self._stream, None
        if stream is not None and stream.holder is self:
            (self._service.kept.park if park else self._service.kept.forget)(stream)

    def deliver(self, stream: Stream, messages: list[Message]) -> None:
        """Send what comes out of the stream; see :class:`~.streams.Holder`."""
        for message in messages:
            if isinstance(message, Error):
                log.warning(
                    "stream of %s: %s", self._socket.remote_address, message.message
                )
                self._stream = None
                if message.fatal:
                    self._leave(message)
                    return
            self._send(message)
        if self._draining and not self.busy:
            self._leave(DRAINING)

    def lose(self, stream: Stream) -> None:
        """Let go of ``stream``: its device has come back on another connection."""
        self._stream = None
        self.abort()

    # ---- sending and leaving

    def _send(self, message: Message) -> None:
        if isinstance(message, Error):
            self._service.refused(message.code)
        self._outbox.append(self._codec.encode(message))
        self._wake.set()

    def _leave(self, error: Error) -> None:
        """Say why, and close."""
        if self._closing is not None:
            return
        if error is not DRAINING:
            log.info("%s: %s", self._socket.remote_address, error.message)
        self._end_stream(park=False)
        self._closing = dataclasses.replace(error, fatal=True)
        self._send(self._closing)

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
                    code = self._closing.code
                    await self._socket.close(_CLOSE_CODES.get(code, 1008), code)
                    return
                self._wake.clear()
                await self._wake.wait()
        except ConnectionClosed:
            pass  # the reader sees it too
        finally:
            self._outbox.clear()
            self._room.set()


def _name(message: Message) -> str:
    return type(message).__name__.lower()
