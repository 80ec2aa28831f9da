"""One address for many verifiers: frames are passed on, and nothing is kept.

A device's connection has a *home*, the verifier that its session's key belongs to
(:class:`~draftwire.verifier.gateway.fleet.Ring`), and its streams go there. Where that
one is full, goes away or is gone, a stream is opened at another one, over a connection
of its own whose key belongs to that one: so a resume finds its stream wherever it was
opened, through whichever gateway it comes. What is read of a frame is its kind and the
number of its stream; of a resume the id, and of an error its code. A stream whose
verifier is gone is unknown at the next one, and the device opens it anew from its own
text (PROTOCOL.md, section 4.3).
"""

from __future__ import annotations

import asyncio
import dataclasses
import inspect
import logging
import secrets
from dataclasses import dataclass, field
from typing import Any, Coroutine, Iterable

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import (
    ConnectionClosed,
    InvalidHandshake,
    InvalidStatus,
    InvalidURI,
)
from websockets.typing import Subprotocol

from draftwire.errors import ProtocolError
from draftwire.transport.answers import clean, retry_after
from draftwire.transport.bits import Reader
from draftwire.transport.codec import MAX_FRAME, MAX_STREAM, SUBPROTOCOL, Codec
from draftwire.transport.dial import KEY_BYTES, SESSION_HEADER, check_url, key_of
from draftwire.transport.messages import Error, Kind, Resume, Welcome
from draftwire.verifier.gateway.fleet import Fleet, Replica
from draftwire.verifier.registry import Registry
from draftwire.verifier.serving.accounts import Usage
from draftwire.verifier.serving.connection import Websocket
from draftwire.verifier.serving.limits import QUEUED_FRAMES
from draftwire.verifier.serving.service import Settings, VerifierService

log = logging.getLogger("draftwire.gateway")

_QUIET = logging.getLogger("draftwire.verifier.websockets")
_GONE = (OSError, InvalidHandshake, InvalidURI, ConnectionClosed, EOFError)
_ELSEWHERE = ("busy", "draining")  # what another verifier may do better
_KEPT_BYTES = MAX_FRAME  # of a stream that is not accepted yet, to say it elsewhere
# From version 15 on websockets would ask the environment for a proxy.
_NO_PROXY: dict[str, Any] = {}
if "proxy" in inspect.signature(connect.__init__).parameters:
    _NO_PROXY["proxy"] = None


@dataclass
class _Upstream:
    """A connection of one device to one verifier."""

    replica: Replica
    socket: ClientConnection
    welcome: Welcome


@dataclass
class _Stream:
    """Where the frames of a stream's number go.

    ``kept`` is what was said of it, until a verifier has accepted it.
    """

    key: bytes
    resume: bool
    upstream: _Upstream | None = None
    kept: list[bytes] | None = None
    tried: set[str] = field(default_factory=set)
    placing: asyncio.Future[None] | None = None


class Relay(Websocket):
    """One device's connection, and those to the verifiers that have its streams.

    It is to a gateway what
    :class:`~draftwire.verifier.serving.connection.Connection` is to a verifier.
    """

    def __init__(self, socket: Any, service: Gateway, usage: Usage) -> None:
        super().__init__(socket, service, usage)
        self._fleet = service.fleet
        self._gateway = service
        self.greeted = False
        self.running = 0  # the verifiers count their streams themselves
        headers = socket.request.headers
        key = key_of(headers.get_all(SESSION_HEADER))
        self._key = key or secrets.token_bytes(KEY_BYTES)
        self._headers = [
            (name, value)
            for name in ("Authorization", "X-Forwarded-For")
            for value in headers.get_all(name)
        ]
        if isinstance(socket.remote_address, tuple):
            self._headers.append(("X-Forwarded-For", socket.remote_address[0]))
        self._hello = b""
        self._home: _Upstream | None = None
        self._upstreams: dict[str, asyncio.Future[_Upstream | Error]] = {}
        self._streams: dict[int, _Stream] = {}
        self._tasks: set[asyncio.Future[Any]] = set()
        self._leaving = False

    def expire(self) -> None:
        """Show out a device that has been silent for too long."""
        self.expired = True
        self._leave(1008, "silent for too long")

    def revoke(self) -> None:
        """End the connection: the token of its device is not valid any more."""
        self._leave(1008, "the token is not valid any more")

    def drain(self, *, now: bool) -> None:
        """The gateway goes away: another one finds the streams where they are."""
        self._leave(1001, "draining")

    def _leave(self, code: int, why: str) -> None:
        if not self._leaving:
            self._leaving = True
            self._spawn(self._socket.close(code, why))

    def _spawn(self, work: Coroutine[Any, Any, Any]) -> asyncio.Future[Any]:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    # ---- from the device

    async def run(self) -> None:
        """Greet, pass frames on, let go; returns when the connection has ended."""
        code = 1001  # whatever is no close of the device's own parks its streams
        try:
            self._hello = await self._receive()
            if await self._greet():
                while True:
                    await self._take(await self._receive())
        except ConnectionClosed as closed:
            if not self._leaving and closed.rcvd is not None and closed.rcvd.code == 1000:
                code = 1000
        except ProtocolError as error:
            await self._say(Error("protocol", str(error), fatal=True))
            await self._socket.close(1002, "protocol")
        finally:
            for task in tuple(self._tasks):
                task.cancel()
            found = [f.result() for f in self._upstreams.values() if _is_up(f)]
            ups = [one for one in found if isinstance(one, _Upstream)]
            await asyncio.gather(*(up.socket.close(code) for up in ups))

    async def _say(self, error: Error, number: int = 0) -> None:
        self._service.refused(error.code)
        await self._pass(Codec().encode(error, number))

    async def _pass(self, frame: bytes) -> None:
        """Send the device a frame."""
        self._service.bytes_out += len(frame)
        if self.blocked_s is None:
            self.blocked_s = self._clock()
        await self._socket.send(frame)
        self.active_s, self.blocked_s = self._clock(), None

    async def _greet(self) -> bool:
        """Find the home of this connection; return whether there is one."""
        said: Error | None = None
        for replica in self._fleet.candidates(self._key, self._clock()):
            found = await self._reach(replica)
            if isinstance(found, _Upstream):
                self._home, self.greeted = found, True
                self._no_stranger()
                return True
            # What one refuses for good, such as a target that it has not, another may have.
            if said is None or said.code in _ELSEWHERE:
                said = found
        await self._say(said or self._no_room(fatal=True))
        await self._socket.close(1008, "refused")
        return False

    def _no_room(self, *, fatal: bool) -> Error:
        later_ms = round(1e3 * self._service.lobby.return_s())
        what = "no verifier behind this gateway has room"
        return Error("busy", what, fatal=fatal, retry_after_ms=later_ms)

    async def _take(self, frame: bytes) -> None:
        kind, number = _head(frame)
        if number is None:  # for everyone
            for future in tuple(self._upstreams.values()):
                await _send(future.result() if _is_up(future) else None, frame)
            return
        if kind in (Kind.OPEN, Kind.RESUME):
            stream = _Stream(self._key, kind == Kind.RESUME, kept=[frame])
            if stream.resume:
                message = Codec().decode(frame).message
                assert isinstance(message, Resume)
                stream.key = message.id[:KEY_BYTES]
            self._streams[number] = stream
            stream.placing = self._spawn(self._place(stream, number))
            return
        known = self._streams.get(number)
        if known is None:
            await _send(self._home, frame)  # which knows what is to be said to that
            return
        if known.kept is not None:
            known.kept.append(frame)
            much = sum(map(len, known.kept)) > _KEPT_BYTES
            if known.upstream is None:  # whoever places it says this, too
                if much and known.placing is not None:
                    await asyncio.wait([known.placing])
                return
            if much:
                known.kept = None
        await _send(known.upstream, frame)

    # ---- where a stream goes

    async def _place(self, stream: _Stream, number: int) -> None:
        """Find a verifier for a stream, and say there what was said of it."""
        for replica in self._where(stream):
            stream.tried.add(replica.url)
            found = await self._reach(replica)
            if isinstance(found, Error) or stream.kept is None:
                continue
            said = 0
            while said < len(stream.kept):
                await _send(found, stream.kept[said])
                said += 1
            stream.upstream = found
            return
        if self._streams.get(number) is stream:
            del self._streams[number]
            await self._say(self._no_room(fatal=False), number)

    def _where(self, stream: _Stream) -> list[Replica]:
        """Return who has not been asked for this stream yet, the likeliest first."""
        fleet, now = self._fleet, self._clock()
        found = fleet.candidates(stream.key, now)
        if stream.resume:
            # Who does not know it says so, and the device opens it anew.
            found = fleet.holders(stream.key) + found
        elif self._home is not None and fleet.takes(self._home.replica, now):
            found.insert(0, self._home.replica)
        unique = {replica.url: replica for replica in found}
        return [one for url, one in unique.items() if url not in stream.tried]

    async def _reach(self, replica: Replica) -> _Upstream | Error:
        """Return this device's connection to a verifier, or why there is none."""
        future = self._upstreams.get(replica.url)
        if future is None or (future.done() and not _is_up(future)):
            future = self._spawn(self._connect(replica))
            self._upstreams[replica.url] = future
        return await asyncio.shield(future)

    async def _connect(self, replica: Replica) -> _Upstream | Error:
        fleet = self._fleet
        if replica.url not in fleet.ring.names:
            return Error("busy", "this verifier has been left out")
        key = self._key
        if fleet.ring.owner(key) != replica.url:
            key = fleet.ring.key_for(replica.url)
        uri = check_url(replica.url, insecure=True)
        patience_s = max(5.0, 2.5 * fleet.health_s)
        options: dict[str, Any] = dict(_NO_PROXY)
        if uri.secure:
            options.update(ssl=fleet.context(), server_hostname=replica.name or uri.host)
        socket = None
        try:
            socket = await connect(
                replica.url,
                subprotocols=[Subprotocol(SUBPROTOCOL)],
                additional_headers=[*self._headers, (SESSION_HEADER, key.hex())],
                compression=None,
                max_size=MAX_FRAME,
                max_queue=QUEUED_FRAMES,
                open_timeout=patience_s,
                # A verifier that answers nothing is noticed here; devices get our pongs.
                ping_interval=fleet.health_s,
                ping_timeout=patience_s,
                close_timeout=2,
                user_agent_header="draftwire-gateway",
                logger=_QUIET,
                **options,
            )
            await socket.send(self._hello)
            frame = await asyncio.wait_for(socket.recv(), patience_s)
            if not isinstance(frame, bytes):
                raise ProtocolError("a text frame")
            said = Codec().decode(frame).message
            if isinstance(said, Error):
                await socket.close()
                self._note(replica, said)
                return said
            if not isinstance(said, Welcome):
                raise ProtocolError(f"{type(said).__name__} instead of a welcome")
        except InvalidStatus as error:
            status = error.response.status_code
            if status in (429, 503):
                fleet.has_no_room(replica, retry_after(dict(error.response.headers)))
                return Error("busy", f"a verifier has no room ({status})")
            log.error("%s refuses the connection of a device (%d)", replica.url, status)
            return Error("internal", f"a verifier behind this gateway answers {status}")
        except asyncio.CancelledError:
            if socket is not None:
                socket.transport.abort()
            raise
        except (*_GONE, ProtocolError, asyncio.TimeoutError) as error:
            log.warning("%s: %s", replica.url, clean(str(error)) or type(error).__name__)
            replica.state = "down"  # until it answers the next look
            if socket is not None:
                socket.transport.abort()
            return Error("busy", "a verifier behind this gateway does not answer")
        home = self._home
        said = dataclasses.replace(said, agent="")
        if home is not None and said != home.welcome:
            await socket.close()  # another version, or other limits: not for this device
            return Error("busy", "what holds at this verifier is not what was promised")
        upstream = _Upstream(replica, socket, said)
        if home is None:
            await self._pass(frame)
        replica.connections += 1
        self._spawn(self._read(upstream))
        return upstream

    def _note(self, replica: Replica, error: Error) -> None:
        """Take into account why ``replica`` has refused something."""
        if error.code in _ELSEWHERE:
            later_ms = error.retry_after_ms
            self._fleet.has_no_room(replica, None if later_ms is None else later_ms / 1e3)

    # ---- from a verifier

    async def _read(self, upstream: _Upstream) -> None:
        """Pass on what a verifier says, until it or the device ends."""
        try:
            while True:
                frame = await upstream.socket.recv()
                if isinstance(frame, bytes) and frame:
                    await self._answer(upstream, frame)
        except ConnectionClosed:
            if upstream.socket.close_code is not None and not self._leaving:
                self._gateway.lost += 1
                log.info("%s is gone under a device", upstream.replica.url)
                self._fleet.look_soon()
                # What was there the device takes up again, wherever that is then.
                self._leave(1001, "its verifier is gone")
        finally:
            upstream.replica.connections -= 1

    async def _answer(self, upstream: _Upstream, frame: bytes) -> None:
        kind, number = _head(frame)
        error = Codec().decode(frame).message if kind == Kind.ERROR else None
        if number is None:
            assert isinstance(error, Error)
            if error.code in _ELSEWHERE:
                self._note(upstream.replica, error)
            else:
                await self._pass(frame)
            self._leave(1001, error.code)
            return
        stream = self._streams.get(number)
        if stream is None or stream.upstream is not upstream:
            return  # of a stream that has ended, or was not accepted there
        if stream.kept is not None and isinstance(error, Error):
            self._note(upstream.replica, error)
            if error.code in _ELSEWHERE:
                stream.upstream = None
                stream.placing = self._spawn(self._place(stream, number))
                return
        if kind in (Kind.OPENED, Kind.RESUMED):
            upstream.replica.streams += 1
            self._gateway.spilled += kind == Kind.OPENED and upstream is not self._home
        stream.kept = stream.placing = None
        await self._pass(frame)


class Gateway(VerifierService):
    """Accepts devices and passes their frames on; its registry is without targets."""

    connection_class = Relay  # type: ignore[assignment]

    def __init__(
        self,
        registry: Registry,
        settings: Settings | None = None,
        *,
        fleet: Fleet,
        **options: Any,
    ) -> None:
        super().__init__(registry, settings, **options)
        self.fleet = fleet
        self.spilled = 0  # streams that were opened elsewhere than at their session's home
        self.lost = 0  # connections to verifiers that ended under a device
        self._looking: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Look at the verifiers, and begin to listen."""
        await self.fleet.look()
        await super().start()
        self._looking = asyncio.ensure_future(self._keep_looking())

    async def _keep_looking(self) -> None:
        while True:
            await self.fleet.pause()
            try:
                await self.fleet.look()
            except Exception:  # noqa: BLE001 - the next look may fare better
                log.exception("looking at the verifiers failed")

    async def close(self) -> None:
        """Stop looking and listening."""
        if self._looking is not None:
            self._looking.cancel()
        await super().close()

    def _before_upgrade(self, socket: Any, request: Any) -> Any:
        answer = super()._before_upgrade(socket, request)
        if answer is None and not self.ready:
            return self._later(socket, 503, "no verifier is up behind this gateway")
        return answer

    @property
    def ready(self) -> bool:
        return any(replica.state == "ok" for replica in self.fleet.replicas.values())

    def health(self) -> dict[str, Any]:
        verifiers = [
            {
                "url": replica.url,
                "state": "draining" if replica.drain else replica.state,
                "connections": replica.connections,
            }
            for replica in self.fleet.replicas.values()
        ]
        return {"sessions": self.greeted, "verifiers": verifiers}

    def more_metrics(self) -> Iterable[tuple[str, float, dict[str, str]]]:
        """Return what is the gateway's own, see the base class."""
        yield "gateway_spilled_total", self.spilled, {}
        yield "gateway_lost_total", self.lost, {}
        for replica in self.fleet.replicas.values():
            of = {"verifier": replica.url}
            yield "gateway_verifier_up", int(replica.state == "ok"), of
            yield "gateway_verifier_connections", replica.connections, of
            yield "gateway_verifier_streams_total", replica.streams, of


def _is_up(future: asyncio.Future[_Upstream | Error]) -> bool:
    """Return whether a connection to a verifier stands."""
    if not future.done() or future.cancelled() or future.exception() is not None:
        return False
    found = future.result()
    return isinstance(found, _Upstream) and found.socket.close_code is None


async def _send(upstream: _Upstream | Error | None, frame: bytes) -> None:
    if isinstance(upstream, _Upstream):
        try:
            await upstream.socket.send(frame)
        except ConnectionClosed:
            pass  # its reader sees it too


def _head(frame: bytes) -> tuple[int, int | None]:
    """Return kind and stream number of a frame, None for one of the connection."""
    kind, number = frame[0] & 15, frame[0] >> 6
    if kind in (Kind.HELLO, Kind.WELCOME) or (kind == Kind.ERROR and frame[0] & 0x10):
        return kind, None
    if number == 3:
        number = Reader(frame[1:4]).varint(MAX_STREAM, "stream number")
    return kind, number
