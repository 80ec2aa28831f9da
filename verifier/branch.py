"""What has come from the device and waits for judgement: the tokens of one branch.

The device numbers its branches (the epoch) and begins a new one whenever it throws away
drafts that it had sent. Both ends count alike, without asking: a branch dies once, when
its tokens contradict the text.

Beside a branch may wait *sides*: drafts behind another id at one of its places. Where the
text takes that id there, the branch dies, and the next one begins with those drafts, at
both ends, as if they had been sent in it.
"""

from __future__ import annotations

import dataclasses
from typing import Mapping, NamedTuple, NoReturn, Sequence

from draftwire.errors import ProtocolError
from draftwire.sampling.grammar import Path
from draftwire.transport.messages import Block


class Drafts(NamedTuple):
    """Drafted tokens and what came with them."""

    tokens: list[int]  # ids, those that a grammar forces among them
    evidence: bytes  # of the sampling scheme, for exactly the others
    forced: frozenset[int] = frozenset()  # places of forced ones
    # second choices for the first of ``tokens``; a drafted id itself is none
    leaves: Sequence[int] = ()
    # other ids at places of ``tokens``, each with the drafts behind it
    sides: Sequence[tuple[int, tuple[int, ...]]] = ()


class Branch:
    """The tokens of the device's present branch that are not judged yet.

    Positions count from the end of the prompt. A block may have ``max_block`` drafts, so
    many as ``max_waiting`` may wait, those under judgement among them.
    """

    def __init__(self, max_block: int, max_waiting: int) -> None:
        self._max_block, self._max_waiting = max_block, max_waiting
        self.epoch = 0  # number of the branch, modulo 256
        self.asks = 0  # the device waits for the text to become at least so long
        # of drafted tokens that came when the text had them already: how many repeated it,
        # and how often one did not
        self.overtaken = (0, 0)
        self._base = 0  # position of the first token
        self._tokens: list[int] = []
        self._free: list[bool] = []  # of each: it was sent; the others are forced
        self._leaves: list[int] = []  # of each: the second choice, or the same id again
        self._evidence = b""
        self._ready = 0  # so many tokens belong to blocks that are complete
        self._ready_evidence = 0
        self._judging = 0  # tokens of this branch that the model works on
        self._judging_free = 0  # those among them that were sent
        # Drafts behind other ids, by the position and the id that they stand behind.
        self._sides: dict[tuple[int, int], list[int]] = {}
        self._ended: tuple[int, int] | None = None  # where and by what the one before was

    @property
    def unjudged(self) -> int:
        """Bytes of evidence that wait."""
        return len(self._evidence)

    @property
    def sides(self) -> Mapping[tuple[int, int], Sequence[int]]:
        """Drafts behind other ids, by the position and the id that they stand behind."""
        return self._sides

    def behind_what(
        self, block: Block, text: Sequence[int], judged: Sequence[int]
    ) -> list[int]:
        """Return the ids of the text that ``block`` stands behind.

        ``text`` is without its prompt; ``judged`` are drafts that the model works on.
        """
        if not (self._tokens or self._judging):
            return list(text[: block.base])
        whole = [*text, *judged] if self._judging else list(text)
        return [*whole[: self._base], *self._tokens]

    def behind(self, epoch: int) -> bool:
        """Return whether ``epoch`` is the number of a branch that is dead (RFC 1982)."""
        return (epoch - self.epoch) & 0xFF >= 128

    def turn(self, epoch: int) -> None:
        """Go over to branch ``epoch``; what waited dies."""
        if epoch != self.epoch:
            self.clear()
            self.epoch = epoch

    def kill(self, at: int = -1, token: int = -1) -> None:
        """The branch contradicts the text, which has ``token`` at ``at``: the next begins,
        with what was sent for that."""
        behind = self._sides.get((at, token), [])
        self.turn((self.epoch + 1) & 0xFF)
        self._ended = at, token
        if behind:
            self._put(Block(self.epoch, at + 1, tuple(behind)))

    def heir(self, block: Block) -> Block:
        """Return a block as one of the branch that it belongs to now: drafts beside the
        branch before this one, behind the id that ended that, are this one's."""
        back, token = block.instead or (0, 0)
        last = (block.epoch + 1) & 0xFF == self.epoch
        if last and block.instead and self._ended == (block.base - back, token):
            return dataclasses.replace(block, epoch=self.epoch, instead=())
        return block

    def _end(self, committed: int) -> int:
        """Return where the branch's next block begins behind so long a text."""
        waits = self._tokens or self._judging
        return self._base + len(self._tokens) if waits else committed

    def _misplaced(self, block: Block, expected: int) -> NoReturn:
        what = "leaves a gap" if block.base > expected else "repeats drafts"
        raise ProtocolError(f"a block at {block.base} {what}: {expected} comes next")

    def _measure(self, block: Block) -> None:
        if len(block.tokens) > self._max_block:
            raise ProtocolError(
                f"a block of {len(block.tokens)} tokens, the limit is {self._max_block}"
            )

    def put_beside(self, block: Block, committed: int) -> None:
        """Keep drafts behind another id than the branch has.

        Raises:
            ProtocolError: They stand beside nothing, leave a gap, repeat drafts, or are too
                much.
        """
        back, token = block.instead
        at, end = block.base - back, self._end(committed)
        if at < committed:
            return  # the text has the branch's own id there
        if at >= end:
            raise ProtocolError(
                f"drafts behind another id at {at} of a branch that ends at {end}"
            )
        behind = self._sides.setdefault((at, token), [])
        expected = at + 1 + len(behind)
        if block.base != expected:
            self._misplaced(block, expected)
        self._measure(block)
        beside = sum(map(len, self._sides.values())) + len(block.tokens)
        if beside > self._max_waiting:
            raise ProtocolError(
                f"{beside} drafted tokens wait for judgement beside the branch, the limit "
                f"is {self._max_waiting}"
            )
        behind += block.tokens

    def clear(self) -> None:
        """Forget what waits; the branch keeps its number."""
        self._sides, self._ended = {}, None
        self._cut(len(self._tokens))
        self._evidence = b""
        self._ready = self._ready_evidence = 0
        self._judging = self._judging_free = self.asks = 0

    def add(self, block: Block, committed: int, path: Path | None = None) -> None:
        """Put a block's tokens, and those of ``path`` that are forced, behind the others.

        Raises:
            ProtocolError: It leaves a gap, repeats drafts, or is too much.
        """
        expected = self._end(committed)
        waits = self._tokens or self._judging  # else it may begin in the text
        if block.base > expected or block.base < expected and waits:
            self._misplaced(block, expected)
        self._measure(block)
        waiting = self._judging_free + sum(self._free) + len(block.tokens)
        if waiting > self._max_waiting:
            raise ProtocolError(
                f"{waiting} drafted tokens wait for judgement, the limit is "
                f"{self._max_waiting}"
            )
        if block.evidence and not block.tokens:
            raise ProtocolError("evidence without a token")
        if len(block.leaves) > len(block.tokens):
            raise ProtocolError(
                f"{len(block.leaves)} second choices for {len(block.tokens)} drafts"
            )
        self._put(block, path)

    def _put(self, block: Block, path: Path | None = None) -> None:
        if not (self._tokens or self._judging):
            self._base = block.base
        ids = block.tokens if path is None else path.ids
        self._tokens += ids
        if path is None:
            self._free += [True] * len(ids)
            self._leaves += (*block.leaves, *ids[len(block.leaves) :])
        else:
            self._free += [i in path.free for i in range(len(ids))]
            self._leaves += ids
        # Evidence of consecutive tokens is the concatenation of their evidence.
        self._evidence += block.evidence
        if not block.more:
            self._ready = len(self._tokens)
            self._ready_evidence = len(self._evidence)
            end = self._base + len(self._tokens)
            # A block without tokens asks for one.
            self.asks = max(self.asks, end if block.tokens or self._ready else end + 1)

    def settle(self, text: Sequence[int], prompt: int) -> None:
        """Compare what waits with the text: what repeats it goes, what differs dies."""
        known = text[prompt + self._base :][: len(self._tokens)]
        if known:
            same = 0
            while same < len(known) and known[same] == self._tokens[same]:
                same += 1
            # Evidence cannot be cut, so such a block is of use at the text's end only.
            right, wrong = self.overtaken
            if self._evidence or same < len(known):
                self.overtaken = right, wrong + 1
                self.kill(self._base + same, known[same] if same < len(known) else -1)
                self.settle(text, prompt)
                return
            self.overtaken = right + same, wrong
            self.strike(same)
        if self._sides:
            length = len(text) - prompt
            self._sides = {p: ids for p, ids in self._sides.items() if p[0] >= length}

    def __len__(self) -> int:
        return len(self._tokens)

    def take(self, *, partial: bool, most: int) -> Drafts:
        """Hand over at most ``most`` ids (where it can be cut) that are to be judged now.

        ``partial``: also the beginning of a block that has not come whole.
        """
        n, m = self._ready, self._ready_evidence
        if partial:
            n, m = len(self._tokens), len(self._evidence)
        rest = 0
        if n > most and not m:  # a choice begins what is left for the next forward
            n, rest = most, n - most
            while n > 1 and not self._free[n]:
                n, rest = n - 1, rest + 1
        free = self._free[:n]
        forced = frozenset(i for i, drawn in enumerate(free) if not drawn)
        sides = [
            (at - self._base, (token, *behind))
            for (at, token), behind in self._sides.items()
            if 0 <= at - self._base < n
        ]
        taken = Drafts(
            self._tokens[:n], self._evidence[:m], forced, self._leaves[:n], sides
        )
        self._cut(n)
        self._evidence = self._evidence[m:]
        self._ready, self._ready_evidence = rest, 0
        self._base += n
        self._judging, self._judging_free = n, sum(free)
        return taken

    def waiting(self, *, partial: bool) -> tuple[int, ...]:
        """Return what :meth:`take` would hand over, and leave it here."""
        return tuple(self._tokens if partial else self._tokens[: self._ready])

    def strike(self, count: int) -> None:
        """Let go of at most ``count`` tokens, which are judged or text."""
        count = min(count, len(self._tokens))
        self._cut(count)
        self._ready = max(0, self._ready - count)
        self._base += count

    def judged(self) -> None:
        """The model is done with what was taken."""
        self._judging = self._judging_free = 0

    def _cut(self, count: int) -> None:
        del self._tokens[:count], self._free[:count], self._leaves[:count]
