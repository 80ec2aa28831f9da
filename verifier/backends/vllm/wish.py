"""What streams want of an engine whose scheduler we are inside of, and what they get.

No vLLM here: the engine that the laws are tested on goes by the same rules.
"""

from __future__ import annotations

from typing import Sequence

from draftwire.verifier.backends.streaming import Push

__all__ = ["Chances", "Load", "Wish"]


class Wish:
    """The drafts of a stream, and how far it shall go.

    Attributes:
        epoch: Branch of the drafts.
        since: When the push came.
        chances: Of its drafts.
    """

    def __init__(self) -> None:
        self.chances = Chances()
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


class Chances:
    """How often a draft is accepted, of late; without news it goes back to even odds."""

    _FORGET = 0.97  # what a verdict weighs beside the next one

    def __init__(self) -> None:
        self._accepted = self._rejected = 0.0

    def judged(self, drafted: int, accepted: int) -> None:
        """Note what became of drafts; of none, that nothing was learnt."""
        self._accepted = self._FORGET * self._accepted + accepted
        self._rejected = self._FORGET * self._rejected + (accepted < drafted)

    @property
    def value(self) -> float:
        """The chance of a draft whose predecessors were accepted."""
        return (self._accepted + 1) / (self._accepted + self._rejected + 2)


class Load:
    """How many drafts of each stream a step shall judge.

    A step costs something by itself and something for every row, which is measured while
    the engine runs; a draft is worth the chance that it and all before it are accepted.
    Where few streams run, drafts are nearly free; where many do, they are rows that
    others wait for. So the likeliest drafts are taken, as long as each adds more to the
    tokens than to the time.

    Args:
        most: Never more of a stream.
        shrink: False always takes as many.
    """

    _FORGET = 0.98  # what a step weighs beside the next one

    def __init__(self, most: int, *, shrink: bool = True) -> None:
        self._most, self._shrink = most, shrink
        self._n = self._x = self._xx = self._y = self._xy = 0.0

    def stepped(self, rows: int, seconds: float) -> None:
        """Note what a step over so many tokens took."""
        f = self._FORGET
        self._n, self._x, self._y = (
            f * self._n + 1,
            f * self._x + rows,
            f * self._y + seconds,
        )
        self._xx, self._xy = f * self._xx + rows * rows, f * self._xy + rows * seconds

    def share(self, chances: Sequence[float]) -> list[int]:
        """Return how many drafts of each stream are worth their rows.

        Args:
            chances: Of the next draft of each stream that runs.
        """
        spread = self._n * self._xx - self._x * self._x
        row_s = step_s = 0.0
        if self._n >= 8 and spread > 1e-3 * self._n * self._xx:  # not all were alike
            row_s = (self._n * self._xy - self._x * self._y) / spread
            step_s = max(0.0, (self._y - row_s * self._x) / self._n)
        if not self._shrink or row_s <= 0:
            return [self._most] * len(chances)
        drafts = [
            (chance**k, i)
            for i, chance in enumerate(chances)
            for k in range(1, self._most + 1)
        ]
        counts = [0] * len(chances)
        tokens = rows = float(len(chances))
        for worth, i in sorted(drafts, reverse=True):
            if worth * (step_s + rows * row_s) <= tokens * row_s:
                break
            counts[i] += 1
            tokens += worth
            rows += 1
        return counts
