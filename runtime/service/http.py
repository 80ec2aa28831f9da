"""HTTP/1.1 on asyncio's own streams: as much of it as local programs need.

On the standard library, since the board carries three wheels and no web framework. It
takes whole requests and gives whole answers or server-sent events; whoever hangs up ends
what is being done for them.

Source:
    RFC 9112 (messages), HTML living standard, section 9.2 (server-sent events).
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import ipaddress
import json
import re
import socket
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Awaitable, Callable, Mapping

MAX_CLIENTS = 32
MAX_HEAD = 32 << 10  # bytes of a request line and its fields
MAX_BODY = 4 << 20
MAX_UNSENT = 256 << 10  # bytes that may wait for a client that reads slowly
HEAD_S, BODY_S, IDLE_S, WRITE_S = 10.0, 30.0, 75.0, 30.0
LINGER_S, CLOSE_S = 1.0, 5.0
_LINE = re.compile(rb"([A-Z]{1,16}) (/[!-~]*) HTTP/1\.([01])\Z")
_FIELD = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*([\t -~\x80-\xff]*?)[ \t]*\Z")
_SIZE = re.compile(rb"([0-9A-Fa-f]{1,8})[ \t]*(;.*)?\r\n\Z")
_HOST = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(:[0-9]{1,5})?\Z")
_CHUNK = "a chunk of the request's body is malformed"
_LARGE = f"the body of a request has at most {MAX_BODY >> 20} MiB"
_ONCE = (b"content-length", b"host", b"origin", b"authorization", b"transfer-encoding")


class HttpError(Exception):
    """A request that gets no answer but this: a status of 400 to 599, a sentence, what to
    do, the field of the request that it is about, a word for programs, and more fields.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        hint: str = "",
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.hint, self.param, self.code = status, hint, param, code
        self.headers = dict(headers or {})

    def document(self) -> dict[str, Any]:
        """Return the error as OpenAI's clients read it."""
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        error = {
            "message": str(self),
            "type": "rate_limit_error" if self.status == 429 else kind,
            "param": self.param,
            "code": self.code,
            "hint": self.hint or None,
        }
        return {"error": error}


@dataclass(frozen=True)
class Request:
    """A request; ``fields`` have lower-case names."""

    method: str
    path: str
    fields: Mapping[str, str]
    keep: bool
    body: bytes = b""


@dataclass(frozen=True)
class Gate:
    """Who may ask."""

    token: str = ""  # bearer token, or "" for everybody
    origins: tuple[str, ...] = ()  # web pages whose browsers may ask; ``*`` for all
    # names of this machine, beside its addresses; None takes any: a socket that only local
    # programs reach has none
    hosts: tuple[str, ...] | None = None

    def check(self, request: Request) -> dict[str, str]:
        """Let a request in; return the fields that its answer must have. An HttpError where
        it stays outside."""
        origin, headers = request.fields.get("origin"), {}
        if origin is not None:
            if origin not in self.origins and "*" not in self.origins:
                raise HttpError(
                    403,
                    f"web pages of {origin[:80]} may not ask this service",
                    hint="its operator allows them with --http-origin",
                )
            headers = {"Access-Control-Allow-Origin": origin, "Vary": "Origin"}
        found = _HOST.match(request.fields.get("host", ""))
        name = found[1].strip("[]").lower() if found else ""
        if self.hosts is not None and name not in self.hosts:
            try:
                ipaddress.ip_address(name)
            except ValueError:  # a name that another's name server points at us: rebinding
                what = "this service does not go by the name in the field Host"
                raise HttpError(421, what) from None
        if request.method == "OPTIONS":
            asked = request.fields.get("access-control-request-headers", "")
            return {
                **headers,
                "Access-Control-Allow-Methods": "GET, POST",
                "Access-Control-Allow-Headers": asked or "authorization, content-type",
                "Access-Control-Max-Age": "600",
            }
        if self.token:
            word, _, given = request.fields.get("authorization", "").partition(" ")
            same = hmac.compare_digest(given.strip().encode(), self.token.encode())
            if word.lower() != "bearer" or not same:
                raise HttpError(
                    401,
                    "the token is missing or wrong",
                    hint="give the one in the service's --http-token-file as API key",
                    code="invalid_api_key",
                    headers={"WWW-Authenticate": "Bearer", **headers},
                )
        return headers


class Reply:
    """The answer to one request: whether any of it has ``begun``, whether to ``keep`` the
    connection, and the ``headers`` of every answer."""

    def __init__(self, writer: asyncio.StreamWriter) -> None:
        self._writer = writer
        self.keep = self.begun = False
        self.headers: dict[str, str] = {}

    async def json(
        self, document: object, status: int = 200, headers: Mapping[str, str] | None = None
    ) -> None:
        text = json.dumps(document, ensure_ascii=False, separators=(",", ":")) + "\n"
        body = b"" if status == 204 else text.encode("utf-8", "replace")
        fields = {"Content-Type": "application/json", "Content-Length": str(len(body))}
        self._head(status, {**fields, **(headers or {})})
        await self._send(body)

    async def event(self, data: object, name: str | None = None) -> None:
        """Send an event of a stream, its first one with the head before it."""
        if not self.begun:
            fields = {"Content-Type": "text/event-stream", "Cache-Control": "no-cache"}
            if self.keep:
                fields["Transfer-Encoding"] = "chunked"
            self._head(200, fields)
        if not isinstance(data, str):
            data = json.dumps(data, ensure_ascii=False, separators=(",", ":"))
        line = f"event: {name}\n" if name else ""
        await self._send(f"{line}data: {data}\n\n".encode("utf-8", "replace"), part=True)

    async def end(self) -> None:
        if self.keep:
            self._writer.write(b"0\r\n\r\n")
        await self._send(b"")

    def _head(self, status: int, fields: Mapping[str, str]) -> None:
        self.begun = True
        closing = {"Connection": "keep-alive" if self.keep else "close"}
        lines = [f"HTTP/1.1 {status} {HTTPStatus(status).phrase}"]
        for name, value in {**fields, **self.headers, **closing}.items():
            lines.append(f"{name}: {value}")
        self._writer.write(("\r\n".join(lines) + "\r\n\r\n").encode("latin-1"))

    async def _send(self, data: bytes, *, part: bool = False) -> None:
        if part and self.keep:
            data = b"%x\r\n%b\r\n" % (len(data), data)
        self._writer.write(data)
        if self._writer.transport.is_closing():
            raise ConnectionResetError
        if self._writer.transport.get_write_buffer_size() > MAX_UNSENT:
            try:
                await asyncio.wait_for(self._writer.drain(), WRITE_S)
            except asyncio.TimeoutError:  # it does not read: let it go
                self._writer.transport.abort()
                raise ConnectionResetError from None


class _Reader(asyncio.StreamReader):
    """Says at once when the other end is gone."""

    def __init__(self) -> None:
        super().__init__(limit=MAX_HEAD)
        self.gone = asyncio.Event()

    def feed_eof(self) -> None:
        super().feed_eof()
        self.gone.set()

    def set_exception(self, exc: Any) -> None:
        super().set_exception(exc)
        self.gone.set()


class HttpServer:
    """Reads requests and has ``answer`` answer them, one at a time on each connection; it
    is cancelled when the asker hangs up."""

    def __init__(self, answer: Callable[[Request, Reply], Awaitable[None]]) -> None:
        self._answer = answer
        self._servers: list[asyncio.AbstractServer] = []
        self._connections: set[asyncio.Task[None]] = set()
        self._busy: set[asyncio.Task[None]] = set()

    @property
    def clients(self) -> int:
        return len(self._connections)

    async def listen(self, gate: Gate, **where: Any) -> asyncio.AbstractServer:
        """Take connections, of ``sock`` or of ``host`` and ``port``."""
        loop = asyncio.get_running_loop()

        def protocol() -> asyncio.StreamReaderProtocol:
            reader = _Reader()

            def begin(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                task = loop.create_task(self._serve(gate, reader, writer))
                self._connections.add(task)
                task.add_done_callback(self._connections.discard)

            return asyncio.StreamReaderProtocol(reader, begin)

        sock = where.get("sock")
        make = loop.create_server
        if sock is not None and sock.family == socket.AF_UNIX:
            make = loop.create_unix_server  # type: ignore[assignment]
        server: asyncio.AbstractServer = await make(protocol, **where)
        self._servers.append(server)
        return server

    def shut(self) -> None:
        for server in self._servers:
            server.close()

    async def close(self) -> None:
        """Let the answers that are under way end, and hang up."""
        for task in self._connections - self._busy:
            task.cancel()
        if self._busy:
            await asyncio.wait(set(self._busy), timeout=CLOSE_S)
        for task in self._connections:
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    async def _serve(
        self, gate: Gate, reader: _Reader, writer: asyncio.StreamWriter
    ) -> None:
        reply = Reply(writer)
        task = asyncio.current_task()
        assert task is not None
        try:
            if len(self._connections) > MAX_CLIENTS:
                what = f"{MAX_CLIENTS} programs are connected already"
                raise HttpError(503, what, headers={"Retry-After": "1"})
            while True:
                self._busy.discard(task)
                reply = Reply(writer)
                request = await _read(gate, reader, reply, writer)
                if request is None:
                    return
                self._busy.add(task)
                await self._answered(request, reply, reader)
                if not reply.keep or not reply.begun:
                    return
        except HttpError as exc:
            with contextlib.suppress(ConnectionError):
                await reply.json(exc.document(), exc.status, exc.headers)
                await _linger(reader, writer)
        except (ConnectionError, asyncio.CancelledError, asyncio.TimeoutError):
            pass
        finally:
            self._busy.discard(task)
            with contextlib.suppress(Exception):
                writer.close()
                await asyncio.wait_for(writer.wait_closed(), 5)

    async def _answered(self, request: Request, reply: Reply, reader: _Reader) -> None:
        answer = asyncio.ensure_future(self._answer(request, reply))
        gone = asyncio.ensure_future(reader.gone.wait())
        try:
            await asyncio.wait({answer, gone}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            gone.cancel()
            if not answer.done():
                answer.cancel()
            try:
                await answer
            except asyncio.CancelledError:
                reply.keep = False
            except HttpError as exc:
                if reply.begun:
                    raise ConnectionResetError from exc
                await reply.json(exc.document(), exc.status, exc.headers)


async def _linger(reader: _Reader, writer: asyncio.StreamWriter) -> None:
    """Let the other end read an answer that came before it had sent everything."""

    async def rest() -> None:
        while await reader.read(1 << 16):
            pass

    if writer.can_write_eof():  # TLS has no half of a connection
        writer.write_eof()
    with contextlib.suppress(asyncio.TimeoutError):
        await asyncio.wait_for(rest(), LINGER_S)


async def _read(
    gate: Gate, reader: _Reader, reply: Reply, writer: asyncio.StreamWriter
) -> Request | None:
    """Return the next request, or None when there is no more."""
    try:
        first = await asyncio.wait_for(reader.read(1), IDLE_S)
    except asyncio.TimeoutError:
        return None
    if not first:
        return None
    try:
        head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), HEAD_S)
    except asyncio.LimitOverrunError:
        what = f"the head of a request has at most {MAX_HEAD} bytes"
        raise HttpError(431, what) from None
    except asyncio.IncompleteReadError:
        return None
    except asyncio.TimeoutError:
        raise HttpError(408, "the request does not end") from None
    request = _parse((first + head)[:-4])
    reply.headers = gate.check(request)
    fields = request.fields
    size = fields.get("content-length", "0")
    if not re.fullmatch("[0-9]{1,12}", size):
        raise HttpError(400, "Content-Length is no number")
    coding = fields.get("transfer-encoding")
    if coding is not None and (coding.lower() != "chunked" or "content-length" in fields):
        raise HttpError(400, "Transfer-Encoding must be chunked, without Content-Length")
    if int(size) > MAX_BODY:
        raise HttpError(413, _LARGE)
    if fields.get("expect", "").lower() == "100-continue":
        writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
    wanted = reader.readexactly(int(size)) if coding is None else _chunks(reader)
    try:
        body = await asyncio.wait_for(wanted, BODY_S)
    except asyncio.TimeoutError:
        raise HttpError(408, "the body of the request does not come") from None
    except asyncio.LimitOverrunError:
        raise HttpError(400, _CHUNK) from None
    except asyncio.IncompleteReadError:
        return None
    reply.keep = request.keep
    return Request(request.method, request.path, fields, request.keep, body)


def _parse(head: bytes) -> Request:
    line, *lines = head.split(b"\r\n")
    found = _LINE.match(line)
    if found is None:
        raise HttpError(400, "this is no HTTP/1.1 request")
    raw: dict[bytes, bytes] = {}
    for text in lines:
        field = _FIELD.match(text)
        if field is None:
            raise HttpError(400, "a field of the request's head is malformed")
        name = field[1].lower()
        if name in raw and name in _ONCE:
            raise HttpError(400, f"the field {name.decode()} is there twice")
        raw[name] = raw[name] + b", " + field[2] if name in raw else field[2]
    fields = {name.decode(): value.decode("latin-1") for name, value in raw.items()}
    if found[3] == b"1" and "host" not in fields:
        raise HttpError(400, "the field Host is missing")
    closes = "close" in fields.get("connection", "").lower()
    path = found[2].decode("ascii").partition("?")[0]
    return Request(found[1].decode(), path, fields, found[3] == b"1" and not closes)


async def _chunks(reader: asyncio.StreamReader) -> bytes:
    body = b""
    while True:
        found = _SIZE.match(await reader.readuntil(b"\n"))
        if found is None:
            raise HttpError(400, _CHUNK)
        size = int(found[1], 16)
        if len(body) + size > MAX_BODY:
            raise HttpError(413, _LARGE)
        if not size:
            break
        body += await reader.readexactly(size)
        if await reader.readexactly(2) != b"\r\n":
            raise HttpError(400, _CHUNK)
    for _ in range(64):  # trailers mean nothing to us
        if await reader.readuntil(b"\n") == b"\r\n":
            return body
    raise HttpError(400, "the request has too many trailers")
