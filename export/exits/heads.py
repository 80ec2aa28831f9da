"""Exits learn the target's last words, and when to keep silent.

Source:
    Distillation from the final logits, thresholds calibrated to an agreement rate: our
    reading of arXiv 2505.21594, whose own exits, losses and confidence rule are not
    published.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from draftwire.export.training.measure import continuations
from draftwire.packages.exits import torch_places

Ids = NDArray[np.int64]

_RATE = 3e-3
_WARMUP = 20  # steps
# Greedy agreement is what thresholds are about, so the target's first choice counts
# extra: at rank 256 the reference family's exits spoke at 5 % more positions with it.
_FIRST_CHOICE = 0.3
_MOST_LOGITS = 1 << 25  # numbers of one matrix of logits in memory


class Studied:
    """A target, a ``model`` of transformers, as its exits see it: its ``layers``, the width
    ``hidden`` of its state, its last ``norm``, the token ids that count, its longest
    sequence and what a text starts with. A ModelError where no exits can be put into it.
    """

    def __init__(
        self, model: Any, *, vocab_size: int, context: int, bos_id: int | None
    ) -> None:
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        self._model = model.to(self._device)
        layers, self.norm, self._head = torch_places(self._model)
        self.layers, self.hidden = len(layers), int(self._head.weight.shape[1])
        self.vocab_size, self.context, self._bos_id = vocab_size, context, bos_id

    @torch.no_grad()
    def states(self, ids: Ids, at: Sequence[int]) -> tuple[list[Tensor], Tensor]:
        """Run texts ``(B, S)``; return for each layer count in ``at`` its hidden states
        ``(B * S, hidden)``, and the logits ``(B * S, vocab)``.
        """
        text = torch.from_numpy(ids).to(self._device)
        found = self._model(text, output_hidden_states=True, use_cache=False)
        hidden = [found.hidden_states[layer].flatten(0, 1) for layer in at]
        return hidden, found.logits.flatten(0, 1)[:, : self.vocab_size]

    def head(self, x: Tensor) -> Tensor:
        """Return the frozen head's logits ``(n, vocab)`` for ``(n, hidden)``."""
        logits: Tensor = self._head(x)
        return logits[:, : self.vocab_size]

    def sample(self, rows: int, length: int, seed: int) -> Ids:
        """Return ``(rows, length)`` tokens that the target itself draws."""
        rng, size = torch.Generator().manual_seed(seed), self.vocab_size
        ids = torch.randint(size, (rows, 1), generator=rng)
        if self._bos_id is not None:
            ids[:] = self._bos_id
        how = {"count": length - 1, "sampled": True, "seed": seed, "vocab_size": size}
        said: Ids = continuations(self._model, ids, **how).cpu().numpy()
        return said


class ExitHead(nn.Module):
    """One exit: a norm, a residual of some rank, and the target's frozen head."""

    def __init__(self, model: Studied, rank: int) -> None:
        super().__init__()
        self.norm = copy.deepcopy(model.norm).requires_grad_(True)
        self.down = nn.Linear(model.hidden, rank, bias=False)
        self.up = nn.Linear(rank, model.hidden, bias=False)
        nn.init.normal_(self.down.weight, std=model.hidden**-0.5)
        nn.init.zeros_(self.up.weight)
        self._head = model.head

    def forward(self, hidden: Tensor) -> Tensor:
        """Return logits ``(n, vocab)`` for hidden states ``(n, hidden)``."""
        x = self.norm(hidden.float())
        logits: Tensor = self._head(x + self.up(F.silu(self.down(x))))
        return logits

    def parts(self, hidden: Tensor, logits: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield what it says and what the target says, so many rows at a time."""
        self.to(logits.device)
        rows = max(1, _MOST_LOGITS // logits.shape[1])
        for part, said in zip(hidden.split(rows), logits.split(rows), strict=True):
            yield self(part), said


def train_exits(
    model: Studied,
    layers: Sequence[int],
    batches: Iterable[Ids],
    *,
    rank: int,
    steps: int,
    seed: int,
    say: Callable[[str], None],
) -> list[ExitHead]:
    """Train the exits behind ``layers`` of a target that stays as it is, all on the same
    ``batches`` ``(B, S)`` of ids, as many as ``steps``. The weights come rounded to
    float16, as they are stored.
    """
    torch.manual_seed(seed)
    exits = [ExitHead(model, rank) for _ in layers]
    optimisers = [torch.optim.AdamW(e.parameters(), lr=0, weight_decay=0) for e in exits]
    means = [0.0] * len(exits)
    for step, ids in enumerate(batches):
        hidden, logits = model.states(ids, layers)
        rate = _RATE * min(1.0, (step + 1) / _WARMUP) * (1 - 0.95 * step / steps)
        for k, (exit_head, optimiser) in enumerate(zip(exits, optimisers, strict=True)):
            optimiser.param_groups[0]["lr"] = rate
            optimiser.zero_grad()
            loss = _step(exit_head, hidden[k], logits)
            optimiser.step()
            means[k] = loss if not step else means[k] * 0.95 + loss * 0.05
        if (step + 1) % max(1, steps // 20) == 0:
            losses = ", ".join(f"{m:.3f}" for m in means)
            say(f"step {step + 1}/{steps}: distance from the target {losses} nats")
    for exit_head in exits:
        exit_head.requires_grad_(False)
        for weight in exit_head.parameters():
            weight.copy_(weight.half().float())
    return exits


def _step(exit_head: ExitHead, hidden: Tensor, logits: Tensor) -> float:
    """Add up the gradients of one batch; return its mean divergence in nats."""
    total = 0.0
    for mine, said in exit_head.parts(hidden, logits):
        wanted, found = F.log_softmax(said.float(), -1), F.log_softmax(mine, -1)
        divergence = (wanted.exp() * (wanted - found)).sum()
        choice = F.nll_loss(found, wanted.argmax(-1), reduction="sum")
        ((divergence + _FIRST_CHOICE * choice) / len(hidden)).backward()
        total += float(divergence.detach())
    return total / len(hidden)


class Observed(NamedTuple):
    """What an exit says about a text, at each of ``n`` positions."""

    sure: NDArray[np.float32]  # ``(n,)`` probability of its most likely token
    right: NDArray[np.bool_]  # ``(n,)`` whether that is the target's own


@torch.no_grad()
def observe(
    model: Studied, layers: Sequence[int], exits: Sequence[ExitHead], ids: Ids
) -> list[Observed]:
    """Run texts ``(n, S)`` and return what each exit says."""
    said: list[list[tuple[Tensor, Tensor]]] = [[] for _ in exits]
    for first in range(0, len(ids), 8):
        hidden, logits = model.states(ids[first : first + 8], layers)
        for k, exit_head in enumerate(exits):
            for mine, theirs in exit_head.parts(hidden[k], logits):
                best = F.softmax(mine, -1).max(-1)
                same = best.indices == theirs.argmax(-1)
                said[k].append((best.values.cpu(), same.cpu()))
    return [
        Observed(*(torch.cat(column).numpy() for column in zip(*rows, strict=True)))
        for rows in said
    ]


def calibrate(observed: Sequence[Observed], agreement: float) -> float | None:
    """Return the least threshold at which an exit is right as often as ``agreement`` says.

    Of the positions where it speaks; each kind of text in ``observed`` counts the same.
    None where it would speak at fewer than one in a hundred.
    """
    sure, right = (np.concatenate(column) for column in zip(*observed, strict=True))
    weight = np.concatenate([np.full(len(h.sure), 1 / len(h.sure)) for h in observed])
    order = np.argsort(-sure, kind="stable")
    spoken = np.cumsum(weight[order])
    rates = np.cumsum((weight * right)[order]) / spoken
    enough = np.flatnonzero(rates >= agreement)
    if not len(enough) or spoken[enough[-1]] < 0.01 * len(observed):
        return None
    # Rounded up, so that what is written says no more than was measured.
    return min(1.0, round(float(np.ceil(float(sure[order[enough[-1]]]) * 1e4)) / 1e4, 4))


def judge(observed: Sequence[Observed], threshold: float) -> tuple[float | None, float]:
    """Return how often an exit is right where it speaks (None: it never does), and how
    often it speaks; each kind of text in ``observed`` counts the same.
    """
    speaks = [h.sure >= threshold for h in observed]
    share = float(np.mean([s.mean() for s in speaks]))
    hits = [(s & h.right).mean() for s, h in zip(speaks, observed, strict=True)]
    return (float(np.mean(hits)) / share if share else None), share
