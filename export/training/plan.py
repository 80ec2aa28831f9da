"""What a training will take, measured before it starts."""

from __future__ import annotations

import json
import resource
import sys
import time
from pathlib import Path

import torch

from draftwire.errors import ConfigError
from draftwire.export.training.distil import DraftTrainer

_MEASURED_S = 10.0
_QUICK_S = 1.0  # enough where many passes fit
# Of a budget for training; looks, checkpoints, held-out text and the export take the rest.
_SHARE = 0.85
_LEAST = 50_000  # tokens below which a training is not worth a beginning


class Pace:
    """Tokens a second of a training, as it was measured here.

    Args:
        tokens_s: Of one process.
        workers: Processes; they share memory bandwidth, so this is a bound from above.
        trained: Parameters that are trained.
    """

    def __init__(self, tokens_s: float, workers: int, trained: int) -> None:
        self.tokens_s, self._trained = tokens_s * workers, trained

    def say(self, tokens: int) -> str:
        """Return the plan in one sentence."""
        hours = tokens / self.tokens_s / 3600 / _SHARE
        took = f"{hours:.1f} hours" if hours >= 1 else f"{60 * hours:.0f} minutes"
        # Gradients came with the measurement; the optimiser's two moments come later.
        unit = 1 if sys.platform == "darwin" else 1024
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
        memory = (peak + 8 * self._trained) / 1e9
        return (
            f"plan: {tokens:,} tokens at {self.tokens_s:,.0f} a second take about {took}; "
            f"{self._trained / 1e6:.1f} M parameters are trained; {memory:.1f} GB of memory"
        )

    def tokens_in(self, seconds: float) -> int:
        """Return how many tokens fit into a budget.

        Raises:
            ConfigError: Too few to begin with.
        """
        tokens = int(self.tokens_s * seconds * _SHARE)
        if tokens < _LEAST:
            least = _LEAST / self.tokens_s / _SHARE / 60
            raise ConfigError(
                f"a budget of {seconds / 60:.0f} minutes reads {tokens:,} tokens here, "
                f"too few to learn from",
                hint=f"give {least:.0f} minutes or more, a smaller base, or a GPU",
            )
        return tokens


def measure(trainer: DraftTrainer, *, rows: int, length: int, workers: int) -> Pace:
    """Time forward and backward over random tokens for some seconds; learn nothing."""
    device = trainer.draft.device
    generator = torch.Generator().manual_seed(0)
    size = trainer.draft.config.get_text_config().vocab_size
    done, start = 0, time.perf_counter()
    while True:
        ids = torch.randint(size, (rows, length + 1), generator=generator)
        trainer.loss(ids.to(device)).backward()
        if device.type == "cuda":
            torch.cuda.synchronize()
        if not done:  # the first pass fills caches
            start = time.perf_counter()
        done += 1
        passed = time.perf_counter() - start
        if done > 1 and (passed >= _MEASURED_S or (done > 8 and passed >= _QUICK_S)):
            break
    trainer.zero_grad(set_to_none=True)
    trained = sum(p.numel() for p in trainer.parameters() if p.requires_grad)
    return Pace((done - 1) * rows * length / passed, workers, trained)


def tokens_before(work: Path) -> int | None:
    """Return the tokens of a training that was begun in ``work``, or None."""
    try:
        found = json.loads((work / "asked.json").read_text()).get("tokens")
    except (OSError, ValueError, AttributeError):
        return None
    return found if isinstance(found, int) else None
