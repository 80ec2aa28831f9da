"""What the link is like, learned from the traffic itself: no I/O, time is passed in.

Every message goes through :class:`Channel` with its time and its size on the wire. A
commit is matched with the block that it answers by committed position, in
stop-and-wait, in a pipeline, and in a race, where a commit may answer several blocks or
none. What the verifier says of its own queue and compute time is taken off; what the
rest says of the network is :class:`~draftwire.runtime.pacing.path.Path`'s to tell. Pings
are answered by no model: they say it best, and most of all where answers do not fit.
"""

from __future__ import annotations

from collections import deque
from typing import Any, NamedTuple

from draftwire.runtime.pacing.controller import Round
from draftwire.runtime.pacing.path import Mark, Path
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

_WINDOW = 14_000  # bytes that TCP sends without waiting, RFC 6928
_RACE_S, _WAIT_S = 0.3, 2.0  # between two pings: in a race no block says when it came
_SOON_S = 0.02  # likewise, while answers do not fit


class _Sent(NamedTuple):
    mark: Mark
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
        self.open: Mark | None = None
        self.position = 0
        self.racing = False
        self.answered_s = -1e9


class Channel:
    """Estimates of one connection.

    Attributes:
        path: Round trip and rate.
        outages: Times that the connection was lost.
        outage_s: Seconds without one.
    """

    def __init__(self) -> None:
        self.path = Path()
        self.outages = 0
        self.outage_s = 0.0
        self._ways: dict[int, _Way] = {}
        self._pings: deque[Mark] = deque()
        self._pinged_s = -1e9
        self._behind = False
        self._lost_s: float | None = None

    # ---- what is known

    @property
    def up_bytes_s(self) -> float | None:
        """Goodput up in bytes a second, or None while nothing tells it."""
        return 1.0 / self.path.byte_s if self.path.byte_s else None

    def late(self, t_s: float) -> bool:
        """Tell whether frames seem to pile up: answers come late, or should have come."""
        overdue = bool(self._pings) and self.path.overdue(t_s, self._pings[0])
        return overdue or self.path.rising

    @property
    def in_flight(self) -> int:
        """Blocks that are out."""
        return sum(len(way.out) for way in self._ways.values())

    def report(self) -> dict[str, Any]:
        """Return what the run report's ``link`` says of it; unknown is None."""

        def ms(seconds: float | None) -> float | None:
            return None if seconds is None else round(seconds * 1e3, 3)

        rate, path = self.up_bytes_s, self.path
        return {
            "rtt_ms": ms(path.rtt_s),
            "rtt_min_ms": ms(path.least_s),
            "jitter_ms": ms(path.jitter_s),
            "up_mbit_s": None if rate is None else round(rate * 8e-6, 4),
            "rtt_samples": path.samples,
            "stalls": path.stalls,
            "loss_bursts": path.bursts,
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
        mark = self.path.sent(t_s, nbytes)
        if isinstance(message, Open):
            way = self._ways[stream] = _Way()
            way.racing = message.objective == "latency"
            way.open = mark if nbytes <= _WINDOW else None
            return
        way = self._ways.setdefault(stream, _Way())
        if isinstance(message, Block):
            if message.instead:
                return  # nothing answers it
            way.racing = message.race
            way.out.append(_Sent(mark, message, nbytes, not self.in_flight))
        elif isinstance(message, Resume):
            self._ways[stream] = _Way()
        elif isinstance(message, Bye):
            del self._ways[stream]

    def wants_ping(self, t_s: float, behind: bool) -> bool:
        """Tell whether a ping would say more than what is out already.

        Args:
            t_s: Now.
            behind: It would go right behind another frame, and wait for that: such pings
                and others take turns, because the two together tell the rate.
        """
        if len(self._pings) > (self.path.doubted and behind is not self._behind):
            return False
        racing = any(way.racing for way in self._ways.values())
        pause_s = _RACE_S if racing else _WAIT_S
        if self.path.doubted or (behind and not self._behind and self.path.young):
            pause_s = _SOON_S
        elif behind is self._behind:
            pause_s *= 2
        return t_s - self._pinged_s >= pause_s

    def pinged(self, t_s: float, nbytes: int, behind: bool = False) -> None:
        """Note a ping of ``nbytes`` on the wire that leaves."""
        self._pinged_s, self._behind = t_s, behind
        self._pings.append(self.path.sent(t_s, nbytes))

    def ponged(self, t_s: float) -> None:
        """Note the answer to the oldest ping."""
        if self._pings:
            mark = self._pings.popleft()
            self.path.answered(t_s, mark, t_s - mark.t_s)

    def received(self, t_s: float, message: Message, stream: int = 0) -> Round | None:
        """Note a message that came; return what a commit taught, else None."""
        way = self._ways.get(stream)
        if way is None:
            return None
        if isinstance(message, Commit):
            return self._commit(t_s, message, way)
        if isinstance(message, Opened) and way.open is not None:
            self.path.answered(t_s, way.open, t_s - way.open.t_s)
            way.open = None
        elif isinstance(message, Resumed):
            way.position = message.position + len(message.tokens)
        return None

    def lost(self, t_s: float) -> None:
        """Note that the connection is gone."""
        if self._lost_s is None:
            self._lost_s = t_s
            self.outages += 1
        self._ways.clear()
        self._pings.clear()
        self.path.reset()

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
            last, known = answered[-1], self.path.rtt_s
            mark = last.mark
            wait = t_s - mark.t_s
            network = wait - commit.queue_s - commit.compute_s
            # A block that found the model at work waited for longer than the verifier
            # says; pings say it better.
            began_s = t_s - commit.queue_s - commit.compute_s
            slack_s = 4 * (self.path.jitter_s or 0.0) + 0.25 * commit.compute_s
            free = known is not None and (
                way.answered_s <= max(mark.t_s + known, began_s - slack_s)
            )
            if (last.alone or free) and not way.racing:
                self.path.answered(t_s, mark, network)
            else:
                self.path.left(t_s, mark)
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
            self.path.mean_rtt_s,
            self.up_bytes_s,
            len(way.out),
            self.late(t_s),
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
                judged = max(base, way.position) < end or not (answered or way.racing)
                at = end - base
                if not (0 <= at < len(tokens) and commit.token == tokens[at]):
                    if judged:
                        answered.append(first)
                    while base <= end and out and out[0].block.epoch == commit.epoch:
                        out.popleft()
                break
        return answered
