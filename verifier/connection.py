"""One device's connection: greeting, then streams, one at a time.

Two tasks share a connection. The *reader* takes frames in; the *worker* of the open
stream asks the session for work, waits for the scheduler and sends the verdicts. Both
run on one event loop, so the session needs no lock except while a large verdict is
decided in a helper thread.
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
)
from draftwire.verifier.backends.base import SlotInput
from draftwire.verifier.greeting import DRAINING, FatalError, choose, welcome_to
from draftwire.verifier.registry import Served
from draftwire.verifier.target_session import TargetSession, Work

if TYPE_CHECKING:
    from draftwire.verifier.service import VerifierService

__all__ = ["Connection"]

log = logging.getLogger("draftwire.verifier")

# Logits above this many numbers are judged in a helper thread: a full law over a large
# vocabulary takes milliseconds that all other devices would wait for.
_INLINE_LOGITS = 1 << 16
_CLOSE_CODES = {"protocol": 1002, "version": 1002, "draining": 1001, "internal": 1011}


class _Stream:
    """An open stream: its session, its slot and its worker."""

    def __init__(self, number: int, session: TargetSession, slot: int) -> None:
        self.number = number
        self.session = session
        self.slot = slot
        self.wake = asyncio.Event()
        self.lock = asyncio.Lock()
        self.worker: asyncio.Task[None] | None = None
        self.booked = (0, 0, 0)  # drafted, accepted, emitted that metrics have seen


class Connection:
    """Serves one websocket until it ends.

    Args:
        socket: A ``websockets.asyncio`` server connection, upgraded and authorised.
        service: Registry, limits and counters.
    """

    def __init__(self, socket: Any, service: VerifierService) -> None:
        self._socket = socket
        self._service = service
        self._codec = Codec()
        self._served: Served | None = None
        self._vocab_size = 0
        self._context = 0
        self._stream: _Stream | None = None
        self._clock = asyncio.get_running_loop().time
        self.active_s = self._clock()
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
            await self._end_stream()
            if self._served is not None:
                self._service.registry.leave(self._served)

    async def expire(self) -> None:
        """Show out a device that has been silent for too long."""
        if self._served is None:
            error = Error("limit", "no hello came after the upgrade")
        else:
            error = Error(
                "limit",
                f"no message for {self._service.limits.idle_s:g} seconds",
                "connect again when there is something to verify",
            )
        await self._end_stream()
        await self._leave(error)

    async def drain(self, *, now: bool) -> None:
        """End the connection because the verifier goes away.

        Args:
            now: Also when a stream is running; otherwise that one may finish first.
        """
        self._draining = True
        if self._stream is None or now:
            await self._end_stream()
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
        service, limits = self._service, self._service.limits
        if service.draining:
            raise FatalError.of(DRAINING)
        if len(service.connections) > limits.connections:
            raise FatalError(
                "busy",
                f"{limits.connections} devices are connected, that is this verifier's "
                "limit",
                "try again later, or raise --max-sessions",
            )
        served = choose(hello, service.registry)
        service.registry.enter(served)
        self._served = served
        welcome = welcome_to(hello, served.backend, limits)
        await self._send(welcome)
        self._vocab_size, self._context = welcome.vocab_size, welcome.context
        self._codec = Codec(welcome.vocab_size)
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
        return self._codec.decode(frame)

    async def _read(self) -> None:
        while True:
            message = await self._receive()
            await self._take(message)

    async def _take(self, message: Message) -> None:
        stream = self._stream
        if isinstance(message, Open):
            await self._open(message)
        elif isinstance(message, Block):
            if stream is None:
                return  # of a stream that ended meanwhile
            async with stream.lock:
                answers = stream.session.receive(message)
            await self._after(stream, answers)
            stream.wake.set()
        elif isinstance(message, (Bye, Error)):
            await self._end_stream()
            if self._draining:
                raise FatalError.of(DRAINING)
            if isinstance(message, Error) and message.fatal:
                await self._socket.close(1000)
        elif isinstance(message, Resume):
            await self._send(
                Error(
                    "request",
                    "this verifier keeps no streams of lost connections",
                    "open the stream again with the text so far as its prompt",
                    fatal=False,
                )
            )
        else:
            raise ProtocolError(f"{_name(message)} does not go to a verifier")

    # ---- streams

    async def _open(self, request: Open) -> None:
        if self._stream is not None:
            raise ProtocolError("an open while a stream is running")
        if self._draining:
            raise FatalError.of(DRAINING)
        assert self._served is not None
        try:
            session = TargetSession(
                request,
                vocab_size=self._vocab_size,
                context=self._context,
                max_block=self._service.limits.block,
            )
            slot = self._served.backend.allocate()
        except (ConfigError, RefusedError) as error:
            code = "request" if isinstance(error, ConfigError) else "busy"
            self._service.refused(code)
            await self._send(Error(code, str(error), error.hint, fatal=False))
            return
        stream = self._stream = _Stream(request.stream, session, slot)
        self._service.streams += 1
        await self._send(Opened(request.stream))
        stream.worker = asyncio.ensure_future(self._work(stream))

    async def _work(self, stream: _Stream) -> None:
        """Drive one stream's session until it is done."""
        try:
            while not stream.session.done:
                work = stream.session.poll()
                if work is None:
                    stream.wake.clear()
                    await stream.wake.wait()
                    continue
                await self._after(stream, await self._run(stream, work))
        except ConnectionClosed:
            pass  # the reader sees it too
        except ProtocolError as error:
            await self._leave(Error("protocol", str(error)[:1000], error.hint))
        except (ModelError, RefusedError) as error:
            code = "busy" if isinstance(error, RefusedError) else "internal"
            log.warning("stream of %s: %s", self._socket.remote_address, error)
            self._release(stream)
            self._service.refused(code)
            try:
                await self._send(Error(code, str(error)[:1000], error.hint, fatal=False))
            except ConnectionClosed:
                pass
        except Exception as error:
            log.exception("stream of %s failed", self._socket.remote_address)
            await self._leave(_failure(error))

    async def _run(self, stream: _Stream, work: Work) -> list[Message]:
        assert self._served is not None
        verified = await self._served.scheduler.submit(
            SlotInput(stream.slot, work.start, work.tokens, work.rows),
            prefill=work.prefill,
        )
        if not work.prefill:
            self._service.verify_seconds.add(verified.compute_s)
            self._service.queue_seconds.add(verified.queue_s)

        def complete() -> list[Message]:
            return stream.session.complete(
                work,
                verified.rows,
                queue_s=verified.queue_s,
                compute_s=verified.compute_s,
            )

        async with stream.lock:
            if verified.rows.size <= _INLINE_LOGITS:
                return complete()
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(None, complete)

    async def _after(self, stream: _Stream, answers: list[Message]) -> None:
        """Book what the stream did, release it when it is done, send ``answers``."""
        assert self._served is not None
        counts = stream.session.counts
        now = (counts.drafted, counts.accepted, counts.emitted)
        drafted, accepted, emitted = (a - b for a, b in zip(now, stream.booked))
        self._served.drafted += drafted
        self._served.accepted += accepted
        self._served.emitted += emitted
        stream.booked = now
        if stream.session.done:
            self._release(stream)
        for answer in answers:
            await self._send(answer)
        if self._draining and self._stream is None:
            await self._leave(DRAINING)

    def _release(self, stream: _Stream) -> None:
        if self._stream is stream:
            self._stream = None
            assert self._served is not None
            self._served.scheduler.release(stream.slot)

    async def _end_stream(self) -> None:
        stream, self._stream = self._stream, None
        if stream is None:
            return
        if stream.worker is not None and stream.worker is not asyncio.current_task():
            stream.worker.cancel()
            await asyncio.wait([stream.worker])
        assert self._served is not None
        self._served.scheduler.release(stream.slot)

    # ---- sending and leaving

    async def _send(self, message: Message) -> None:
        frame = self._codec.encode(message)
        self._service.bytes_out += len(frame)
        self.active_s = self._clock()
        await self._socket.send(frame)

    async def _leave(self, error: Error) -> None:
        self._service.refused(error.code)
        if error is not DRAINING:
            log.info("%s: %s", self._socket.remote_address, error.message)
        try:
            await self._send(error)
        except ConnectionClosed:
            return
        await self._socket.close(_CLOSE_CODES.get(error.code, 1008), error.code)


def _name(message: Message) -> str:
    return type(message).__name__.lower()


def _failure(error: Exception) -> Error:
    return Error("internal", f"the verifier failed: {type(error).__name__}")
