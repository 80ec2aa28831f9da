"""What has been sent to the verifier and is not judged yet.

Positions count from the end of the stream's prompt, as everywhere in the session.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Sequence

from draftwire.errors import ProtocolError

__all__ = ["InFlight", "Judged", "common"]


def common(left: Sequence[int], right: Sequence[int]) -> int:
    """Return how many ids both begin with."""
    n = min(len(left), len(right))
    for i in range(n):
        if left[i] != right[i]:
            return i
    return n


class Judged(NamedTuple):
    """What a verdict says of one block.

    Attributes:
        offset: Of the first of its tokens that is judged now.
        judged: How many are.
        accepted: How many of them became text.
    """

    offset: int
    judged: int
    accepted: int


@dataclass
class _Sent:
    epoch: int
    start: int
    end: int  # answered once the text is so long
    tokens: int


class InFlight:
    """The branch that the verifier has, and the blocks that made it.

    Args:
        whole: Blocks carry evidence and cannot be cut: a token that the verifier put
            in by itself ends the branch even where it equals the draft.

    Attributes:
        whole: See above.
        epoch: Number of the branch.
        tokens: Its ids beyond the committed text.
    """

    def __init__(self, *, whole: bool) -> None:
        self.whole = whole
        self.epoch = 0
        self.tokens: list[int] = []
        self._blocks: list[_Sent] = []
        self._old: dict[int, list[int]] = {}  # branches that may still be judged

    def reset(self, epoch: int) -> None:
        """Nothing is on its way any more; the next block opens branch ``epoch``."""
        self.epoch = epoch
        self.tokens = []
        self._blocks = []
        self._old = {}

    def blocks(self, committed: int) -> int:
        """Return how many blocks wait for a verdict.

        Args:
            committed: Length of the text.
        """
        waiting = 0
        for block in self._blocks:  # asked at every event
            waiting += block.end > committed
        return waiting

    def turn(self) -> list[int]:
        """Begin a new branch; return the ids of the one that is given up."""
        given_up = self.tokens
        if given_up:
            self._old[self.epoch] = given_up
            self._next()
        return given_up

    def _next(self) -> None:
        self.epoch = (self.epoch + 1) & 0xFF
        self.tokens = []

    def send(self, tokens: Sequence[int], start: int | None, length: int) -> None:
        """Note a frame that goes out.

        Args:
            tokens: Its ids.
            start: Position of the block's first token; None while more frames of the
                block follow.
            length: Length of the text with all that is in flight.
        """
        self.tokens += tokens
        if start is not None:
            # A block without tokens asks for one.
            end = max(length, start + 1)
            self._blocks.append(_Sent(self.epoch, start, end, length - start))

    def branch(self, epoch: int) -> list[int]:
        """Return the ids that ``epoch`` stands for; none when it is not known."""
        if epoch == self.epoch:
            return self.tokens
        return self._old.get(epoch, [])

    def accepted(self, epoch: int, count: int) -> list[int]:
        """Return the ``count`` ids that a verdict accepts.

        Raises:
            ProtocolError: So many were not sent.
        """
        branch = self.branch(epoch)
        if count > len(branch):
            raise ProtocolError(
                f"the verifier accepted {count} tokens of branch {epoch}, but "
                f"{len(branch)} of it are out"
            )
        return branch[:count]

    def advance(
        self, epoch: int, kept: Sequence[int], accepted: int, committed: int
    ) -> list[Judged]:
        """Take in a verdict: the text grows by ``kept``.

        Args:
            epoch: Branch of the accepted tokens.
            kept: New ids of the text.
            accepted: How many of them were drafts that were judged.
            committed: Length of the text before.

        Returns:
            One entry for every block that has tokens judged by this.
        """
        branch = self.branch(epoch)
        same = branch[: len(kept)] == list(kept[: len(branch)])
        rejected = len(branch) > accepted and not same
        if self.whole and len(branch) > accepted and len(kept) > accepted:
            rejected = True
        judged = self._judge(epoch, committed, accepted, rejected)
        if epoch == self.epoch:
            self._old = {}
        for old in list(self._old):
            if self._contradicts(self._old[old], kept, accepted if old == epoch else 0):
                del self._old[old]
            else:
                del self._old[old][: len(kept)]
        if self._contradicts(self.tokens, kept, accepted if epoch == self.epoch else 0):
            self._next()
        else:
            del self.tokens[: len(kept)]
        length = committed + len(kept)
        alive = {self.epoch, *self._old}
        self._blocks = [b for b in self._blocks if b.epoch in alive and b.end > length]
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
                found.append(Judged(first - block.start, judged, max(0, got)))
            if hit or edge < last:
                break
        return found
