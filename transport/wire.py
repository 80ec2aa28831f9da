"""The device's end of the websocket, on an asyncio loop: it never blocks.

The websocket itself is the sans-I/O protocol of ``websockets``; what is here connects,
greets, counts bytes, and makes one of our errors of whatever goes wrong. It is the live
side of :mod:`draftwire.runtime.ports`.
"""

from __future__ import annotations

import asyncio
import dataclasses
import re
import secrets
import ssl
from typing import Protocol

from websockets import frames
from websockets.client import ClientProtocol
from websockets.protocol import OPEN
from websockets.typing import Subprotocol

from draftwire.errors import (
    ConfigError,
    DraftwireError,
    IncompatibleError,
    ProtocolError,
    TransportError,
)
from draftwire.transport.answers import clean, read_head, refusal, to_exception
from draftwire.transport.codec import MAX_FRAME, SUBPROTOCOL, Codec
from draftwire.transport.dial import (
    SESSION_HEADER,
    Resolve,
    check_url,
    explain,
    find_proxy,
    reach,
    resolve,
    tls_context,
    tunnel,
)
from draftwire.transport.messages import Error, Frame, Hello, Message, Welcome
from draftwire.transport.traffic import MASK, Meter, wire_size
from draftwire.transport.wirelog import ConnectionLog, WireLog

_OUTBOX = 4 * MAX_FRAME  # bytes that a peer may leave unread before it counts as gone


class _Events(Protocol):
    """What is told of a connection, see ``draftwire.runtime.ports.WireEvents``."""

    def up(self, welcome: Welcome) -> None: ...
    def message(self, frame: Frame) -> None: ...
    def alive(self) -> None: ...
    def down(self, error: DraftwireError) -> None: ...


class WebsocketNetwork:
    """Makes connections to one verifier, on an asyncio loop.

    Args:
        loop: All calls come in its thread, and so do all events.
        url: ``ws://`` (loopback only, unless ``insecure``) or ``wss://``.
        token: Bearer token, or None.
        insecure: Allow plain ``ws://`` to other machines: the token and the text then
            cross the network, and a proxy, readable for everyone on the way.
        tls: TLS settings for ``wss://``; None makes them from the system's trust store.
        proxy: ``"auto"`` (the environment's), ``"off"``, or ``http://HOST:PORT``; see
            :func:`~draftwire.transport.dial.find_proxy`. This machine itself is never
            reached through one.
        resolver: Looks names up; may block, may raise OSError.
        log: Where wire events are noted.

    Raises:
        ConfigError: The address, the token or the proxy is not usable.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        url: str,
        *,
        token: str | None = None,
        insecure: bool = False,
        tls: ssl.SSLContext | None = None,
        proxy: str = "auto",
        resolver: Resolve = resolve,
        log: WireLog | None = None,
    ) -> None:
        self.loop = loop
        self.uri = uri = check_url(url, insecure=insecure)
        if token and (not token.isascii() or any(c.isspace() for c in token)):
            raise ConfigError("the token holds spaces or non-ASCII characters")
        self.token = token
        self.session_id = secrets.token_hex(8)  # balancers and gateways route by it
        self.tls = None
        if uri.secure:
            self.tls = tls or tls_context(ca=None, cert=None, key=None)
        # Without what may be a secret: a password, a query.
        self.where = re.sub("//[^/]*@", "//", url).partition("?")[0]
        self.resolver = resolver
        self.log = log
        self.proxy = None
        self.no_way: DraftwireError | None = None
        try:
            self.proxy = find_proxy(proxy, uri.host, uri.port, secure=uri.secure)
        except ConfigError as exc:
            if proxy != "auto":
                raise
            self.no_way = TransportError(str(exc), hint=exc.hint)
        if self.proxy is not None:
            self.where += f" through {self.proxy}"

    def connect(self, hello: Hello, events: _Events, timeout_s: float) -> WebsocketWire:
        """Begin to connect, and to greet with ``hello`` within so many seconds.

        ``events`` is told of this connection alone, and never inside this call.
        """
        return WebsocketWire(self, hello, events, timeout_s)


class WebsocketWire(asyncio.Protocol):
    """One connection."""

    def __init__(
        self, network: WebsocketNetwork, hello: Hello, events: _Events, timeout_s: float
    ) -> None:
        self.meter = Meter()  # bytes and frames so far
        self.ports = (0, 0)  # local and remote, of TCP, while there is a connection
        self._network, self._hello, self._events = network, hello, events
        self._codec = Codec()
        log = network.log
        self._log = ConnectionLog() if log is None else log.connection(network.where)
        self._websocket = ClientProtocol(
            network.uri, subprotocols=[Subprotocol(SUBPROTOCOL)], max_size=MAX_FRAME
        )
        self._transport: asyncio.Transport | None = None
        self._head: bytes | None = b""  # of the answer to the upgrade, while it comes
        self._parts = bytearray()  # of a message in several frames
        self._greeted = self._over = False
        self._doing = "looking its name up"
        self._timer = network.loop.call_later(timeout_s, self._late, timeout_s)
        self._task = network.loop.create_task(self._connect())

    def send(self, message: Message, stream: int = 0) -> int:
        """Put ``message`` of a stream in the outbox; never blocks.

        Returns its bytes on the wire, computed; 0 before ``up`` and after the end.
        """
        return self._put(message, stream) if self._may_send() else 0

    def _may_send(self) -> bool:
        # A close may have come together with the message that is answered now.
        return self._greeted and not self._over and self._websocket.state is OPEN

    def ping(self) -> int:
        """Ask for a sign of life; return its bytes on the wire, 0 when it is over."""
        if not self._may_send():
            return 0
        self._websocket.send_ping(b"")
        self._log.event("ping", "up")
        self._flush()
        return wire_size(0, secure=self._network.uri.secure) + MASK

    def close(self) -> None:
        """End the connection at once, without waiting; no event follows."""
        self._end(1000, "by the device")

    # ---- the way up

    async def _connect(self) -> None:
        network, loop = self._network, self._network.loop
        uri, proxy = network.uri, network.proxy
        whom = f"a verifier at {network.where}" if proxy is None else str(proxy)
        try:
            if network.no_way is not None:
                raise network.no_way
            host, port = (uri.host, uri.port) if proxy is None else proxy[:2]
            sock = await reach(network.resolver, host, port, self._at)
            try:
                if proxy is not None:
                    self._at("asking the proxy")
                    await tunnel(sock, proxy, uri.host, uri.port)
                    whom = network.where
                self._at("TLS" if uri.secure else "the upgrade")
                name = uri.host if uri.secure else None
                await loop.create_connection(
                    lambda: self, sock=sock, ssl=network.tls, server_hostname=name
                )
            except BaseException:
                sock.close()
                raise
        except Exception as exc:  # noqa: BLE001 - nothing foreign leaves a port
            error = explain(exc, whom)
            if error is not exc:
                error.__cause__ = exc
            self._fail(error)

    def _at(self, doing: str) -> None:
        self._doing = doing

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Ask for the upgrade; called by the loop."""
        assert isinstance(transport, asyncio.Transport)
        if self._over:
            transport.abort()
            return
        self._transport = transport
        here, there = (transport.get_extra_info(n) for n in ("sockname", "peername"))
        if here and there:
            self.ports = (here[1], there[1])
        self._at("the upgrade")
        request = self._websocket.connect()
        request.headers["User-Agent"] = "draftwire"
        request.headers[SESSION_HEADER] = self._network.session_id
        if self._network.token:
            request.headers.pop("Authorization", None)
            request.headers["Authorization"] = f"Bearer {self._network.token}"
        self._websocket.send_request(request)
        self._flush()

    def _upgraded(self, data: bytes) -> bytes:
        """Take ``data`` of the answer to the upgrade; return what the websocket may read.

        Everything but a 101 is judged here, by its head alone: a body may never end.
        """
        assert self._head is not None
        self._head += data
        where = self._network.where
        while True:
            head = read_head(self._head, where)
            if head is None:
                return b""
            if head.status >= 200:
                raise refusal(head, self._head[head.size :], where)
            if head.status == 101:
                break
            self._head = self._head[head.size :]
        data, self._head = self._head, None
        websocket = self._websocket
        websocket.receive_data(data[: head.size])
        bad = websocket.handshake_exc
        if bad is not None:
            raise ProtocolError(
                f"{where} does not answer as a draftwire verifier: "
                f"{clean(str(bad.__cause__ or bad))}"
            ) from bad
        if websocket.subprotocol != SUBPROTOCOL:
            raise ProtocolError(
                f"{where} opened a websocket without the subprotocol {SUBPROTOCOL}",
                hint="another websocket service answers there, or a proxy on the way drops "
                "Sec-WebSocket-Protocol: docs/proxies.md",
            )
        websocket.events_received()  # the answer itself
        self._at("the greeting")
        self._put(self._hello, None)
        return data[head.size :]

    def _greet(self, answer: Message) -> None:
        if isinstance(answer, Error):
            raise to_exception(dataclasses.replace(answer, fatal=True))
        if not isinstance(answer, Welcome):
            raise ProtocolError(f"{type(answer).__name__} instead of a welcome")
        if not 1 <= answer.vocab_size <= self._hello.vocab_size:
            raise ProtocolError(f"a vocabulary of {answer.vocab_size} in the welcome")
        if answer.tokenizer != self._hello.tokenizer:
            raise IncompatibleError(
                f"the tokenizer of target {answer.target!r} is not the draft's",
                hint="use a draft of the same model family",
            )
        self._codec = Codec.of(answer)
        self._timer.cancel()
        self._greeted = True
        self._events.up(answer)

    def _late(self, timeout_s: float) -> None:
        what = (
            f"no answer from {self._network.where} within {timeout_s:g} s ({self._doing})"
        )
        self._fail(TransportError(what, hint="check the address and the network"))

    # ---- both ways

    def _put(self, message: Message, stream: int | None) -> int:
        data = self._codec.encode(message, stream or 0)
        self._websocket.send_binary(data)
        self._log.message("up", message, len(data), stream)
        self._flush()
        size = wire_size(len(data), secure=self._network.uri.secure) + MASK
        self.meter.sent(stream, len(data), size)
        return size

    def _flush(self) -> None:
        transport, data = self._transport, b"".join(self._websocket.data_to_send())
        if transport is None or not data:
            return
        transport.write(data)
        if transport.get_write_buffer_size() > _OUTBOX:
            error = TransportError(
                f"the verifier at {self._network.where} does not read what is sent to it"
            )
            self._network.loop.call_soon(self._fail, error)

    def data_received(self, data: bytes) -> None:
        """Take what came; called by the loop."""
        try:
            if self._head is not None and not self._over:
                data = self._upgraded(data)
            if self._head is None and not self._over:
                self._receive(data)
        except DraftwireError as exc:
            self._fail(exc)

    def _receive(self, data: bytes) -> None:
        websocket = self._websocket
        if data:
            websocket.receive_data(data)
        self._flush()  # pongs, and the answer to a close
        for frame in websocket.events_received():
            if not self._over:
                assert isinstance(frame, frames.Frame)
                self._frame(frame)
        if websocket.parser_exc is not None:
            raise ProtocolError(
                f"{self._network.where} broke the websocket protocol: "
                f"{clean(str(websocket.parser_exc))}"
            )

    def _frame(self, frame: frames.Frame) -> None:
        kind, data = frame.opcode, bytes(frame.data)
        if kind == frames.Opcode.PONG and self._greeted:
            self._log.event("pong", "down")
            self._events.alive()
        elif kind == frames.Opcode.TEXT:
            raise ProtocolError("a text frame; every message is a binary frame")
        elif kind == frames.Opcode.CLOSE:
            close = self._websocket.close_rcvd
            code = close.code if close is not None else 1005
            why = clean(close.reason) if close is not None else ""
            raise TransportError(
                f"the verifier closed the connection ({code:d}{': ' + why if why else ''})"
            )
        elif kind in (frames.Opcode.BINARY, frames.Opcode.CONT):
            self._parts += data
            if frame.fin:
                data, self._parts = bytes(self._parts), bytearray()
                self._message(data)

    def _message(self, data: bytes) -> None:
        frame = self._codec.decode(data)
        size = wire_size(len(data), secure=self._network.uri.secure)
        self.meter.came(frame.stream, len(data), size)
        self._log.message("down", frame.message, len(data), frame.stream)
        if self._greeted:
            self._events.message(frame)
        else:
            self._greet(frame.message)

    # ---- the end

    def connection_lost(self, exc: BaseException | None) -> None:
        """The connection is gone; called by the loop."""
        transport, self._transport = self._transport, None
        if transport is not None:  # of TLS, one does not know it before Python 3.11
            transport.abort()
        where = self._network.where
        if isinstance(exc, ssl.SSLError):  # a server that looks at certificates late
            self._fail(explain(exc, where))
            return
        what = f"{where} took the connection and dropped it ({self._doing})"
        if self._greeted:
            what = f"the link to {where} is gone"
        error = TransportError(
            f"{what}: {clean(str(exc))}" if exc is not None else what,
            hint="check the network and whether the verifier still runs",
        )
        error.__cause__ = exc
        self._fail(error)

    def _fail(self, error: DraftwireError) -> None:
        if self._end(1002 if isinstance(error, ProtocolError) else 1000, str(error)):
            self._events.down(error)

    def _end(self, code: int, why: str) -> bool:
        """Let go of everything; return False when that was done before."""
        if self._over:
            return False
        self._over = True
        self._log.event("closed", why=why)
        self._timer.cancel()
        self._task.cancel()
        transport = self._transport
        if transport is not None:
            if self._websocket.state is OPEN:
                self._websocket.send_close(code)
                transport.write(b"".join(self._websocket.data_to_send()))
            transport.abort()
        self._transport, self.ports = None, (0, 0)
        return True
