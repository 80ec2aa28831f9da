"""Which way a block is drafted, where the draft says several tokens in one forward.

``autoregressive`` runs a forward for each token. ``parallel`` puts masks behind the text:
one forward says a block, and what a mask says knows nothing of the tokens before it in that
block. ``hybrid`` draws the first token alone, and the rest in parallel.

:class:`ParallelPacing` stands in front of any length rule and chooses for each block. Two
things decide, both measured here: the chance of a token by its depth (masks between it and
the text), begun from the package's manifest, and what a forward takes by its rows (the text
that is not read yet and the masks). Of the way that a rule would draft by itself nothing
changes, and only its own blocks teach it. The way that is not taken is tried now and then,
more rarely each time that it turned out slower.

Source:
    PARD, https://arxiv.org/abs/2504.18583; the trial behind the prices and ceilings:
    docs/controllers.md.
"""

from __future__ import annotations

from collections import deque
from itertools import accumulate
from operator import mul
from typing import TYPE_CHECKING, Any, Mapping, NamedTuple, Sequence

from draftwire.runtime.edge.mode import Mode
from draftwire.runtime.pacing.controller import (
    AUTOREGRESSIVE,
    DRAFTING,
    HYBRID,
    PARALLEL,
    Controller,
    FixedLength,
    Round,
)
from draftwire.runtime.pacing.length_rule import Line, Mean
from draftwire.sampling import Proposal

if TYPE_CHECKING:
    from draftwire.packages import Parallel

__all__ = ["Depths", "ParallelPacing", "Prices"]

_FIRST, _BEHIND = 0.75, 0.6  # chance of a token before anything is known, without and with
_WEIGHT, _TOLD = 3.0, 8.0  # tokens that this counts as, and that a manifest does
_KEPT = 0.98  # of what was learned at each token
_ROW = 0.1  # of a forward's price that one more row is taken to add, until measured
_SURE = 20  # blocks with masks after which what they are worth is believed
_LEAD = 1.03  # of a rate: what is no further behind is as good
_TRIAL, _SOON, _MOST = 32, 4, 512  # blocks until the other way is tried; before it was ever


class Depths:
    """The chance of a draft by depth, given that all before it are right.

    Args:
        parallel: The draft's.
    """

    def __init__(self, parallel: Parallel) -> None:
        told = parallel.acceptance
        chances = told or (_FIRST, *[_BEHIND] * (parallel.block - 1))
        weight = _TOLD if told else _WEIGHT
        self._good = [weight * min(max(c, 0.02), 0.98) for c in chances]
        self._all = [weight] * parallel.block

    def learn(self, depths: Sequence[int], accepted: int) -> None:
        """Take in a verdict on drafts of these depths, the first of which were right."""
        for i, depth in enumerate(depths[: accepted + 1]):
            self._good[depth] = self._good[depth] * _KEPT + (i < accepted)
            self._all[depth] = self._all[depth] * _KEPT + 1.0

    def curve(self, depths: Sequence[int]) -> list[float]:
        """Return the chances that all drafts are right up to each of ``depths``."""
        return list(accumulate((self._good[d] / self._all[d] for d in depths), mul))

    @property
    def chances(self) -> list[float]:
        """The chance at each depth."""
        return [good / count for good, count in zip(self._good, self._all)]


class Prices:
    """Seconds of a forward by its rows."""

    def __init__(self) -> None:
        self._one, self._many = Mean(0.05, 5.0), Line(kept=0.95)
        self._rows = Mean(0.05)
        self._seen = 0

    def learn(self, rows: int, seconds: float) -> None:
        """Take in a forward."""
        if rows == 1:
            self._one.learn(seconds)
            return
        if self._seen > 3:
            seconds = min(seconds, 5 * self.of(rows))
        self._seen += 1
        self._rows.learn(float(rows))
        self._many.learn(float(rows), seconds)

    def of(self, rows: float) -> float:
        """Return what a forward of ``rows`` takes."""
        usual = self._rows.value
        one = self._one.value if self._one.count else 0.020
        if self._seen:  # one row is never dearer than many: a stall looks like that
            many = self._many.at(usual)
            told = many if self._one.count else many / (1 + _ROW * (usual - 1))
            one = min(one, told)
        if rows > 1 and self._seen:
            return max(self._many.at(rows), one)
        return one * (1 + _ROW * (rows - 1))


class _Choice(NamedTuple):
    rate: float  # text for a unit of cost
    way: str
    length: int  # of the block
    text: float  # tokens that it should bring
    drafting_s: float


class ParallelPacing(Controller):
    """A length rule, and the way in which each of its blocks is drafted.

    Args:
        rule: Decides on lengths; of :class:`~.auto.Auto` the blocks with masks are as long
            as pays best, of all others as long as it says.
        parallel: The draft's.

    Attributes:
        way: How the block in hand is drafted.
        counts: Of this stream, by way: blocks, drafts sent, accepted.
    """

    def __init__(self, rule: Controller, parallel: Parallel) -> None:
        self._rule = rule
        self.name = rule.name
        self.way = self._usual = AUTOREGRESSIVE
        self.counts: dict[str, list[int]] = {}
        self.depths, self.prices = Depths(parallel), Prices()
        self._block = parallel.block
        self._forced = rule.way_asked if isinstance(rule, FixedLength) else ""
        self._costs = rule.costs
        self._mode, self._racing = Mode(), False
        self._out: deque[tuple[str, list[int]]] = deque()
        self._leaving: list[int] = []
        self._found: dict[str, _Choice] = {}
        # Blocks that were judged, of the rule's own way and with masks.
        self._own = self._masked = 0
        self._since = dict.fromkeys((True, False), 0)  # blocks; True: with masks
        self._rest = dict.fromkeys((True, False), _SOON)

    @property
    def rule(self) -> Controller:
        return self._rule

    def begin(self, mode: Mode) -> None:
        self._rule.begin(mode)
        self._mode, self._racing = mode, mode.racing
        self._out.clear()
        self.counts = {way: [0, 0, 0] for way in DRAFTING}

    def races(self, may: bool) -> bool:
        self._racing = self._rule.races(may)
        return self._racing

    # ---- the choice

    def limit(self) -> int:
        most = self._rule.limit()
        if most < 1:
            self._found = {}
            return most
        races = self._racing
        self._found = {way: self._weigh(way, most, races) for way in DRAFTING}
        way = self._forced or self._by_model()
        self.way = way
        self.stride = {PARALLEL: self._block, HYBRID: self._block + 1}.get(way, 255)
        self._rule.rival = 0.0
        if self._masked >= _SURE and way != AUTOREGRESSIVE:  # of blocks that are waited for
            there = self._weigh(way, most, False) if races else self._found[way]
            self._rule.rival = there.rate
        return most if way == AUTOREGRESSIVE else self._found[way].length

    def _by_model(self) -> str:
        """Return the way that should be fastest, or one whose turn it is to be tried."""
        found, since = self._found, self._since
        best = max(found.values())
        near = [one for one in found.values() if one.rate * _LEAD > best.rate]
        if self._racing:  # of what is alike the fewest joules
            best = min(near, key=lambda one: one.drafting_s)
        elif found[self._usual] in near:
            best = found[self._usual]
        masked = best.way != AUTOREGRESSIVE
        if masked is not (self._usual != AUTOREGRESSIVE):
            self._rest[not masked] = min(self._rest[not masked], _TRIAL)
        self._usual = best.way
        if since[not masked] >= self._rest[not masked]:
            masked = not masked
            self._rest[masked] = min(max(2 * self._rest[masked], _TRIAL), _MOST)
            ways = (PARALLEL, HYBRID) if masked else (AUTOREGRESSIVE,)
            best = max(found[way] for way in ways)
        since[masked], since[not masked] = 0, since[not masked] + 1
        return best.way

    def _weigh(self, way: str, most: int, races: bool) -> _Choice:
        """Return what a block of the best length brings for what it costs."""
        rule, k, price = self._rule, self._block, self.prices.of
        choose = rule.chooses and not races
        least = {AUTOREGRESSIVE: 1, PARALLEL: 2, HYBRID: 3}[way]  # fewer have no masks
        least, most = (least, 2 * k) if choose else (most, most)
        alone = {AUTOREGRESSIVE: most, PARALLEL: 0, HYBRID: 1}[way]
        depths = [0 if n < alone else (n - alone) % k for n in range(most)]
        text, again, middle_s, read, reached, before = 1.0, 0.0, 0.0, 1.0, 1.0, 1.0
        first = masks = forwards = 0
        found: list[_Choice] = []
        for n, (depth, chance) in enumerate(zip(depths, self.depths.curve(depths)), 1):
            if not depth:
                if forwards == 1:
                    first = masks
                elif forwards:
                    middle_s += reached * price(read + masks)
                # Overlapped, only what is still believed in is drafted on.
                reached = before if races and forwards else 1.0
                read = float(k) if forwards > alone else 1.0
                forwards += 1
            text, masks, before = text + chance, depth, chance
            # What was accepted of drafts behind masks is read again, as text.
            if way == AUTOREGRESSIVE:
                again = chance
            elif alone < n <= alone + k:
                again += chance
            if n < least:
                continue
            drafting_s = price(1.0 + again + (first if forwards > 1 else depth))
            if forwards > 1:
                drafting_s += middle_s + reached * price(read + depth)
            found.append(self._rate(way, n, text, drafting_s, chance, races))
        best = max(found)
        if way == AUTOREGRESSIVE and self._own >= 8:
            best = best._replace(rate=max(best.rate, rule.alone()))
        return best

    def _rate(
        self,
        way: str,
        length: int,
        text: float,
        drafting_s: float,
        whole: float,
        races: bool,
    ) -> _Choice:
        costs, spent_s = self._costs, drafting_s
        if "guess" in self._mode.preempt and not races:
            # Done while the verdict is out, and of use where that is as was thought.
            hidden = whole * self.depths.chances[0]
            spent_s -= hidden * min(drafting_s, costs.wait_s)
        rate = self._rule.worth(text, spent_s, length)
        return _Choice(rate, way, length, text, drafting_s)

    # ---- what passes through

    def enough(self, block: Sequence[Proposal]) -> bool:
        if self.way == AUTOREGRESSIVE or self._racing:
            return self._rule.enough(block)
        return False  # it is said already

    def leaving(self, block: Sequence[Proposal]) -> None:
        self._leaving = [proposal.depth for proposal in block]

    def sent(self, drafted: int) -> None:
        self._out.append((self.way, (self._leaving + [0] * drafted)[:drafted]))
        if self.way == AUTOREGRESSIVE:
            self._rule.sent(drafted)
        self._leaving = []
        self._count(self.way, 1, drafted, 0)

    def _count(self, way: str, blocks: int, drafted: int, accepted: int) -> None:
        row = self.counts.setdefault(way, [0, 0, 0])
        row[:] = row[0] + blocks, row[1] + drafted, row[2] + accepted

    def judged(self, drafted: int, accepted: int) -> None:
        way, depths = self._take(drafted)
        self.depths.learn(depths, accepted)
        self._count(way, 0, 0, accepted)
        self._own += way == AUTOREGRESSIVE and drafted > 0
        self._masked += way != AUTOREGRESSIVE
        if way == AUTOREGRESSIVE:
            self._rule.judged(drafted, accepted)
        else:
            self._rule.judged_elsewhere(drafted, accepted)
        if accepted < drafted:
            self._out.clear()

    def overtaken(self, count: int) -> None:
        for _ in range(count):
            way, depths = self._take(1)
            self.depths.learn(depths, 1)
            if way == AUTOREGRESSIVE:
                self._rule.overtaken(1)

    def _take(self, count: int) -> tuple[str, list[int]]:
        """Take the next ``count`` drafts of the first block that is out."""
        if not self._out or not count:
            return AUTOREGRESSIVE, []
        way, depths = self._out.popleft()
        if depths[count:]:
            self._out.appendleft((way, depths[count:]))
        return way, depths[:count]

    def measured(self, round: Round) -> None:
        self._rule.measured(round)
        while len(self._out) > round.in_flight:
            self._out.popleft()

    def forwarded(self, read: int, masks: int, seconds: float) -> None:
        if read <= 2 * self._block + 1:  # more is a prompt
            self.prices.learn(read + masks, seconds)
        if masks:
            self._rule.masks_in(seconds, self.prices.of(1))
        else:
            self._rule.drafted_in(seconds)

    def resolution(self) -> int:
        return self._rule.resolution()

    def power(self, watts: Mapping[str, float | None]) -> None:
        self._rule.power(watts)

    def explain(self) -> str:
        found = self._found
        if not found:
            return self._rule.explain()
        here = found[self.way]
        said = [self._rule.explain()]
        if self.way != AUTOREGRESSIVE:
            said = [f"{here.length} tokens: asked for {here.length} at once"]
        told = [
            f"{way} {one.length} bring {one.text:.1f} for {one.drafting_s * 1e3:.1f} ms"
            for way, one in found.items()
        ]
        why = " (asked for)" if self._forced else ""
        return "; ".join([*said, f"{self.way}{why}: " + ", ".join(told)])

    def report(self) -> dict[str, Any]:
        """Return what the run report says of this stream."""
        names = ("blocks", "drafted", "accepted")
        ways = {way: dict(zip(names, row)) for way, row in self.counts.items()}
        chances = [round(chance, 3) for chance in self.depths.chances]
        return {**ways, "acceptance_by_position": chances}
