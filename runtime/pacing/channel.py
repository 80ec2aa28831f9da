"""What the link is like, learned from the traffic itself: no I/O, time is passed in.

Every block and every commit goes through :class:`Channel` with its time and its size on
the wire. A commit is matched with the block that it answers by committed position, in
stop-and-wait, in a pipeline, and in a race, where a commit may answer several blocks or
none. What the verifier says of its own queue and compute time is taken off, so that the
rest is the network.
"""

from __future__ import annotations

from collections import deque
from statistics import median
from typing import Any, NamedTuple

from draftwire.runtime.pacing.controller import Round
from draftwire.runtime.pacing.length_rule import Line
from draftwire.transport.messages import (
    Block,
    Bye,
    Commit,
    Message,
    Open,
    Opened,
    Resume,
    Resumed,
)

__all__ = ["Channel"]

_GAIN = 1 / 8  # of the smoothed round trip, RFC 6298
_RECENT = 24  # samples that the minimum is taken over
_STEP = 3  # samples in a row on one side: the link has changed
_STALL_S = 0.18  # TCP sends again after at least 200 ms
_WINDOW = 14_000  # bytes that TCP sends without waiting, RFC 6928


class _Sent(NamedTuple):
    t_s: float
    block: Block
    nbytes: int
    alone: bool

    @property
    def end(self) -> int:
        return self.block.base + len(self.block.tokens)


class _Way:
    """What one stream has under way, and where its text stands."""

    def __init__(self) -> None:
        self.out: deque[_Sent] = deque()
        self.open: tuple[float, int] | None = None
        self.position = 0
        self.racing = False
        self.answered_s = -1e9


class Channel:
    """Estimates of one connection.

    Attributes:
        rtt_s: Smoothed round trip without the time that bytes take, or None.
        jitter_s: Mean deviation from it.
        stalls: Answers that came so late that something was lost on the way.
        bursts: Runs of stalls.
        outages: Times that the connection was lost.
        outage_s: Seconds without one.
    """

    def __init__(self) -> None:
        self.rtt_s: float | None = None
        self.jitter_s: float | None = None
        self.stalls = self.bursts = self.outages = 0
        self.outage_s = 0.0
        self.samples = 0
        self._line = Line(kept=0.95)
        self._recent: deque[float] = deque(maxlen=_RECENT)
        self._bounds: deque[float] = deque(maxlen=_RECENT)
        self._odd: list[float] = []  # far off, in a row
        self._paces: deque[float] = deque(maxlen=_RECENT)  # seconds a byte, at most
        self._ways: dict[int, _Way] = {}
        self._run: list[float] = []  # stalls in a row
        self._late_s = 0.0  # mean extra of a stall
        self._late_share = 0.0
        self._lost_s: float | None = None

    # ---- what is known

    @property
    def rtt_min_s(self) -> float | None:
        """The shortest of the recent round trips, or None."""
        return min(self._recent) if self._recent else None

    @property
    def up_bytes_s(self) -> float | None:
        """Goodput up in bytes a second, or None while no sizes tell it."""
        slope, error = self._line.slope, self._line.error
        if slope <= 0 or slope < 4 * error or self.samples < 8:
            return None
        # No message can have taken less time than its bytes.
        return 1.0 / slope if slope <= min(self._paces) else None

    @property
    def mean_rtt_s(self) -> float | None:
        """Round trip as it costs on average, stalls included, or None."""
        if self.rtt_s is None:
            return None
        return self.rtt_s + self._late_share * self._late_s

    @property
    def in_flight(self) -> int:
        """Blocks that are out."""
        return sum(len(way.out) for way in self._ways.values())

    def report(self) -> dict[str, Any]:
        """Return what the run report's ``link`` says of it; unknown is None."""

        def ms(seconds: float | None) -> float | None:
            return None if seconds is None else round(seconds * 1e3, 3)

        rate = self.up_bytes_s
        return {
            "rtt_ms": ms(self.rtt_s),
            "rtt_min_ms": ms(self.rtt_min_s),
            "jitter_ms": ms(self.jitter_s),
            "up_mbit_s": None if rate is None else round(rate * 8e-6, 4),
            "rtt_samples": self.samples,
            "stalls": self.stalls,
            "loss_bursts": self.bursts,
            "outages": self.outages,
            "outage_s": round(self.outage_s, 3),
            "radio": None,  # of those who ask for it, in its place
        }

    # ---- events

    def sent(self, t_s: float, message: Message, nbytes: int, stream: int = 0) -> None:
        """Note a message that leaves.

        Args:
            t_s: Now.
            message: Of a stream.
            nbytes: Its size on the wire, headers included.
            stream: Its number; another stream may have had it before.
        """
        if isinstance(message, Open):
            way = self._ways[stream] = _Way()
            way.racing = message.objective == "latency"
            way.open = (t_s, nbytes) if nbytes <= _WINDOW else None
            return
        way = self._ways.setdefault(stream, _Way())
        if isinstance(message, Block):
            way.racing = message.race or way.racing
            way.out.append(_Sent(t_s, message, nbytes, not self.in_flight))
        elif isinstance(message, Resume):
            self._ways[stream] = _Way()
        elif isinstance(message, Bye):
            del self._ways[stream]

    def received(self, t_s: float, message: Message, stream: int = 0) -> Round | None:
        """Note a message that came; return what a commit taught, else None."""
        way = self._ways.get(stream)
        if way is None:
            return None
        if isinstance(message, Commit):
            found = self._commit(t_s, message, way)
            return found
        if isinstance(message, Opened) and way.open is not None:
            sent_s, nbytes = way.open
            way.open = None
            self._sample(t_s - sent_s, nbytes)
        elif isinstance(message, Resumed):
            way.position = message.position + len(message.tokens)
        return None

    def lost(self, t_s: float) -> None:
        """Note that the connection is gone."""
        if self._lost_s is None:
            self._lost_s = t_s
            self.outages += 1
        self._ways.clear()

    def back(self, t_s: float) -> None:
        """Note that there is a new connection."""
        if self._lost_s is not None:
            self.outage_s += max(0.0, t_s - self._lost_s)
            self._lost_s = None

    # ---- the inside

    def _commit(self, t_s: float, commit: Commit, way: _Way) -> Round:
        end = way.position + commit.accepted
        new = commit.accepted
        if commit.token is not None or commit.evidence:
            new += 1
        answered = self._match(commit, end, way)
        way.position += new
        wait = network = None
        if answered:
            last, known = answered[-1], self.rtt_s
            wait = t_s - last.t_s
            network = wait - commit.queue_s - commit.compute_s
            # A block that found the model at work waited for longer than the verifier
            # says; its sample is only a bound.
            free = known is not None and way.answered_s <= last.t_s + known
            if (last.alone or free) and not way.racing:
                self._sample(network, last.nbytes)
            else:
                self._bound(network, last.nbytes)
                network = None
        way.answered_s = t_s
        return Round(
            t_s,
            new,
            sum(len(sent.block.tokens) for sent in answered),
            commit.accepted,
            wait,
            network,
            commit.queue_s,
            commit.compute_s,
            sum(sent.nbytes for sent in answered),
            self.mean_rtt_s,
            self.up_bytes_s,
            len(way.out),
        )

    def _match(self, commit: Commit, end: int, way: _Way) -> list[_Sent]:
        """Take off what ``commit`` answers, or makes void; return what it answers."""
        out = way.out
        answered: list[_Sent] = []
        while out:
            first = out[0]
            tokens, base = first.block.tokens, first.block.base
            behind = (first.block.epoch - commit.epoch) & 0xFF
            if behind >= 128 or (tokens and first.end <= way.position):
                out.popleft()  # of a dead branch, or overtaken: never judged
            elif behind:
                break  # of a branch that this commit does not know yet
            elif first.end <= end and (tokens or not way.racing):
                answered.append(out.popleft())
            elif not tokens:
                out.popleft()
            else:
                # The first that is not kept to its end: judged, if the rejection lies
                # in it; otherwise it is out still.
                judged = base < end or not (answered or way.racing)
                at = end - base
                if not (0 <= at < len(tokens) and commit.token == tokens[at]):
                    if judged:
                        answered.append(first)
                    while base <= end and out and out[0].block.epoch == commit.epoch:
                        out.popleft()
                break
        return answered

    def _bound(self, rtt_s: float, nbytes: int) -> None:
        """Take in a round trip that may hold some waiting: the least of many is none."""
        self._bounds.append(self._bare(rtt_s, nbytes))
        if len(self._bounds) < 6:
            return
        least = min(self._bounds)
        known = self.rtt_s
        if known is None or least < known or least > known * 1.2:
            self._bounds.clear()
            self._note(least)

    def _bare(self, rtt_s: float, nbytes: int) -> float:
        rate = self.up_bytes_s
        return max(rtt_s - nbytes / rate, 0.0) if rate is not None else max(rtt_s, 0.0)

    def _sample(self, rtt_s: float, nbytes: int) -> None:
        if rtt_s < 0:
            return
        bare = self._bare(rtt_s, nbytes)
        if self._stall(bare):
            return
        self._line.learn(float(nbytes), rtt_s)
        self._paces.append(rtt_s / max(1, nbytes))
        self._bounds.clear()
        self._note(bare)

    def _stall(self, bare: float) -> bool:
        known, jitter = self.rtt_s, self.jitter_s
        self._late_share *= 0.98
        if known is None or jitter is None:
            return False
        excess = bare - known
        if excess <= max(_STALL_S, 5 * jitter):
            self._run = []
            return False
        self._run.append(bare)
        if len(self._run) == _STEP:
            # So many in a row are no accident but what the link is now.
            self.rtt_s = median(self._run)
            self.jitter_s = (max(self._run) - min(self._run)) / 2
            self._recent.clear()
            self.stalls -= _STEP - 1
            self.bursts -= 1
            self._late_share = 0.0
            self._run = []
            return False
        self.stalls += 1
        self.bursts += len(self._run) == 1
        self._late_share += 0.02
        self._late_s += 0.25 * (excess - self._late_s)
        return True

    def _note(self, rtt_s: float) -> None:
        self.samples += 1
        self._recent.append(rtt_s)
        if self.rtt_s is None or self.jitter_s is None:
            self.rtt_s, self.jitter_s = rtt_s, rtt_s / 4
            return
        # What lies far off is held back: three in a row on one side are a new link, and
        # a single one is jitter.
        away = max(4 * self.jitter_s, 0.2 * self.rtt_s, 1e-4)
        odd = self._odd
        if abs(rtt_s - self.rtt_s) > away:
            if odd and (odd[0] > self.rtt_s) != (rtt_s > self.rtt_s):
                self._flush()
            odd.append(rtt_s)
            if len(odd) == _STEP:
                self.rtt_s = median(odd)
                self.jitter_s = max(max(odd) - min(odd), self.rtt_s / 16) / 2
                self._recent.clear()
                self._recent.extend(odd)
                odd.clear()
            return
        self._flush()
        self._smooth(rtt_s)

    def _flush(self) -> None:
        for rtt_s in self._odd:
            self._smooth(rtt_s)
        self._odd.clear()

    def _smooth(self, rtt_s: float) -> None:
        assert self.rtt_s is not None and self.jitter_s is not None
        self.jitter_s += 2 * _GAIN * (abs(rtt_s - self.rtt_s) - self.jitter_s)
        # A mean at first, an exponential one later.
        gain = max(_GAIN, 1.0 / min(self.samples, 8))
        self.rtt_s += gain * (rtt_s - self.rtt_s)
