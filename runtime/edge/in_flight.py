"""What has been sent to the verifier and is not judged yet.

Positions count from the end of the stream's prompt, as everywhere in the session. Where a
grammar forces ids, they stand in the branch among those that were sent.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass
from typing import Iterator, NamedTuple, Sequence

from draftwire.errors import ProtocolError
from draftwire.sampling import Proposal

_ALL = 1 << 30  # more ids than any branch has


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


class _Branch:
    """Ids that were sent in order, beyond the committed text, and others beside them."""

    def __init__(self, tokens: Sequence[int] = ()) -> None:
        self.tokens, self.forced = [*tokens], [False] * len(tokens)
        # By the position and the id that they stand behind in place of the branch's own.
        self.sides: dict[tuple[int, int], list[int]] = {}

    def advance(self, kept: Sequence[int], committed: int, most: int) -> _Branch | None:
        """The text, ``committed`` long, grows by ``kept``. Return None where the branch
        says so too, and is not cut by more than ``most``; else the one that follows it."""
        same = common(self.tokens, kept)
        n = min(len(self.tokens), len(kept))
        if same < n:
            return _Branch(self.sides.get((committed + same, kept[same]), ()))
        if n > most:
            return _Branch()
        del self.tokens[:n], self.forced[:n]
        if self.sides:
            length = committed + len(kept)
            self.sides = {at: ids for at, ids in self.sides.items() if at[0] >= length}
        return None


def _heirs(
    branch: _Branch, kept: Sequence[int], committed: int, most: int
) -> Iterator[tuple[int, _Branch]]:
    """Yield the branches that follow ``branch`` one after another as the text grows by
    ``kept``, each with the position at which it begins."""
    while (heir := branch.advance(kept, committed, most)) is not None:
        gone = common(branch.tokens, kept) + 1
        committed, kept = committed + gone, kept[gone:]
        yield committed, heir
        branch, most = heir, _ALL


class InFlight:
    """The branch that the verifier has, and the blocks that made it.

    With ``whole`` blocks carry evidence and cannot be cut: a token that the verifier put in
    by itself ends the branch even where it equals the draft. ``epoch`` is the branch's
    number, ``tokens`` its ids beyond the committed text; ``leaves`` are second choices, by
    the branch and the place in the sequence of the drafts that they stand beside; ``sides``
    are drafts behind other ids, with which the next branch begins where the text takes
    that id (PROTOCOL.md, 4.12).
    """

    def __init__(self, *, whole: bool) -> None:
        self.whole = whole
        self.reset(0)

    def reset(self, epoch: int) -> None:
        """Nothing is on its way any more; the next block opens branch ``epoch``."""
        self.epoch = epoch
        self.adopted = 0  # drafts that the present branch had when it began
        self._branch = _Branch()
        self._blocks: list[_Sent] = []
        self.leaves: dict[tuple[int, int], int] = {}
        self._old: dict[int, _Branch] = {}  # those that may still be judged

    @property
    def tokens(self) -> list[int]:
        """The branch's ids beyond the committed text."""
        return self._branch.tokens

    @property
    def sides(self) -> dict[tuple[int, int], list[int]]:
        """By a position of the branch and another id there, the drafts behind that."""
        return self._branch.sides

    @property
    def sent(self) -> int:
        """How many of the branch's tokens were sent: all but those that are forced."""
        return len(self._branch.forced) - sum(self._branch.forced)

    def blocks(self, committed: int) -> int:
        """Return how many blocks wait for a verdict behind so long a text."""
        waiting = 0
        for block in self._blocks:  # asked at every event
            waiting += block.end > committed
        return waiting

    def turn(self) -> list[int]:
        """Begin a new branch; return the ids of the one that is given up."""
        branch = self._branch
        if branch.tokens:
            self._old[self.epoch] = branch
            # The next number may be that of a branch that the verifier has begun by itself.
            for _ in range(1 + (len(branch.sides) > 0)):
                self._next(_Branch())
        return branch.tokens

    def _next(self, branch: _Branch) -> None:
        self.epoch = (self.epoch + 1) & 0xFF
        self._branch, self.adopted = branch, len(branch.tokens)

    def send(
        self, fresh: Sequence[Proposal], block: Sequence[Proposal], start: int | None
    ) -> None:
        """Note a frame that goes out: its ``fresh`` drafts, with those that a grammar
        forces behind each, end the ``block`` so far, which begins at ``start``; None while
        more frames follow."""
        self._branch.tokens += [p.token for p in fresh]
        self._branch.forced += [p.forced for p in fresh]
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
        empty = _Branch()
        branch = self._branch if epoch == self.epoch else self._old.get(epoch, empty)
        return branch.tokens, branch.forced

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
        n, same = min(len(branch), len(kept)), common(branch, kept)
        rejected = len(branch) > accepted and (same < n or n > self._most(accepted))
        judged = self._judge(epoch, committed, accepted, rejected)
        if epoch == self.epoch:
            self._old = {}
        for old in list(self._old):
            most, number = self._most(accepted if old == epoch else 0), old
            for _, heir in _heirs(self._old[old], kept, committed, most):
                self._old.pop(number, None)
                number = (number + 1) & 0xFF
                if heir.tokens:
                    self._old[number] = heir
        most = self._most(accepted if epoch == self.epoch else 0)
        for start, heir in _heirs(self._branch, kept, committed, most):
            self._next(heir)
            if n := len(heir.tokens):
                self._blocks.append(_Sent(self.epoch, start, start + n, n, range(n)))
        length = committed + len(kept)
        alive = {self.epoch, *self._old}
        self._blocks = [b for b in self._blocks if b.epoch in alive and b.end > length]
        self.leaves = {at: leaf for at, leaf in self.leaves.items() if at[1] >= length}
        return judged

    def _most(self, accepted: int) -> int:
        """Return how far text may cut a branch of which so many ids were accepted."""
        return accepted if self.whole else _ALL

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
