"""Messages to tokens: the package's template, and nothing of a user's text in its place.

A template writes special tokens around messages; what is spelt like one inside a message
stays text. To know which is which, the template is rendered a second time with the
messages' characters replaced by private ones that mean nothing to it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Callable, Mapping, Match, Sequence

from draftwire.errors import ConfigError
from draftwire.packages import DraftPackage
from draftwire.template import Template, check_messages, plain_data
from draftwire.tokenizer import Tokenizer

_MARK = 0x100000  # plane 16: one private character for each of the basic plane
_MARKED = re.compile("[\U00100000-\U0010fffd]")
# Blanks stay, since templates strip them; quotes too, since JSON escapes them.
_TEXT = re.compile(r'[^\s"\\\x00-\x1f\ufffe\uffff\U00010000-\U0010ffff]')


@dataclass(frozen=True)
class Prompt:
    """A conversation as a stream begins with it."""

    ids: list[int]  # its tokens
    stop_ids: tuple[int, ...]  # tokens that end the answer, beside the model's own
    stop: tuple[str, ...]  # texts that end it
    warning: str  # what is to be said about it, or ""


class Conversation:
    """What turns messages into prompts for one draft."""

    def __init__(self, package: DraftPackage, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self.template = Template.of(package.path)
        self._bos_id = package.bos_id
        end = self.template.turn_end()
        spans = tokenizer.special_spans(end)
        first = [end[a:b] for a, b in spans[:1]]
        found = [tokenizer.token_id(word) for word in first]
        self._stop_ids = tuple(i for i in found if i is not None)
        # No special token can begin or end in a text that has none of these characters.
        edges = {char for word in tokenizer.special for char in (word[0], word[-1])}
        self._edges = re.compile("|".join(map(re.escape, sorted(edges))) or "(?!)")

    def prompt(
        self,
        messages: object,
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> Prompt:
        """Return the prompt of an answer to ``messages``; ``tools`` are JSON schemas. A
        ConfigError where they are no messages, or the template refuses them."""
        given = check_messages(messages)
        tools, options = plain_data(tools, "tools"), plain_data(options, "template_options")
        text, spans = self._rendered(given, tools, options)
        if spans is None:
            ids = self._tokenizer.encode(text, parse_special=True)
        else:
            ids = self._tokenizer.encode_spans(text, spans)
        warning = ""
        if self.template.text is None:
            ids = ids if self._bos_id is None else [self._bos_id, *ids]
            warning = "this draft has no chat template: the chat was a plain transcript"
        return Prompt(ids, self._stop_ids, self.template.stop, warning)

    def _rendered(
        self, messages: list[dict[str, Any]], tools: Any, options: Any
    ) -> tuple[str, list[tuple[int, int]] | None]:
        """Return the prompt and which special tokens in it are the template's own; None
        stands for all: no message can have brought one."""

        def render(change: Callable[[str], str]) -> str:
            return self.template.render(
                _changed(messages, change),
                tools=_changed(tools, change),
                options=_changed(options, change),
            )

        spans_of = self._tokenizer.special_spans
        text = render(str)
        risky: list[str] = []

        def look(given: str) -> str:
            risky.extend([given] if self._edges.search(given) else ())
            return given

        _changed([messages, tools, options], look)
        if not risky:
            return text, None

        def everything(given: str) -> str:
            return _TEXT.sub(_mark, given) if self._edges.search(given) else given

        def beginnings(given: str) -> str:
            for begin, _ in spans_of(given):
                given = given[:begin] + _TEXT.sub(_mark, given[begin]) + given[begin + 1 :]
            return given

        for change in (everything, beginnings):
            # A template that looks into a message may write another text than this one.
            if any(spans_of(change(given)) for given in risky):
                continue  # made of characters that stay as they are
            try:
                marked = render(change)
            except ConfigError:
                continue
            if _MARKED.sub(lambda found: chr(ord(found[0]) - _MARK), marked) == text:
                spans = spans_of(marked)
                return text, None if spans == spans_of(text) else spans
        if any(map(spans_of, risky)):
            raise ConfigError(
                "a message spells a special token of this model, and the chat template "
                "looks at it",
                hint="leave it out of the message",
            )
        return text, None


def _mark(found: Match[str]) -> str:
    return chr(_MARK + ord(found[0]))


def _changed(value: Any, change: Callable[[str], str]) -> Any:
    """Return a copy with all text changed but the roles, of which there are few."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, dict):
        return {
            change(key): item if key == "role" else _changed(item, change)
            for key, item in value.items()
        }
    return [_changed(item, change) for item in value] if isinstance(value, list) else value
