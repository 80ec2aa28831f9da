"""How good a model is, and how well a draft foretells a target.

Acceptance needs no speculative loop: with the target's own text given, a block of ``K``
drafts is accepted up to the first position where the draft's choice is not the text's.
"""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from draftwire.export.training.model import Transformer

__all__ = ["acceptance", "accepted_per_block", "continuations", "validation_loss"]


@torch.no_grad()
def validation_loss(model: Transformer, stream: np.ndarray, *, length: int = 512) -> float:
    """Return the mean cross-entropy in nats per token on a held-out stream."""
    rows = min(24, (len(stream) - 1) // length)
    if rows < 1:
        length, rows = len(stream) - 1, 1
    total, count = 0.0, 0
    for row in range(rows):
        at = row * ((len(stream) - length - 1) // max(1, rows - 1)) if rows > 1 else 0
        ids = torch.from_numpy(stream[at : at + length + 1].astype(np.int64))[None]
        logits = model(ids[:, :-1])[0].float()
        total += float(F.cross_entropy(logits, ids[0, 1:], reduction="sum"))
        count += length
    return total / count


@torch.no_grad()
def continuations(
    model: Transformer, prompts: Tensor, *, count: int, temperature: float, seed: int
) -> Tensor:
    """Return ``prompts`` ``(n, p)`` continued by ``count`` tokens each, ``(n, p + count)``.

    Args:
        model: The target.
        prompts: Token ids.
        count: Tokens to add.
        temperature: 0 is greedy.
        seed: Of the sampling.
    """
    generator = torch.Generator().manual_seed(seed)
    pieces, cache, given = [prompts], None, prompts
    for _ in range(count):
        logits, cache = model.extend(given, cache)
        if temperature == 0:
            given = logits.argmax(-1, keepdim=True)
        else:
            probs = F.softmax(logits.float() / temperature, -1).cpu()
            given = torch.multinomial(probs, 1, generator=generator).to(prompts.device)
        pieces.append(given)
    return torch.cat(pieces, 1)


def accepted_per_block(agrees: np.ndarray, block: int) -> float:
    """Return the mean accepted drafts per block.

    Args:
        agrees: ``(n, count)`` bool: whether the draft's choice is the target's.
        block: Drafts per block.
    """
    accepted = blocks = 0
    for row in agrees:
        at = 0
        while at + block < len(row):
            run = 0
            while run < block and row[at + run]:
                run += 1
            accepted, blocks, at = accepted + run, blocks + 1, at + run + 1
    return accepted / max(1, blocks)


@torch.no_grad()
def acceptance(
    target: Transformer,
    draft: Transformer,
    stream: np.ndarray,
    *,
    prompts: int = 24,
    prompt_tokens: int = 48,
    count: int = 64,
    block: int = 4,
    seed: int = 1,
) -> dict[str, float]:
    """Measure ``draft`` against ``target`` on continuations of held-out text.

    Returns:
        ``greedy_per_block``: mean accepted of ``block`` drafts, greedy.
        ``greedy``: share of drafts that agree, greedy.
        ``overlap``: mean of ``sum min(p, q)`` at temperature 1, the acceptance that
        rejection sampling would have.
        ``distinct_4``: share of distinct 4-grams of the greedy text; low means that it
        loops, which flatters greedy acceptance.
    """
    rng = np.random.default_rng(seed)
    starts = rng.integers(0, max(1, len(stream) - prompt_tokens), prompts)
    rows = np.stack([stream[s : s + prompt_tokens] for s in starts]).astype(np.int64)
    given = torch.from_numpy(rows).to(target.embedding.weight.device)
    text = continuations(target, given, count=count, temperature=0, seed=seed)
    at = slice(prompt_tokens - 1, -1)
    agrees = (draft(text)[:, at].argmax(-1) == text[:, prompt_tokens:]).cpu().numpy()
    sampled = continuations(target, given, count=count, temperature=1, seed=seed)
    p = F.softmax(target(sampled)[:, at].float(), -1)
    q = F.softmax(draft(sampled)[:, at].float(), -1)
    grams = [
        tuple(row[i : i + 4])
        for row in text[:, prompt_tokens:].tolist()
        for i in range(len(row) - 3)
    ]
    found = {
        "greedy_per_block": accepted_per_block(agrees, block),
        "greedy": float(agrees.mean()),
        "overlap": float(torch.minimum(p, q).sum(-1).mean()),
        "distinct_4": len(set(grams)) / len(grams),
    }
    assert all(math.isfinite(v) for v in found.values())
    return {k: round(v, 4) for k, v in found.items()}
