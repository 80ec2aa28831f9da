"""When not to draft: budgets, a share of the time in a race, drawing back for a while."""

from __future__ import annotations

from draftwire.errors import ConfigError

__all__ = ["WINDOW_S", "Resting", "Governor", "Trial"]

WINDOW_S = 10.0
_HELD = 0.08  # of the budget of a window fits into the bucket; the rest runs out
_MARGIN = 2.5  # tokens: one may be slow, and one may be at work already
_CYCLE = 96  # tokens of text between two changes of a race's drafting
_GAIN = 0.05
_FIRST, _LONGEST = 48, 768  # tokens of text between two trials
_BLOCKS = 5  # of a trial


class Governor:
    """Budgets of power and of joules per token, kept over every window of ten seconds.

    A leaky bucket. It fills with the joules that are spent and runs out at a little less
    than the budget allows; drafting stops when the next token could make it spill. What is
    spent in a window is at most what ran out in it and what the bucket holds, and the two
    together are the budget. So no window of that length exceeds it, wherever it starts.

    Args:
        max_watts: Mean watts over any window, or None.
        max_joules_per_token: Joules of a window over the tokens of text in it, or None.

    Raises:
        ConfigError: A budget is not above 0.

    Attributes:
        why: What stands against drafting now, or "".
    """

    def __init__(
        self,
        max_watts: float | None = None,
        max_joules_per_token: float | None = None,
    ) -> None:
        self.max_watts = max_watts
        self.max_joules_per_token = max_joules_per_token
        for name in ("max_watts", "max_joules_per_token"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ConfigError(f"{name} is {value}, it must be positive")
        self.why = ""
        self._infeasible = ""
        self._watts_debt = 0.0  # at the last commit
        self._watts_new = 0.0  # drafted since then
        self._token_debt = 0.0
        self._tokens_s = 10.0
        self._at_s: float | None = None
        self._drafted_s = 0.0
        self._resting = False

    def drafted(self, seconds: float, draft_w: float) -> None:
        """Take in a drafted token."""
        self._drafted_s += seconds
        self._watts_new += (draft_w - self._leak_w) * seconds
        self._token_debt += draft_w * seconds

    @property
    def _leak_w(self) -> float:
        """Watts that run out of the bucket."""
        return (self.max_watts or 0.0) * (1 - _HELD)

    def passed(self, t_s: float, tokens: int, wait_w: float) -> None:
        """Take in a commit: time has passed, and text has come."""
        if self._at_s is not None:
            idle_s = t_s - self._at_s - self._drafted_s
            self._spend(max(0.0, idle_s), tokens, wait_w)
            gap = max(t_s - self._at_s, 1e-4)
            self._tokens_s += min(gap, 1.0) * 0.2 * (tokens / gap - self._tokens_s)
            # A token that was half drafted at the last commit passed for waiting then.
            self._drafted_s = max(0.0, -idle_s)
        else:
            self._drafted_s = 0.0
        self._at_s = t_s

    def _spend(self, idle_s: float, tokens: int, wait_w: float) -> None:
        if self.max_watts is not None:
            leak = self._leak_w
            # The waiting may have come before the drafting: then what ran out of an
            # empty bucket does not count.
            left = max(0.0, self._watts_debt + (wait_w - leak) * idle_s)
            self._watts_debt = max(0.0, left + self._watts_new)
            self._watts_new = 0.0
            if wait_w > leak:
                self._infeasible = (
                    f"waiting alone draws {wait_w:.2f} W of {self.max_watts:g} W"
                )
        if self.max_joules_per_token is not None:
            allowed = self.max_joules_per_token * (1 - _HELD) * tokens
            self._token_debt = max(0.0, self._token_debt + wait_w * idle_s - allowed)

    def _room(self, ahead_s: float, draft_w: float) -> bool:
        if self.max_watts is not None:
            full = self.max_watts * _HELD * WINDOW_S
            debt = self._watts_debt + self._watts_new
            if debt + (draft_w - self._leak_w) * ahead_s > full:
                self.why = f"{self.max_watts:g} W"
                return False
        if self.max_joules_per_token is not None:
            full = self.max_joules_per_token * _HELD * WINDOW_S * self._tokens_s
            if self._token_debt + draft_w * ahead_s > full:
                self.why = f"{self.max_joules_per_token:g} J a token"
                return False
        self.why = ""
        return True

    def allows(self, draft_s: float, draft_w: float, *, fresh: bool = False) -> bool:
        """Tell whether one more token may be drafted, in so many seconds and watts.

        With a ``fresh`` block, after a rest, it must wait until the bucket is half
        empty, so that drafting does not stutter.
        """
        if fresh and self._resting:
            half_s = 0.0
            if self.max_watts is not None:
                half_s = self.max_watts * _HELD * WINDOW_S / 2 / max(draft_w, 1e-9)
            self._resting = not self._room(max(half_s, _MARGIN * draft_s), draft_w)
            return not self._resting
        free = self._room(_MARGIN * draft_s, draft_w)
        self._resting = self._resting or not free
        return free

    def warning(self) -> str:
        """Return why the budget cannot be kept at all, or ""."""
        return self._infeasible


class Resting:
    """Drafting for a share of the time: the thrift of a race.

    In a race early drafts are overtaken, and only long runs are of use: drafting a little
    all the time costs joules and gains nothing. So the energy objective drafts fully for
    a while and rests for a while, with the shares at which the text is no slower than
    allowed.

    Args:
        speed: Share of the full speed that must be kept.

    Attributes:
        on: Draft now.
        share: Of the text that is written while drafting.
    """

    def __init__(self, speed: float) -> None:
        self._speed = speed
        self.on = True
        self.share = 1.0
        self._left = float(_CYCLE)
        self._token_s: float | None = None  # while drafting

    def passed(self, tokens: int, seconds: float, rest_s: float) -> None:
        """Text has come, in so many seconds; without drafts a token takes ``rest_s``."""
        if not tokens:
            return
        if self.on:
            known = self._token_s
            if known is None:
                self._token_s = seconds / tokens
            else:
                weight = min(1.0, _GAIN * tokens)
                self._token_s = known + weight * (seconds / tokens - known)
        self._left -= tokens
        if self._left > 0 or self._token_s is None:
            return
        slack = rest_s - self._token_s
        if slack <= 0:
            self.share = 0.0  # drafting gains nothing at all
        else:
            wanted = (rest_s - self._token_s / self._speed) / slack
            self.share = min(1.0, max(0.0, wanted))
        # A short time of drafting in each cycle keeps the measurement fresh.
        share = max(self.share, 0.04)
        self.on = not self.on if share < 1.0 else True
        part = share if self.on else 1.0 - share
        self._left = max(4.0, _CYCLE * part)


class Trial:
    """Whether to draft at all.

    After drawing back it is quiet for a while, then there is a trial of a few blocks;
    each trial that fails doubles the pause. News (the link or the text has changed)
    shorten it.

    Attributes:
        off: Nothing is to be drafted.
        why: Why it was drawn back, or "".
    """

    def __init__(self) -> None:
        self.off = False
        self.why = ""
        self._pause = _FIRST
        self._left = 0
        self._blocks = 0

    def draw_back(self, why: str) -> None:
        """Stop to draft, unless a trial is still going on."""
        if self.off or self._blocks > 0:
            return
        self.off, self.why = True, why
        self._left = self._pause
        self._pause = min(2 * self._pause, _LONGEST)

    def passed(self, tokens: int) -> bool:
        """Text has come; return True when the pause is over with it."""
        if not self.off:
            return False
        self._left -= tokens
        if self._left <= 0:
            self.off = False
            self._blocks = _BLOCKS
        return not self.off

    def judged(self, drafted: int) -> None:
        """A block was judged, maybe one of a trial."""
        if drafted and self._blocks:
            self._blocks -= 1

    def news(self) -> None:
        """Something has changed: do not wait for long."""
        self._pause = _FIRST
        self._left = min(self._left, 8)
