"""What has been sent to the verifier and is not judged yet.

Positions count from the end of the stream's prompt, as everywhere in the session. Where a
grammar forces ids, they stand in the branch among those that were sent.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass
from typing import NamedTuple, Sequence

from draftwire.errors import ProtocolError
from draftwire.sampling import Proposal


def common(left: Sequence[int], right: Sequence[int]) -> int:
    """Return how many ids both begin with."""
    n = min(len(left), len(right))
    for i in range(n):
        if left[i] != right[i]:
            return i
    return n


class Judged(NamedTuple):
    """What a verdict says of one block."""

    offset: int  # of the first of its tokens that is judged now
    judged: int  # how many are
    accepted: int  # how many of them became text


@dataclass
class _Sent:
    epoch: int
    start: int
    end: int  # answered once the text is so long
    tokens: int
    drawn: Sequence[int]  # places of the ids that were sent; the others are forced


class InFlight:
    """The branch that the verifier has, and the blocks that made it.

    With ``whole`` blocks carry evidence and cannot be cut: a token that the verifier put in
    by itself ends the branch even where it equals the draft. ``epoch`` is the branch's
    number, ``tokens`` its ids beyond the committed text; ``leaves`` are second choices, by
    the branch and the place in the sequence of the drafts that they stand beside.
    """

    def __init__(self, *, whole: bool) -> None:
        self.whole = whole
        self.reset(0)

    def reset(self, epoch: int) -> None:
        """Nothing is on its way any more; the next block opens branch ``epoch``."""
        self.epoch = epoch
        self.tokens: list[int] = []
        self._forced: list[bool] = []  # of each of them
        self._blocks: list[_Sent] = []
        self.leaves: dict[tuple[int, int], int] = {}
        # Branches that may still be judged, likewise.
        self._old: dict[int, tuple[list[int], list[bool]]] = {}

    @property
    def sent(self) -> int:
        """How many of the branch's tokens were sent: all but those that are forced."""
        return len(self._forced) - sum(self._forced)

    def blocks(self, committed: int) -> int:
        """Return how many blocks wait for a verdict behind so long a text."""
        waiting = 0
        for block in self._blocks:  # asked at every event
            waiting += block.end > committed
        return waiting

    def turn(self) -> list[int]:
        """Begin a new branch; return the ids of the one that is given up."""
        given_up = self.tokens
        if given_up:
            self._old[self.epoch] = given_up, self._forced
            self._next()
        return given_up

    def _next(self) -> None:
        self.epoch = (self.epoch + 1) & 0xFF
        self.tokens, self._forced = [], []

    def send(
        self, fresh: Sequence[Proposal], block: Sequence[Proposal], start: int | None
    ) -> None:
        """Note a frame that goes out: its ``fresh`` drafts, with those that a grammar
        forces behind each, end the ``block`` so far, which begins at ``start``; None while
        more frames follow."""
        self.tokens += [p.token for p in fresh]
        self._forced += [p.forced for p in fresh]
        if start is not None:
            # A block without tokens asks for one.
            end = start + max(len(block), 1)
            drawn = [i for i, p in enumerate(block) if not p.forced]
            self._blocks.append(_Sent(self.epoch, start, end, len(block), drawn))

    def branch(self, epoch: int) -> list[int]:
        """Return the ids that ``epoch`` stands for; none when it is not known."""
        return self.marked(epoch)[0]

    def marked(self, epoch: int) -> tuple[list[int], list[bool]]:
        """Return a branch's ids, and which of them are forced."""
        if epoch == self.epoch:
            return self.tokens, self._forced
        return self._old.get(epoch, ([], []))

    def reach(self, epoch: int, count: int) -> int:
        """Return how many ids of a branch stand once ``count`` sent ones are accepted; a
        ProtocolError where so many were not sent."""
        forced = self.marked(epoch)[1]
        drawn = [at for at, is_forced in enumerate(forced) if not is_forced]
        if count > len(drawn):
            raise ProtocolError(
                f"the verifier accepted {count} tokens of branch {epoch}, but "
                f"{len(drawn)} of it are out"
            )
        ends = [*drawn[1:], len(forced)]  # each with what is forced behind it
        return ends[count - 1] if count else 0

    def advance(
        self, epoch: int, kept: Sequence[int], accepted: int, committed: int
    ) -> list[Judged]:
        """Take in a verdict: the text, ``committed`` long, grows by ``kept``, of which the
        first ``accepted`` stood in branch ``epoch``, up to the last that was judged to be
        right, forced ones included. Return an entry for every block that has tokens judged
        by this."""
        branch = self.branch(epoch)
        rejected = len(branch) > accepted and self._contradicts(branch, kept, accepted)
        judged = self._judge(epoch, committed, accepted, rejected)
        if epoch == self.epoch:
            self._old = {}
        for old in list(self._old):
            ids, forced = self._old[old]
            if self._contradicts(ids, kept, accepted if old == epoch else 0):
                del self._old[old]
            else:
                del ids[: len(kept)], forced[: len(kept)]
        if self._contradicts(self.tokens, kept, accepted if epoch == self.epoch else 0):
            self._next()
        else:
            del self.tokens[: len(kept)], self._forced[: len(kept)]
        length = committed + len(kept)
        alive = {self.epoch, *self._old}
        self._blocks = [b for b in self._blocks if b.epoch in alive and b.end > length]
        self.leaves = {at: leaf for at, leaf in self.leaves.items() if at[1] >= length}
        return judged

    def _contradicts(
        self, branch: Sequence[int], kept: Sequence[int], accepted: int
    ) -> bool:
        if self.whole and len(branch) > accepted and len(kept) > accepted:
            return True
        n = min(len(branch), len(kept))
        return list(branch[:n]) != list(kept[:n])

    def _judge(
        self, epoch: int, committed: int, accepted: int, rejected: bool
    ) -> list[Judged]:
        """Share ``accepted`` tokens out among the blocks of ``epoch``."""
        found = []
        edge = committed + accepted
        for block in self._blocks:
            first = max(block.start, committed)
            last = block.start + block.tokens
            if block.epoch != epoch or first >= last or not block.tokens:
                continue
            hit = rejected and first <= edge < last
            got = min(last, edge) - first
            if got > 0 or hit:
                judged = last - first if hit else got
                offset = first - block.start
                ends = offset, offset + judged, offset + max(0, got)
                a, b, c = (bisect_left(block.drawn, place) for place in ends)
                if b > a:
                    found.append(Judged(a, b - a, c - a))
            if hit or edge < last:
                break
        return found
