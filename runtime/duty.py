"""Drafting for a share of the time: the thrift of a race.

In a race early drafts are overtaken, and only long runs are of use: drafting a little all
the time costs joules and gains nothing. So the energy objective drafts fully for a while
and rests for a while, and chooses the shares so that the text is no slower than allowed.
"""

from __future__ import annotations

__all__ = ["Duty"]

_CYCLE = 96  # tokens of text
_GAIN = 0.05


class Duty:
    """When to draft, and when to rest.

    Args:
        speed: Share of the full speed that must be kept.

    Attributes:
        on: Draft now.
        share: Of the text that is written while drafting.
    """

    def __init__(self, speed: float = 0.83) -> None:
        self._speed = speed
        self.on = True
        self.share = 1.0
        self._left = float(_CYCLE)
        self._token_s: float | None = None  # while drafting

    def passed(self, tokens: int, seconds: float, rest_s: float) -> None:
        """Text has come.

        Args:
            tokens: Of it.
            seconds: Since the commit before.
            rest_s: What a token takes without drafts.
        """
        if not tokens:
            return
        if self.on:
            known = self._token_s
            if known is None:
                self._token_s = seconds / tokens
            else:
                weight = min(1.0, _GAIN * tokens)
                self._token_s = known + weight * (seconds / tokens - known)
        self._left -= tokens
        if self._left > 0 or self._token_s is None:
            return
        slack = rest_s - self._token_s
        if slack <= 0:
            self.share = 0.0  # drafting gains nothing at all
        else:
            wanted = (rest_s - self._token_s / self._speed) / slack
            self.share = min(1.0, max(0.0, wanted))
        # A short time of drafting in each cycle keeps the measurement fresh.
        share = max(self.share, 0.04)
        self.on = not self.on if share < 1.0 else True
        part = share if self.on else 1.0 - share
        self._left = max(4.0, _CYCLE * part)
