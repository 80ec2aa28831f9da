"""What forwards of the target take, learned from those that ran: in all, and by the row."""

from __future__ import annotations

__all__ = ["ForwardPrice"]

_MEMORY = 0.95  # of what was learned, a forward
_LEAST_MEMORY = 1.002  # the least rises by so much a forward: what was quick may be over
_PRIOR = 0.01  # a row costs so much of a forward until more is known
_LEAST_SHARE = 0.1  # of a forward, one of a single row
_WEIGHT = 4.0  # of that first guess, in squared rows


class ForwardPrice:
    """Time of the judging forwards of one target.

    Attributes:
        seconds: Of a forward, lately; 0 before the first.
        least_s: Of the quickest, of late; what a token takes that comes by itself.
    """

    def __init__(self) -> None:
        self.seconds = self.least_s = 0.0
        self._rows = 0.0
        self._var = self._cov = 0.0

    def add(self, rows: int, seconds: float) -> None:
        """Learn from a forward over ``rows`` tokens of all streams together."""
        if not self.seconds:
            self.seconds = self.least_s = seconds
            self._rows = float(rows)
            return
        new = 1 - _MEMORY
        apart, longer = rows - self._rows, seconds - self.seconds
        self._rows += new * apart
        self.seconds += new * longer
        self._var = _MEMORY * (self._var + new * apart * apart)
        self._cov = _MEMORY * (self._cov + new * apart * longer)
        self.least_s = min(self.least_s * _LEAST_MEMORY, seconds)

    def of(self, rows: int) -> float:
        """Return what a forward over ``rows`` tokens takes; 0 before the first."""
        share = 1 + self.row * (rows - self._rows)
        return self.seconds * max(share, _LEAST_SHARE)

    @property
    def row(self) -> float:
        """What one more row costs, as a share of a forward."""
        if not self.seconds:
            return 0.0
        slope = (self._cov / self.seconds + _PRIOR * _WEIGHT) / (self._var + _WEIGHT)
        return max(0.0, slope)
