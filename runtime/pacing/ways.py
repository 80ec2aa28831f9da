"""Which way is fastest: streaming alone, a race with drafts, or waiting for blocks.

``objective="auto"`` asks two things. :class:`Ceiling` keeps the target's forwards for each
token of text under what the user bears, by the text so far. :class:`Ways` compares what a
token takes: by the clock where a way was tried, else by a model of it. What trials cost is
bounded: a way that was left is not tried anew before thirty times as much text has come
as that trial took, and twice as much each time that it turned out slower.
"""

from __future__ import annotations

__all__ = ["ALONE", "RACE", "WAIT", "Ceiling", "Clock", "Ways", "race_gain"]

ALONE, RACE, WAIT = "streaming alone", "a race with drafts", "waiting for blocks"
_LEAD = 0.94  # of what a token takes now: the least lead that is worth a trial
_SURE = 0.99  # likewise, of a way that the clock knows
_BARE = 0.9  # of a race's forward: what it may take on its own, at best
_BACK = 0.8  # likewise, of one that lost against another lately: pauses tremble
_RARE = 0.85  # likewise for waiting, which a race mostly beats
_STALL = 4.0  # times the usual pause between verdicts
_READ = 1.25  # of the target's own time, with all that is around it
_FIRST, _TRIAL = 8, 24  # tokens of text after which the clock is believed
_REGRET = 30  # tokens that a slower trial is paid back with, for each of its own
_MOST = 16_384
_PRIOR = 12.0  # tokens that a model counts, beside those of the clock
_KEPT = 0.99  # of the clock at each verdict
_AHEAD = 4.0  # tokens of credit with which a race is taken up again


class Ceiling:
    """At most so many forwards a token of text, as far as races are concerned.

    Args:
        most: Forwards a token; 1 allows a race always, because that is what it takes.
    """

    def __init__(self, most: float) -> None:
        self._most = most
        self._credit = 0.0
        self._races = True

    def passed(self, tokens: int, forwards: int) -> None:
        """Text has come."""
        self._credit = min(self._credit + self._most * tokens - forwards, 32.0)

    @property
    def races(self) -> bool:
        """Whether a race may go on, or begin."""
        if self._most >= 1.0:
            return True
        self._races = self._credit > (0.0 if self._races else _AHEAD)
        return self._races


def race_gain(acceptance: float, draft_s: float, forward_s: float, rtt_s: float) -> float:
    """Return the share of its time that drafts save a race, roughly.

    Behind a rejection the draft begins at the text's end, and the verifier is a round trip
    ahead of what it hears. A draft is of use once it has overtaken that: after
    ``rtt / (forward - draft)`` tokens, if they are all right. From there on a token takes
    the draft's time instead of a forward.
    """
    if draft_s >= forward_s:
        return 0.0
    late = rtt_s / (forward_s - draft_s)
    return float((1.0 - draft_s / forward_s) * acceptance ** (late + 1.0))


class Clock:
    """Seconds, tokens and verdicts of one way, of late."""

    def __init__(self) -> None:
        self.seconds = self.tokens = self.verdicts = 0.0
        self.seen = 0

    def learn(self, seconds: float, tokens: int) -> None:
        if self.seen >= _FIRST:  # a lost packet strikes every way alike
            seconds = min(seconds, _STALL * self.verdict_s)
        self.seconds = self.seconds * _KEPT + seconds
        self.tokens = self.tokens * _KEPT + tokens
        self.verdicts = self.verdicts * _KEPT + 1
        self.seen += tokens

    @property
    def token_s(self) -> float:
        return self.seconds / self.tokens

    @property
    def verdict_s(self) -> float:
        return self.seconds / self.verdicts


class Ways:
    """What a token takes on each way, measured or modelled.

    Attributes:
        now: The way that is taken.
        why: The last change, in words.
    """

    def __init__(self) -> None:
        self.now = RACE
        self.why = ""
        self._clocks = {way: Clock() for way in (ALONE, RACE, WAIT)}
        self._rests = dict.fromkeys(self._clocks, 0)  # tokens of text until a new trial
        self._fails = dict.fromkeys(self._clocks, 0)
        self._lost: set[str] = set()
        self._old: set[str] = set()  # of which nobody knows any more
        self._gain, self._wait_s, self._forward_s = 0.0, 1.0, 1.0
        self._tried = False
        self._since = 0  # tokens on this way
        self._settles_s = -1.0  # what comes until then was begun on another way
        self._last_s: float | None = None

    def begin(self) -> None:
        """A stream begins: no text has come yet."""
        self._last_s = None

    def modelled(self, gain: float, wait_s: float, forward_s: float) -> None:
        """Take in what a race should save, and a token take by waiting and alone."""
        self._gain, self._wait_s, self._forward_s = gain, wait_s, forward_s

    def passed(self, t_s: float, tokens: int) -> None:
        """Text has come."""
        last_s, self._last_s = self._last_s, t_s
        for way, left in self._rests.items():
            if 0 < left <= tokens:
                self._clocks[way] = Clock()  # what was found then may have passed
                self._old.add(way)
                self._lost.discard(way)
            self._rests[way] = max(0, left - tokens)
        if last_s is not None and tokens and last_s >= self._settles_s:
            self._since += tokens
            self._clocks[self.now].learn(t_s - last_s, tokens)

    def step_s(self) -> float:
        """Return the seconds between two forwards of a target that does not wait."""
        known = [self._clocks[way] for way in (ALONE, RACE) if self._clocks[way].seen]
        return min((c.verdict_s for c in known), default=self._forward_s)

    def token_s(self, way: str) -> float:
        """Return what a token takes on ``way``: by the clock, if that has been read."""
        clock, alone = self._clocks[way], self._clocks[ALONE]
        bare_s = min(_BARE * self.step_s(), _READ * self._forward_s)
        alone_s = alone.token_s if alone.seen >= _FIRST else bare_s
        if way is ALONE:
            return alone_s
        model_s = self._wait_s if way is WAIT else alone_s * (1.0 - self._gain)
        return (clock.seconds + _PRIOR * model_s) / (clock.tokens + _PRIOR)

    def choose(self, t_s: float, delay_s: float, *, race: bool, wait: bool) -> str:
        """Return the way to take from now on.

        Args:
            t_s: Now.
            delay_s: Until a change is felt.
            race: The target may decode on, with drafts or alone.
            wait: It may wait for blocks.
        """
        may = {ALONE: race, RACE: race, WAIT: wait}
        here = self.now
        others = [way for way in may if may[way] and way is not here]
        if not may[here]:
            return self._take(min(others, key=self.token_s), t_s, delay_s)
        if self._since < (_TRIAL if self._tried and here is not ALONE else _FIRST):
            return here
        here_s = self.token_s(here)
        for way in sorted(others, key=self.token_s):
            seen = self._clocks[way].seen >= _FIRST
            lead = _SURE if seen else _RARE if way is WAIT else _LEAD
            if seen and way in self._lost and self._rests[way]:
                lead = _BACK
            elif way is ALONE and not seen and self._since >= _REGRET * _TRIAL:
                lead = float("inf")  # no model knows it as well as a few tokens do
            elif way is RACE and not seen and way in self._old:
                lead = 1.01  # nor this: how fast the draft is was measured long ago
            if self.token_s(way) > lead * here_s or (self._rests[way] and not seen):
                continue
            trial = min(self._since, 2 * _TRIAL) * 2 ** self._fails[here]
            self._rests[here] = min(_REGRET * trial, _MOST)
            self._fails[here] += seen
            if seen:
                self._lost.add(here)
            self.why = (
                f"{way} instead of {here}: {self.token_s(way) * 1e3:.1f} ms a token, "
                f"not {here_s * 1e3:.1f}"
            )
            return self._take(way, t_s, delay_s)
        return here

    def news(self) -> None:
        """Link or text have changed: what the clock says of other ways is old."""
        for way in self._clocks:
            if way not in (self.now, ALONE):
                self._clocks[way] = Clock()
                self._fails[way] = 0
                self._rests[way] = min(self._rests[way], _REGRET * _TRIAL)

    def _take(self, way: str, t_s: float, delay_s: float) -> str:
        if way is not self.now:
            self._tried = True
            self._old.discard(way)
            self._lost.discard(way)
            self.now, self._since = way, 0
            self._clocks[way] = Clock()  # of its own time, not of long ago
            self._settles_s = t_s + delay_s
        return way
