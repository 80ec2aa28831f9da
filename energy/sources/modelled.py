"""A stated model: watts per phase from a profile, for machines without a sensor.

Nobody measured these joules, and everything that shows them says so: the kind is
``modelled`` and the source's name starts with ``model:``.
"""

from __future__ import annotations

from typing import Mapping

from draftwire.energy.account.result import EnergyResult
from draftwire.energy.account.uncertainty import Uncertainty
from draftwire.errors import ConfigError

# Phases that a short model leaves out, and what they are most like.
ALIKE = {"prefill": "draft", "transmit": "draft", "verify-wait": "wait", "idle": "wait"}


class ModelSource:
    """Watts per phase that somebody stated, with a relative half-width or None."""

    kind = scope = "modelled"
    rails = ("MODEL",)

    def __init__(
        self,
        name: str,
        watts: Mapping[str, float],
        *,
        uncertainty: float | None = None,
        origin: str = "",
    ) -> None:
        for phase, watt in watts.items():
            if not (isinstance(watt, (int, float)) and watt >= 0):
                raise ConfigError(f"model {name}: {watt!r} W in phase {phase}")
        if not watts:
            raise ConfigError(f"model {name} has no phase")
        self.name = f"model:{name}"
        lent = {p: q for p, q in ALIKE.items() if p not in watts and q in watts}
        self.watts = {phase: float(watt) for phase, watt in watts.items()}
        self.watts.update({phase: self.watts[other] for phase, other in lent.items()})
        self.uncertainty = uncertainty
        self.notes = (
            f"modelled, not measured ({origin or 'origin not stated'})",
            *(f"phase {phase} not stated: taken as {q}" for phase, q in lent.items()),
        )

    def result(self, joules: float, seconds: float) -> EnergyResult:
        """Return the result for joules that the account worked out."""
        u = None
        if self.uncertainty is not None:
            half = self.uncertainty * joules
            u = Uncertainty(half, {"model": half / 2.0}, False)
        return EnergyResult(
            "session",
            joules,
            self.name,
            self.kind,
            self.scope,
            self.rails,
            duration_s=seconds,
            mean_w=joules / seconds if seconds > 0 else None,
            uncertainty=u,
            flags=("modelled",),
            notes=self.notes,
        )
