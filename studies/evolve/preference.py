"""A target that is taught a preference over its own samples: DPO, as RL after training.

Each prompt is continued several times at temperature 1; of these the one with the most
different tokens is preferred to the one with the fewest, so the target learns to repeat
itself less, and nothing but its own words is read.

Source:
    Rafailov et al. 2023, Direct Preference Optimization, https://arxiv.org/abs/2305.18290.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from draftwire.export.training.loop import Plan
from draftwire.export.training.measure import continuations, logits_of, rows_at

_PROMPT, _COUNT = 24, 48  # tokens that are given, and that follow
_SAMPLES, _PROMPTS = 4, 192  # samples of a prompt; prompts at most
_BETA = 0.1  # how far the preference may lead away from the base


@dataclass(frozen=True)
class Pairs:
    """Preferred and other samples, and what the base thinks of them."""

    ids: Tensor  # ``(pairs, 2, tokens)``, the preferred one first
    base: Tensor  # ``(pairs, 2)`` log-chances of what follows the prompts

    def micro(self, plan: Plan, step: int, index: int) -> tuple[Tensor, ...]:
        """Return the pairs of a micro-batch."""
        count = max(1, plan.micro // (2 * self.ids.shape[-1]))
        rng = np.random.default_rng((plan.seed, step, index))
        chosen = rng.integers(0, len(self.ids), count)
        return self.ids[chosen], self.base[chosen]


def log_chances(model: Any, ids: Tensor) -> Tensor:
    """Return the log-chances ``(n,)`` of what follows the prompts of ``(n, tokens)``."""
    said = F.log_softmax(logits_of(model, ids[:, :-1])[:, _PROMPT - 1 :].float(), -1)
    return said.gather(-1, ids[:, _PROMPT:, None])[..., 0].sum(-1)


@torch.no_grad()
def make_pairs(base: Any, stream: np.ndarray, *, wanted: int, seed: int) -> Pairs:
    """Let a base continue up to ``wanted`` prompts of a stream, and pair the samples."""
    rng = np.random.default_rng(seed)
    starts = rng.integers(0, len(stream) - _PROMPT, min(wanted, _PROMPTS))
    given = rows_at(stream, np.repeat(starts, _SAMPLES), _PROMPT)
    said = [
        continuations(base, part, count=_COUNT, temperature=1, seed=seed + number)
        for number, part in enumerate(given.split(64))
    ]
    text = torch.cat(said).unflatten(0, (-1, _SAMPLES))
    different = torch.tensor(
        [[len(set(row[_PROMPT:])) for row in rows] for rows in text.tolist()]
    )
    best, worst = different.argmax(1), different.argmin(1)
    row = torch.arange(len(text))
    ids = torch.stack([text[row, best], text[row, worst]], 1)[best != worst]
    chances = torch.cat([log_chances(base, part) for part in ids.flatten(0, 1).split(64)])
    return Pairs(ids, chances.unflatten(0, (-1, 2)))


def preference_loss(model: nn.Module, ids: Tensor, base: Tensor) -> Tensor:
    """Return DPO's loss of pairs ``(pairs, 2, tokens)``, given the base's log-chances."""
    gain = log_chances(model, ids.flatten(0, 1)).unflatten(0, (-1, 2)) - base
    return -F.logsigmoid(_BETA * (gain[:, 0] - gain[:, 1])).mean()
