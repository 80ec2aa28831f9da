"""The device's end of the websocket: connect, greet, send, receive, count bytes.

One connection, blocking, with a thread of its own for receiving (the caller's choice).
Nothing here knows about drafting; :mod:`draftwire.runtime` does.
"""

from __future__ import annotations

import contextlib
import ipaddress
import socket
import ssl
import threading
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import websockets.sync.client
from websockets.exceptions import (
    ConnectionClosed,
    InvalidHandshake,
    InvalidStatus,
    InvalidURI,
    WebSocketException,
)

from draftwire.errors import (
    BusyError,
    ConfigError,
    IncompatibleError,
    ProtocolError,
    RefusedError,
    TransportError,
)
from draftwire.transport.codec import MAX_FRAME, SUBPROTOCOL, VERSION, Codec
from draftwire.transport.messages import Error, Hello, Message, Welcome
from draftwire.transport.traffic import MASK, Traffic, wire_size

__all__ = ["Connection", "Traffic", "is_loopback", "tls_context", "to_exception"]


def is_loopback(host: str) -> bool:
    """Return True when ``host`` names this machine itself."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def tls_context(
    *, ca: str | Path | None, cert: str | Path | None, key: str | Path | None
) -> ssl.SSLContext:
    """Return a client's TLS settings: the certificate is always checked.

    Args:
        ca: File of trusted certificates; None takes the system's.
        cert: Certificate of this device, for mutual TLS.
        key: Its key, when it is not in the same file.

    Raises:
        ConfigError: A file cannot be read.
    """
    try:
        context = ssl.create_default_context(cafile=str(ca) if ca else None)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        if cert:
            context.load_cert_chain(str(cert), str(key) if key else None)
    except (OSError, ssl.SSLError) as exc:
        raise ConfigError(f"the TLS files cannot be used: {exc}") from exc
    return context


def to_exception(error: Error) -> Exception:
    """Return the exception that an error message of the verifier stands for."""
    message = f"the verifier says: {error.message}"
    if error.code in ("tokenizer", "family"):
        return IncompatibleError(message, hint=error.hint)
    if error.code in ("protocol", "version"):
        return ProtocolError(message, hint=error.hint)
    if error.code in ("request", "target"):
        return ConfigError(message, hint=error.hint)
    if error.code in ("busy", "draining", "internal"):
        return BusyError(message, hint=error.hint)
    return RefusedError(message, hint=error.hint)


class Connection:
    """A greeted connection to a verifier.

    Args:
        url: ``ws://`` (loopback only, unless ``insecure``) or ``wss://``.
        hello: What this device says first.
        token: Bearer token, or None.
        insecure: Allow plain ``ws://`` to other machines: the token and the text then
            cross the network readable for everyone on the way.
        tls: TLS settings for ``wss://``; None makes them from the system's trust store.
        timeout: Seconds for connecting and greeting.

    Attributes:
        welcome: The verifier's answer.
        traffic: Running byte counts.

    Raises:
        ConfigError: The URL is not usable, or the wanted target does not exist.
        TransportError: Nobody answers, or the connection breaks.
        RefusedError: The verifier answers and refuses.
        IncompatibleError: Draft and target do not belong together.
    """

    def __init__(
        self,
        url: str,
        hello: Hello,
        *,
        token: str | None = None,
        insecure: bool = False,
        tls: ssl.SSLContext | None = None,
        timeout: float = 10.0,
    ) -> None:
        parts = _check_url(url, insecure=insecure)
        self.url = url
        self._secure = parts.scheme == "wss"
        self._lock = threading.Lock()
        self.traffic = Traffic()
        self._stack = contextlib.ExitStack()
        options: dict[str, Any] = {}
        if self._secure:
            options["ssl"] = tls or tls_context(ca=None, cert=None, key=None)
        if token:
            if not token.isascii() or any(c.isspace() for c in token):
                raise ConfigError("the token holds spaces or non-ASCII characters")
            options["additional_headers"] = {"Authorization": f"Bearer {token}"}
        self._socket = self._open(url, options, timeout)
        self._codec = Codec()
        try:
            self.welcome = self._greet(hello, timeout)
        except BaseException:
            self.close()
            raise
        self._codec = Codec(self.welcome.vocab_size)

    def _open(self, url: str, options: dict[str, Any], timeout: float) -> Any:
        try:
            connecting = websockets.sync.client.connect(
                url,
                subprotocols=[websockets.Subprotocol(SUBPROTOCOL)],
                compression=None,
                open_timeout=timeout,
                close_timeout=2,
                max_size=MAX_FRAME,
                **options,
            )
            found = self._stack.enter_context(connecting)
        except InvalidStatus as exc:
            raise _refused(url, exc.response.status_code) from exc
        except InvalidURI as exc:
            raise ConfigError(f"{url!r} is not a websocket address") from exc
        except ssl.SSLCertVerificationError as exc:
            raise TransportError(
                f"the certificate of {url} is not trusted: {exc.verify_message}",
                hint="name the verifier's CA file with --tls-ca",
            ) from exc
        except (InvalidHandshake, WebSocketException) as exc:
            raise TransportError(
                f"{url} does not answer as a draftwire verifier: {exc}"
            ) from exc
        except (TimeoutError, socket.timeout) as exc:
            raise TransportError(
                f"no answer from {url} within {timeout:g} s",
                hint="check the address and the network",
            ) from exc
        except OSError as exc:
            raise TransportError(
                f"cannot reach a verifier at {url}: {exc.strerror or exc}",
                hint="is `draftwire verifier serve` running there?",
            ) from exc
        if found.subprotocol != SUBPROTOCOL:
            self._stack.close()
            raise ProtocolError(
                f"{url} does not speak {SUBPROTOCOL}",
                hint="is there another websocket service on this port?",
            )
        found.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return found

    def _greet(self, hello: Hello, timeout: float) -> Welcome:
        self.send(hello)
        answer = self.receive(timeout)
        if answer is None:
            raise TransportError(
                f"{self.url} took the connection but did not answer within {timeout:g} s"
            )
        if isinstance(answer, Error):
            raise to_exception(answer)
        if not isinstance(answer, Welcome):
            raise ProtocolError(f"{type(answer).__name__} instead of a welcome")
        if answer.version != VERSION:
            raise ProtocolError(
                f"the verifier chose protocol version {answer.version}, not {VERSION}"
            )
        if not 1 <= answer.vocab_size <= hello.vocab_size:
            raise ProtocolError(f"a vocabulary of {answer.vocab_size} in the welcome")
        if answer.tokenizer != hello.tokenizer:
            raise IncompatibleError(
                f"the tokenizer of target {answer.target!r} is not the draft's",
                hint="use a draft of the same model family",
            )
        return answer

    @property
    def ports(self) -> tuple[int, int]:
        """Local and remote TCP port, ``(0, 0)`` once the connection is gone."""
        try:
            return self._socket.local_address[1], self._socket.remote_address[1]
        except OSError:
            return 0, 0

    def send(self, message: Message) -> None:
        """Send ``message``; callable from any thread.

        Raises:
            TransportError: The connection is lost.
        """
        data = self._codec.encode(message)
        with self._lock:
            try:
                self._socket.send(data)
            except ConnectionClosed as exc:
                raise self._lost(exc) from exc
            except OSError as exc:
                raise TransportError(f"the link to {self.url} broke: {exc}") from exc
            self.traffic.up_frames += 1
            self.traffic.up_payload += len(data)
            self.traffic.up_wire += wire_size(len(data), secure=self._secure) + MASK

    def receive(self, timeout: float | None = None) -> Message | None:
        """Wait for the next message; one thread at a time.

        Args:
            timeout: Seconds; None waits for ever.

        Returns:
            The message, or None when nothing came in time.

        Raises:
            TransportError: The connection is lost.
            ProtocolError: What came is not valid.
        """
        try:
            data = self._socket.recv(timeout)
        except ConnectionClosed as exc:
            raise self._lost(exc) from exc
        except TimeoutError:
            return None
        if isinstance(data, str):
            raise ProtocolError("a text frame; draftwire.v1 is binary")
        self.traffic.down_frames += 1
        self.traffic.down_payload += len(data)
        self.traffic.down_wire += wire_size(len(data), secure=self._secure)
        return self._codec.decode(data)

    def _lost(self, exc: ConnectionClosed) -> TransportError:
        received = exc.rcvd
        if received is None:
            return TransportError(
                f"the link to {self.url} is gone",
                hint="check the network and whether the verifier still runs",
            )
        why = f": {received.reason}" if received.reason else ""
        return TransportError(f"the verifier closed the connection ({received.code}{why})")

    def close(self) -> None:
        """Close the connection; harmless when it is closed already."""
        with contextlib.suppress(OSError, WebSocketException):
            self._stack.close()


def _check_url(url: str, *, insecure: bool) -> Any:
    try:
        parts = urlsplit(url)
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
    return parts


def _refused(url: str, status: int) -> RefusedError:
    if status == 401:
        return RefusedError(
            f"the verifier at {url} refuses the token (401)",
            hint="give the right one with --token-file",
        )
    if status == 503:
        return BusyError(
            f"the verifier at {url} takes no new devices now (503)",
            hint="try again later, or another verifier",
        )
    return RefusedError(f"{url} answers the upgrade with HTTP status {status}")
