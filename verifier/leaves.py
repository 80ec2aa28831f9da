"""Second choices of the device, judged beside its drafts in the same forward.

Where the target rejects a draft, its own token is often the one that the device would have
drafted otherwise: the runner-up of the race, or of the argmax. Such a token goes into the
forward as a *leaf*: a row behind the drafts before it, that nothing else looks at. When it
is the target's token, its row gives one more token. Which leaves are worth their rows the
verifier knows: what a row costs and how often drafts and leaves were right.

Source:
    Two candidates a place: SpecInfer, https://arxiv.org/abs/2305.09781 (its tree of width
    2 and depth 1 beside a chain).
"""

from __future__ import annotations

from typing import Sequence, Tuple

__all__ = ["Leaves"]

_MEMORY = 0.98  # of a share, a judgement
_PRIOR = 4.0  # judgements that the first guesses weigh
_RIGHT, _LEAF = 0.8, 0.6  # drafts that are right; leaves, where a draft is not

Leaf = Tuple[int, int]  # its place among the drafts, and its id


class _Share:
    def __init__(self, guess: float) -> None:
        self._right, self._judged = guess * _PRIOR, _PRIOR

    def add(self, right: int, judged: int) -> None:
        fade = _MEMORY**judged
        self._right = self._right * fade + right
        self._judged = self._judged * fade + judged

    @property
    def value(self) -> float:
        return self._right / self._judged


class Leaves:
    """Chooses for one stream, at most ``most`` in one forward."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._drafts, self._leaves = _Share(_RIGHT), _Share(_LEAF)
        self._saved = _Share(0.0)

    @property
    def saved(self) -> float:
        """Share of wrong drafts where a leaf brings one more token."""
        return self._saved.value

    def choose(
        self, drafts: Sequence[int], seconds: Sequence[int], price: float, room: int
    ) -> tuple[Leaf, ...]:
        """Return the leaves that gain more than they cost, in the order of their places.

        ``seconds`` are second choices for the first of ``drafts`` (a draft itself is none),
        ``price`` the tokens that a row must gain, ``room`` the rows that there is room for.
        """
        most, right = min(self._most, room), self._drafts.value
        chance = (1 - right) * self._leaves.value
        found: list[Leaf] = []
        for place, (draft, second) in enumerate(zip(drafts, seconds)):
            if len(found) >= most or chance < price:
                break
            if draft != second:
                found.append((place, second))
            chance *= right
        return tuple(found)

    def judged(self, sent: int, right: int, token: int, leaves: Sequence[Leaf]) -> None:
        """Learn from a verdict on ``sent`` drafts of the device and on ``leaves``.

        ``right`` drafts, of whomever, were right, and ``token`` came behind them.
        """
        if not self._most:
            return
        self._drafts.add(min(right, sent), min(right + 1, sent))
        if right < sent:
            self._saved.add((right, token) in leaves, 1)
        if any(place == right for place, _ in leaves):
            self._leaves.add((right, token) in leaves, 1)
