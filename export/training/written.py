"""Text that the base writes itself: what a draft will foretell is the target's words."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from draftwire.export.training.loop import Plan, Stream
from draftwire.export.training.measure import extend
from draftwire.export.training.text import TrainingText
from draftwire.io import replacing

_ROWS = 64  # that the base writes at once
_PIECE = 32  # tokens of text that it goes on from


def let_base_write(
    base: Any,
    text: TrainingText,
    share: float,
    plan: Plan,
    folder: Path,
    *,
    again: int,
    say: Callable[[str], None],
) -> Stream:
    """Return a text of which the base, a model of transformers, writes a share itself,
    each row to be read ``again`` times; what ``folder`` holds is kept.

    It answers the prompts of the text, or goes on from pieces of it where there are none:
    three rows in four greedily, one sampled; every answer after the first to a prompt is
    sampled.
    """
    length = plan.length_at(0)
    parts = max(1, round(plan.steps * plan.batch * share / length / _ROWS / again))
    paths = [folder / f"written.{part}.npy" for part in range(parts)]
    whole = folder / "written.npy"
    say(f"the base writes {parts * _ROWS:,} rows of {length} tokens itself")
    for part, path in enumerate(paths):
        if whole.exists() or path.exists():
            continue
        rows = np.arange(part * _ROWS, (part + 1) * _ROWS)
        given = _prompts(text, plan, rows, length)
        sampled = (rows % 4 == 0) | (len(text.prompts) and rows >= len(text.prompts))
        said = _written(base, given, length + 1, sampled, seed=part)
        with replacing(path) as file:
            np.save(file, said.cpu().numpy().astype("u4"))
        say(f"the base has written part {part + 1} of {parts}")
    if not whole.exists():
        with replacing(whole) as file:
            np.save(file, np.concatenate([np.load(path) for path in paths]))
        for path in paths:
            path.unlink()
    total = sum(text.stream.shares)
    shares = [(1 - share) * x / total for x in text.stream.shares]
    return Stream((*text.stream.paths, whole), (*shares, share))


def _prompts(
    text: TrainingText, plan: Plan, rows: np.ndarray, length: int
) -> list[np.ndarray]:
    """Return the ids that each of so many rows begins with, the same at every call."""
    if not text.prompts:
        piece = Plan(1, micro=len(rows) * _PIECE, lengths=((1.0, _PIECE),), seed=plan.seed)
        ids = text.stream.micro(piece, 0, int(rows[0]) // _ROWS)[0]
        return [*ids[:, :-1].numpy()]
    number = len(text.prompts)
    # Those of one batch are about as long, so that none waits for another's prompt.
    by_length = sorted(range(number), key=lambda i: len(text.prompts[i]))
    order = np.random.default_rng(plan.seed).permutation(-(-number // _ROWS))
    batches = [by_length[at * _ROWS : (at + 1) * _ROWS] for at in order]
    picks = [pick for batch in batches for pick in batch]
    return [text.prompts[picks[row % number]][: length // 2] for row in rows]


@torch.no_grad()
def _written(
    base: Any, prompts: list[np.ndarray], length: int, sampled: Any, *, seed: int
) -> Tensor:
    """Return ``(rows, length)``: each prompt and what the base says behind it, sampled at
    temperature 1 where asked for, greedily elsewhere.
    """
    device, generator = base.device, torch.Generator().manual_seed(seed)
    out = torch.zeros((len(prompts), length), dtype=torch.int64)
    sizes = torch.tensor([len(prompt) for prompt in prompts])
    for row, prompt in enumerate(prompts):
        out[row, : len(prompt)] = torch.from_numpy(prompt.astype("i8"))
    chance = torch.from_numpy(np.broadcast_to(sampled, len(prompts)).copy())
    at, cache, new = 0, None, out[:, : int(sizes.min())]
    while (at := at + new.shape[1]) < length:
        logits, cache = extend(base, new.to(device), cache)
        said = logits.argmax(-1).cpu()
        if chance.any():
            probs = F.softmax(logits[chance.to(device)].float(), -1).cpu()
            said[chance] = torch.multinomial(probs, 1, generator=generator)[:, 0]
        own = sizes <= at
        out[own, at] = said[own]
        new = out[:, at : at + 1]
    return out
