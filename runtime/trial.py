"""Drawing back from drafting, and trying again now and then."""

from __future__ import annotations

__all__ = ["Trial"]

_FIRST, _LONGEST = 48, 768  # tokens of text between two trials
_BLOCKS = 5  # of a trial


class Trial:
    """Whether to draft at all.

    After drawing back it is quiet for a while, then there is a trial of a few blocks;
    each trial that fails doubles the pause. News (the link or the text has changed)
    shorten it.

    Attributes:
        off: Nothing is to be drafted.
        why: Why it was drawn back, or "".
    """

    def __init__(self) -> None:
        self.off = False
        self.why = ""
        self._pause = _FIRST
        self._left = 0
        self._blocks = 0

    def draw_back(self, why: str) -> None:
        """Stop to draft, unless a trial is still going on."""
        if self.off or self._blocks > 0:
            return
        self.off, self.why = True, why
        self._left = self._pause
        self._pause = min(2 * self._pause, _LONGEST)

    def passed(self, tokens: int) -> bool:
        """Text has come; return True when the pause is over with it."""
        if not self.off:
            return False
        self._left -= tokens
        if self._left <= 0:
            self.off = False
            self._blocks = _BLOCKS
        return not self.off

    def judged(self, drafted: int) -> None:
        """A block was judged, maybe one of a trial."""
        if drafted and self._blocks:
            self._blocks -= 1

    def news(self) -> None:
        """Something has changed: do not wait for long."""
        self._pause = _FIRST
        self._left = min(self._left, 8)
