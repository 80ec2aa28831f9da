"""What local programs may ask of the service: one JSON object a line, all of it checked."""

from __future__ import annotations

import difflib
import json
from dataclasses import dataclass, field
from typing import Any, Mapping, Union

from draftwire.errors import ConfigError
from draftwire.options import STREAM_GROUPS, check_prompt, options_of

__all__ = [
    "MAX_LINE",
    "Cancel",
    "Generate",
    "Request",
    "Status",
    "read_request",
    "request_of",
]

MAX_LINE = 256 << 10  # bytes of one request: a prompt of some 50,000 words
_MAX_ID = 64
_OPTIONS = {option.name: option for option in options_of(*STREAM_GROUPS)}

Identity = Union[str, int, None]


@dataclass(frozen=True)
class Generate:
    """Write text.

    Attributes:
        id: The asker's name for it; in every event of this stream.
        prompt: Text, or token ids.
        options: For ``generate``, only those that were given.
    """

    id: Identity
    prompt: str | list[int]
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Cancel:
    """End the stream ``id`` of the same connection."""

    id: Identity


@dataclass(frozen=True)
class Status:
    """Tell how the service is."""

    id: Identity


Request = Union[Generate, Cancel, Status]


def read_request(line: bytes) -> tuple[Identity, dict[str, Any]]:
    """Read one line; return who asks, which belongs into every answer, and the rest.

    Raises:
        ConfigError: It is no request.
    """
    try:
        raw = json.loads(line.decode("utf-8"))
    except (ValueError, RecursionError) as exc:
        raise ConfigError(f"the request is not one line of JSON: {exc}") from exc
    if not isinstance(raw, dict):
        raise ConfigError("the request is not a JSON object")
    identity = raw.pop("id", None)
    if not _is_identity(identity):
        raise ConfigError(f"id must be a whole number or at most {_MAX_ID} characters")
    return identity, raw


def request_of(identity: Identity, raw: dict[str, Any]) -> Request:
    """Return what is asked for.

    Raises:
        ConfigError: A value is out of range.
    """
    op = raw.pop("op", "generate")
    if op == "generate":
        return _generate(identity, raw)
    if op not in ("cancel", "status"):
        raise ConfigError(
            f"there is no op {str(op)[:64]!r}", hint="generate, cancel or status"
        )
    if raw:
        raise ConfigError(f"{op} takes no {sorted(raw)[0][:64]!r}")
    return Cancel(identity) if op == "cancel" else Status(identity)


def _is_identity(value: Any) -> bool:
    if isinstance(value, str):
        return len(value) <= _MAX_ID
    return value is None or (
        isinstance(value, int) and not isinstance(value, bool) and abs(value) < 1 << 63
    )


def _generate(identity: Identity, raw: dict[str, Any]) -> Generate:
    prompt = raw.pop("prompt", None)
    if prompt is None:
        raise ConfigError("a request needs a prompt", hint='{"prompt": "Once upon"}')
    options = {}
    for name, value in raw.items():
        option = _OPTIONS.get(name)
        if option is None:
            close = difflib.get_close_matches(name, list(_OPTIONS), n=1)
            hint = f"did you mean {close[0]}?" if close else ", ".join(sorted(_OPTIONS))
            raise ConfigError(f"there is no option {name[:64]!r}", hint=hint)
        if value is not None:
            options[name] = option.read(value)
    return Generate(identity, check_prompt(prompt), options)
