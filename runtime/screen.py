"""What the user sees of an answer: tokens and their text, with guesses that may go."""

from __future__ import annotations

from typing import Any, Sequence

from draftwire.runtime.actions import (
    Emit,
)
from draftwire.runtime.text import TextStream

__all__ = ["Screen"]


class Screen:
    """Turns what a session emits into text.

    Args:
        tokenizer: As for :class:`~draftwire.runtime.text.TextStream`.
        prompt_ids: As there.
        stop: As there.

    Attributes:
        ids: Token ids of the answer so far, guesses included.
        text: The text so far.
    """

    def __init__(
        self, tokenizer: Any, prompt_ids: Sequence[int], stop: Sequence[str]
    ) -> None:
        self._source = (tokenizer, prompt_ids, stop)
        self._stream = self._new()
        self._verified = 0
        self.ids: list[int] = []
        self.text = ""

    def _new(self) -> TextStream:
        tokenizer, prompt_ids, stop = self._source
        return TextStream(tokenizer, prompt_ids=prompt_ids, stop=stop)

    @property
    def unverified(self) -> int:
        """How many tokens shown are still guesses."""
        return len(self.ids) - self._verified

    @property
    def stopped(self) -> bool:
        """True when a stop string was met in the verified part of the text."""
        if self._stream.stopped is None or self._verified == len(self.ids):
            return self._stream.stopped is not None
        verified = self._new()
        verified.push(self.ids[: self._verified])
        return verified.stopped is not None

    def push(self, event: Emit) -> str:
        """Show further tokens; return the text that is new.

        Once a stop string is met in final text, :attr:`ids` ends with the last token
        that has a part in the text before it.
        """
        fresh = [t.id for t in event.tokens[event.shown :]]
        self.ids += fresh
        if event.tokens[0].kind != "unverified":
            self._verified += len(event.tokens)
        piece = self._stream.push(fresh)
        self.text += piece
        if self.stopped and self._verified:
            self._cut()
        return piece

    def _cut(self) -> None:
        tokenizer, prompt_ids, _ = self._source
        plain = TextStream(tokenizer, prompt_ids=prompt_ids)
        length = 0
        for count, token in enumerate(self.ids):
            if length >= len(self.text):
                del self.ids[count:]
                self._verified = min(self._verified, count)
                return
            length += len(plain.push([token]))

    def revise(self, position: int) -> None:
        """Take back every token from ``position`` on."""
        self.ids = self.ids[:position]
        self._stream = self._new()
        self.text = self._stream.push(self.ids)

    def flush(self) -> str:
        """Return what was held back; the answer is over."""
        rest = self._stream.flush()
        self.text += rest
        return rest
