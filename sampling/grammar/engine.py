"""llguidance, for one tokenizer: compiles grammars, within bounds.

Both ends of a stream compute masks and forced ids by themselves, so they must compute
them alike. :attr:`Vocabulary.mark` is the hash of what this engine makes of a few grammars
with this tokenizer: ends with one mark agree, whatever their versions are called.
"""

from __future__ import annotations

import hashlib
import json
import sys
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, Sequence

import numpy as np

from draftwire.errors import ConfigError
from draftwire.io import parse_json
from draftwire.sampling.grammar.guide import Guide
from draftwire.sampling.grammar.shortest import shortest
from draftwire.sampling.grammar.text import Grammar

# What one grammar may take: 20 ms to compile, 5 ms a step, 16 MB of states. They are part
# of the mark: ends with other limits would fail at other places.
_LIMITS = {
    "max_items_in_row": 2000,
    "initial_lexer_fuel": 1_000_000,
    "step_lexer_fuel": 50_000,
    "step_max_items": 10_000,
    "max_lexer_states": 8_000,
    "max_grammar_size": 100_000,
}
OPTION_OF = {"json": "schema", "lark": "grammar"}  # what a format is asked for by
_END = "<|draftwire end of grammar|>"  # no token of any model
_PROBES = (
    Grammar(
        "json",
        '{"type":"object","properties":{"action":{"enum":["move","grip","stop"]},'
        '"x":{"type":"number"},"n":{"type":"integer","minimum":3,"maximum":120},'
        '"name":{"type":"string","maxLength":8},"on":{"type":"boolean"}},'
        '"required":["action","x","n","name","on"],"additionalProperties":false}',
    ),
    Grammar("json", '{"type":"object"}'),
    Grammar("json", '{"type":"array","items":{"type":"string"},"minItems":1,"maxItems":3}'),
    Grammar("regex", "[a-c]+(left|right){1,2}"),
    Grammar("lark", 'start: "a b" | "abc" | CALL\nCALL: /x+/ "y"\n'),
)


def missing() -> ConfigError | None:
    """Return why there are no grammars on this machine, or None where there are."""
    try:
        import llguidance  # noqa: F401
    except ImportError:
        pass
    else:
        return None
    if sys.version_info < (3, 9):
        return ConfigError(
            "grammars need llguidance, which has no wheel for Python 3.8",
            hint="use Python 3.9 or newer here, or leave the grammar out",
        )
    return ConfigError(
        "grammars need llguidance, which is not installed",
        hint="pip install 'draftwire[grammar]'",
    )


class Vocabulary:
    """A tokenizer, the text of its ``tokenizer.json``, as grammars see it: bytes of ids.

    Raises:
        ConfigError: llguidance is not installed, or cannot take the tokenizer.
    """

    def __init__(self, tokenizer_json: str) -> None:
        if (why := missing()) is not None:
            raise why
        import llguidance

        self._library: Any = llguidance
        data = parse_json(tokenizer_json)
        added = data.setdefault("added_tokens", [])
        words = data["model"]["vocab"]
        ids = words.values() if isinstance(words, dict) else range(len(words))
        self.size = 1 + max([*ids, *(int(token["id"]) for token in added)])
        # The engine wants an id that ends texts. Which ones end a stream is not its
        # business, and must not shape its masks: it gets one that no model has.
        end = {"id": self.size, "content": _END, "special": True, "normalized": False}
        added.append({**end, "single_word": False, "lstrip": False, "rstrip": False})
        try:
            self._tokens = llguidance.LLTokenizer(
                json.dumps(data), n_vocab=self.size + 1, eos_token=self.size
            )
        except Exception as error:  # noqa: BLE001 - it raises bare ones
            raise ConfigError(
                f"llguidance cannot take this tokenizer: {_first_line(error)}",
                hint="leave the grammar out",
            ) from error
        self._limits = self._library.LLParserLimits(**_LIMITS, verbose_errors=False)
        self._bytes: dict[int, bytes] = {}

    @property
    def version(self) -> str:
        """Of the engine, for people."""
        return version("llguidance")

    def bytes_of(self, token: int) -> bytes:
        """Return the bytes of an id."""
        found = self._bytes.get(token)
        if found is None:
            found = self._bytes[token] = bytes(self._tokens.decode_bytes([token]))
        return found

    @cached_property
    def single(self) -> dict[int, int]:
        """The ids of single bytes, by byte."""
        found = ((self.bytes_of(i), i) for i in range(self.size))
        return {text[0]: i for text, i in found if len(text) == 1}

    @cached_property
    def mark(self) -> bytes:
        """Eight bytes: what this engine makes of some grammars, with this tokenizer."""
        found = hashlib.sha256(json.dumps(_LIMITS).encode("ascii"))
        for grammar in _PROBES:
            guide = self.compile(grammar).guide(self.size)
            text: list[int] = []
            for step in range(24):
                path = guide.path()
                text += path.ids
                guide.follow(text)
                (mask,) = guide.masks(())
                found.update(repr((path.ids, path.ended)).encode("ascii"))
                found.update(np.packbits(mask).tobytes())
                if path.ended:
                    break
                allowed = np.flatnonzero(mask)
                text.append(int(allowed[step * 7919 % len(allowed)]))
                guide.follow(text)
        return found.digest()[:8]

    def compile(self, grammar: Grammar) -> Compiled:
        """Return ``grammar``, ready for use; may take some hundred milliseconds.

        Raises:
            ConfigError: It is wrong, has no text, or costs more than the limits allow.
        """
        make = self._library.LLMatcher
        read = {
            "json": partial(
                make.grammar_from_json_schema, overrides={"whitespace_flexible": False}
            ),
            "regex": make.grammar_from_regex,
            "lark": make.grammar_from_lark,
        }
        try:
            text = read[grammar.format](grammar.text)
            matcher = make(self._tokens, text, log_level=0, limits=self._limits)
            # The first step finds what no reading does: rules that never end.
            if not matcher.is_stopped():
                matcher.compute_ff_tokens()
                matcher.compute_bitmask()
            trouble = matcher.get_error() if matcher.is_error() else ""
        except Exception as error:  # noqa: BLE001 - ValueError, and what else Rust raises
            trouble = _first_line(error)
        if trouble:
            raise ConfigError(
                f"this {_KINDS[grammar.format]} cannot be used: {_sentence(trouble)}",
                hint="docs/structure.md says what a grammar may hold",
                about=OPTION_OF.get(grammar.format, "regex"),
            )
        return Compiled(grammar, matcher, self)


@lru_cache(maxsize=2)  # some 40 MB each at 50,000 ids
def vocabulary(tokenizer_json: Path, fingerprint: str) -> Vocabulary:
    """Return the vocabulary of a ``tokenizer.json``, read once in a process.

    With another fingerprint it is another file. Raises as :class:`Vocabulary`.
    """
    return Vocabulary(Path(tokenizer_json).read_text(encoding="utf-8"))


_KINDS = {"json": "JSON schema", "regex": "regular expression", "lark": "grammar"}


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]


def _sentence(trouble: str) -> str:
    """Return what the engine says on one line, in words that name no inner part."""
    if "NoExtension" in trouble:
        return "it has no text that ends"
    lines = [line.strip() for line in trouble.splitlines() if "<non-verbose" not in line]
    return " ".join(filter(None, lines))[:300]


class Compiled:
    """A grammar that is ready for use, by any number of guides and in any thread."""

    def __init__(self, grammar: Grammar, matcher: Any, vocabulary: Vocabulary) -> None:
        self.grammar = grammar
        self._matcher, self._vocabulary = matcher, vocabulary

    def shortest(self, guide: Guide, before: Sequence[int] = ()) -> tuple[int, ...] | None:
        """Return the ids that complete a text: see :func:`~.shortest.shortest`."""
        words = self._vocabulary
        return shortest(guide, words.bytes_of, words.single, before)

    @property
    def mark(self) -> bytes:
        """Of the vocabulary."""
        return self._vocabulary.mark

    def guide(self, vocab_size: int, **options: Any) -> Guide:
        """Return a :class:`Guide` through it, whose arguments these are."""
        matcher = self._matcher.deep_copy()
        return Guide(matcher, self._vocabulary.size, vocab_size, **options)


@dataclass(frozen=True)
class Rules:
    """A grammar as one stream has it."""

    compiled: Compiled  # the grammar
    vocab_size: int  # ids of the stream are below this
    stop_ids: tuple[int, ...] = ()  # ids that end its text
    forcing: bool = True  # what the grammar forces is text at once

    def guide(self, start: int) -> Guide:
        """Return a guide for texts behind the first ``start`` ids of a sequence."""
        return self.compiled.guide(
            self.vocab_size, start=start, stop_ids=self.stop_ids, forcing=self.forcing
        )
