"""Hush: in a race, a draft step that the next verdict would probably void is not begun.

A step at work is not cut short. Where the drafts already reach so far that the next is
hardly of use, and news are due before a step would end, the board waits for them: then it
begins at once where the news say, instead of half a step later.
"""

from __future__ import annotations

__all__ = ["Hush"]

_WORTH = 0.2  # chance of being of use, below which a step is not begun
_LATE = 0.5  # of a forward: news that are so late are not waited for
_PRIOR = (4.0, 3.0)  # drafts judged and right, before any were


class Hush:
    """What a stream knows of when news come, and of how its drafts fare."""

    def __init__(self) -> None:
        self._judged, self._right = _PRIOR
        self._news_s = self._forward_s = 0.0
        self._accepted = self._drafted = 0

    def verdict(self, now_s: float, forward_s: float, judged: int, accepted: int) -> None:
        """Note a verdict.

        Args:
            now_s: When it came.
            forward_s: What the next one takes, at least.
            judged: Drafts of the stream that were judged so far.
            accepted: Those of them that were right.
        """
        fresh, right = judged - self._drafted, accepted - self._accepted
        self._drafted, self._accepted = judged, accepted
        fade = 0.98**fresh
        self._judged = fade * self._judged + fresh
        self._right = fade * self._right + right
        self._news_s, self._forward_s = now_s + forward_s, forward_s

    def until_s(self, now_s: float, step_s: float, ahead: int) -> float:
        """Return until when no step is worth beginning; ``now_s``: one is.

        Args:
            now_s: The clock.
            step_s: What a step takes.
            ahead: Drafts beyond the text.
        """
        end_s = self._news_s + _LATE * self._forward_s
        if now_s + step_s <= self._news_s + 1e-9 or now_s >= end_s:
            return now_s
        chance = min(self._right / max(self._judged, 1e-9), 1.0)
        return now_s if chance**ahead >= _WORTH else end_s
