"""The controller that measures and decides: ``auto``.

It learns how drafts fare (by position, and by the draft's own probability), what a round
costs (network, verifier, drafting, bytes, joules), and stops drafting when one more token
no longer pays: when the probability that it becomes text, for its cost, falls under what
the stream yields anyway. What pays depends on how the stream works:

- waiting for verdicts: a drafted token delays its block by the time that drafting takes;
- while blocks are out: drafting is free of time, and a block leaves when a rejection in
  it has become likely enough, so that it is found out early;
- in a race: a draft is of use only where it arrives before the verifier gets there by
  itself; blocks are as small as the uplink lets them be.

Where drafting does not pay at all it draws back (``off``: the verifier streams), and
tries again now and then. Budgets of power are kept by
:mod:`draftwire.runtime.pacing.governor`.
"""

from __future__ import annotations

import math
from typing import Mapping, Sequence

from draftwire.errors import ConfigError
from draftwire.runtime.edge.mode import Mode
from draftwire.runtime.pacing.controller import Controller, Round
from draftwire.runtime.pacing.governor import Governor, Resting, Trial
from draftwire.runtime.pacing.length_rule import (
    Confidence,
    Mean,
    Survival,
    best_ratio,
)
from draftwire.runtime.pacing.ways import ALONE, WAIT, Ways, race_gain
from draftwire.sampling import Proposal

__all__ = ["OBJECTIVES", "Auto"]

OBJECTIVES = ("latency", "cost", "energy")
_MOST = 48  # tokens of one block
_HOPELESS = 0.003  # chance of being reached under which drafting ahead is waste
_SLOWER = 0.83  # of the best speed that the energy objective may give up to
_COARSE = 16  # steps of the lattice of qs
_HIDDEN = 1.6  # at most so much faster than rounds one after another
_RETREAT = 1.2  # times the price of streaming at which drafting is given up
_EAGER = 10.0  # tokens by which a rejection is found later, for each that one waits
_FORWARD_PRICE = 0.25  # objective cost: seconds that a second of the target is worth


class Auto(Controller):
    """Chooses block length, draft-ahead and streaming from what it measures.

    Args:
        objective: ``"latency"`` (tokens a second), ``"cost"`` (the same, and a price on
            the target's time), ``"energy"`` (tokens a joule, at most a quarter slower).
        governor: Budgets.

    Raises:
        ConfigError: Unknown objective.
    """

    chooses = True

    def __init__(
        self, objective: str = "latency", governor: Governor | None = None
    ) -> None:
        if objective not in OBJECTIVES:
            raise ConfigError(
                f"the controller has no objective {objective!r}",
                hint="auto, auto:" + ", auto:".join(OBJECTIVES),
            )
        self.name = "auto" if objective == "latency" else f"auto:{objective}"
        self.objective = objective
        self.governor = governor or Governor()
        self.survival = Survival()
        self.confidence = Confidence()
        self._mode = Mode()
        self._racing = False
        self._may_race = False
        self._ways = Ways()
        self._now_s = 0.0
        self._trial = Trial()
        self._rests = Resting(_SLOWER)
        # Blocks in flight: confidence of their tokens.
        self._out: list[list[float | None]] = []
        self._block: list[float | None] = []
        self._tokens = Mean(0.08)  # of text, a round
        self._cost = Mean(0.08)  # seconds between commits
        self._judged = 0  # blocks
        self._share = Mean(0.01)  # tokens that a racing commit gains
        self._last_s: float | None = None
        self._late = False  # what goes up piles up on the way
        self._why = ""  # of the block in hand
        self._said = ""
        self._ratio: float | None = None  # of :meth:`_best`, until something is learned
        self._worth: float | None = None  # of :attr:`_haste`

    # ---- what the session asks

    def begin(self, mode: Mode) -> None:
        self._mode = mode
        self._racing = mode.racing
        self._ways.begin()
        self._out = []
        self._block = []
        self._last_s = None
        self._late = False

    def races(self, may: bool) -> bool:
        """Race or wait; see :class:`~draftwire.runtime.pacing.ways.Ways`."""
        self._may_race = may
        if self.objective == "cost":
            self._racing = False
        elif self._thrifty:
            self._racing = may
        else:
            delay_s = self.costs.rtt_s + 2 * self.costs.forward_s
            way = self._ways.choose(self._now_s, delay_s, race=may, wait=True)
            self._racing = way is not WAIT
        return self._racing

    @property
    def _alone(self) -> bool:
        """Objective auto: streaming without drafts is fastest."""
        auto = self._mode.objective == "auto" and self._may_race and not self._thrifty
        return auto and self._ways.now is ALONE

    def limit(self) -> int:
        """Return the most tokens of the next block; 0 draws back, or waits."""
        self._block = []
        self._why = ""
        costs = self.costs
        if not self.governor.allows(costs.draft_s, costs.draft_w, fresh=True):
            self._said = f"off: the budget of {self.governor.why} is used up"
            return 0
        if self._alone:
            self._said = f"off: {self._ways.why}"
            return 0
        if self._trial.off:
            self._said = f"off: {self._trial.why}"
            return 0
        if self._out and not self._ahead_pays():
            self._said = "waiting: drafting ahead does not pay"
            return 0
        if self._racing:
            if self._thrifty and not self._rests.on:
                self._why = (
                    f"resting: drafting {self._rests.share:.0%} of the text is enough"
                )
                return 0
            return _MOST
        best = best_ratio(self.survival.curve(_MOST), self._fixed, self._marginal)[0]
        wait = int(costs.wait_s / costs.draft_s) + 2
        return max(1, min(_MOST, max(2 * best + 4, wait)))

    @property
    def spare(self) -> bool:
        costs = self.costs
        return not self._thrifty and self.governor.allows(costs.draft_s, costs.draft_w)

    def resolution(self) -> int:
        """Return a coarse lattice while bytes are dear; 0 leaves it to the scheme.

        The threshold, a sixth of the drafting time on the air, is a choice and not
        measured: what the coarser law costs in acceptance is the scheme's to tell.
        """
        costs = self.costs
        air_s = costs.token_bytes * costs.byte_s
        return _COARSE if air_s > costs.draft_s / 6 else 0

    def enough(self, block: Sequence[Proposal]) -> bool:
        self._block = [p.confidence for p in block]
        costs = self.costs
        if not self.governor.allows(costs.draft_s, costs.draft_w):
            return self._stop(f"the budget of {self.governor.why} is near")
        if self._racing:
            return not self._late and len(block) >= self._piece() and self._in_time(block)
        reach = self._reach(self._block)
        following = reach * self.survival.acceptance
        if self._out:
            return self._enough_ahead(reach, following)
        price = self._best() * self._marginal
        if following > price:
            return False
        return self._stop("one more does not pay", following, price)

    def sent(self, drafted: int) -> None:
        if self._why:
            self._said = self._why
        else:  # full, cut by the session, or at the end of the text
            self._said = f"{drafted} tokens: as many as the block may hold"
        self._why = ""
        self._out.append((self._block + [None] * drafted)[:drafted])
        self._block = []

    def judged(self, drafted: int, accepted: int) -> None:
        self._ratio = None
        self._learn(self._take(drafted), drafted, accepted)
        self._judged += drafted > 0
        self._trial.judged(drafted)
        if accepted < drafted:
            self._out = []  # what was out behind a rejection is void

    def overtaken(self, count: int) -> None:
        for _ in range(count):
            self._learn(self._take(1), 1, 1)

    def _take(self, count: int) -> list[float | None]:
        """Take the next ``count`` tokens of the first block that is out."""
        if not self._out:
            return []
        known, rest = self._out[0][:count], self._out[0][count:]
        self._out[:1] = [rest] if rest else []
        return known

    def _learn(self, known: Sequence[float | None], drafted: int, accepted: int) -> None:
        self.survival.learn(drafted, accepted)
        for i, c in enumerate(known[: min(drafted, accepted + 1)]):
            if c is not None:
                self.confidence.learn(c, i < accepted)

    def measured(self, round: Round) -> None:
        costs = self.costs
        self._ratio = self._worth = None
        before = costs.wait_s
        costs.measured(round)
        self._late = round.late
        self._now_s = round.t_s
        self._ways.passed(round.t_s, round.tokens)
        if not 0.75 < before / max(costs.wait_s, 1e-9) < 1.33:
            self._trial.news()
            self._ways.news()
            self._tokens, self._cost = Mean(0.08), Mean(0.08)  # of another link
        self.governor.passed(round.t_s, round.tokens, costs.wait_w)
        if len(self._out) > round.in_flight:
            del self._out[: len(self._out) - round.in_flight]
        if self._last_s is not None:
            self._tokens.learn(float(round.tokens))
            self._cost.learn(round.t_s - self._last_s)
            if self._thrifty and self._racing:
                rest_s = costs.forward_s + 1e-4
                self._rests.passed(round.tokens, round.t_s - self._last_s, rest_s)
        self._last_s = round.t_s
        self._weigh(round)

    def drafted_in(self, seconds: float) -> None:
        self.costs.drafted_in(seconds)
        self.governor.drafted(seconds, self.costs.draft_w)

    def power(self, watts: Mapping[str, float | None]) -> None:
        self._ratio = self._worth = None
        self.costs.power(watts)

    def explain(self) -> str:
        """Return why the last block ended, or why nothing is drafted."""
        return self._said or "nothing is drafted yet"

    # ---- blocks that are drafted another way (:mod:`~draftwire.runtime.pacing.parallel`)

    def worth(self, text: float, drafting_s: float, drafted: int) -> float:
        costs = self.costs
        other_s = drafted * (costs.token_s - costs.draft_s)
        price = self._price(other_s, drafting_s, drafted * costs.row_s)
        return text / (self._fixed + price)

    def alone(self) -> float:
        return self._best()

    def masks_in(self, seconds: float, one_s: float) -> None:
        self.governor.drafted(seconds, self.costs.draft_w)

    def judged_elsewhere(self, drafted: int, accepted: int) -> None:
        self._trial.judged(drafted)
        if accepted < drafted:
            self._out = []

    # ---- chances

    def _reach(self, known: Sequence[float | None]) -> float:
        """Return the chance that all of these tokens are accepted."""
        plain, sure = self.survival.acceptance, self.confidence.acceptance
        return math.prod(plain if c is None else sure(c) for c in known)

    @property
    def _chain(self) -> float:
        """Chance that everything in flight is accepted."""
        return math.prod(map(self._reach, self._out))

    @property
    def _thrifty(self) -> bool:
        """Joules count, and are known."""
        return self.objective == "energy" and self.costs.powered

    # ---- prices: seconds, or what the objective counts instead

    def _price(self, seconds: float, drafting_s: float, forwards_s: float) -> float:
        """Return what an amount of waiting, drafting and forwards costs."""
        costs = self.costs
        if self._thrifty:
            joules = costs.wait_w * seconds + costs.draft_w * drafting_s
            return joules + self._haste * (seconds + drafting_s)
        price = seconds + drafting_s
        if self.objective == "cost":
            price += _FORWARD_PRICE * forwards_s
        return price

    @property
    def _haste(self) -> float:
        """Watts that a second is worth, so that saving joules takes too long never."""
        if self._worth is None:
            costs, curve = self.costs, self.survival.curve(_MOST)
            most = best_ratio(curve, costs.wait_s, costs.token_s)[1]
            for haste in (0.0, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0):
                self._worth = haste * costs.wait_w
                fixed = (costs.wait_w + self._worth) * costs.wait_s
                marginal = (costs.draft_w + self._worth) * costs.draft_s
                k = best_ratio(curve, fixed, marginal)[0]
                rate = (1.0 + sum(curve[:k])) / (costs.wait_s + k * costs.token_s)
                if rate >= _SLOWER * most:
                    break
        assert self._worth is not None
        return self._worth

    @property
    def _fixed(self) -> float:
        costs = self.costs
        return self._price(costs.wait_s, 0.0, costs.forward_s)

    @property
    def _marginal(self) -> float:
        costs = self.costs
        return self._price(costs.token_s - costs.draft_s, costs.draft_s, costs.row_s)

    def _best(self) -> float:
        """Return the text that a unit of cost yields in the long run."""
        if self._ratio is None:
            curve, costs = self.survival.curve(_MOST), self.costs
            self._ratio = best_ratio(curve, self._fixed, self._marginal)[1]
            if self._cost.count >= 8 and not self._racing:
                # What the clock says: text that is known to be likely comes faster than
                # of blocks of one length, and so it does of blocks in a pipeline.
                known = best_ratio(curve, costs.wait_s, costs.token_s)[1]
                found = self._tokens.value / max(self._cost.value, 1e-9)
                self._ratio *= min(max(found / known, 1.0), _HIDDEN)
        return self._ratio

    # ---- while blocks are out

    def _ahead_pays(self) -> bool:
        """Tell whether to draft on what is not judged yet; a race's hush knows better."""
        if self._racing and self._mode.hush:
            return True
        chance = self._chain * self.survival.acceptance
        if not self._thrifty or self._racing:
            return chance > _HOPELESS
        # The draft costs the joules above waiting; it saves its time if it is of use.
        costs = self.costs
        extra = (costs.draft_w - costs.wait_w) * costs.draft_s
        saved = chance * (costs.wait_w + self._haste) * costs.draft_s
        return saved > extra

    def _enough_ahead(self, reach: float, following: float) -> bool:
        costs, mode = self.costs, self._mode
        chain = self._chain
        if chain * following < _HOPELESS:
            return self._stop("hardly reached", chain * following, _HOPELESS)
        if self._late:
            return False  # one more frame would only wait behind those before it
        if len(self._out) >= mode.pipeline:
            # It cannot leave before the verdict; what is drafted meanwhile is free.
            return self._thrifty and not self._ahead_pays()
        # One more token delays the news of a rejection that is in the block already;
        # a block of its own keeps the verifier busy when the next one comes.
        busy = min(1.0, costs.forward_s / costs.draft_s)
        delay = (1.0 - reach) * costs.draft_s * _EAGER
        hold = 0.5 * costs.forward_s * (1.0 - self.survival.acceptance) * busy
        hold += _FORWARD_PRICE * costs.forward_s if self.objective == "cost" else 0.0
        hold += costs.frame_bytes * costs.byte_s
        if delay <= hold:
            return False
        return self._stop("a rejection in it is likely", 1.0 - reach, hold)

    def _piece(self) -> int:
        """Return the length of a block in a race."""
        costs = self.costs
        frame_s = costs.frame_bytes * costs.byte_s
        return max(1, min(16, math.ceil(2.0 * frame_s / costs.draft_s)))

    def _in_time(self, block: Sequence[Proposal]) -> bool:
        """Tell whether the end of ``block`` can come before the target gets there."""
        lead = len(block) + sum(map(len, self._out))
        return lead >= 0.8 * self.costs.rtt_s / self._ways.step_s() - 1.0

    # ---- drawing back

    def _weigh(self, round: Round) -> None:
        """Ask whether drafting pays at all."""
        costs, trial = self.costs, self._trial
        if self._mode.objective == "auto" and self.objective == "latency":
            self._compare()
            if self._may_race or self._mode.max_forwards < 1.0:
                return
        if trial.passed(round.tokens):
            self.survival.doubt()
            self._judged = 0
        if self._racing:
            if not trial.off:
                self._share.learn(float(round.accepted))
                if self._share.count > 120 and self._share.value < 0.004:
                    trial.draw_back("drafts come too late to be of use")
            return
        if trial.off or (self._judged < 20 and not self.rival):
            return
        stream = self._price(costs.forward_s + 1e-4, 0.0, costs.forward_s)
        drafting = 1.0 / max(self._best(), self.rival)
        if self._mode.preempt:
            if self._tokens.count < 24:
                return
            # What is hidden behind the network only the clock can tell.
            tokens = max(self._tokens.value, 1e-9)
            drafting = self._price(self._cost.value / tokens, 0.0, costs.forward_s / tokens)
        if drafting > _RETREAT * stream:
            trial.draw_back(
                f"a token costs {drafting / stream:.2f} of what streaming costs"
            )
            self._tokens, self._cost = Mean(0.08), Mean(0.08)

    def _compare(self) -> None:
        """Say what each way should take, for those that the clock does not know."""
        costs, ways = self.costs, self._ways
        step_s = ways.step_s()
        gain = race_gain(self.survival.acceptance, costs.draft_s, step_s, costs.rtt_s)
        ways.modelled(gain, 1.0 / max(self._best(), self.rival), costs.forward_s)

    def _stop(self, why: str, gain: float = 0.0, price: float = 0.0) -> bool:
        costs = self.costs
        parts = [f"{len(self._block)} tokens: {why}"]
        known = [c for c in self._block if c is not None]
        if known:
            parts.append(f"confidence {known[-1]:.2f}")
        parts.append(f"all accepted {self._reach(self._block):.2f}")
        if price:
            parts.append(f"gain {gain:.3f} for {price:.3f}")
        parts.append(f"rtt {costs.rtt_s * 1e3:.0f} ms")
        if costs.powered:
            joules = costs.draft_w * costs.draft_s * len(self._block)
            parts.append(f"{joules:.3f} J drafting")
        self._why = ", ".join(parts)
        return True
