"""What a verifier says over plain HTTP: its health and its metrics."""

from __future__ import annotations

import urllib.error
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple
from urllib.request import Request

from draftwire.cli._common import read_token
from draftwire.errors import TransportError
from draftwire.transport.dial import check_url, health_url, is_loopback, tls_context, web

if TYPE_CHECKING:
    import ssl

_ANSWER_S = 10.0
_LARGEST = 16 << 20


class Verifier:
    """A verifier at an address, not yet asked. The token in ``token_file`` is shown where
    nobody else reads it, ``insecure``: over plain ``ws://`` as well; ``ca`` is trusted. A
    ConfigError where the address is none, or a file cannot be read."""

    def __init__(
        self, url: str, token_file: Path | None, ca: Path | None, *, insecure: bool
    ) -> None:
        self.url, uri = url, check_url(url, insecure=True)
        self.host, self.port = uri.host, uri.port
        self.tls: ssl.SSLContext | None = None
        if uri.secure:
            self.tls = tls_context(ca=ca, cert=None, key=None)
        self.token = None if token_file is None else read_token(token_file)
        self.shown = bool(uri.secure or insecure or is_loopback(uri.host))

    def ask(self, what: str = "healthz") -> Answer:
        """Ask for its health, or its ``metrics`` (OSError, ValueError: nobody answers in
        HTTP)."""
        request = Request(health_url(self.url, what))
        if self.token is not None and self.shown:
            request.add_header("Authorization", f"Bearer {self.token}")
        try:
            with web(self.host, self.tls).open(request, timeout=_ANSWER_S) as answer:
                date = answer.headers.get("Date")
                return Answer(answer.status, answer.read(_LARGEST), date)
        except urllib.error.HTTPError as error:  # 503 while it drains: the body says so
            return Answer(error.code, error.read(_LARGEST), error.headers.get("Date"))


class Answer(NamedTuple):
    """What it said."""

    status: int
    body: bytes
    date: str | None  # by its clock


def reason_of(error: Exception) -> object:
    """Return why nobody answered."""
    return getattr(error, "reason", error)


def gone(url: str, error: Exception, what: str = "answers") -> TransportError:
    """Return the error for a verifier that does not answer."""
    return TransportError(
        f"no verifier {what} at {url}: {reason_of(error)}",
        hint="check the address, and that `draftwire verifier serve` runs there",
    )
