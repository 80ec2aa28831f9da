"""What a round costs, measured: seconds and joules, fixed and for each drafted token."""

from __future__ import annotations

from typing import Mapping

from draftwire.runtime.controller import Round
from draftwire.runtime.length_rule import Line

__all__ = ["Costs", "Mean"]

_FRAME = 75.0  # bytes of a block without drafts on the wire, before one was seen
_TOKEN = 2.0  # bytes of a drafted token, likewise


class Mean:
    """A mean that forgets; exact over the first samples.

    Args:
        gain: Weight of a new sample in the long run.
        limit: A sample counts for at most so many times the mean.
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

    @property
    def known(self) -> float | None:
        """The mean, or None before the first sample."""
        return self.value if self.count else None


class Costs:
    """Seconds of the parts of a round, from measurement.

    Until something is measured the figures are those of no particular machine (20 ms to
    draft a token, 50 ms of link, 30 ms of forward); the first rounds replace them.

    Attributes:
        watts: Mean watts by phase, those that are known.
    """

    def __init__(self) -> None:
        self._draft = Mean(0.05, 5.0)
        self._forward = Line(0.030, 0.0, kept=0.9)
        self._frame = Line(_FRAME, _TOKEN, kept=0.9)
        self._queue = Mean(0.2, 20.0)
        self._wait = Mean(0.25, 8.0)
        self._rtt: float | None = None
        self._rate: float | None = None
        self.watts: dict[str, float] = {}

    def drafted_in(self, seconds: float) -> None:
        """Take in what one drafted token took."""
        self._draft.learn(seconds)

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
