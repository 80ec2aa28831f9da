"""How good a model is, and how well a draft foretells a target.

Acceptance needs no speculative loop: with the target's own text given, a block of ``K``
drafts is accepted up to the first position where the draft's choice is not the text's.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn


def logits_of(model: Any, ids: Tensor) -> Tensor:
    """Return logits ``(batch, length, vocab)`` for ``ids`` ``(batch, length)``."""
    found: Tensor = model(ids, use_cache=False).logits
    return found


def extend(model: Any, ids: Tensor, cache: Any = None) -> tuple[Tensor, Any]:
    """Return the logits ``(batch, vocab)`` after the last of ``ids``, and the cache."""
    found = model(ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
    return found.logits[:, -1], found.past_key_values


def text_loss(model: nn.Module, ids: Tensor) -> Tensor:
    """Return the mean cross-entropy on ``ids`` ``(rows, length + 1)``."""
    logits = logits_of(model, ids[:, :-1]).float()
    return F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].reshape(-1))


def rows_at(stream: np.ndarray, starts: Any, length: int) -> Tensor:
    """Return ``(n, length)`` pieces of a token stream."""
    return torch.from_numpy(np.stack([stream[s : s + length] for s in starts]).astype("i8"))


def beginnings(held: np.ndarray, prompts: int, tokens: int, *, seed: int) -> Tensor:
    """Return ``(prompts, tokens)`` that held-out text is continued from: pieces of a stream
    ``(length,)``, or the ends of so many prompts of ``(n, length)``, at most all of them.
    """
    rng = np.random.default_rng(seed)
    if held.ndim == 2:
        picks = rng.permutation(len(held))[:prompts]
        return torch.from_numpy(held[picks, -tokens:].astype("i8"))
    starts = rng.integers(0, max(1, len(held) - tokens), prompts)
    return rows_at(held, starts, tokens)


@torch.no_grad()
def validation_loss(model: nn.Module, stream: np.ndarray, *, length: int = 512) -> float:
    """Return the mean cross-entropy in nats per token on a held-out stream."""
    rows = min(24, (len(stream) - 1) // length)
    if rows < 1:
        length, rows = len(stream) - 1, 1
    gap = (len(stream) - length - 1) // max(1, rows - 1)
    starts = [row * gap for row in range(rows)]
    losses = [float(text_loss(model, rows_at(stream, [s], length + 1))) for s in starts]
    return sum(losses) / rows


@torch.no_grad()
def continuations(
    model: Any,
    prompts: Iterable[Tensor],
    *,
    count: int,
    sampled: Any = False,
    seed: int = 0,
    noise: Tensor | None = None,
    vocab_size: int | None = None,
) -> Tensor:
    """Return prompts ``(p,)`` continued until the shortest has ``count`` tokens more, ``(n,
    p + count)``: greedily, or at temperature 1 where ``sampled``, ``(n,)`` or all alike.

    With Gumbel ``noise`` ``(count, n, vocab)``: sampled at temperature 1 with that. With
    ``vocab_size`` no token beyond it is said.
    """
    device, generator = model.device, torch.Generator().manual_seed(seed)
    begun = [*prompts]
    sizes = torch.tensor([len(prompt) for prompt in begun])
    first = int(sizes.min())
    out = torch.zeros((len(begun), first + count), dtype=torch.int64)
    for row, prompt in zip(out, begun, strict=True):
        row[: len(prompt)] = prompt
    chance = torch.as_tensor(sampled, dtype=torch.bool).expand(len(out))
    at, cache, new = 0, None, out[:, :first]
    while (at := at + new.shape[1]) < out.shape[1]:
        logits, cache = extend(model, new.to(device), cache)
        logits = logits[:, :vocab_size].float()
        if noise is not None:
            logits = F.log_softmax(logits, -1) + noise[at - first]
        said = logits.argmax(-1).cpu()
        if chance.any():
            shares = F.softmax(logits[chance.to(device)], -1).cpu()
            said[chance] = torch.multinomial(shares, 1, generator=generator)[:, 0]
        own = sizes <= at
        out[own, at] = said[own]
        new = out[:, at : at + 1]
    return out.to(device)


def block_runs(row: np.ndarray, block: int) -> list[int]:
    """Return the drafts accepted of each block; ``(count,)`` says which agree, or
    ``(starts, block)`` of a block begun at each of the places.
    """
    if row.ndim == 1:
        starts = np.arange(max(0, len(row) - block))
        row = row[starts[:, None] + np.arange(block)]
    right, runs, at = np.cumprod(row[:, :block], 1).sum(1), [], 0
    while at < len(right):
        runs.append(int(right[at]))
        at += runs[-1] + 1
    return runs


def accepted_per_block(agrees: np.ndarray, block: int) -> float:
    """Return the mean accepted drafts per block, over rows of :func:`block_runs`."""
    runs = [run for row in agrees for run in block_runs(row, block)]
    return sum(runs) / max(1, len(runs))


def repeated(texts: Tensor, at: int) -> np.ndarray:
    """Return ``(n, length - at)``: which tokens from ``at`` on are those that came after
    the last two tokens, or else the last one, when they were seen before.

    That is what a device can draft with no model at all.
    """
    rows = []
    for row in texts.tolist():
        after: dict[tuple[int, ...], int] = {}
        found = []
        for place, token in enumerate(row):
            keys = [tuple(row[max(0, place - n) : place]) for n in (2, 1)]
            found.append(token == next((after[k] for k in keys if k in after), None))
            after.update(dict.fromkeys(keys, token))
        rows.append(found[at:])
    return np.array(rows)


def distinct_4(texts: Tensor) -> float:
    """Return the share of distinct 4-grams; low where a text loops."""
    grams = [tuple(row[i : i + 4]) for row in texts.tolist() for i in range(len(row) - 3)]
    return len(set(grams)) / max(1, len(grams))


@torch.no_grad()
def acceptance(
    target: Any,
    draft: Any,
    held: np.ndarray,
    *,
    prompts: int = 24,
    prompt_tokens: int = 48,
    count: int = 64,
    block: int = 4,
    seed: int = 1,
) -> dict[str, float]:
    """Measure ``draft`` against ``target`` on continuations of :func:`beginnings`.

    Returns ``greedy_per_block``: mean accepted of ``block`` drafts; ``greedy``: their
    share; ``overlap``: mean of ``sum min(p, q)`` at temperature 1, the acceptance that
    rejection sampling would have; ``distinct_4``: share of distinct 4-grams of the greedy
    text; low means that it loops, which flatters greedy acceptance.
    """
    given = beginnings(held, prompts, prompt_tokens, seed=seed).to(target.device)
    prompt_tokens = given.shape[1]
    text = continuations(target, given, count=count)
    at = slice(prompt_tokens - 1, -1)
    choice = logits_of(draft, text)[:, at].argmax(-1)
    agrees = (choice == text[:, prompt_tokens:]).cpu().numpy()
    sampled = continuations(target, given, count=count, sampled=True, seed=seed)
    p, q = (F.softmax(logits_of(m, sampled)[:, at].float(), -1) for m in (target, draft))
    found = {
        "greedy_per_block": accepted_per_block(agrees, block),
        "greedy": float(agrees.mean()),
        "overlap": float(torch.minimum(p, q).sum(-1).mean()),
        "distinct_4": distinct_4(text[:, prompt_tokens:]),
    }
    return {name: round(value, 4) for name, value in found.items()}
