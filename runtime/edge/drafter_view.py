"""What the session knows of a lane of the drafter: its sequence, and what it shall do."""

from __future__ import annotations

from typing import Sequence

from draftwire.runtime.edge.actions import Action, Draft, Role
from draftwire.runtime.edge.in_flight import common
from draftwire.runtime.edge.lines import Line
from draftwire.sampling import Proposal


class DrafterView:
    """Turns "go on with this line" into the least order that does it.

    The drafter's sequence is the prompt, ``held`` tokens of the text, and a tail. Its
    proposals go to ``line``; ``wanted`` of them are still to come.
    """

    def __init__(self, prompt: tuple[int, ...], lane: int = 0) -> None:
        self.lane = lane
        self._prompt = prompt
        self._fed = False  # the prompt has been given to it
        self._held = 0
        self._tail: list[int] = []
        self._astray = False  # its sequence is not that of the text and the line
        self._ahead = False  # it has drafted what was not wanted any more
        self._branch = 0
        self._way: tuple[str, Role] | None = None
        self.line = Line()
        self.wanted = 0

    def takes(self, branch: int) -> bool:
        """Return whether a proposal tagged ``branch`` is one that was asked for."""
        if branch != self._branch:
            return False
        self._ahead |= not self.wanted
        return self.wanted > 0

    def took(self, proposal: Proposal) -> None:
        """A proposal has come."""
        self._tail += self.line.add(proposal)
        self.wanted = 0 if proposal.last else self.wanted - 1

    def follow(self, ids: Sequence[int], before: int) -> None:
        """The text, which had ``before`` tokens, grows by ``ids``."""
        if self._held == before and self._tail[: len(ids)] == list(ids):
            self._held += len(ids)
            del self._tail[: len(ids)]
        else:
            self._astray = True

    def order(
        self,
        line: Line,
        count: int,
        text: Sequence[int],
        way: str,
        *,
        role: Role = "main",
    ) -> list[Action]:
        """Have ``count`` more tokens drafted behind ``line``, which follows ``text``; 0
        stops the lane. Nothing where that is under way."""
        if not count:
            return self.halt()
        same_way, self._way = self._way == (way, role), (way, role)
        if line is self.line and self.wanted == count and same_way and not self._astray:
            return []
        wish = [*text[self._held :], *line.ids]
        same = common(self._tail, wish)
        valid = len(self._prompt) + self._held + same
        tokens = tuple(wish[same:])
        if not self._fed:
            valid, tokens = 0, (*self._prompt, *wish)
            self._fed = True
        # More of the same keeps its name: the step at work, which nobody waits for to
        # end, is the first of it.
        same_line = line is self.line and not (self._astray or self._ahead or tokens)
        if not same_line or same < len(self._tail):
            self._branch += 1
        self._held = len(text)
        self._tail = line.ids
        self._astray = self._ahead = False
        self.line, self.wanted = line, count
        return [Draft(self._branch, valid, tokens, count, way, self.lane, role)]

    def halt(self) -> list[Action]:
        """Stop it, if it is at work."""
        if not self.wanted:
            return []
        self.wanted = 0
        self._branch += 1
        length = len(self._prompt) + self._held + len(self._tail)
        return [Draft(self._branch, length, (), 0, lane=self.lane)]

    def end(self) -> list[Action]:
        """The stream is over. What is read stays read: the next text may begin alike."""
        self.wanted = 1
        return self.halt()
