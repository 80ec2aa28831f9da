"""What a grammar is before it is compiled: a format and a text, named by their hash."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Mapping, Sequence

from draftwire.errors import ConfigError
from draftwire.io import parse_json

MAX_GRAMMAR = 64 << 10  # bytes of its text
FORMATS = ("json", "regex", "lark")
_SMALLER = "a grammar that every message of a robot fits has a few hundred bytes"
_MAX_CHOICES = 1024


@dataclass(frozen=True)
class Grammar:
    """What a text may be."""

    # ``"json"``: a JSON schema; the text is JSON without white space between its parts,
    # properties in the schema's order. ``"regex"``: of the whole text, in the syntax of
    # Rust's regex crate. ``"lark"``: llguidance's dialect of Lark.
    format: str
    text: str  # in that format

    def __post_init__(self) -> None:
        if self.format not in FORMATS:
            raise ConfigError(
                f"there are no grammars of format {self.format!r}",
                hint="one of " + ", ".join(FORMATS),
            )
        try:
            size = len(self.text.encode("utf-8"))
        except UnicodeEncodeError:
            raise ConfigError("a grammar holds half of a surrogate pair") from None
        if size > MAX_GRAMMAR:
            raise ConfigError(
                f"the grammar has {size} bytes, the limit is {MAX_GRAMMAR}", hint=_SMALLER
            )

    @cached_property
    def digest(self) -> bytes:
        """The 32 bytes that name it on the wire."""
        return self.name(self.format, self.text.encode("utf-8"))

    @staticmethod
    def name(form: str, text: bytes) -> bytes:
        """Return the digest of the grammar with ``text`` in format ``form``."""
        return hashlib.sha256(form.encode("ascii") + b"\n" + text).digest()

    @classmethod
    def of_schema(cls, schema: Mapping[str, Any] | bool | str) -> Grammar:
        """Return the grammar of a JSON schema, an object or its text; or a ConfigError."""
        if isinstance(schema, str):
            try:
                schema = parse_json(schema)
            except ValueError as error:
                raise ConfigError(f"the JSON schema is no JSON: {error}") from None
        if not isinstance(schema, (Mapping, bool)):
            raise ConfigError(f"a JSON schema is an object, not {type(schema).__name__}")
        return cls("json", as_json(schema))

    @classmethod
    def of_choices(cls, choices: Sequence[str]) -> Grammar:
        """Return the grammar whose texts are ``choices``; a ConfigError for none."""
        texts = list(choices)
        if isinstance(choices, str) or not all(isinstance(t, str) and t for t in texts):
            raise ConfigError("choices are a list of texts, none of them empty")
        if not 1 <= len(set(texts)) <= _MAX_CHOICES:
            raise ConfigError(f"there must be 1 to {_MAX_CHOICES} choices")
        said = " | ".join(as_json(text) for text in dict.fromkeys(texts))
        return cls("lark", f"start: {said}\n")


def as_json(value: object) -> str:
    """Return ``value`` as JSON without white space; a ConfigError where it cannot be."""
    if isinstance(value, Mapping):
        value = dict(value)
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    except RecursionError:
        raise ConfigError("the JSON schema is nested too deeply", hint=_SMALLER) from None
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"the JSON schema cannot be written as JSON: {error}",
            hint="parts that refer to each other do so with $ref and $defs",
        ) from None
