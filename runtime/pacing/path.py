"""A path that moves: its round trip and its rate up, from what was sent and answered.

Every frame that goes up is put through a row of imagined uplinks, one for each rate, with
the queue that our own frames make there. An answer then says of each of them what is left
for everything else: the way up and down, and the answer's own bytes. At the right rate
that rest is the same whatever the size of a frame and whatever stood in front of it; so
serialisation, queueing and propagation are told apart by frames of two sizes, and a ping
right behind a block is as good as that. An answer that fits also says when its frame left
each uplink, so that the queues behind it do not drift away from the true one.

What was learned is given up when answers no longer fit it: three in a row, each sent after
the one before was answered, are a new path and no accident. The queue is then imagined
anew from the frame with which the change began, which is the one by which the misfits fit
best; what came of an accident is left out. Evidence also expires.
"""

from __future__ import annotations

from collections import deque
from typing import Any, NamedTuple

import numpy as np

__all__ = ["Mark", "Path"]

# Imagined uplinks: 1 kbit/s to 0.3 Gbit/s, each 2 % faster, and one without a rate.
_FINE = 1.02
_RATES = 125.0 * _FINE ** np.arange(636)
_COST = np.append(1.0 / _RATES, 0.0)  # seconds a byte
_FREE = len(_COST) - 1
_KEPT, _YOUNG = 24, 12  # answers
_SINCE = 256  # frames and answers that may be looked at again
_BEGAN = 32  # frames with which a change may have begun
_EXPIRES_S = 20.0
_STEP = 3  # answers in a row on one side: the path has changed
_STALL_S = 0.18  # TCP sends again after at least 200 ms
_OLD = 0.15  # of an answer: what the round trip before a change counts
_NOISE_S = 1e-4  # of a clock that reads times which the verifier rounds


class Mark(NamedTuple):
    """A frame that went up."""

    t_s: float  # when
    nbytes: int  # its size on the wire
    total: int  # bytes that went up until then, its own included
    # what it takes to leave each of the imagined uplinks, its own bytes included
    queue_s: np.ndarray[Any, np.dtype[np.float64]]


class _Answer(NamedTuple):
    t_s: float
    mark: Mark
    trip_s: float


class Path:
    """Estimates of one path.

    Attributes:
        rtt_s: Round trip without the time that bytes take up, or None.
        jitter_s: Mean deviation from it.
        byte_s: Seconds a byte takes up; 0 while nothing tells it.
        samples: Answers that were taken in.
        stalls: Answers that came so late that something was lost on the way.
        bursts: Runs of stalls.
    """

    def __init__(self) -> None:
        self.rtt_s: float | None = None
        self.jitter_s: float | None = None
        self.byte_s = 0.0
        self.samples = self.stalls = self.bursts = 0
        self._known: deque[_Answer] = deque(maxlen=_KEPT)
        self._odd: list[_Answer] = []
        self._count = 0  # of the odd ones that do not share an accident
        self._counted_s = 0.0  # when the last of these came
        self._free_s = np.full(len(_COST), -np.inf)  # when each uplink is free
        # Since the frame of the last answer that fitted: what went up, and what had
        # left by then, as when, and bytes behind it.
        self._since: deque[tuple[Mark, float, int | None]] = deque(maxlen=_SINCE)
        self._total = self._good = 0  # bytes: up to now, and to the last that fitted
        self._rest = np.zeros(len(_COST))  # of each uplink
        self._uplink = _FREE  # the likeliest of them
        self._before: float | None = None  # the round trip before the last change
        self._rests: list[float] = []
        self._late_s = self._late_share = 0.0
        self._stalled = False

    @property
    def mean_rtt_s(self) -> float | None:
        """Round trip as it costs on average, stalls included, or None."""
        return None if self.rtt_s is None else self.rtt_s + self._late_share * self._late_s

    @property
    def least_s(self) -> float | None:
        """The shortest of the recent round trips, or None."""
        return min(self._rests) if self._rests else None

    @property
    def doubted(self) -> bool:
        """True while answers do not fit, or too few are there: more are wanted soon."""
        return bool(self._odd) or len(self._known) < 4

    @property
    def young(self) -> bool:
        """True while the path may have changed, or has: frames behind others say much."""
        changed = self._before is not None and len(self._known) < _YOUNG
        return bool(self._odd) or changed

    @property
    def rising(self) -> bool:
        """True while the last answer came later than was expected of it."""
        odd = self._odd[-1:]
        return any(self.bare_s(a.mark, a.trip_s) > (self.rtt_s or 0.0) for a in odd)

    def reset(self) -> None:
        """The connection is another one: its uplink is empty."""
        self._free_s[:] = -np.inf
        self._since.clear()
        self._odd, self._count = [], 0

    def sent(self, t_s: float, nbytes: int) -> Mark:
        """Note a frame of ``nbytes`` on the wire that goes up."""
        self._total += nbytes
        mark = Mark(t_s, nbytes, self._total, np.empty(len(_COST)))
        self._put(mark)
        self._since.append((mark, t_s, None))
        return mark

    def _put(self, mark: Mark) -> None:
        free_s = self._free_s
        np.maximum(free_s, mark.t_s, out=free_s)
        free_s += mark.nbytes * _COST
        np.subtract(free_s, mark.t_s, out=mark.queue_s)

    def bare_s(self, mark: Mark, trip_s: float) -> float:
        """Return what is left of a round trip without bytes and own queue."""
        return trip_s - self._bytes(mark) * self.byte_s

    def overdue(self, t_s: float, mark: Mark) -> bool:
        """Tell whether the answer to ``mark`` should have come long ago."""
        if self.rtt_s is None:
            return False
        least_s = min(self._rests)
        return self.bare_s(mark, t_s - mark.t_s) > least_s + max(least_s, 0.05)

    def answered(self, t_s: float, mark: Mark, trip_s: float) -> None:
        """Take in a round trip; the verifier's own time is taken off already."""
        self.left(t_s, mark)
        answer = _Answer(t_s, mark, trip_s)
        if trip_s < 0:
            return  # the verifier's clock runs fast, or its word is wrong
        self.samples += 1
        self._late_share *= 0.98
        known_s = self.rtt_s
        away = 0.0 if known_s is None else self.bare_s(mark, trip_s) - known_s
        if known_s is None or abs(away) <= self._room():
            self._settle()
            self._known.append(answer)
            self._fit(t_s)
            if mark.total > self._good:
                self._good = mark.total
                while self._since and self._since[0][0].total <= mark.total:
                    self._since.popleft()
                # What it left of its trip says when it left each uplink.
                self._replay(0, mark.t_s + trip_s - self._rest)
            return
        odd = self._odd
        if odd and (self.bare_s(odd[0].mark, odd[0].trip_s) > known_s) != (away > 0):
            self._settle()
        if not odd or mark.t_s >= self._counted_s:
            self._count, self._counted_s = self._count + 1, t_s
        odd.append(answer)
        if self._count == _STEP:
            self._change(t_s)

    def left(self, t_s: float, mark: Mark) -> None:
        """What was answered has left every uplink, however slow we imagine it."""
        behind = self._total - mark.total
        self._since.append((mark, t_s, behind))
        np.minimum(self._free_s, t_s + behind * _COST, out=self._free_s)

    def _room(self) -> float:
        """Seconds by which an answer may miss what is expected of it."""
        assert self.rtt_s is not None
        return max(4 * (self.jitter_s or 0.0), min(0.2 * self.rtt_s, 0.02), 1e-3)

    def _settle(self) -> None:
        """The odd answers were accidents: lost packets, or jitter."""
        known_s = self.rtt_s
        for odd in self._odd:
            assert known_s is not None
            extra_s = self.bare_s(odd.mark, odd.trip_s) - known_s
            if extra_s <= max(_STALL_S, 5 * (self.jitter_s or 0.0)):
                self._known.append(odd)
                self._stalled = False
                continue
            self.stalls += 1
            self.bursts += not self._stalled
            self._stalled = True
            self._late_share += 0.02
            self._late_s += 0.25 * (extra_s - self._late_s)
        if not self._odd:
            self._stalled = False
        self._odd, self._count = [], 0

    def _change(self, t_s: float) -> None:
        """The path is another one: only what was sent since that was seen speaks of it."""
        odd, first = self._odd, self._odd[0]
        self._before = self.rtt_s
        fresh = [a for a in odd if a.mark.t_s >= first.t_s]
        most_s = float(np.median([a.trip_s for a in fresh])) + _STALL_S
        self._known.clear()
        self._known.extend(a for a in fresh if a.trip_s <= most_s)
        # It changed with one of the frames since the last that fitted: the one by whose
        # queue the odd answers fit best.
        felt = [a for a in odd if a.trip_s <= 3 * (most_s - _STALL_S)]
        sent = [n for n, (_, _, behind) in enumerate(self._since) if behind is None]
        sent = [n for n in sent if self._since[n][0].total <= first.mark.total]

        def off(start: int) -> float:
            self._replay(start, -np.inf)
            return float(self._misfit(felt)[0].min())

        self._replay(min(sent[-_BEGAN:], key=off, default=len(self._since)), -np.inf)
        self._odd, self._count = [], 0
        self._late_share = 0.0
        self._fit(t_s)

    def _replay(self, start: int, free_s: Any) -> None:
        """Imagine the queue anew, from one of the frames that are remembered."""
        self._free_s[:] = free_s
        for mark, at_s, behind in list(self._since)[start:]:
            if behind is None:
                self._put(mark)
            else:
                np.minimum(self._free_s, at_s + behind * _COST, out=self._free_s)

    def _bytes(self, mark: Mark) -> float:
        """Return the bytes that left before ``mark`` did, and its own, at the rate."""
        if self._uplink == _FREE:
            return 0.0
        return float(mark.queue_s[self._uplink]) / float(_COST[self._uplink])

    def _misfit(self, answers: Any) -> Any:
        """Return by how much answers miss each uplink, and what they leave of a trip."""
        n = len(answers)
        trips = np.array([answer.trip_s for answer in answers])
        left = trips[:, None] - np.array([answer.mark.queue_s for answer in answers])
        left.sort(axis=0)
        rest = (left[n // 2] + left[(n - 1) // 2]) / 2
        off = np.abs(left - rest).mean(axis=0)
        if self._before is not None and n < _KEPT:
            # Of two that fit alike: the one that leaves the way as long as it was.
            off += _OLD / n * np.abs(rest - self._before)
        off[left[0] < 0] = np.inf  # no frame is faster than its bytes
        return off, rest

    def _fit(self, t_s: float) -> None:
        known = self._known
        while len(known) > 1 and t_s - known[0].t_s > _EXPIRES_S:
            known.popleft()
        off, rest = self._misfit(known)
        self._rest = rest
        n, best = len(known), int(off.argmin())
        if 4 <= n < _YOUNG:
            # Of a new path: what still came of the accident that led to it.
            miss = [abs(a.trip_s - a.mark.queue_s[best] - rest[best]) for a in known]
            most_s = max(4 * float(np.median(miss)), min(0.2 * rest[best], 0.02), 1e-3)
            if max(miss) > most_s:
                del known[int(np.argmax(miss))]
                self._fit(t_s)
                return
        # Old evidence keeps a rate that fits about as well as the best.
        slack = 1.25 if n >= _YOUNG else 1.0
        if off[self._uplink] <= slack * off[best] + _NOISE_S:
            best = self._uplink  # frames of few kinds fit several rates alike
        self._uplink, self.byte_s = _FREE, 0.0
        if best != _FREE:
            self._tell_rate(best)
        rests = [self.bare_s(answer.mark, answer.trip_s) for answer in known]
        self.rtt_s = max(0.0, float(np.median(rests)))
        self.jitter_s = float(np.mean(np.abs(np.array(rests) - self.rtt_s)))
        if n < 4:
            self.jitter_s = max(self.jitter_s, self.rtt_s / 16)
        self._rests = rests

    def _tell_rate(self, best: int) -> None:
        """Take an uplink's rate from a line through all answers, if they tell one."""
        n, cost_s = len(self._known), float(_COST[best])
        trips = np.array([answer.trip_s for answer in self._known])
        nbytes = np.array([a.mark.queue_s[best] for a in self._known]) / cost_s
        spread = nbytes - nbytes.mean()
        sxx = float(spread @ spread)
        if n < _STEP or sxx <= 0:
            return
        slope = float(spread @ trips) / sxx
        rest = trips - trips.mean() - slope * spread
        error = np.sqrt((float(rest @ rest) / max(1, n - 2) + _NOISE_S**2) / sxx)
        sure = 4.0 + 8.0 / max(1, n - 2) ** 2  # few answers lie on a line by chance
        if slope > sure * error:
            self._uplink = best
            self.byte_s = min(max(slope, cost_s / _FINE), cost_s * _FINE)
