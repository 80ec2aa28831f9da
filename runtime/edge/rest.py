"""Whether a verifier that drafts itself needs this board's drafts at all.

Where the draft beside the target is quick and the board slow, what the board sends is
never needed: nothing is gained by it but heat. Then the board rests, and tries again now
and then, since links and boards change.
"""

from __future__ import annotations

__all__ = ["Rest"]

_WINDOW = 64  # drafts of the verifier's need that are looked at together
_SHARE = 0.1  # of them that the board must have saved
_FIRST, _LONGEST = 128, 4096  # tokens of text: the first rest, and the longest


class Rest:
    """What a stream knows of it.

    Attributes:
        tokens: Of the text, that came while the board rested.
    """

    def __init__(self) -> None:
        self.tokens = 0
        self._until = 0
        self._next = _FIRST
        self._seen: tuple[int, int] | None = None  # where the present window began

    def passed(self, length: int, tokens: int) -> None:
        """Text has come; it is ``length`` tokens long now."""
        if length - tokens < self._until:
            self.tokens += tokens

    def told(self, wanted: int, spared: int, length: int) -> None:
        """Take in what the verifier says: drafts it had need of so far, and the board's."""
        if length < self._until:
            self._seen = None  # what it said of this time is no news
            return
        before = self._seen = self._seen or (wanted, spared)
        needed, saved = wanted - before[0], spared - before[1]
        if needed < _WINDOW:
            return
        self._seen = wanted, spared
        if saved >= _SHARE * needed:
            self._next = _FIRST
            return
        self._until, self._next = length + self._next, min(2 * self._next, _LONGEST)

    def lasts(self, length: int) -> bool:
        """Return whether the board has nothing to draft behind so much text."""
        return length < self._until
