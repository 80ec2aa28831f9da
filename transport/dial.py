"""The way to a verifier: its address, its name, a proxy, and what can break there.

A connected socket comes out, or one of our errors.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import ipaddress
import os
import socket
import ssl
import threading
import urllib.request
from pathlib import Path
from typing import Any, Callable, NamedTuple, Sequence
from urllib.parse import unquote, urlsplit

from websockets.exceptions import InvalidURI
from websockets.uri import WebSocketURI, parse_uri

from draftwire.errors import (
    BusyError,
    ConfigError,
    DraftwireError,
    ProtocolError,
    TransportError,
)
from draftwire.transport.answers import clean, passes, read_head, retry_after

SESSION_HEADER = "X-Session-Id"  # the name that Ray Serve's router reads
KEY_BYTES = 4  # of a session id, with which the ids of its streams begin
ATTEMPT_DELAY_S = 0.25  # RFC 8305, section 5

# (host, port) to (family, address) pairs; may block, may raise OSError.
Resolve = Callable[[str, int], Sequence["tuple[int, Any]"]]


def is_loopback(host: str) -> bool:
    """Return True when ``host`` names this machine itself."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def check_url(url: str, *, insecure: bool) -> WebSocketURI:
    """Return the parts of ``url``, the address of a verifier.

    Raises:
        ConfigError: It is none, or it is plain ``ws://`` to another machine and
            ``insecure`` is not set.
    """
    try:
        parts = urlsplit(str(url))
        host, _ = parts.hostname, parts.port
    except ValueError as exc:
        raise ConfigError(f"{url!r} is not an address: {exc}") from exc
    if parts.scheme not in ("ws", "wss") or not host:
        raise ConfigError(
            f"{url!r} is not a verifier's address",
            hint="write ws://127.0.0.1:8765 or wss://verifier.example:8765",
        )
    if parts.scheme == "ws" and not insecure and not is_loopback(host):
        raise ConfigError(
            f"{url} would send the token and the text in the clear",
            hint="use wss://, or allow it in so many words with --insecure",
        )
    if not url.isprintable() or " " in url or parts.fragment:
        raise ConfigError(
            f"{url!r} is not a websocket address: it holds a space, a control character "
            "or a fragment",
            hint="write %20 for a space and %23 for a #",
        )
    try:
        return parse_uri(url)
    except (InvalidURI, UnicodeError) as exc:
        raise ConfigError(f"{url!r} is not a websocket address") from exc


def health_url(url: str, what: str = "healthz") -> str:
    """Return where the health (or "metrics") of the verifier at ``url`` is, below its path.

    A proxy may route it by path or query: both are kept.
    """
    parts = urlsplit(url)
    scheme = {"ws": "http", "wss": "https"}[parts.scheme]
    path = f"{parts.path.rstrip('/')}/{what}"
    return parts._replace(scheme=scheme, path=path, fragment="").geturl()


def key_of(headers: Sequence[str]) -> bytes:
    """Return the key that the session ids of a request name, or b"" where they name none.

    There is one, of at least eight hexadecimal digits.
    """
    digits = headers[0][: 2 * KEY_BYTES] if len(headers) == 1 else ""
    try:
        key = bytes.fromhex(digits) if digits.isalnum() else b""
    except ValueError:
        return b""
    return key if len(key) == KEY_BYTES else b""


def tls_context(
    *, ca: str | Path | None, cert: str | Path | None, key: str | Path | None
) -> ssl.SSLContext:
    """Return a client's TLS settings; a ConfigError where a file cannot be read.

    The verifier's certificate is always checked, by those of the file ``ca``, or the
    system's; ``cert`` is this device's own, for mutual TLS, and ``key`` may be in it.
    """
    files = (ca, cert, key)
    try:
        context = ssl.create_default_context(cafile=str(ca) if ca else None)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        if cert:
            context.load_cert_chain(str(cert), str(key) if key else None)
    except (OSError, ssl.SSLError) as exc:
        hint = f"PEM files that this user can read: {', '.join(str(f) for f in files if f)}"
        raise ConfigError(f"the TLS files cannot be used: {exc}", hint=hint) from exc
    return context


# ---- addresses


def resolve(host: str, port: int) -> list[tuple[int, Any]]:
    """Ask the system for the addresses of ``host``; blocks, maybe for long."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [(family, address) for family, _, _, _, address in found]


async def _look_up(ask: Resolve, host: str, port: int) -> list[tuple[int, Any]]:
    """Run ``ask`` in a thread that nobody ever waits for: it cannot be cancelled."""
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[list[tuple[int, Any]] | Exception] = loop.create_future()

    def settle(found: list[tuple[int, Any]] | Exception) -> None:
        if not answer.done():  # too late
            answer.set_result(found)

    def work() -> None:
        found: list[tuple[int, Any]] | Exception
        try:
            found = list(ask(host, port))
        except Exception as exc:  # noqa: BLE001 - names that IDNA refuses: UnicodeError
            found = exc
        with contextlib.suppress(RuntimeError):  # the loop is closed meanwhile
            loop.call_soon_threadsafe(settle, found)

    threading.Thread(target=work, name="draftwire-look-up", daemon=True).start()
    found = await answer
    if isinstance(found, Exception):
        raise found
    return found


def _in_turn(addresses: Sequence[tuple[int, Any]]) -> list[tuple[int, Any]]:
    """Let the families alternate, in the resolver's order (RFC 8305, section 4)."""
    families: dict[int, list[tuple[int, Any]]] = {}
    for family, address in addresses:
        known = families.setdefault(family, [])
        if (family, address) not in known:
            known.append((family, address))
    rows = list(families.values())
    longest = max(map(len, rows), default=0)
    return [row[i] for i in range(longest) for row in rows if i < len(row)]


async def _one(family: int, address: Any) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        await asyncio.get_running_loop().sock_connect(sock, address)
    except BaseException:
        sock.close()
        raise
    return sock


def _drop(attempt: asyncio.Future[socket.socket]) -> None:
    if not attempt.cancelled() and attempt.exception() is None:
        attempt.result().close()


async def reach(
    ask: Resolve, host: str, port: int, tell: Callable[[str], None]
) -> socket.socket:
    """Return a socket connected to the first address of ``host`` that answers.

    The next address is tried when the last one fails, or has not answered for a quarter
    of a second (RFC 8305): a dead first address costs that, not the whole timeout.
    ``tell`` is told what is being done.

    Raises:
        OSError: None answers, or there is none; what befell the first, the preferred.
    """
    tell("looking its name up")
    left = _in_turn(await _look_up(ask, host, port))
    if not left:
        raise socket.gaierror(socket.EAI_NONAME, "no address")
    tell("connecting")
    attempts: set[asyncio.Task[socket.socket]] = set()
    pending: set[asyncio.Task[socket.socket]] = set()
    winner = first = None
    try:
        while True:
            if left:
                attempt = asyncio.ensure_future(_one(*left.pop(0)))
                attempts.add(attempt)
                pending.add(attempt)
            done, pending = await asyncio.wait(
                pending,
                timeout=ATTEMPT_DELAY_S if left else None,
                return_when=asyncio.FIRST_COMPLETED,
            )
            for attempt in done:
                failed = attempt.exception()
                if failed is None:
                    winner = attempt
                    return attempt.result()
                first = first or failed
            if first is not None and not left and not pending:
                raise first
    finally:
        for attempt in attempts - {winner}:
            attempt.add_done_callback(_drop)
            attempt.cancel()


# ---- proxies


class Proxy(NamedTuple):
    """An HTTP proxy."""

    host: str  # its name or address
    port: int  # its port
    login: str  # ``user:password``, or ""

    def __str__(self) -> str:
        return f"the proxy http://{_name(self.host, self.port)}"


def _name(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def find_proxy(choice: str, host: str, port: int, *, secure: bool) -> Proxy | None:
    """Return the proxy on the way to the verifier ``host``; never one to this machine.

    Of ``choice`` "auto" asks the environment (``https_proxy`` for ``wss://``,
    ``http_proxy`` for ``ws://``, ``all_proxy``, ``no_proxy``), "off" takes none, anything
    else is its address.

    Raises:
        ConfigError: It is no HTTP proxy, or its address is none.
    """
    if choice == "off" or is_loopback(host):
        return None
    name = _name(host, port)
    if choice == "auto":
        known = urllib.request.getproxies()
        kinds = ("wss", "https", "all") if secure else ("ws", "http", "all")
        choice = next((known[kind] for kind in kinds if known.get(kind)), "")
        if not choice or urllib.request.proxy_bypass(name):
            return None
    try:
        parts = urlsplit(choice if "://" in choice else f"http://{choice}")
        found, number = parts.hostname, parts.port
    except ValueError:
        found, number, parts = None, None, urlsplit("")
    if not found:
        raise ConfigError(
            "the proxy's address is none",
            hint="write http://HOST:PORT into https_proxy, or add the verifier's host "
            "to no_proxy",
        )
    if parts.scheme != "http":
        shown = f"{clean(parts.scheme, 20)}://{clean(found)}"
        raise ConfigError(
            f"the proxy {shown}{f':{number}' if number else ''} on the way to {name} "
            "is not of a kind that draftwire speaks",
            hint="name an http:// proxy in https_proxy, or add the verifier's host to "
            "no_proxy",
        )
    login = ""
    if parts.username is not None:
        login = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
    return Proxy(found, number or 80, login)


def web(host: str, tls: ssl.SSLContext | None) -> urllib.request.OpenerDirector:
    """Return what asks ``host`` plain HTTP, on the way that a connection to it takes."""
    # None: the environment's
    proxies: dict[str, str] | None = {} if is_loopback(host) else None
    return urllib.request.build_opener(
        urllib.request.ProxyHandler(proxies), urllib.request.HTTPSHandler(context=tls)
    )


async def tunnel(sock: socket.socket, proxy: Proxy, host: str, port: int) -> None:
    """Have the ``proxy`` at the end of ``sock`` pass it on to ``host`` (HTTP CONNECT).

    Raises:
        TransportError: It does not.
        OSError: The connection broke.
    """
    loop = asyncio.get_running_loop()
    name = _name(host, port)
    request = f"CONNECT {name} HTTP/1.1\r\nHost: {name}\r\n"
    if proxy.login:
        basic = base64.b64encode(proxy.login.encode()).decode()
        request += f"Proxy-Authorization: Basic {basic}\r\n"
    await loop.sock_sendall(sock, f"{request}\r\n".encode("ascii", "replace"))
    data, head = b"", None
    while head is None:
        got = await loop.sock_recv(sock, 4096)
        if not got:
            raise TransportError(f"{proxy} closed the connection on the way to {name}")
        data += got
        head = read_head(data, str(proxy))
    if 200 <= head.status < 300:
        if len(data) > head.size:
            raise ProtocolError(f"{proxy} speaks before {name} is asked anything")
        return
    if head.status == 407:
        raise TransportError(
            f"{proxy} wants a login (407)",
            hint="write it as http://USER:PASSWORD@HOST:PORT, or add the verifier's host "
            "to no_proxy",
        )
    said = f"{proxy} does not let us through to {name} ({head.status})"
    hint = "ask who runs it, or add the verifier's host to no_proxy"
    if passes(head.status):
        raise BusyError(said, hint=hint, retry_after_s=retry_after(head.headers))
    raise TransportError(said, hint=hint)


# ---- what broke


def explain(exc: BaseException, where: str) -> DraftwireError:
    """Return the error of ours that ``exc``, met on the way to ``where``, stands for."""
    if isinstance(exc, DraftwireError):
        return exc
    if isinstance(exc, ssl.SSLCertVerificationError):
        hint = "name the verifier's CA file with --tls-ca"
        if exc.verify_code in (9, 10):  # not yet valid, expired
            hint = "renew it, or set this machine's clock"
        elif exc.verify_code in (62, 64):  # another name, another address
            hint = "use the name that is in it, or have one made for this address"
        return TransportError(
            f"the certificate of {where} is not trusted: {exc.verify_message}", hint=hint
        )
    if isinstance(exc, ssl.SSLError):
        why = (exc.reason or str(exc)).replace("_", " ").lower()
        hint = "is TLS spoken there, and by the verifier?"
        if "certificate required" in why or "handshake failure" in why:
            hint = "it may want this device's certificate: --tls-cert and --tls-key"
        return TransportError(f"no TLS with {where}: {why}", hint=hint)
    if isinstance(exc, ConnectionResetError) and exc.errno is None:  # asyncio's own
        return TransportError(
            f"{where} closes the connection instead of speaking TLS",
            hint="is TLS spoken there, and for this name?",
        )
    if isinstance(exc, (socket.gaierror, UnicodeError)):
        why = getattr(exc, "strerror", None) or str(exc)
        return TransportError(
            f"cannot reach {where}: its name cannot be looked up ({clean(why)})",
            hint="check the name and the network",
        )
    if isinstance(exc, OSError):
        why = os.strerror(exc.errno) if exc.errno else str(exc) or type(exc).__name__
        return TransportError(
            f"cannot reach {where}: {clean(why)}",
            hint="is `draftwire verifier serve` running there?",
        )
    return TransportError(f"cannot reach {where}: {type(exc).__name__}: {clean(str(exc))}")
