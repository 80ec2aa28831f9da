"""What a teacher makes of a text, computed once and read by many trainings."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from draftwire.export.training.loop import Plan, Reader
from draftwire.export.training.model import Transformer

__all__ = ["TeacherRows", "make_rows"]


@dataclass(frozen=True)
class TeacherRows:
    """Rows of text with the states of a teacher, in a folder.

    The head makes the teacher's logits of its last states exactly, and they are
    smaller than a useful number of logits.

    Attributes:
        folder: Holds ``ids.npy`` ``(rows, length + 1)``, ``anchor.npy`` and
            ``last.npy`` ``(rows, length, hidden)`` float16.
    """

    folder: Path

    def open(self) -> Reader:
        """Return a reader; each epoch is a shuffle of its own."""
        return _RowReader(self.folder)


class _RowReader:
    def __init__(self, folder: Path) -> None:
        self._arrays = [
            np.load(folder / f"{name}.npy", mmap_mode="r")
            for name in ("ids", "anchor", "last")
        ]

    def micro(self, plan: Plan, step: int, index: int) -> tuple[Tensor, ...]:
        ids = self._arrays[0]
        count = max(1, plan.micro // (ids.shape[1] - 1))
        first = (step * (plan.batch // plan.micro) + index) * count
        chosen = []
        for at in range(first, first + count):
            epoch, row = divmod(at, len(ids))
            chosen.append(_order(plan.seed, epoch, len(ids))[row])
        picked = np.sort(np.array(chosen))
        ids, anchor, last = (torch.from_numpy(a[picked]) for a in self._arrays)
        return ids.long(), anchor.float(), last.float()


_orders: dict[tuple[int, int, int], np.ndarray] = {}


def _order(seed: int, epoch: int, rows: int) -> np.ndarray:
    key = (seed, epoch, rows)
    if key not in _orders:
        _orders.clear() if len(_orders) > 8 else None
        _orders[key] = np.random.default_rng((seed, epoch)).permutation(rows)
    return _orders[key]


@torch.no_grad()
def make_rows(
    teacher: Transformer,
    streams: Sequence[np.ndarray],
    shares: Sequence[float],
    folder: Path,
    *,
    rows: int,
    length: int,
    anchor_layers: int,
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
        anchor_layers: After how many layers the residual stream is kept.
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
    shape = (rows, length, teacher.architecture.hidden)
    anchor, last = np.empty(shape, np.float16), np.empty(shape, np.float16)
    for at in range(0, rows, batch):
        text = torch.from_numpy(ids[at : at + batch, :-1].astype(np.int64))
        if anchor_layers:
            states, (kept,) = teacher.hidden(text, (anchor_layers,))
        else:
            states, kept = teacher.hidden(text)[0], teacher.embedding(text)
        anchor[at : at + batch], last[at : at + batch] = kept.half(), states.half()
    for name, array in (("ids", ids), ("anchor", anchor), ("last", last)):
        part = folder / f"{name}.part.npy"
        np.save(part, array)
        os.replace(part, folder / f"{name}.npy")
    return found
