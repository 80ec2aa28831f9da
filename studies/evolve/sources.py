"""What trainings of a study read beside text: a teacher's last states, and preferences.

A target that is taught a preference over its own samples (DPO, as RL after training)
continues each prompt several times at temperature 1; of these the one with the most
different tokens is preferred to the one with the fewest, so the target learns to repeat
itself less, and nothing but its own words is read.

Source:
    Rafailov et al. 2023, Direct Preference Optimization, https://arxiv.org/abs/2305.18290.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
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
class TeacherRows:
    """Rows of text with the last states of a teacher, in a folder.

    The head makes the teacher's logits of them exactly, and they are smaller than a
    useful number of logits.  Each epoch is a shuffle of its own.
    """

    # holds ``ids.npy`` ``(rows, length + 1)`` and ``last.npy`` ``(rows, length, hidden)``
    # float16
    folder: Path

    @cached_property
    def _arrays(self) -> list[Any]:
        return [np.load(self.folder / f"{n}.npy", mmap_mode="r") for n in ("ids", "last")]

    def micro(self, plan: Plan, step: int, index: int) -> tuple[Tensor, ...]:
        """Return ids and last states of a micro-batch."""
        size, width = self._arrays[0].shape
        count = max(1, plan.micro // (width - 1))
        first = (step * (plan.batch // plan.micro) + index) * count
        chosen = []
        for at in range(first, first + count):
            epoch, row = divmod(at, size)
            chosen.append(np.random.default_rng((plan.seed, epoch)).permutation(size)[row])
        ids, last = (torch.from_numpy(a[np.sort(chosen)]) for a in self._arrays)
        return ids.long(), last.float()


@torch.no_grad()
def make_rows(
    teacher: Any,
    streams: Sequence[np.ndarray],
    shares: Sequence[float],
    folder: Path,
    *,
    rows: int,
    length: int,
    seed: int,
    batch: int = 16,
) -> TeacherRows:
    """Let a teacher read rows of text, unless it has.

    Args:
        teacher: The model.
        streams: Token streams.
        shares: Their weights.
        folder: Where the rows go.
        rows: How many.
        length: Tokens of a row.
        seed: Of the choice of rows.
        batch: Rows at a time.
    """
    found = TeacherRows(folder)
    if (folder / "last.npy").exists():  # written last
        return found
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    weights = np.array(shares, np.float64) / sum(shares)
    ids = np.zeros((rows, length + 1), np.uint32)
    for row, source in enumerate(rng.choice(len(streams), rows, p=weights)):
        stream = streams[source]
        start = int(rng.integers(0, max(1, len(stream) - length - 1)))
        piece = stream[start : start + length + 1]
        ids[row, : len(piece)] = piece
    last = np.empty((rows, length, teacher.config.hidden_size), np.float16)
    for at in range(0, rows, batch):
        text = torch.from_numpy(ids[at : at + batch, :-1].astype(np.int64))
        last[at : at + batch] = teacher.base_model(text).last_hidden_state.half()
    for name, array in (("ids", ids), ("last", last)):
        part = folder / f"{name}.part.npy"
        np.save(part, array)
        os.replace(part, folder / f"{name}.npy")
    return found


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
        continuations(base, part, count=_COUNT, sampled=True, seed=seed + number)
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
