"""What goes into a forward beside the device's drafts, and what a row of it costs.

Words that cost no draft (:class:`Lookup`): what stood behind the same few tokens before.
Where the text's end, drafts included, has occurred before, what followed then often follows
again: names, numbers, code, an answer that quotes its prompt. Such tokens stand behind
whatever drafts have arrived and are judged by the same rule, so that the text is the same.

Second choices of the device (:class:`Leaves`): where the target rejects a draft, its own
token is often the one that the device would have drafted otherwise. Such a token is a
*leaf*: a row behind the drafts before it, that nothing else looks at. When it is the
target's token, its row gives one more token. Drafts that the device made behind one stand
behind it, a row each.

Sources:
    Prompt lookup decoding, https://github.com/apoorvumang/prompt-lookup-decoding. Two
    candidates a place: SpecInfer, https://arxiv.org/abs/2305.09781 (its tree of width 2 and
    depth 1 beside a chain).
"""

from __future__ import annotations

from array import array
from typing import Sequence, Tuple

import numpy as np

_LONGEST = 4  # tokens that are compared, at most
_SHORTEST = 2
_LOOKS = 32  # places that are compared, the latest first
_PRIOR = 4.0  # tokens or judgements that the first guess at a chance weighs
_MEMORY = 0.98  # of a chance, a token judged
_RIGHT, _LEAF = 0.8, 0.6  # drafts that are right; leaves, where a draft is not

_PRICE_MEMORY = 0.95  # of what was learned, a forward
_LEAST_MEMORY = 1.002  # the least rises by so much a forward: what was quick may be over
_ROW = 0.01  # a row costs so much of a forward until more is known
_LEAST_SHARE = 0.1  # of a forward, one of a single row
_WEIGHT = 4.0  # of that first guess, in squared rows

# A place among the drafts, the id that stands there instead, and the drafts behind that.
Side = Tuple[int, Tuple[int, ...]]


class Share:
    """How often something was right, fading; the first ``guess`` weighs ``prior``."""

    def __init__(
        self, guess: float, prior: float = _PRIOR, memory: float = _MEMORY
    ) -> None:
        self._right, self._judged, self._memory = guess * prior, prior, memory

    def add(self, right: int, judged: int = 1) -> None:
        """Learn from ``judged`` of which ``right`` were."""
        fade = self._memory**judged
        self._right = self._right * fade + right
        self._judged = self._judged * fade + judged

    @property
    def value(self) -> float:
        """The share."""
        return self._right / self._judged


class Lookup:
    """Finds what may follow, ``most`` tokens at once, in one stream's own text."""

    def __init__(self, tokens: Sequence[int], most: int) -> None:
        self._most = most
        self._text = array("i", tokens)
        # By tokens compared.
        self._seen = {n: Share(0.1 * n) for n in range(_SHORTEST, _LONGEST + 1)}
        self._length = _SHORTEST  # compared, for what was given last
        # Drafts that forwards were worth, had they been made here; the device's of them.
        self.wanted = self.spared = 0

    def reach(self, waiting: Sequence[int]) -> int:
        """Return how many of the drafts that wait go into the forward."""
        return len(waiting)

    def extend(self, ids: Sequence[int]) -> None:
        """The text grows."""
        self._text.extend(ids)

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
            while same < min(len(end), place + 1) and text[place - same] == end[-1 - same]:
                same += 1
            if same > best:
                best, at = same, place
                if same == len(end):
                    break
        if at < 0:
            return []
        chance, reach, count = self._seen[best].value, 1.0, 0
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
        self._seen[self._length].add(right, count)


class Leaves:
    """Chooses second choices for one stream, at most ``most`` in one forward."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._drafts, self._leaves = Share(_RIGHT), Share(_LEAF)
        self._saved = Share(0.0)

    @property
    def saved(self) -> float:
        """Share of wrong drafts where a leaf brings one more token."""
        return self._saved.value

    def choose(
        self,
        drafts: Sequence[int],
        seconds: Sequence[int],
        sides: Sequence[Side],
        price: float,
        room: int,
    ) -> tuple[Side, ...]:
        """Return the leaves that gain more than they cost, in the order of their places,
        each with those of the drafts behind it that do.

        ``seconds`` are second choices for the first of ``drafts`` (a draft itself is none),
        ``sides`` have drafts behind other ids, ``price`` is what a row must gain, in
        tokens, ``room`` the rows that there is room for.
        """
        right = self._drafts.value
        chance = (1 - right) * self._leaves.value
        if not self._most or chance < price:
            return ()
        # Drafts beyond the end of the text are not judged, nor what stands beside them.
        ways = {(at, ids[0]): ids for at, ids in sides if at < len(drafts)}
        for place, (draft, second) in enumerate(zip(drafts, seconds)):
            if draft != second:
                ways.setdefault((place, second), (second,))
        found: list[Side] = []
        for (place, _), ids in sorted(ways.items())[: self._most]:
            reach, count = chance * right**place, 0
            while count < len(ids) and room > 0 and reach >= price:
                count, room, reach = count + 1, room - 1, reach * right
            if count:
                found.append((place, ids[:count]))
        return tuple(found)

    def judged(self, sent: int, right: int, token: int, sides: Sequence[Side]) -> None:
        """Learn from a verdict on ``sent`` drafts of the device and on ``sides``.

        ``right`` drafts, of whomever, were right, and ``token`` came behind them.
        """
        if not self._most:
            return
        leaves = [(place, ids[0]) for place, ids in sides]
        self._drafts.add(min(right, sent), min(right + 1, sent))
        if right < sent:
            self._saved.add((right, token) in leaves, 1)
        if any(place == right for place, _ in leaves):
            self._leaves.add((right, token) in leaves, 1)


class ForwardPrice:
    """Time of the judging forwards of one target, learned from those that ran."""

    def __init__(self) -> None:
        # Of a forward, lately, 0 before the first; of the quickest, of late: what a token
        # takes that comes by itself.
        self.seconds = self.least_s = 0.0
        self._rows = 0.0
        self._var = self._cov = 0.0

    def add(self, rows: int, seconds: float) -> None:
        """Learn from a forward over ``rows`` tokens of all streams together."""
        if not self.seconds:
            self.seconds = self.least_s = seconds
            self._rows = float(rows)
            return
        new = 1 - _PRICE_MEMORY
        apart, longer = rows - self._rows, seconds - self.seconds
        self._rows += new * apart
        self.seconds += new * longer
        self._var = _PRICE_MEMORY * (self._var + new * apart * apart)
        self._cov = _PRICE_MEMORY * (self._cov + new * apart * longer)
        self.least_s = min(self.least_s * _LEAST_MEMORY, seconds)

    def of(self, rows: int) -> float:
        """Return what a forward over ``rows`` tokens takes; 0 before the first."""
        return self.seconds * max(1 + self.row * (rows - self._rows), _LEAST_SHARE)

    @property
    def row(self) -> float:
        """What one more row costs, as a share of a forward."""
        if not self.seconds:
            return 0.0
        slope = (self._cov / self.seconds + _ROW * _WEIGHT) / (self._var + _WEIGHT)
        return max(0.0, slope)
