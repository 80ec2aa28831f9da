"""What a stream wants of an engine whose scheduler we are inside of.

No vLLM here: the engine that the laws are tested on goes by the same rules.
"""

from __future__ import annotations

from typing import Sequence

from draftwire.verifier.backends.streaming import Push

__all__ = ["Wish"]


class Wish:
    """The drafts of a stream, and how far it shall go.

    Attributes:
        epoch: Branch of the drafts.
        since: When the push came.
    """

    def __init__(self) -> None:
        self.epoch = 0
        self.since = 0.0
        self._base = 0
        self._drafts: tuple[int, ...] = ()
        self._asks = self._ahead = 0

    def take(self, push: Push, now: float = 0.0) -> None:
        """Take a push in place of the one before."""
        self.since = now
        self.epoch, self._base, self._drafts, self._asks, self._ahead = push

    def settle(self, text: Sequence[int], length: int) -> None:
        """Compare the drafts with the text: what repeats it goes, what differs dies.

        Args:
            text: Ids of prompt and text, at least ``length``.
            length: How many there are.
        """
        known = min(length - self._base, len(self._drafts))
        if known <= 0:
            return
        if list(text[self._base : self._base + known]) == list(self._drafts[:known]):
            self._drafts = self._drafts[known:]
            self._base += known
        else:
            self._drafts, self._asks = (), 0

    def drafts(self, length: int, most: int) -> list[int]:
        """Return what is to be judged where the text is so long; :meth:`settle` first."""
        return list(self._drafts[:most]) if self._base == length else []

    def holds(self, length: int) -> bool:
        """Tell whether a text of this length shall wait; :meth:`settle` first."""
        return length >= max(self._asks, self._ahead)
