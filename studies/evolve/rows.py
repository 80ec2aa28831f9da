"""What a teacher makes of a text, computed once and read by many trainings."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from draftwire.export.training.loop import Plan


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
