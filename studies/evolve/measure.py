"""How well a draft foretells a target, on text that the target itself continues.

With the target's own text given no speculative loop is needed: a block of ``K`` drafts
is accepted up to the first position where the draft's choice is not the text's. At
temperature 1 both sides choose with the same Gumbel noise, as the coupled scheme does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from draftwire.export.training.measure import (
    block_runs,
    continuations,
    distinct_4,
    logits_of,
    rows_at,
)
from draftwire.runtime.pacing.suffix_cache import SuffixCache


@dataclass(frozen=True)
class Probe:
    """What is measured on."""

    prompts: int = 32  # prompts of a domain
    prompt_tokens: int = 40  # their length
    count: int = 72  # tokens that follow
    block: int = 4  # drafts of a block
    seed: int = 7  # of the prompts and of the noise


@dataclass(frozen=True)
class Spoken:
    """What a target says to its prompts."""

    greedy: Tensor  # ``(prompts, prompt_tokens + count)`` ids
    sampled: Tensor  # the same at temperature 1
    noise: Tensor  # ``(count, prompts, vocab)`` Gumbel noise of ``sampled``
    chances: Tensor  # ``(prompts, count, vocab)`` the target's probabilities of ``sampled``
    probe: Probe  # how it was asked

    def facts(self) -> dict[str, float]:
        """Return how much the texts repeat themselves: distinct 4-grams over all."""
        at = self.probe.prompt_tokens
        return {
            "distinct_4_greedy": round(distinct_4(self.greedy[:, at:]), 4),
            "distinct_4_sampled": round(distinct_4(self.sampled[:, at:]), 4),
        }


@torch.no_grad()
def speak(target: Any, stream: np.ndarray, probe: Probe) -> Spoken:
    """Let a target continue prompts from a held-out stream."""
    rng = np.random.default_rng(probe.seed)
    last = len(stream) - probe.prompt_tokens
    starts = rng.choice(last, probe.prompts, replace=last < probe.prompts)
    given = rows_at(stream, starts, probe.prompt_tokens)
    generator = torch.Generator().manual_seed(probe.seed)
    shape = (probe.count, probe.prompts, target.config.vocab_size)
    uniform = torch.rand(shape, generator=generator).clamp_min(1e-9)
    noise = -torch.log(-torch.log(uniform))
    sampled = continuations(target, given, count=probe.count, noise=noise)
    return Spoken(
        continuations(target, given, count=probe.count),
        sampled,
        noise,
        F.softmax(logits_of(target, sampled)[:, probe.prompt_tokens - 1 : -1].float(), -1),
        probe,
    )


@torch.no_grad()
def measure(draft: Any, spoken: Spoken, *, suffix: bool = False) -> dict[str, list[float]]:
    """Measure a draft on what a target says; with ``suffix`` a cache of prompt, accepted
    text and earlier sessions speaks first.

    Returns one value for each prompt: ``greedy`` mean accepted of a block, ``coupled`` the
    same at temperature 1, ``greedy_first`` and ``coupled_first`` the shares of blocks whose
    first draft is accepted, ``overlap`` the mean of ``sum min(p, q)`` at temperature 1 (for
    a token of the cache: the target's probability of it).
    """
    p, block = spoken.probe.prompt_tokens, spoken.probe.block
    at = slice(p - 1, -1)
    found: dict[str, list[float]] = {}
    rows: dict[str, Any] = {}
    rows["greedy"] = logits_of(draft, spoken.greedy)[:, at].argmax(-1)
    mine = F.log_softmax(logits_of(draft, spoken.sampled)[:, at].float(), -1)
    theirs = spoken.chances
    rows["coupled"] = (mine + spoken.noise.transpose(0, 1)).argmax(-1)
    overlap = torch.minimum(mine.exp(), theirs).sum(-1)
    for name, text in (("greedy", spoken.greedy), ("coupled", spoken.sampled)):
        choice = rows[name]
        if suffix:
            cached = torch.from_numpy(
                suffix_choices(text.numpy(), p, draft.config.vocab_size)
            )
            choice = torch.where(cached >= 0, cached, choice)
            if name == "coupled":
                chance = theirs.gather(-1, cached.clamp_min(0)[..., None])[..., 0]
                overlap = torch.where(cached >= 0, chance, overlap)
        agrees = (choice == text[:, p:]).numpy()
        runs = [np.array(block_runs(row, block)) for row in agrees]
        found[name] = [float(row.mean()) for row in runs]
        found[f"{name}_first"] = [float((row > 0).mean()) for row in runs]
    found["overlap"] = [float(x) for x in overlap.mean(-1)]
    return {k: [round(x, 4) for x in v] for k, v in found.items()}


def suffix_choices(texts: np.ndarray, prompt_tokens: int, vocab_size: int) -> np.ndarray:
    """Return what the device's suffix cache proposes at each position, ``(sessions,
    count)`` ids or -1, of texts ``(sessions, prompt + count)``.

    It knows the prompt, the text so far and all earlier rows, as earlier sessions.
    """
    cache = SuffixCache(vocab_size)
    found = np.full((texts.shape[0], texts.shape[1] - prompt_tokens), -1, np.int64)
    for number, row in enumerate(texts.tolist()):
        cache.begin(row[:prompt_tokens])
        for place in range(prompt_tokens, len(row)):
            recall = cache.propose(row[:place])
            if recall is not None:
                found[number, place - prompt_tokens] = recall.token
            cache.commit(row[place : place + 1])
    return found


@torch.no_grad()
def distance(
    base: Any, target: Any, stream: np.ndarray, *, length: int
) -> dict[str, float]:
    """Return how far a target has gone: losses on held-out text, and divergence."""
    size = min(length, len(stream) - 1)
    rows = max(1, min(12, (len(stream) - 1) // size))
    gap = (len(stream) - size - 1) // max(1, rows - 1)
    ids = rows_at(stream, [row * gap for row in range(rows)], size + 1)
    mine, theirs = (
        F.log_softmax(logits_of(m, ids[:, :-1]).float(), -1) for m in (target, base)
    )
    following = ids[:, 1:, None]
    return {
        "loss": round(-float(mine.gather(-1, following).mean()), 4),
        "base_loss": round(-float(theirs.gather(-1, following).mean()), 4),
        "kl_to_base": round(float((mine.exp() * (mine - theirs)).sum(-1).mean()), 4),
    }
