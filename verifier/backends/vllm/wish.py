"""What streams want of an engine whose scheduler we are inside of, and what they get.

No vLLM here: the engine that the laws are tested on goes by the same rules.
"""

from __future__ import annotations

from typing import Sequence

from draftwire.verifier.backends.streaming import Push
from draftwire.verifier.rows import ForwardPrice


class Wish:
    """The drafts of a stream, and how far it shall go.

    ``chances`` are its drafts', whose branch is ``epoch``; with ``probing`` all are judged,
    whether that pays or not. ``since`` is when the push was sent, ``told`` when the device
    was told of a step that it has not answered (or 0), ``answers_s`` how long it takes.
    """

    def __init__(self, probing: bool = False) -> None:
        self.probing = probing
        self.chances = Chances()
        self.epoch = 0
        self.since = self.told = 0.0
        self.answers_s: float | None = None
        self._base = 0
        self._drafts: tuple[int, ...] = ()
        self._asks = self._ahead = 0

    def take(self, push: Push, now: float = 0.0) -> None:
        """Take a push in place of the one before."""
        if self.told:
            took, before = max(0.0, now - self.told), self.answers_s
            self.answers_s = took if before is None else 0.8 * before + 0.2 * took
        self.since, self.told = now, 0.0
        self.epoch, self._base, self._drafts, self._asks, self._ahead = push

    def settle(self, text: Sequence[int], length: int) -> None:
        """Compare the drafts with ``length`` ids of the text: what repeats it goes, what
        differs dies.
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

    def soon(self, most: float) -> float:
        """Return until when it is worth waiting for an answer, or 0.0 where it is not."""
        if not self.told or self.answers_s is None or self.answers_s > most:
            return 0.0
        return self.told + most

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
    """How many drafts of each stream, ``most`` at most, a step shall judge.

    A step costs something by itself and something for every row (``price``); a draft is
    worth the chance that it and all before it are accepted. Where few streams run, drafts
    are nearly free; where many do, they are rows that others wait for. So the likeliest are
    taken as long as each adds more to the tokens than to the time, and none where all of
    them gain next to nothing. Without ``shrink`` always as many.
    """

    _GAIN = 1.05  # less is within the error of what is measured

    def __init__(self, most: int, *, shrink: bool = True) -> None:
        self._most, self._shrink = most, shrink
        self.price = ForwardPrice()

    def stepped(self, rows: int, seconds: float) -> None:
        """Note what a step over so many tokens took."""
        expected = self.price.of(rows)
        # More is a machine that was busy elsewhere.
        self.price.add(rows, min(seconds, 2 * expected) if expected else seconds)

    def share(self, chances: Sequence[float]) -> list[int]:
        """Return how many drafts of each stream are worth their rows, by their chances."""
        counts, n = [0] * len(chances), len(chances)
        plain, row = self.price.of(n), self.price.row * self.price.seconds
        if not self._shrink or row <= 0 or not n:
            return [self._most] * n
        drafts = [
            (chance**k, i)
            for i, chance in enumerate(chances)
            for k in range(1, self._most + 1)
        ]
        tokens, cost = float(n), plain
        for worth, i in sorted(drafts, reverse=True):
            if worth * cost <= tokens * row:
                break
            counts[i] += 1
            tokens += worth
            cost += row
        return counts if tokens * plain >= self._GAIN * n * cost else [0] * n
