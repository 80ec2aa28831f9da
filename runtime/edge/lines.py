"""The drafts beyond the committed text: one main line, and others kept in reserve.

A line is what would follow the text if the verifier said so. The main line assumes what
the session believes now; the others assume a rejection somewhere, or what was believed
before. A verdict keeps the lines that agree with it, and the best of them leads. Guesses
are those that the user was shown before they were judged (``offline="draft"``).
"""

from __future__ import annotations

import math
from typing import Sequence, Tuple

from draftwire.runtime.edge.actions import Action, Emit, Revise, Token
from draftwire.runtime.edge.in_flight import common
from draftwire.sampling import Proposal

Outcome = Tuple[int, int, float]  # accepted drafts, the id that would follow, its chance

SECOND = 0.6  # of second choices are right, where the first is not


def drawn(proposals: Sequence[Proposal]) -> int:
    """Return how many of ``proposals`` somebody drew; the others a grammar forces."""
    return sum([not p.forced for p in proposals])


class Line:
    """Drafts in order.

    Args:
        proposals: ``proposals[0]`` would stand behind the committed text.
        assumed: Index of an id that no draft model proposed but an exit or a guess put
            there, or -1.
        outcome: The line prepares for a verdict other than the expected one.
        odds: Of what is assumed.
    """

    def __init__(
        self,
        proposals: Sequence[Proposal] = (),
        assumed: int = -1,
        *,
        outcome: bool = False,
        odds: float = 1.0,
    ) -> None:
        self.proposals = list(proposals)
        self.odds = odds
        self.assumed = assumed
        self.outcome = outcome

    def __len__(self) -> int:
        return len(self.proposals)

    @property
    def ids(self) -> list[int]:
        return [p.token for p in self.proposals]

    @property
    def bare(self) -> int:
        """Index of the first id that comes without evidence, or -1."""
        bare = [
            i for i, p in enumerate(self.proposals) if p.evidence is None and not p.forced
        ]
        return bare[0] if bare else -1

    @property
    def chance(self) -> float:
        """That all of them are right, by the draft's own probabilities."""
        behind = self.proposals[self.assumed + 1 :]
        return self.odds * math.prod([p.confidence or 0.0 for p in behind])

    def advance(self, kept: Sequence[int]) -> bool:
        """The text grows by ``kept``; return False when this line said otherwise."""
        head = self.proposals[: len(kept)]
        if any(p.token != token for p, token in zip(head, kept)):
            return False
        del self.proposals[: len(kept)]
        self.assumed = max(-1, self.assumed - len(kept))
        return True

    def add(self, proposal: Proposal) -> list[int]:
        """Put a draft behind the others, and what is forced then; return the new ids."""
        if not (proposal.then or proposal.last):
            self.proposals.append(proposal)
            return [proposal.token]
        more = [proposal._replace(then=(), last=False)]
        more += [Proposal(i, forced=True) for i in proposal.then]
        if proposal.last:
            more[-1] = more[-1]._replace(last=True)
        self.proposals += more
        return [p.token for p in more]

    def ends(self, stop_ids: Sequence[int]) -> bool:
        """Return whether the line has come to an end of the text."""
        if not self.proposals:
            return False
        last = self.proposals[-1]
        return last.last or last.token in stop_ids


class Lines:
    """The main line, which the session believes, and some others, newest last."""

    def __init__(self, most: int = 4) -> None:
        self._most = most
        self.main = Line()
        self.others: list[Line] = []

    @property
    def full(self) -> bool:
        return len(self.others) >= self._most

    def advance(self, kept: Sequence[int]) -> bool:
        """The text grows by ``kept``; return True when another line leads now."""
        old = self.main
        alive = old.advance(kept)
        self.others = [line for line in self.others if line.advance(kept)]
        best = max(self.others, key=len, default=None)
        if alive and (len(old) or best is None or not len(best)):
            return False
        if best is not None:
            self.others.remove(best)
        self.main = Line() if best is None else best
        return True

    def lead(self, line: Line) -> None:
        """Believe in ``line`` from now on; the old main line is kept in reserve."""
        if line in self.others:
            self.others.remove(line)
        if len(self.main):
            self.keep(self.main)
        self.main = line

    def keep(self, line: Line) -> None:
        """Hold ``line`` in reserve; the oldest goes when there are too many."""
        self.others.append(line)
        if len(self.others) > self._most:
            del self.others[0]

    def drop_others(self) -> None:
        self.others = []

    def find(self, ids: Sequence[int]) -> Line | None:
        """Return the line that begins with ``ids``, the longest if there are several."""
        lines = (self.main, *self.others)
        fitting = [line for line in lines if line.ids[: len(ids)] == list(ids)]
        return max(fitting, key=len, default=None)

    def likely(self, in_flight: int, above: float = 0.0) -> Outcome | None:
        """Return the likeliest outcome that no line stands for yet, or None.

        ``in_flight`` tokens of the main line are being judged; the outcome's chance is more
        than ``above``.
        """
        best, found = above, None
        reach = 1.0
        for i, proposal in enumerate(self.main.proposals[: in_flight + 1]):
            if proposal.forced:
                continue
            if proposal.confidence is None or proposal.runner_up is None:
                return None
            chance = reach * (1.0 - proposal.confidence) * SECOND
            if chance > best:
                ids = [p.token for p in self.main.proposals[:i]]
                if self.find([*ids, proposal.runner_up]) is None:
                    best, found = chance, (i, proposal.runner_up, chance)
            reach *= proposal.confidence
        return found


class Guesses:
    """The unverified tokens on the user's screen, ``ids`` behind the committed text."""

    def __init__(self) -> None:
        self.ids: list[int] = []

    def show(self, ids: Sequence[int]) -> list[Action]:
        self.ids += ids
        tokens = tuple(Token(i, "unverified") for i in ids)
        return [Emit(tokens)] if tokens else []

    def settle(
        self, tokens: Sequence[Token], before: int, drafts: Sequence[int]
    ) -> list[Action]:
        """Tell the user of ``tokens``, final now, behind ``before`` others, and which
        guesses, none of ``drafts``, are void."""
        ids = [token.id for token in tokens]
        same = common(self.ids, ids)
        rest = self.ids[len(ids) :] if same == len(ids) else []
        actions: list[Action] = []
        if len(self.ids) > same + len(rest) or rest != list(drafts[: len(rest)]):
            actions.append(Revise(before + same))
            rest = []
        if tokens:
            actions.append(Emit(tuple(tokens), same))
        self.ids = rest
        return actions
