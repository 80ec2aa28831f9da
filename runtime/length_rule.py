"""When to stop drafting: what the length rule needs to know, learned online.

A round that drafts ``k`` tokens yields ``1 + S_1 + ... + S_k`` tokens of text, where
``S_j`` is the probability that the first ``j`` drafts are accepted, and costs
``fixed + k * marginal``. Drafting pays as long as one more token raises the ratio of the
two, which is as long as ``S_(k+1) / marginal`` is above the best ratio there is.

``Survival`` learns ``S`` by position from verdicts, ``Confidence`` what the draft's own
probability of a token says about its acceptance, ``Line`` a cost that grows with a count.

Source:
    The ratio and the reference optima: methods, section 5; the censored estimate is the
    product-limit one of Kaplan and Meier (1958) with forgetting; the stopping rule is
    that of renewal-reward problems (Dinkelbach 1967).
"""

from __future__ import annotations

import math
from typing import Sequence

__all__ = ["Confidence", "Line", "Survival", "best_length", "best_ratio"]

_PRIOR = 0.75  # acceptance before anything is known
_PRIOR_WEIGHT = 4.0
_BORROWED = 6.0  # observations that a position takes from all positions together
_SLOW, _FAST = 0.98, 0.87  # kept at each observation
_SURPRISE = 2.8  # deviations at which old observations are given up


def best_ratio(
    survival: Sequence[float], fixed: float, marginal: float
) -> tuple[int, float]:
    """Return the best length and the ratio that it reaches.

    Args:
        survival: ``S_1 .. S_n``, falling.
        fixed: Cost of a round without drafts, above 0.
        marginal: Cost of one drafted token, any unit that ``fixed`` has too.

    Returns:
        ``(K, tokens of text for a unit of cost)``; of equals the shortest length, and
        0 when even the first draft does not pay.
    """
    gain, best, ratio = 1.0, 0, 1.0 / fixed
    for k, s in enumerate(survival, 1):
        gain += s
        # A hair's breadth: equal ratios must not be told apart by rounding.
        if gain / (fixed + k * marginal) > ratio * (1 + 1e-12):
            best, ratio = k, gain / (fixed + k * marginal)
    return best, ratio


def best_length(survival: Sequence[float], fixed: float, marginal: float) -> int:
    """Return the length that :func:`best_ratio` finds."""
    return best_ratio(survival, fixed, marginal)[0]


class Survival:
    """Acceptance by position, from verdicts.

    Position ``j`` is observed only in blocks whose drafts before it were accepted; the
    others say nothing about it, and are not counted against it. Positions that are
    rarely reached lean on the acceptance of all positions together.

    Args:
        length: Positions that are told apart; later ones share the last.
    """

    def __init__(self, length: int = 32) -> None:
        self._kept = [0.0] * length
        self._seen = [0.0] * length
        self._good = _PRIOR * _PRIOR_WEIGHT
        self._all = _PRIOR_WEIGHT
        self._drift = 0.0
        self._noise = 0.0
        self.changes = 0

    @property
    def acceptance(self) -> float:
        """Acceptance of a token, all positions together."""
        return self._good / self._all

    def hazard(self, position: int) -> float:
        """Return ``P(accepted | all before it accepted)``; positions from 1."""
        i = min(position, len(self._seen)) - 1
        return (self._kept[i] + _BORROWED * self.acceptance) / (self._seen[i] + _BORROWED)

    def curve(self, length: int) -> list[float]:
        """Return ``S_1 .. S_length``."""
        found, s = [], 1.0
        last = len(self._seen) - 1
        borrowed = _BORROWED * self.acceptance
        for i in range(length):
            at = i if i < last else last
            s *= (self._kept[at] + borrowed) / (self._seen[at] + _BORROWED)
            found.append(s)
        return found

    def learn(
        self,
        drafted: int,
        accepted: int,
        expected: Sequence[float] = (),
        first: int = 1,
    ) -> bool:
        """Take in a verdict.

        Args:
            drafted: Tokens of the block.
            accepted: Of these, the first so many were kept.
            expected: What was thought of each token; default: what this curve says.
            first: Position of the first of them.

        Returns:
            True when the verdicts no longer fit what was learned before, which is
            forgotten then.
        """
        surprised = False
        for i in range(min(drafted, accepted + 1)):
            good = float(i < accepted)
            p = expected[i] if i < len(expected) else self.hazard(first + i)
            surprised = self._surprise(good, p) or surprised
            self._good = self._good * _SLOW + good
            self._all = self._all * _SLOW + 1.0
            at = min(first + i, len(self._seen)) - 1
            self._kept[at] = self._kept[at] * _SLOW + good
            self._seen[at] = self._seen[at] * _SLOW + 1.0
        if surprised:
            self._forget()
        return surprised

    def _surprise(self, good: float, p: float) -> bool:
        # Residuals, not raw verdicts: an easy passage that the draft is sure of is news
        # about the text, not about the draft.
        self._drift = self._drift * _FAST + (good - p)
        self._noise = self._noise * _FAST**2 + p * (1.0 - p) + 0.02
        return abs(self._drift) > _SURPRISE * math.sqrt(self._noise) and self._all > 12

    def doubt(self) -> None:
        """Keep what was learned, but let the next verdicts outweigh it soon."""
        share = min(1.0, 6.0 / self._all)
        self._good *= share
        self._all *= share
        self._kept = [x * share for x in self._kept]
        self._seen = [x * share for x in self._seen]

    def _forget(self) -> None:
        share = 3.0 / self._all
        recent = min(max(self.acceptance + self._drift * (1 - _FAST), 0.02), 0.98)
        self._all = 3.0
        self._good = recent * 3.0
        self._kept = [x * share * 0.3 for x in self._kept]
        self._seen = [x * share * 0.3 for x in self._seen]
        self._drift = self._noise = 0.0
        self.changes += 1


class Confidence:
    """What the draft's probability of its token says about acceptance.

    A logistic line over the log-odds of the probability, fitted as verdicts come
    (recursive Newton steps with forgetting), so that a draft that is too sure of itself,
    or a target that has evolved, is seen through after some twenty tokens.
    """

    _START = (0.3, 0.6)
    _SPREAD = ((1.0, 0.0), (0.0, 0.15))
    _KEPT = 0.99

    def __init__(self) -> None:
        self._w0, self._w1 = self._START
        (self._c00, self._c01), (_, self._c11) = self._SPREAD

    @staticmethod
    def _odds(probability: float) -> float:
        p = min(max(probability, 1e-3), 1.0 - 1e-3)
        return math.log(p / (1.0 - p))

    def acceptance(self, probability: float) -> float:
        """Return the probability of acceptance of a token of that draft probability."""
        return 1.0 / (1.0 + math.exp(-(self._w0 + self._w1 * self._odds(probability))))

    def learn(self, probability: float, accepted: bool) -> None:
        """Take in one judged token."""
        x = self._odds(probability)
        p = self.acceptance(probability)
        weight = max(p * (1.0 - p), 0.01)
        g0 = self._c00 + self._c01 * x
        g1 = self._c01 + self._c11 * x
        scale = 1.0 / (1.0 + weight * (g0 + g1 * x))
        error = float(accepted) - p
        self._w0 += g0 * scale * error
        self._w1 = max(0.0, self._w1 + g1 * scale * error)
        keep = 1.0 / self._KEPT
        limit = self._SPREAD
        self._c00 = min((self._c00 - weight * scale * g0 * g0) * keep, limit[0][0])
        self._c01 = (self._c01 - weight * scale * g0 * g1) * keep
        self._c11 = min((self._c11 - weight * scale * g1 * g1) * keep, limit[1][1])

    def doubt(self) -> None:
        """Keep the line, but let the next verdicts move it as if it were new."""
        (self._c00, self._c01), (_, self._c11) = self._SPREAD


class Line:
    """A cost that grows with a count: ``base + slope * x``, fitted with forgetting.

    Args:
        base: Before anything is known.
        slope: Likewise.
        kept: Weight of a sample when the next one comes.
    """

    def __init__(self, base: float = 0.0, slope: float = 0.0, kept: float = 0.93) -> None:
        self._start = (base, slope)
        self._kept = kept
        self._n = self._x = self._y = self._xx = self._xy = self._yy = 0.0

    @property
    def samples(self) -> float:
        """Samples that still count."""
        return self._n

    def learn(self, x: float, y: float) -> None:
        """Take in a sample."""
        k = self._kept
        self._n = self._n * k + 1.0
        self._x = self._x * k + x
        self._y = self._y * k + y
        self._xx = self._xx * k + x * x
        self._xy = self._xy * k + x * y
        self._yy = self._yy * k + y * y

    def _centred(self) -> tuple[float, float, float]:
        n = self._n
        return (
            self._xx - self._x * self._x / n,
            self._xy - self._x * self._y / n,
            self._yy - self._y * self._y / n,
        )

    @property
    def slope(self) -> float:
        """The cost of one more; what was given at the start while nothing tells it."""
        if self._n < 2.5:
            return self._start[1]
        sxx, sxy, _ = self._centred()
        if sxx <= 1e-9 * max(self._xx, 1e-30):
            return self._start[1]
        return sxy / sxx

    @property
    def error(self) -> float:
        """Standard error of :attr:`slope`; infinite while nothing tells it."""
        if self._n < 3.5:
            return math.inf
        sxx, sxy, syy = self._centred()
        if sxx <= 1e-9 * max(self._xx, 1e-30):
            return math.inf
        rest = max(0.0, syy - sxy * sxy / sxx)
        return math.sqrt(rest / (self._n - 2.0) / sxx)

    def at(self, x: float) -> float:
        """Return the cost at ``x``."""
        if not self._n:
            return self._start[0] + self._start[1] * x
        return self._y / self._n + self.slope * (x - self._x / self._n)
