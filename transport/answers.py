"""What a peer's answers mean: an error of ours, and whether it may pass.

A peer is a verifier, or whatever else answers at its address: a relay, a proxy, a
network's sign-in page. Its words are shown, on one line and cut, and never obeyed.
"""

from __future__ import annotations

import email.utils
import re
import time
from typing import NamedTuple

from draftwire.errors import (
    BusyError,
    ConfigError,
    DraftwireError,
    IncompatibleError,
    ProtocolError,
    RefusedError,
    TransportError,
    VerifierError,
)
from draftwire.transport.messages import Error

_MAX_HEAD = 32 * 1024  # bytes of status line and headers
_ANOTHER = "is there another service on this port?"
_STATUS = re.compile(rb"HTTP/1\.[01] ([1-5]\d\d)(?: .*)?\Z")


_KINDS: dict[str, type[DraftwireError]] = {
    "tokenizer": IncompatibleError,
    "version": IncompatibleError,
    "protocol": ProtocolError,
    "request": ConfigError,
    "target": ConfigError,
    "busy": BusyError,
    "draining": BusyError,
    "limit": BusyError,
    "internal": VerifierError,
}


def clean(text: str, limit: int = 300) -> str:
    """Return a peer's ``text`` fit for our messages: one line that no terminal obeys."""
    words = "".join(c if c.isprintable() else " " for c in text[: 8 * limit]).split()
    line = " ".join(words)
    return line if len(line) <= limit else line[: limit - 1] + "…"


def to_exception(error: Error) -> DraftwireError:
    """Return the exception that an error message of the verifier stands for.

    Codes that this version does not know are refusals when they end a stream; when they
    end the connection another one may fare better.
    """
    message, hint = f"the verifier says: {clean(error.message)}", clean(error.hint)
    unknown = TransportError if error.fatal else RefusedError
    kind = _KINDS.get(error.code, unknown)
    if kind is BusyError and error.retry_after_ms is not None:
        return BusyError(message, hint=hint, retry_after_s=error.retry_after_ms / 1e3)
    return kind(message, hint=hint)


def may_pass(error: DraftwireError) -> bool:
    """Return whether another try, later, may succeed where ``error`` came of this one.

    Final are a refusal of token or device (401, 403) and a draft that does not belong to
    the target. Whatever else goes wrong between two machines has been seen to pass.
    """
    if isinstance(error, RefusedError):
        return error.transient
    return not isinstance(error, IncompatibleError)


class Head(NamedTuple):
    """Status and headers of an answer."""

    status: int  # 100 to 599
    headers: dict[str, str]  # names in lower case; of several of one name, the first
    size: int  # bytes of the head, the empty line included


def read_head(data: bytes | bytearray, where: str) -> Head | None:
    """Return the head that ``data`` begins with, None while it is not whole.

    Raises:
        ProtocolError: It is no HTTP; said as early as that is certain.
    """
    if data[:5] != b"HTTP/"[: len(data)]:
        tls = data[:1] in (b"\x15", b"\x16")  # records of an alert, of a handshake
        raise ProtocolError(
            f"{where} does not answer as a draftwire verifier: that is no HTTP",
            hint="it speaks TLS: write wss://" if tls else _ANOTHER,
        )
    end = data.find(b"\r\n\r\n")
    if end < 0 and len(data) <= _MAX_HEAD:
        return None
    first, *lines = bytes(data[: max(end, 0)]).split(b"\r\n")
    found = _STATUS.match(first)
    if found is None or end > _MAX_HEAD:
        raise ProtocolError(
            f"{where} does not answer as a draftwire verifier: "
            f"{clean(first.decode('latin-1'), 60) or 'endless headers'}"
        )
    headers: dict[str, str] = {}
    for line in lines:
        name, _, value = line.decode("latin-1").partition(":")
        headers.setdefault(name.strip().lower(), value.strip())
    return Head(int(found.group(1)), headers, end + 4)


def passes(status: int) -> bool:
    """Tell whether ``status`` speaks of now, and not of the request."""
    return status in (408, 425, 429) or status >= 500


def retry_after(headers: dict[str, str]) -> float | None:
    """Return the seconds of ``Retry-After``: a number, or a date by the sender's clock."""
    said = headers.get("retry-after", "")
    if re.fullmatch(r"\d{1,9}", said):
        return float(said)
    then, now = _moment(said), _moment(headers.get("date", ""))
    if then is None:
        return None
    # A board's own clock may be years off.
    return max(0.0, then - (time.time() if now is None else now))


def _moment(date: str) -> float | None:
    try:
        return email.utils.parsedate_to_datetime(date).timestamp()
    except (TypeError, ValueError, IndexError, OverflowError):
        return None


def refusal(head: Head, body: bytes, where: str) -> DraftwireError:
    """Return what an answer other than the upgrade (or a proxy's yes) of ``where`` means.

    What came of its ``body`` is shown when it is plain text.
    """
    status, said = head.status, ""
    if head.headers.get("content-type", "").startswith("text/plain"):
        said = clean(body.decode("utf-8", "replace"))
        said = f": {said}" if said else ""
    if status == 401:
        return RefusedError(
            f"the verifier at {where} refuses the token (401)",
            hint="give the right one with --token-file",
        )
    if status == 403:
        return RefusedError(f"the verifier at {where} refuses this device (403){said}")
    if status == 426:
        return IncompatibleError(
            f"the verifier at {where} speaks another version of the protocol (426){said}",
            hint="update draftwire on the device or there, whichever is older",
        )
    if passes(status):
        retry_after_s = retry_after(head.headers)
        hint = "try again later, or another verifier"
        if retry_after_s is not None:
            hint = f"try again in {retry_after_s:.0f} s, or another verifier"
        return BusyError(
            f"{where} takes no new devices now ({status}){said}",
            hint=hint,
            retry_after_s=retry_after_s,
        )
    if 300 <= status < 400:
        return TransportError(
            f"{where} redirects ({status}) to {clean(head.headers.get('location', '?'))}; "
            "the token stays here",
            hint="if that is the verifier, give its address yourself",
        )
    if status < 300:
        return TransportError(
            f"{where} answers with a page ({status}) instead of a websocket",
            hint="is that the verifier's address? sign-in pages of networks do this",
        )
    hint = _ANOTHER
    if status in (400, 414, 431):  # what proxies say of heads they do not pass on
        hint += " or a proxy that passes no websockets, or no heads of this length?"
    return TransportError(
        f"{where} answers the upgrade with HTTP status {status}{said}", hint=hint
    )
