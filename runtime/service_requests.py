"""What local programs may ask of the service: one JSON object a line, all of it checked."""

from __future__ import annotations

import difflib
import json
import math
from dataclasses import dataclass, field
from typing import Any, Mapping, Union

from draftwire.errors import ConfigError
from draftwire.runtime.options import OFFLINE

__all__ = ["MAX_LINE", "Cancel", "Generate", "Request", "Status", "parse_request"]

MAX_LINE = 256 << 10  # bytes of one request: a prompt of some 50,000 words
MAX_TOKENS = 1 << 16
MAX_SECONDS = 86_400.0
_MAX_ID = 64
_MAX_STOPS, _MAX_STOP = 16, 256

Identity = Union[str, int, None]


@dataclass(frozen=True)
class Generate:
    """Write text.

    Attributes:
        id: The asker's name for it; in every event of this stream.
        prompt: Text, or token ids.
        options: For ``Session.generate``, only those that were given.
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


def parse_request(line: bytes) -> Request:
    """Read one line.

    Raises:
        ConfigError: It is no request, or a value is out of range.
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
    op = raw.pop("op", "generate")
    if op == "generate":
        return _generate(identity, raw)
    if op not in ("cancel", "status"):
        raise ConfigError(f"there is no op {op!r}", hint="generate, cancel or status")
    if raw:
        raise ConfigError(f"{op} takes no {sorted(raw)[0]!r}")
    return Cancel(identity) if op == "cancel" else Status(identity)


def _is_identity(value: Any) -> bool:
    if isinstance(value, str):
        return len(value) <= _MAX_ID
    return value is None or (isinstance(value, int) and not isinstance(value, bool))


def _generate(identity: Identity, raw: dict[str, Any]) -> Generate:
    prompt = raw.pop("prompt", None)
    if isinstance(prompt, list):
        if not all(isinstance(t, int) and not isinstance(t, bool) for t in prompt):
            raise ConfigError("a prompt is text, or a list of token ids")
    elif not isinstance(prompt, str) or not prompt:
        raise ConfigError("a request needs a prompt", hint='{"prompt": "Once upon"}')
    options = {}
    for name, value in raw.items():
        if name not in _CHECKS:
            close = difflib.get_close_matches(str(name), list(_CHECKS), n=1)
            hint = f"did you mean {close[0]}?" if close else ", ".join(sorted(_CHECKS))
            raise ConfigError(f"there is no option {str(name)[:64]!r}", hint=hint)
        wants, fits = _CHECKS[name]
        if value is None:
            continue
        if not fits(value):
            raise ConfigError(f"{name} is {str(value)[:64]}", hint=f"it must be {wants}")
        options[name] = value
    return Generate(identity, prompt, options)


def _whole(low: int, high: int) -> Any:
    def fits(value: Any) -> bool:
        return (
            isinstance(value, int) and not isinstance(value, bool) and low <= value <= high
        )

    return (f"a whole number, {low} to {high}", fits)


def _number(low: float, high: float, *, above: bool = False) -> Any:
    def fits(value: Any) -> bool:
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            return False
        return (
            math.isfinite(value) and low <= value <= high and not (above and value == low)
        )

    return (f"a number, {'above ' if above else ''}{low:g} to {high:g}", fits)


def _is_stops(value: Any) -> bool:
    return (
        isinstance(value, list)
        and len(value) <= _MAX_STOPS
        and all(isinstance(s, str) and 0 < len(s) <= _MAX_STOP for s in value)
    )


# Option -> (what it must be, in words; whether it is).
_CHECKS: dict[str, Any] = {
    "max_new_tokens": _whole(1, MAX_TOKENS),
    "temperature": _number(0, 100),
    "top_k": _whole(0, 1 << 24),
    "top_p": _number(0, 1, above=True),
    "seed": _whole(0, 2**64 - 1),
    "scheme": ("a name", lambda value: isinstance(value, str) and len(value) <= 64),
    "stop": (f"a list of at most {_MAX_STOPS} short texts", _is_stops),
    "block": _whole(1, 255),
    "objective": ("a word", lambda value: isinstance(value, str) and len(value) <= 64),
    "pipeline": _whole(1, 255),
    "preempt": ("words", lambda value: isinstance(value, str) and len(value) <= 64),
    "cut": ("true or false", lambda value: isinstance(value, bool)),
    "batch": _whole(0, 255),
    "controller": ("a name", lambda value: isinstance(value, str) and len(value) <= 128),
    "deadline_s": _number(0, MAX_SECONDS, above=True),
    "patience_s": _number(0, MAX_SECONDS),
    "offline": ("one of " + ", ".join(OFFLINE), lambda value: value in OFFLINE),
    "max_joules": _number(0, 1e9, above=True),
}
