"""Which way is fastest: streaming alone, a race with drafts, or waiting for blocks.

``objective="auto"`` asks two things. :class:`Ceiling` keeps the target's forwards for each
token of text under what the user bears, by the text so far. :class:`Ways` compares what a
token takes: by the clock where a way was tried, and by a model of it. What the clock says
of few tokens may be bad luck: a way is tried, again and again, for as long as it may yet
be faster than the fastest, and its trials take a share of the time that is bounded.
"""

from __future__ import annotations

import math

__all__ = ["ALONE", "RACE", "WAIT", "Ceiling", "Clock", "Ways", "race_gain"]

ALONE, RACE, WAIT = "streaming alone", "a race with drafts", "waiting for blocks"
# Of what a token takes now: the least lead that is worth a trial. A race mostly beats
# waiting.
_LEAD = {ALONE: 0.94, RACE: 0.94, WAIT: 0.85}
_SURE = 0.99  # likewise, of a way that the clock knows
_BARE = 0.9  # of a race's forward: what it may take on its own, at best
_STALL = 4.0  # times the usual pause between verdicts
_READ = 1.25  # of the target's own time, with all that is around it
_FIRST = 8  # tokens of text after which the clock is believed
_SHARE = 0.04  # of the time, for trials
_TRIAL, _MOST = 16.0, 48.0  # tokens of it when one begins; and at most, as at first
_LONG = 720  # tokens after which no model is believed of streaming alone
_PRIOR = 12.0  # tokens that a model counts, beside those of the clock; it fades as they do
_DOUBT = 2.0  # standard errors of the clock by which a way may yet be faster
# Verdicts by which luck may have been better or worse than the clock saw.
_LUCK = {ALONE: 0.2, RACE: 1.5, WAIT: 1.0}
_KEPT = 0.99  # of the clock at each verdict
_HALF = 50  # tokens in which half of another clock fades, for each that it has seen
_NEWS = 0.1  # of a clock, when link or text have changed
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
    """Seconds and tokens of one way, of late, and how they vary."""

    def __init__(self, prior: float) -> None:
        self.prior = prior
        self.seconds = self.tokens = self.verdicts = 0.0
        self._squares: tuple[float, ...] = (0.0, 0.0, 0.0)  # of seconds, both, tokens
        self.seen = 0

    def learn(self, seconds: float, tokens: int) -> None:
        if self.seen >= _FIRST:  # a lost packet strikes every way alike
            seconds = min(seconds, _STALL * self.verdict_s)
        self.fade(_KEPT)
        self.seconds += seconds
        self.tokens += tokens
        self.verdicts += 1
        new = seconds * seconds, seconds * tokens, float(tokens * tokens)
        self._squares = tuple(map(sum, zip(self._squares, new)))
        self.seen += tokens

    def fade(self, kept: float) -> None:
        """Let what is known count ``kept`` of what it did, while it is anything."""
        if self.tokens * kept < 0.1:
            return
        self.prior *= kept
        self.seconds *= kept
        self.tokens *= kept
        self.verdicts *= kept
        self._squares = tuple(kept * square for square in self._squares)

    @property
    def token_s(self) -> float:
        return self.seconds / self.tokens

    @property
    def verdict_s(self) -> float:
        return self.seconds / self.verdicts

    @property
    def spread(self) -> float:
        """The squared seconds by which verdicts came sooner or later than ``token_s``."""
        a, b, c = self._squares
        return max(0.0, a + self.token_s * (self.token_s * c - 2 * b))


class Ways:
    """What a token takes on each way, measured or modelled.

    Attributes:
        now: The way that is taken.
        why: The last change, in words.
    """

    def __init__(self) -> None:
        self.now = RACE
        self.why = ""
        self._best = RACE  # of those that the clock knows
        self._clocks = {
            ALONE: Clock(0.0),  # no model knows it as well as a few tokens do
            RACE: Clock(_PRIOR),
            WAIT: Clock(_PRIOR),
        }
        self._gain, self._wait_s, self._forward_s = 0.0, 1.0, 1.0
        self._tries = False  # ``now`` is a trial
        self._credit = _MOST  # for trials, in tokens of the best way
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
        for way, clock in self._clocks.items():
            if way is not self.now:
                clock.fade(0.5 ** (tokens / (_HALF * max(clock.seen, _FIRST))))
        if last_s is None or not tokens:
            return
        if last_s >= self._settles_s:
            self._since += tokens
            self._clocks[self.now].learn(t_s - last_s, tokens)
        if self._tries:
            self._credit -= (t_s - last_s) / self.token_s(self._best)
        else:
            self._credit = min(self._credit + _SHARE * tokens, _MOST)

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
        seconds = clock.seconds + clock.prior * model_s
        return seconds / (clock.tokens + clock.prior)

    def _hope_s(self, way: str) -> float:
        """Return what a token may yet turn out to take on ``way``."""
        clock, token_s = self._clocks[way], self.token_s(way)
        if clock.seen < _FIRST:
            long = way is ALONE and self._since >= _LONG
            return 0.0 if long else token_s
        spread = clock.spread + (_LUCK[way] * clock.verdict_s) ** 2
        return token_s - _DOUBT * math.sqrt(spread) / (clock.tokens + clock.prior)

    def choose(self, t_s: float, delay_s: float, *, race: bool, wait: bool) -> str:
        """Return the way to take from now on.

        Args:
            t_s: Now.
            delay_s: Until a change is felt.
            race: The target may decode on, with drafts or alone.
            wait: It may wait for blocks.
        """
        may = [ALONE, RACE] * race + [WAIT] * wait
        here, token_s = self.now, self.token_s
        if here in may and self._since < _FIRST:
            return here
        known = [way for way in may if self._clocks[way].seen >= _FIRST]
        first = min(known or may, key=token_s)
        if self._best not in may:
            best = first
        elif token_s(first) < _SURE * token_s(self._best):
            best = self._best = first
        else:
            best = self._best
        hopes = {way: self._hope_s(way) for way in may if way is not best}
        worth = [way for way in hopes if hopes[way] < _LEAD[way] * token_s(best)]
        if here is not best:
            if here not in worth or self._credit <= 0.0:
                self._take(best, t_s, delay_s)
            return self.now
        self._tries = False
        if worth:  # the least known first; a first trial needs no credit
            way = min(worth, key=lambda way: (self._clocks[way].tokens, hopes[way]))
            if self._credit >= _TRIAL or not self._clocks[way].seen:
                self._take(way, t_s, delay_s)
                self._tries = True
        return self.now

    def news(self) -> None:
        """Link or text have changed: what the clock says of other ways is old."""
        for way, clock in self._clocks.items():
            if way not in (self.now, ALONE):
                clock.fade(_NEWS)
                clock.seen = min(clock.seen, _FIRST)

    def _take(self, way: str, t_s: float, delay_s: float) -> None:
        self.why = (
            f"{way} instead of {self.now}: {self.token_s(way) * 1e3:.1f} ms a token, "
            f"not {self.token_s(self.now) * 1e3:.1f}"
        )
        self.now, self._since, self._tries = way, 0, False
        self._settles_s = t_s + delay_s
