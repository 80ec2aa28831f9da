"""Words that cost no draft: what stood behind the same few tokens before.

The verifier has the whole text at hand. Where its end, drafts included, has occurred
before, what followed then often follows again: names, numbers, code, an answer that quotes
its prompt. Such tokens stand behind whatever drafts have arrived and are judged with them
in the same forward, by the same rule, so that the text is the same.

Source:
    Prompt lookup decoding, https://github.com/apoorvumang/prompt-lookup-decoding.
"""

from __future__ import annotations

from array import array
from typing import Sequence

import numpy as np

__all__ = ["Lookup"]

_LONGEST = 4  # tokens that are compared, at most
_SHORTEST = 2
_LOOKS = 32  # places that are compared, the latest first
_PRIOR = 4.0  # tokens that the first guess at a chance weighs
_MEMORY = 0.98  # of a chance, a token judged


class Lookup:
    """Finds what may follow, ``most`` tokens at once, in one stream's own text."""

    def __init__(self, tokens: Sequence[int], most: int) -> None:
        self._most = most
        self._text = array("i", tokens)
        # By tokens compared: judged and right, fading.
        self._seen = {n: [_PRIOR, 0.1 * n * _PRIOR] for n in range(2, _LONGEST + 1)}
        self._length = _SHORTEST  # compared, for what was given last
        # Drafts that forwards were worth, had they been made here; the device's of them.
        self.wanted = self.spared = 0

    def reach(self, waiting: Sequence[int]) -> int:
        """Return how many of the drafts that wait go into the forward."""
        return len(waiting)

    def extend(self, ids: Sequence[int]) -> None:
        """The text grows."""
        self._text.extend(ids)

    def chance(self, length: int) -> float:
        """Return how likely a token is right that follows ``length`` equal ones."""
        judged, right = self._seen[length]
        return right / judged

    def find(self, drafts: Sequence[int], price: float = 0.0) -> list[int]:
        """Return what may follow behind the text and ``drafts``; nothing if nobody knows.

        ``price``: tokens that the forward must gain by another row to be worth it.
        """
        end = [*self._text[max(0, len(self._text) - _LONGEST) :], *drafts][-_LONGEST:]
        text = np.frombuffer(self._text, np.int32)
        if len(end) < _SHORTEST or not self._most:
            return []
        # Behind the text's last token stands nothing yet.
        places = np.flatnonzero(text[:-1] == end[-1])
        best, at = _SHORTEST - 1, -1
        for place in places[: -_LOOKS - 1 : -1].tolist():
            same = 1
            while same < min(len(end), place + 1):
                if text[place - same] != end[-1 - same]:
                    break
                same += 1
            if same > best:
                best, at = same, place
                if same == len(end):
                    break
        if at < 0:
            return []
        chance, reach, count = self.chance(best), 1.0, 0
        while count < self._most and (reach := reach * chance) > price:
            count += 1
        self._length = best
        found = list(drafts)  # behind the text, so that a loop goes on
        for i in range(at + 1, at + 1 + count):
            found.append(int(text[i]) if i < len(text) else found[i - len(text)])
        return found[len(drafts) :]

    def judged(self, count: int, right: int) -> None:
        """Learn from the verdict on what was given last.

        ``count`` were judged: the ``right`` ones, and the first that was not.
        """
        seen = self._seen[self._length]
        fade = _MEMORY**count
        seen[0] = seen[0] * fade + count
        seen[1] = seen[1] * fade + right
