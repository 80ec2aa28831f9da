"""Real models in virtual time: their logits, and a profile's clock.

The text of every scheme is then the target's own, whatever the draft: law 1, in the
simulator. The time that the models really take does not count.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Sequence

import numpy as np

from draftwire.bench.sim.cloud import TargetModel
from draftwire.bench.sim.facts import Exit
from draftwire.errors import ConfigError
from draftwire.runtime.drafter import Model
from draftwire.verifier.backends.base import SlotInput

if TYPE_CHECKING:
    from draftwire.runtime.draft_model import DraftModel
    from draftwire.verifier.backends.base import TargetBackend

__all__ = ["RealJob", "RealTarget"]


class RealTarget:
    """One stream's target on a real backend.

    Args:
        backend: Shared by all streams.
    """

    def __init__(self, backend: TargetBackend) -> None:
        self._backend = backend
        self._slot = backend.allocate()

    def run(self, start: int, tokens: np.ndarray, rows: int) -> np.ndarray:
        """Feed ``tokens`` from position ``start`` on; return the last ``rows`` rows."""
        item = SlotInput(self._slot, start, tokens, rows)
        return np.asarray(self._backend.forward([item])[0])

    def exit_rows(self, number: int, exit: Exit, end: int, rows: int) -> np.ndarray:
        """Refuse: exits of real models are not simulated.

        Raises:
            ConfigError: Always.
        """
        raise ConfigError(
            "early exits of real models are not simulated", hint="leave earlyexit out"
        )

    def release(self) -> None:
        """Give the slot back."""
        self._backend.release(self._slot)


class RealJob:
    """A stream of real models.

    Args:
        draft: Shared by all streams of the device, one after another.
        backend: Shared by all streams.
        prompt: Token ids.
    """

    def __init__(
        self, draft: DraftModel, backend: TargetBackend, prompt: Sequence[int]
    ) -> None:
        self._draft, self._backend = draft, backend
        self.prompt = tuple(prompt)
        self.stop_ids: Sequence[int] = backend.eos_ids

    def draft(self) -> Model:
        """Return the draft, its cache empty."""
        self._draft.rewind(0)
        return self._draft

    def target(self) -> TargetModel:
        """Return a slot of the target."""
        return RealTarget(self._backend)
