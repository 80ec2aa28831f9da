"""One device's connection: greeting, then streams, one at a time.

Two tasks share a connection. The *reader* takes frames in; the *worker* of the open
stream (:mod:`draftwire.verifier.worker`) asks the session for work, waits for the
scheduler and sends the verdicts. When the link is lost the stream is kept
(:mod:`draftwire.verifier.streams`) for another connection to go on with.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any

from websockets.exceptions import ConnectionClosed

from draftwire.errors import (
    ConfigError,
    DraftwireError,
    ModelError,
    ProtocolError,
    RefusedError,
)
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
    Welcome,
)
from draftwire.verifier.accounts import LimitError, Usage
from draftwire.verifier.greeting import (
    DRAINING,
    FatalError,
    check_room,
    choose,
    welcome_to,
)
from draftwire.verifier.limits import prompt_limit
from draftwire.verifier.registry import Served
from draftwire.verifier.streams import Stream, UnknownStreamError
from draftwire.verifier.target_session import TargetSession
from draftwire.verifier.worker import drive

if TYPE_CHECKING:
    from draftwire.verifier.service import VerifierService

__all__ = ["Connection"]

log = logging.getLogger("draftwire.verifier")

_CLOSE_CODES = {"protocol": 1002, "version": 1002, "draining": 1001, "internal": 1011}


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

    session_class = TargetSession

    def __init__(self, socket: Any, service: VerifierService, usage: Usage) -> None:
        self._socket = socket
        self._service = service
        self._usage = usage
        self._codec = Codec()
        self._served: Served | None = None
        self._welcome: Welcome | None = None
        self._stream: Stream | None = None
        self._ended: Stream | None = None  # its device may not have seen the end yet
        self._forgets = False
        self._clock = asyncio.get_running_loop().time
        self.active_s = self._clock()
        self.blocked_s: float | None = None
        self.expired = False
        self._draining = False

    @property
    def greeted(self) -> bool:
        """True once the welcome is out."""
        return self._served is not None

    @property
    def busy(self) -> bool:
        """True while a stream is open."""
        return self._stream is not None

    async def run(self) -> None:
        """Greet, serve streams, close; returns when the connection has ended."""
        try:
            await self._greet()
            await self._read()
        except ConnectionClosed:
            pass
        except FatalError as fatal:
            await self._leave(fatal.error)
        except ProtocolError as error:
            await self._leave(Error("protocol", str(error)[:1000], error.hint))
        except DraftwireError as error:
            await self._leave(Error("internal", str(error)[:1000], error.hint))
        except Exception as error:
            # A bug of ours ends this device's connection, never the verifier.
            log.exception("connection of %s failed", self._socket.remote_address)
            await self._leave(_failure(error))
        finally:
            await self._end_stream(park=not self._forgets)
            if self._served is not None:
                self._service.registry.leave(self._served)

    async def expire(self) -> None:
        """Show out a device that has been silent for too long."""
        self.expired = True
        if self._served is None:
            error = Error("limit", "no hello came after the upgrade")
        else:
            error = Error(
                "limit",
                f"no message for {self._service.limits.idle_s:g} seconds",
                "connect again when there is something to verify",
            )
        await self._end_stream(park=True)
        await self._leave(error)

    def abort(self) -> None:
        """Cut the connection without a word: nobody reads at its other end."""
        self._socket.transport.abort()

    async def drain(self, *, now: bool) -> None:
        """End the connection because the verifier goes away.

        Args:
            now: Also when a stream is running; otherwise that one may finish first.
        """
        self._draining = True
        if self._stream is None or now:
            await self._end_stream(park=False)
            await self._leave(DRAINING)

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
        service.registry.enter(served)
        self._served = served
        welcome = welcome_to(hello, served.backend, service.limits, account.context)
        await self._send(welcome)
        self._welcome = welcome
        self._codec = Codec(welcome.vocab_size, max_ids=prompt_limit(welcome.context))
        log.info(
            "%s: %r on %s", self._socket.remote_address, hello.agent[:80], served.label
        )

    # ---- reading

    async def _receive(self) -> Message:
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

    async def _read(self) -> None:
        while True:
            await self._take(await self._receive())

    async def _take(self, message: Message) -> None:
        if isinstance(message, Open):
            await self._open(message)
        elif isinstance(message, Block):
            await self._block(message)
        elif isinstance(message, (Bye, Error)):
            await self._end_stream(park=False)
            if self._draining:
                raise FatalError.of(DRAINING)
            if isinstance(message, Error) and message.fatal:
                await self._socket.close(1000)
        elif isinstance(message, Resume):
            await self._resume(message)
        else:
            raise ProtocolError(f"{_name(message)} does not go to a verifier")

    async def _block(self, block: Block) -> None:
        stream = self._stream
        if stream is None:
            return  # of a stream that ended meanwhile
        async with stream.lock:
            if self._stream is not stream:
                return
            stream.unjudged += len(block.evidence)
            if stream.unjudged > self._service.limits.message_bytes:
                raise FatalError(
                    "limit",
                    f"{stream.unjudged} bytes of evidence wait for judgement, the limit "
                    f"is {self._service.limits.message_bytes}",
                    "wait for verdicts before sending more",
                )
            answers = stream.session.receive(block)
        await self._after(stream, answers)
        stream.wake.set()

    # ---- streams

    async def _open(self, request: Open) -> None:
        served, welcome = self._ready("an open")
        kept = self._service.kept
        if self._ended is not None:  # whoever opens the next has seen the last one end
            kept.forget(self._ended)
            self._ended = None
        try:
            session = self.session_class(
                request,
                vocab_size=welcome.vocab_size,
                context=welcome.context,
                max_block=self._service.limits.block,
            )
            slot = kept.allocate(served, self._usage)
        except (ConfigError, RefusedError) as error:
            await self._refuse(error)
            return
        stream = Stream(
            session,
            served,
            slot,
            self._usage,
            self,
            len(request.prompt),
            welcome.vocab_size,
        )
        stream.wants_exits = request.exits
        if "resume" in welcome.capabilities:
            kept.enter(stream)
        self._service.streams += 1
        self.hold(stream)
        await self._send(Opened(request.stream, stream.id, stream.secret))
        self._start(stream)

    async def _resume(self, request: Resume) -> None:
        served, welcome = self._ready("a resume")
        try:
            stream, answer = await self._service.kept.resume(
                request, served, self._usage, welcome.vocab_size, self
            )
        except RefusedError as error:
            await self._refuse(error)
            return
        await self._send(answer)
        self._start(stream)

    def _ready(self, what: str) -> tuple[Served, Welcome]:
        if self._stream is not None:
            raise ProtocolError(f"{what} while a stream is running")
        if self._draining:
            raise FatalError.of(DRAINING)
        assert self._served is not None and self._welcome is not None
        return self._served, self._welcome

    async def _refuse(self, error: ConfigError | RefusedError) -> None:
        """Say why there is no stream; the connection stays."""
        if isinstance(error, ConfigError):
            code = "request"
        elif isinstance(error, LimitError):
            code = "limit"
        else:
            code = "session" if isinstance(error, UnknownStreamError) else "busy"
        self._service.refused(code)
        await self._send(Error(code, str(error)[:1000], error.hint, fatal=False))

    def hold(self, stream: Stream) -> None:
        """Drive ``stream`` from now on; one that has ended only waits to be seen."""
        if stream.session.done:
            self._ended = stream
        else:
            self._stream = stream
            self._usage.streams += 1

    def lose(self, stream: Stream) -> None:
        """Let go of ``stream``: its device has come back on another connection."""
        self._detached(stream)
        if self._ended is stream:
            self._ended = None
        self.abort()

    def _detached(self, stream: Stream) -> bool:
        """Stop holding ``stream``; False when somebody else has done so."""
        if self._stream is not stream:
            return False
        self._stream = None
        self._usage.streams -= 1
        return True

    def _start(self, stream: Stream) -> None:
        if self._stream is stream:  # nobody took it over meanwhile
            assert self._welcome is not None
            negotiated = "exits" in self._welcome.capabilities
            stream.exits = stream.wants_exits and negotiated
            stream.worker = asyncio.ensure_future(self._work(stream))

    async def _work(self, stream: Stream) -> None:
        """Drive one stream's session until it is done."""
        try:
            await drive(stream, self._service, self._after)
        except ConnectionClosed:
            pass  # the reader sees it too
        except ProtocolError as error:
            await self._leave(Error("protocol", str(error)[:1000], error.hint))
        except (ModelError, RefusedError) as error:
            code = "busy" if isinstance(error, RefusedError) else "internal"
            log.warning("stream of %s: %s", self._socket.remote_address, error)
            if self._detached(stream):
                self._service.kept.forget(stream)
            self._service.refused(code)
            try:
                await self._send(Error(code, str(error)[:1000], error.hint, fatal=False))
            except ConnectionClosed:
                pass
        except Exception as error:
            log.exception("stream of %s failed", self._socket.remote_address)
            await self._leave(_failure(error))

    async def _after(self, stream: Stream, answers: list[Message]) -> None:
        """Book what the stream did, release it when it is done, send ``answers``."""
        stream.book()
        if stream.session.done and self._detached(stream):
            stream.release()
            if stream.id:
                self._ended = stream
        for answer in answers:
            await self._send(answer)
        if self._draining and self._stream is None:
            await self._leave(DRAINING)

    async def _end_stream(self, *, park: bool) -> None:
        """End the stream, or keep it for its device to come back."""
        for stream in (self._stream, self._ended):
            if stream is None:
                continue
            async with stream.moving:
                if stream.holder is not self:
                    continue  # its device was quicker
                self._detached(stream)
                await stream.stop()
                if park and stream.id:
                    self._service.kept.park(stream, self._clock())
                else:
                    self._service.kept.forget(stream)
        self._ended = None

    # ---- sending and leaving

    async def _send(self, message: Message) -> None:
        frame = self._codec.encode(message)
        self._service.bytes_out += len(frame)
        self.active_s = self._clock()
        if self.blocked_s is None:
            self.blocked_s = self.active_s
        await self._socket.send(frame)
        self.blocked_s = None

    async def _leave(self, error: Error) -> None:
        self._service.refused(error.code)
        if error is not DRAINING:
            log.info("%s: %s", self._socket.remote_address, error.message)
        self._forgets = True
        try:
            await self._send(error)
        except ConnectionClosed:
            return
        await self._socket.close(_CLOSE_CODES.get(error.code, 1008), error.code)


def _name(message: Message) -> str:
    return type(message).__name__.lower()


def _failure(error: Exception) -> Error:
    return Error("internal", f"the verifier failed: {type(error).__name__}")
