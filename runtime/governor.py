"""Budgets of power and of joules per token, kept over every window of ten seconds.

A leaky bucket. It fills with the joules that are spent and runs out at a little less
than the budget allows; drafting stops when the next token could make it spill. What is
spent in a window is at most what ran out in it and what the bucket holds, and the two
together are the budget. So no window of that length exceeds it, wherever it starts.
"""

from __future__ import annotations

from draftwire.errors import ConfigError

__all__ = ["Governor", "WINDOW_S"]

WINDOW_S = 10.0
_HELD = 0.08  # of the budget of a window fits into the bucket; the rest runs out
_MARGIN = 2.5  # tokens: one may be slow, and one may be at work already


class Governor:
    """Says whether the next draft is within the budgets.

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
        for name, value in (
            ("max_watts", max_watts),
            ("max_joules_per_token", max_joules_per_token),
        ):
            if value is not None and not value > 0:
                raise ConfigError(f"{name} is {value}, it must be positive")
        self.max_watts = max_watts
        self.max_joules_per_token = max_joules_per_token
        self.why = ""
        self.infeasible = ""
        self._watts_debt = 0.0  # at the last commit
        self._watts_new = 0.0  # drafted since then
        self._token_debt = 0.0
        self._tokens_s = 10.0
        self._at_s: float | None = None
        self._drafted_s = 0.0
        self._resting = False

    @property
    def on(self) -> bool:
        """True when there is a budget to keep."""
        return self.max_watts is not None or self.max_joules_per_token is not None

    def drafted(self, seconds: float, draft_w: float) -> None:
        """Take in a drafted token."""
        self._drafted_s += seconds
        if self.max_watts is not None:
            leak = self.max_watts * (1 - _HELD)
            self._watts_new += (draft_w - leak) * seconds
        self._token_debt += draft_w * seconds

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
            leak = self.max_watts * (1 - _HELD)
            # The waiting may have come before the drafting: then what ran out of an
            # empty bucket does not count.
            left = max(0.0, self._watts_debt + (wait_w - leak) * idle_s)
            self._watts_debt = max(0.0, left + self._watts_new)
            self._watts_new = 0.0
            if wait_w > leak:
                self.infeasible = (
                    f"waiting alone draws {wait_w:.2f} W of {self.max_watts:g} W"
                )
        if self.max_joules_per_token is not None:
            allowed = self.max_joules_per_token * (1 - _HELD) * tokens
            self._token_debt = max(0.0, self._token_debt + wait_w * idle_s - allowed)

    def _room(self, ahead_s: float, draft_w: float) -> bool:
        if self.max_watts is not None:
            full = self.max_watts * _HELD * WINDOW_S
            leak = self.max_watts * (1 - _HELD)
            debt = self._watts_debt + self._watts_new
            if debt + (draft_w - leak) * ahead_s > full:
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
        """Tell whether one more token may be drafted.

        Args:
            draft_s: What it takes.
            draft_w: Watts meanwhile.
            fresh: A block would begin with it: after a rest it must wait until the
                bucket is half empty, so that drafting does not stutter.
        """
        if not self.on:
            return True
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
        return self.infeasible
