"""Preemptive drafting: what is drafted while a verdict is out, on whose word.

Three sources of belief. The session's own: everything in flight will be accepted. An
early exit's: a provisional verdict from inside the target's forward. And chance: the
likeliest outcomes that are not believed, in case they come all the same. Nothing of this
is ever shown; a verdict that agrees finds drafts ready, another one drops them.

Source:
    Early exits and preemptive drafting, https://arxiv.org/abs/2505.21594.
"""

from __future__ import annotations

import math
from typing import Callable, Container, Sequence

from draftwire.errors import ProtocolError
from draftwire.runtime.edge.actions import Counts
from draftwire.runtime.edge.in_flight import InFlight, common
from draftwire.runtime.edge.lines import Line, Lines, drawn
from draftwire.runtime.pacing.trust import Trust
from draftwire.sampling import Proposal
from draftwire.transport.messages import Provisional


class Preemption:
    """Keeps the lines of one stream filled while verdicts are out.

    ``sources`` are whom to listen to (:class:`~draftwire.runtime.edge.mode.Mode`);
    ``complete`` makes a proposal of an id behind drafts, with what a grammar forces then;
    ``trust`` tells how far exits are believed.
    """

    def __init__(
        self,
        lines: Lines,
        wire: InFlight,
        counts: Counts,
        sources: Container[str],
        complete: Callable[[Sequence[int], int], Proposal],
        trust: Trust,
    ) -> None:
        self._trust = trust
        self._complete = complete
        self._sources = sources
        self._lines = lines
        self._wire = wire
        self._counts = counts
        self._exit_said: tuple[int, ...] = ()  # what an exit said of the next tokens
        self._denied: tuple[int, ...] = ()  # ... against what the main line says
        self._doubt = 0.0  # of the draft at its own word there
        self._ahead = 0  # drafts made since the last verdict

    def reset(self) -> None:
        self._exit_said = ()
        self._ahead = 0

    def drafted(self) -> None:
        self._counts.preempted += 1
        self._ahead += 1

    def compare(self, new: Sequence[int]) -> None:
        """Count whether the last provisional verdict foretold ``new``, which a verdict
        adds."""
        said = self._exit_said
        right = bool(said) and tuple(new[: len(said)]) == said
        self._counts.provisional_right += right
        if said and self._denied:
            kept = tuple(new[: len(self._denied)]) == self._denied
            self._trust.judged(self._doubt, right, kept)
        self._exit_said = ()

    def judged(self) -> None:
        """Count which drafts outlived the verdict; the lines know it already."""
        left = max(0, len(self._lines.main) - len(self._wire.tokens))
        self._counts.preempted_used += min(self._ahead, left)
        self._ahead = 0

    def believe(
        self, message: Provisional, room: int, bonus: bool, stop_ids: Container[int]
    ) -> int:
        """Act on a provisional verdict; return how many tokens of the main line it spoke
        of, or 0 when it changes nothing.

        What agrees with the drafts themselves, and tells the token after them, is believed.
        What contradicts them is believed where the draft's own doubt and what came of
        earlier contradictions make it the likelier. Otherwise the main line stays, and the
        outcome is prepared for when there is time. The text may still grow by ``room``
        tokens, but for the last one; with ``bonus`` the verifier adds one to a block that
        it accepts whole.
        """
        if "exits" not in self._sources:
            return 0
        lines = self._lines
        branch = self._wire.branch(message.epoch)
        try:
            accepted = self._wire.reach(message.epoch, message.accepted)
        except ProtocolError:
            return 0
        whole = accepted == len(branch)
        if whole and not bonus:
            return 0
        spoken = self._complete(branch[:accepted], message.token)
        guess = (*branch[:accepted], message.token, *spoken.then)
        if len(guess) > room or any(i in stop_ids for i in branch[:accepted]):
            return 0
        self._counts.provisional += 1
        self._exit_said = guess
        main = tuple(lines.main.ids[: len(guess)])
        where = common(main, guess)
        denies = where < len(main)
        self._denied = main if denies else ()
        odds = math.inf
        if denies:
            self._doubt = self._trust.doubt(lines.main.proposals[where].confidence)
            odds = self._trust.odds(self._doubt)
        # Where a draft carries evidence, the denied one is still needed: a correction may
        # be drawn from it.
        doubted = denies and (odds < 1 or self._wire.whole)
        line = lines.find(guess)
        if line is lines.main or (line is not None and doubted):
            return 0
        if line is None:
            like = lines.find(guess[:accepted])
            head = [Proposal(i) for i in guess[:accepted]]
            if like is not None:
                head = like.proposals[:accepted]
            chance = 1 / (1 + 1 / odds)
            line = Line(head, accepted, outcome=doubted, odds=chance)
            line.add(spoken)
        if doubted:
            lines.keep(line)
            self._counts.outcomes += 1
            return 0
        lines.lead(line)
        return len(guess)

    def outcomes(
        self,
        count: int,
        length: int,
        room: Callable[[Line], int],
        stop_ids: Sequence[int],
        *,
        above: float = 0.0,
    ) -> list[Line]:
        """Return the lines of unlikely outcomes that lack drafts, ``count`` or fewer.

        ``length`` drafts behind the assumed token make a block; ``room`` tells how many
        still make sense behind a line; a new outcome is likelier than ``above``.
        """
        lines, wire, found = self._lines, self._wire, []
        for line in reversed(lines.others):
            short = drawn(line.proposals[line.assumed + 1 :]) < length
            likely = line.outcome and line.chance > above
            if likely and short and room(line) and not line.ends(stop_ids):
                found.append(line)
        astray = common(lines.main.ids, wire.tokens) < len(wire.tokens)
        while "outcomes" in self._sources and len(found) < count and not astray:
            outcome = None if lines.full else lines.likely(len(wire.tokens), above)
            if outcome is None or outcome[1] in stop_ids:
                break
            accepted, token, odds = outcome
            spoken = self._complete(lines.main.ids[:accepted], token)
            line = Line(lines.main.proposals[:accepted], accepted, outcome=True, odds=odds)
            line.add(spoken)
            if not room(line):
                break
            lines.keep(line)
            self._counts.outcomes += 1
            found.append(line)
        return found[:count]
