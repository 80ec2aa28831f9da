"""What the user sees of an answer: tokens and their text, with guesses that may go."""

from __future__ import annotations

from typing import Any, Sequence

from draftwire.runtime.edge.actions import Emit, Token
from draftwire.runtime.text import TextStream

__all__ = ["Screen"]


class Screen:
    """Turns what a session emits into text.

    Args:
        tokenizer: As for :class:`~draftwire.runtime.text.TextStream`.
        prompt_ids: As there.
        stop: As there.

    Attributes:
        tokens: The answer so far, guesses included.
        text: The text so far.
    """

    def __init__(
        self, tokenizer: Any, prompt_ids: Sequence[int], stop: Sequence[str]
    ) -> None:
        self._source = (tokenizer, prompt_ids, stop)
        self._stream = self._new()
        self._verified = 0
        self.tokens: list[Token] = []
        self.text = ""

    def _new(self) -> TextStream:
        tokenizer, prompt_ids, stop = self._source
        return TextStream(tokenizer, prompt_ids=prompt_ids, stop=stop)

    @property
    def unverified(self) -> int:
        """How many tokens shown are still guesses."""
        return len(self.tokens) - self._verified

    @property
    def stopped(self) -> bool:
        """True when a stop string was met in the verified part of the text."""
        if self._stream.stopped is None or not self.unverified:
            return self._stream.stopped is not None
        verified = self._new()
        verified.push([token.id for token in self.tokens[: self._verified]])
        return verified.stopped is not None

    def push(self, event: Emit) -> tuple[str, tuple[Token, ...]]:
        """Show further tokens; return the text and the tokens that are new.

        Once a stop string is met in final text, :attr:`tokens` ends with the last token
        that has a part in the text before it.
        """
        if event.shown:  # shown as guesses, final now
            shown = slice(self._verified, self._verified + event.shown)
            self.tokens[shown] = event.tokens[: event.shown]
        before, fresh = len(self.tokens), event.tokens[event.shown :]
        self.tokens += fresh
        if event.tokens[0].kind != "unverified":
            self._verified += len(event.tokens)
        piece = self._stream.push([token.id for token in fresh])
        self.text += piece
        if self.stopped and self._verified:
            self._cut()
        return piece, tuple(self.tokens[before:])

    def _cut(self) -> None:
        tokenizer, prompt_ids, _ = self._source
        plain = TextStream(tokenizer, prompt_ids=prompt_ids)
        length = 0
        for count, token in enumerate(self.tokens):
            if length >= len(self.text):
                del self.tokens[count:]
                self._verified = min(self._verified, count)
                return
            length += len(plain.push([token.id]))

    def revise(self, position: int) -> None:
        """Take back every token from ``position`` on."""
        del self.tokens[position:]
        self._stream = self._new()
        self.text = self._stream.push([token.id for token in self.tokens])

    def flush(self) -> str:
        """Return what was held back; the answer is over."""
        rest = self._stream.flush()
        self.text += rest
        return rest
