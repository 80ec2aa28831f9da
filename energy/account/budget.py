"""A limit on the joules of one generation."""

from __future__ import annotations

from typing import Callable

from draftwire.energy.account.account import Account
from draftwire.errors import ConfigError

__all__ = ["Budget"]


class Budget:
    """Stops a generation when it has spent its joules.

    Args:
        account: A started account.
        max_joules: What may be spent.
        clock_check: Called for the joules so far; tests replace it.

    Raises:
        ConfigError: Nothing here measures or models joules, or the limit is not
        positive.
    """

    def __init__(
        self,
        account: Account,
        max_joules: float,
        *,
        clock_check: Callable[[], float | None] | None = None,
    ) -> None:
        if not max_joules > 0:
            raise ConfigError(f"max_joules is {max_joules}, it must be positive")
        if account.meter is None and account.model is None:
            raise ConfigError(
                "max_joules needs a power source, and there is none",
                hint="`draftwire energy sources` tells what is missing",
            )
        meter = account.meter
        if meter is not None and meter.projector.choice.total is None:
            raise ConfigError(
                f"max_joules needs a total: {meter.projector.choice.why_none}"
            )
        self.max_joules = max_joules
        self._spent = account.joules if clock_check is None else clock_check

    def left(self) -> float | None:
        """Return the joules that are left, or None while the sensor is silent."""
        spent = self._spent()
        return None if spent is None else self.max_joules - spent

    def exceeded(self) -> bool:
        """Return True when nothing is left, or when nobody can tell any more."""
        left = self.left()
        return left is None or left <= 0
