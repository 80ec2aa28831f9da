"""When to stop drafting: what the length rule needs to know, learned online.

A round that drafts ``k`` tokens yields ``1 + S_1 + ... + S_k`` tokens of text, where
``S_j`` is the probability that the first ``j`` drafts are accepted, and costs
``fixed + k * marginal``. Drafting pays as long as one more token raises the ratio of the
two, which is as long as ``S_(k+1) / marginal`` is above the best ratio there is.

``Survival`` learns acceptance from verdicts, ``Confidence`` what the draft's own
probability of a token says about it, and ``Costs`` what a round costs.
That positions of a block differ, and that a text has changed, is not told apart from the
rest: neither made any stream faster (docs/controllers.md).

Source:
    The ratio and the reference optima: methods, section 5; the stopping rule is that of
    renewal-reward problems (Dinkelbach 1967).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Mapping, Sequence

if TYPE_CHECKING:
    from draftwire.runtime.pacing.controller import Round

__all__ = ["Confidence", "Costs", "Line", "Mean", "Survival", "best_ratio"]

_PRIOR = 0.75  # acceptance before anything is known
_PRIOR_WEIGHT = 4.0
_KEPT = 0.97  # of what was learned at each token
_DOUBTED = 6.0  # tokens that it counts as after a pause
_FRAME = 75.0  # bytes of a block without drafts on the wire, before one was seen
_TOKEN = 2.0  # bytes of a drafted token, likewise
_LANE = 0.25  # of a step of the draft, a lane, likewise


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


class Survival:
    """Acceptance, from verdicts: what lies behind a rejection says nothing of it."""

    def __init__(self) -> None:
        self._good = _PRIOR * _PRIOR_WEIGHT
        self._all = _PRIOR_WEIGHT

    @property
    def acceptance(self) -> float:
        """Chance of a token, all before it accepted."""
        return self._good / self._all

    def curve(self, length: int) -> list[float]:
        """Return ``S_1 .. S_length``."""
        return [self.acceptance**k for k in range(1, length + 1)]

    def learn(self, drafted: int, accepted: int) -> None:
        """Take in a verdict on ``drafted`` tokens."""
        for i in range(min(drafted, accepted + 1)):
            self._good = self._good * _KEPT + (i < accepted)
            self._all = self._all * _KEPT + 1.0

    def doubt(self) -> None:
        """Let the next verdicts outweigh soon what was learned."""
        self._good, self._all = _DOUBTED * self.acceptance, _DOUBTED


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
        odds = self._w0 + self._w1 * self._odds(probability)
        return 1.0 / (1.0 + math.exp(-min(max(odds, -30.0), 30.0)))  # it may run away

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


class Line:
    """A cost that grows with a count: ``base + slope * x``, fitted with forgetting.

    ``base`` and ``slope`` are those before anything is known; a sample's weight is
    ``kept`` times what it was when the next one comes.
    """

    def __init__(self, base: float = 0.0, slope: float = 0.0, kept: float = 0.93) -> None:
        self._start = (base, slope)
        self._kept = kept
        self._n = self._x = self._y = self._xx = self._xy = self._yy = 0.0

    def learn(self, x: float, y: float) -> None:
        """Take in a sample."""
        k = self._kept
        self._n = self._n * k + 1.0
        self._x = self._x * k + x
        self._y = self._y * k + y
        self._xx = self._xx * k + x * x
        self._xy = self._xy * k + x * y
        self._yy = self._yy * k + y * y

    def _spread(self, least: float) -> float | None:
        """Return the centred sum of ``x**2``; None while nothing tells a slope."""
        if self._n < least:
            return None
        sxx = self._xx - self._x * self._x / self._n
        return sxx if sxx > 1e-9 * max(self._xx, 1e-30) else None

    @property
    def slope(self) -> float:
        """The cost of one more; what was given at the start while nothing tells it."""
        sxx = self._spread(2.5)
        if sxx is None:
            return self._start[1]
        return (self._xy - self._x * self._y / self._n) / sxx

    @property
    def error(self) -> float:
        """Standard error of :attr:`slope`; infinite while nothing tells it."""
        sxx = self._spread(3.5)
        if sxx is None:
            return math.inf
        sxy = self._xy - self._x * self._y / self._n
        syy = self._yy - self._y * self._y / self._n
        rest = max(0.0, syy - sxy * sxy / sxx)
        return math.sqrt(rest / (self._n - 2.0) / sxx)

    def at(self, x: float) -> float:
        """Return the cost at ``x``."""
        if not self._n:
            return self._start[0] + self._start[1] * x
        return self._y / self._n + self.slope * (x - self._x / self._n)


class Mean:
    """A mean that forgets; exact over the first samples.

    A new sample weighs ``gain`` in the long run, and counts for at most ``limit`` times
    the mean.
    """

    def __init__(self, gain: float, limit: float = float("inf")) -> None:
        self._gain = gain
        self._limit = limit
        self.count = 0
        self.value = 0.0

    def learn(self, sample: float) -> None:
        """Take in a sample."""
        if self.count > 3:
            sample = min(sample, self._limit * self.value)
        self.count += 1
        self.value += max(self._gain, 1.0 / self.count) * (sample - self.value)


class Costs:
    """Seconds of the parts of a round, and watts by phase, from measurement.

    Until something is measured the figures are those of no particular machine (20 ms to
    draft a token, 50 ms of link, 30 ms of forward); the first rounds replace them.
    """

    def __init__(self) -> None:
        self._draft = Mean(0.05, 5.0)
        self._steps = Line(kept=0.97)
        self._forward = Line(0.030, 0.0, kept=0.9)
        self._frame = Line(_FRAME, _TOKEN, kept=0.9)
        self._queue = Mean(0.2, 20.0)
        self._rtt: float | None = None
        self._rate: float | None = None
        self.watts: dict[str, float] = {}

    def drafted_in(self, seconds: float) -> None:
        """Take in what one drafted token took."""
        self._draft.learn(seconds)

    def stepped(self, lanes: int, seconds: float) -> None:
        """Take in what a forward took that read a token on each of some lanes."""
        self._steps.learn(lanes - 1.0, seconds)

    def measured(self, round: Round) -> None:
        """Take in what a commit cost."""
        self._queue.learn(round.queue_s)
        self._forward.learn(round.drafted + 1.0, round.compute_s)
        if round.up_bytes:
            self._frame.learn(float(round.drafted), float(round.up_bytes))
        self._rtt, self._rate = round.rtt_s, round.up_bytes_s

    def power(self, watts: Mapping[str, float | None]) -> None:
        """Take in watts by phase."""
        self.watts.update({name: w for name, w in watts.items() if w is not None})

    # ---- seconds

    @property
    def draft_s(self) -> float:
        """Of drafting one token."""
        return self._draft.value if self._draft.count else 0.020

    @property
    def lane_part(self) -> float:
        """Of a step of the draft: what another lane adds to it."""
        slope, alone_s = self._steps.slope, self._steps.at(0.0)
        return max(slope / alone_s, 0.0) if slope and alone_s > 0 else _LANE

    @property
    def forward_s(self) -> float:
        """Of a forward of the target without drafts."""
        return max(self._forward.at(1.0), 1e-6)

    @property
    def row_s(self) -> float:
        """Of one more drafted token in a forward."""
        slope = self._forward.slope
        return slope if slope > 2 * self._forward.error else 0.0

    @property
    def rtt_s(self) -> float:
        """Of the round trip."""
        return 0.050 if self._rtt is None else self._rtt

    @property
    def byte_s(self) -> float:
        """Of one byte up; 0 while bytes are too cheap to tell."""
        return 1.0 / self._rate if self._rate else 0.0

    @property
    def frame_bytes(self) -> float:
        """Bytes of a block without drafts, on the wire."""
        return min(max(self._frame.at(0.0), 40.0), 400.0)

    @property
    def token_bytes(self) -> float:
        """Bytes that one drafted token adds."""
        return max(self._frame.slope, 0.5)

    @property
    def wait_s(self) -> float:
        """From sending an empty block to its answer."""
        frame_s = self.frame_bytes * self.byte_s
        return self.rtt_s + self._queue.value + self.forward_s + frame_s

    @property
    def token_s(self) -> float:
        """That one more drafted token adds to a stop-and-wait round."""
        return self.draft_s + self.row_s + self.token_bytes * self.byte_s

    # ---- watts

    @property
    def draft_w(self) -> float:
        """While drafting; 1 where nothing measures, so that joules are seconds."""
        return self.watts.get("draft", 1.0)

    @property
    def wait_w(self) -> float:
        """While a verdict is out."""
        known = self.watts
        return known.get("verify-wait", known.get("wait", known.get("idle", 1.0)))

    @property
    def powered(self) -> bool:
        """True when the watts of drafting and of waiting are known."""
        return "draft" in self.watts and len(self.watts) > 1
