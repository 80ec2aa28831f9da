"""What a training will take, measured before it starts."""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from draftwire.errors import ConfigError
from draftwire.export.training.distil import DraftTrainer
from draftwire.export.training.parallel import ParallelTrainer
from draftwire.export.training.states import MOST_WORDS, UpperTrainer, reading

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
        kept: Bytes of states that are kept for each token read.
    """

    def __init__(
        self, tokens_s: float, workers: int, trained: int, kept: float = 0.0
    ) -> None:
        self.tokens_s, self._trained, self._kept = tokens_s * workers, trained, kept

    def say(self, tokens: int) -> str:
        """Return the plan in one sentence."""
        hours = tokens / self.tokens_s / 3600 / _SHARE
        took = f"{hours:.1f} hours" if hours >= 1 else f"{60 * hours:.0f} minutes"
        # Gradients came with the measurement; the optimiser's two moments come later.
        unit = 1 if sys.platform == "darwin" else 1024
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
        memory = (peak + 8 * self._trained) / 1e9
        disk = f", {tokens * self._kept / 1e9:.1f} GB of states on disk"
        return (
            f"plan: {tokens:,} tokens at {self.tokens_s:,.0f} a second take about {took}; "
            f"{self._trained / 1e6:.1f} M parameters are trained; {memory:.1f} GB of memory"
            + (disk if self._kept else "")
        )

    def tokens_in(self, seconds: float) -> int:
        """Return how many tokens fit into a budget; a ConfigError where too few to begin
        with.
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


def measure(
    trainer: DraftTrainer | ParallelTrainer,
    upper: UpperTrainer | None,
    *,
    rows: int,
    length: int,
    workers: int,
    passes: int,
    half: bool,
) -> Pace:
    """Time a training over random tokens for some seconds; learn nothing.

    With ``upper``: the base's pass over the text, and that of the trained part over its
    states, of which each text gets ``passes``.
    """
    device = trainer.draft.device
    config = trainer.draft.config.get_text_config()
    size, hidden = config.vocab_size, config.hidden_size
    generator = torch.Generator().manual_seed(0)

    def text() -> Tensor:
        return torch.randint(size, (rows, length + 1), generator=generator).to(device)

    def timed(work: Callable[[], object]) -> float:
        done, start = 0, time.perf_counter()
        while True:
            with torch.autocast(device.type, torch.bfloat16, enabled=half):
                work()
            if device.type == "cuda":
                torch.cuda.synchronize()
            if not done:  # the first pass fills caches
                start = time.perf_counter()
            done += 1
            passed = time.perf_counter() - start
            if done > 1 and (passed >= _MEASURED_S or (done > 8 and passed >= _QUICK_S)):
                return passed / ((done - 1) * rows * length)

    kept = 0.0
    if upper is None:
        seconds = timed(lambda: trainer.loss(text()).backward())
    else:
        once = timed(lambda: reading(trainer.base, upper.anchor, text()))
        states = torch.randn(rows, length, hidden, device=device)
        words = torch.arange(min(size, MOST_WORDS), device=device)
        again = timed(lambda: upper.loss(text(), states, states, words).backward())
        seconds, kept = once / passes + again, (4 * hidden + 8) / passes
    trainer.zero_grad(set_to_none=True)
    trained = sum(p.numel() for p in trainer.parameters() if p.requires_grad)
    return Pace(1 / seconds, workers, trained, kept)


def tokens_before(work: Path) -> int | None:
    """Return the tokens of a training that was begun in ``work``, or None."""
    try:
        found = json.loads((work / "asked.json").read_text()).get("tokens")
    except (OSError, ValueError, AttributeError):
        return None
    return found if isinstance(found, int) else None
