"""Parallel drafts: one forward drafts a block, by mask tokens behind the text.

A mask token behind a text foretells the token after the next one, a second behind it one
more, and so on; they see the text and each other, in order, as any tokens do. So the
draft stays a plain causal model with a few more rows in its embedding.

Source:
    PARD (mask tokens, conditional dropping of tokens), https://arxiv.org/abs/2504.18583.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from draftwire.errors import ConfigError
from draftwire.export.training.base import Base
from draftwire.export.training.distil import distil_loss
from draftwire.export.training.loop import Plan, Stream
from draftwire.export.training.measure import accepted_per_block, beginnings, continuations

# Of all positions that masks could follow: the share where a second token is foretold,
# where a third ... halved each time, and no less than the second number.
_KEPT, _LEAST = 0.5, 0.15
_FADE = 0.85  # weight of a mask's loss, of that of the mask before it
# Weight of masks' cross-entropy with the text; of greedy text it would sharpen the rest.
_HARD = 0.1
_REAL = 2.0  # weight of the loss of the text's own tokens, beside 1 for the first mask


def masks_behind(length: int, masks: int, rng: np.random.Generator) -> tuple[Tensor, ...]:
    """Return, for each mask token of a row: the position of the text's token that it is
    behind, and how many masks are between.

    Masks that foretell far are dropped more often (conditional dropping): a mask is there
    only with all masks before it.
    """
    anchors = rng.permutation(length - masks)
    kept = [
        max(1, round(len(anchors) * max(_KEPT**n, _LEAST))) for n in range(1, masks + 1)
    ]
    behind = np.concatenate([anchors[:n] for n in kept])
    return torch.from_numpy(behind), torch.from_numpy(np.repeat(np.arange(masks), kept))


@dataclass(frozen=True)
class Masked:
    """Text with mask tokens; (plan, step, index) decide them."""

    text: Stream
    masks: int

    def micro(self, plan: Plan, step: int, index: int) -> tuple[Tensor, ...]:
        """Return ids ``(rows, length + 1)``, and :func:`masks_behind`."""
        (ids,) = self.text.micro(plan, step, index)
        rng = np.random.default_rng((plan.seed, step, index, self.masks))
        return ids, *masks_behind(ids.shape[1] - 1, self.masks, rng)


class ParallelTrainer(nn.Module):
    """A base, the teacher, and a draft with mask tokens, with the loss of both kinds.

    One forward drafts ``block`` tokens with ``block - 1`` masks, which start as ``masks``
    ``(block - 1 or 1, hidden)`` or as noise; ``shared``: one mask for all places;
    ``masks_only``: train nothing else.
    """

    def __init__(
        self,
        base: Any,
        draft: Any,
        block: int,
        *,
        shared: bool = False,
        masks_only: bool = False,
        masks: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.base, self.draft, self.block = base, draft, block
        self._real = 0.0 if masks_only else _REAL
        if masks_only:
            draft.requires_grad_(False)
        table = draft.get_input_embeddings().weight.detach()
        # A quantised embedding may have one scale for all rows: masks must not widen it.
        self._bound = float(table.abs().max())
        size = 1 if shared else block - 1, table.shape[1]
        noise = torch.randn(size, generator=torch.Generator().manual_seed(block))
        first = table.mean(0) + 0.5 * table.std() * noise
        if masks is not None and masks.shape == first.shape:
            near = (masks / self._bound).clamp(-0.999, 0.999)
            first = self._bound * torch.atanh(near)
        self.mask_embed = nn.Parameter(first)

    def masks(self) -> Tensor:
        """Return the embeddings ``(block - 1 or 1, hidden)`` of the mask tokens."""
        return self._bound * torch.tanh(self.mask_embed / self._bound)

    def forward(self, ids: Tensor, behind: Tensor, number: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits of the text ``(rows, length, vocab)`` and of masks ``(rows, masks,
        vocab)``.
        """
        rows, length = ids.shape
        real = self.draft(ids, use_cache=True)
        marks = self.masks()
        marks = marks[number] if len(marks) > 1 else marks.expand(len(number), -1)
        scale = getattr(self.draft.get_input_embeddings(), "embed_scale", 1.0)
        place = torch.arange(length, device=ids.device)
        text = place[None] <= behind[:, None]
        own = (behind[None] == behind[:, None]) & (number[None] <= number[:, None])
        sees = torch.cat([text, own], 1)
        mask = torch.zeros(sees.shape, device=ids.device, dtype=real.logits.dtype)
        mask = mask.masked_fill(~sees, torch.finfo(mask.dtype).min)
        said = self.draft(
            inputs_embeds=(marks * scale).expand(rows, -1, -1),
            position_ids=(behind + 1 + number)[None].expand(rows, -1),
            attention_mask=mask[None, None].expand(rows, 1, -1, -1),
            past_key_values=real.past_key_values,
            use_cache=True,
        )
        return real.logits, said.logits

    def loss(
        self, ids: Tensor, behind: Tensor | None = None, number: Tensor | None = None
    ) -> Tensor:
        """Return the mean loss on ``ids`` ``(rows, length + 1)`` in nats per token: of the
        text's tokens, and of masks less the farther they foretell.
        """
        text, following = ids[:, :-1], ids[:, 1:]
        if behind is None or number is None:
            length, rng = text.shape[1], np.random.default_rng(0)
            behind, number = (
                t.to(ids.device) for t in masks_behind(length, self.block - 1, rng)
            )
        with torch.no_grad():
            teacher = self.base(text, use_cache=False).logits
        mine, said = self(text, behind, number)
        at = behind + 1 + number
        marks = F.log_softmax(said.float(), -1)
        theirs = F.log_softmax(teacher[:, at].float(), -1)
        each = F.kl_div(marks, theirs, log_target=True, reduction="none").sum(-1)
        right = marks.gather(-1, following[:, at][..., None])[..., 0]
        each = (each - _HARD * right).mean(0)
        share = _FADE**number / torch.bincount(number)[number]
        total, weight = (share * each).sum(), share.sum()
        if self._real:
            total = total + self._real * distil_loss(mine, teacher)
            weight = weight + self._real
        return total / weight

    @torch.no_grad()
    def agrees(self, text: Tensor, at: int, noise: Tensor | None = None) -> np.ndarray:
        """Return ``(rows, starts, block)``: of a block begun at each of the places from
        ``at`` on, which drafts are the text's tokens.

        ``noise`` ``(length - at, rows, vocab)``: what the text was sampled with.
        """
        rows, length = text.shape
        starts = torch.arange(at - 1, length - self.block, device=text.device)
        masks = torch.arange(self.block - 1, device=text.device)
        behind, number = starts.repeat_interleave(len(masks)), masks.repeat(len(starts))
        found = []
        for row in range(rows):  # a batch of long ones would take memory for nothing
            real, marks = self(text[row : row + 1], behind, number)
            first = real[0, starts][:, None]
            rest = marks[0].view(len(starts), len(masks), -1)
            said = F.log_softmax(torch.cat([first, rest], 1).float(), -1)
            ahead = starts[:, None] + 1 + torch.arange(self.block, device=text.device)
            if noise is not None:
                said = said + noise[ahead - at, row]
            found.append((said.argmax(-1) == text[row][ahead]).cpu().numpy())
        return np.stack(found)

    def finished(self, accepted: Sequence[float] = ()) -> Any:
        """Return the draft with its masks as the embedding's last rows; its config says so,
        and what :func:`chances` says.
        """
        marks, table = self.masks().detach(), self.draft.get_input_embeddings()
        size = len(table.weight)
        trained = {n: p.requires_grad for n, p in self.draft.named_parameters()}
        self.draft.resize_token_embeddings(size + len(marks), mean_resizing=False)
        # A head of its own never says a mask; a tied one is the embedding.
        self.draft.get_output_embeddings().weight.data[size:] = 0.0
        self.draft.get_input_embeddings().weight.data[size:] = marks
        for name, weight in self.draft.named_parameters():
            weight.requires_grad_(trained.get(name, False))
        self.draft.config.parallel = {
            "mask_ids": [*range(size, size + len(marks))],
            "block": self.block,
            "acceptance_by_position": [*accepted],
        }
        return self.draft


def ways(agrees: np.ndarray) -> dict[str, np.ndarray]:
    """Return what ``(rows, starts, block)`` of a parallel draft says of the ways to draft a
    block: all at once; the first token, then the rest at once; one by one.
    """
    ahead, block = agrees[:, 1:], agrees.shape[2]
    one = np.lib.stride_tricks.sliding_window_view(agrees[:, :, 0], block, axis=1)
    return {
        "parallel": agrees,
        "hybrid": np.concatenate([agrees[:, :-1, :1], ahead[:, :, :-1]], 2),
        "autoregressive": one,
    }


@torch.no_grad()
def foretells(
    trainer: ParallelTrainer,
    held: np.ndarray,
    *,
    prompts: int,
    prompt_tokens: int = 48,
    count: int = 96,
    seed: int = 1,
) -> dict[str, dict[str, Any]]:
    """Measure a parallel draft on what its base says to held-out prompts.

    Returns for ``greedy`` and ``sampled`` (T = 1, both with the same Gumbel noise), by
    position in a block drafted at once: ``right``, the share of right drafts, and
    ``reached``, that of blocks right so far; ``accepted``, of a block by each of
    :func:`ways`; ``accepted_of_4``, the same of blocks of at most four.
    """
    given = beginnings(held, prompts, prompt_tokens, seed=seed).to(trainer.base.device)
    prompts, prompt_tokens = given.shape
    size = trainer.base.config.get_text_config().vocab_size
    generator = torch.Generator().manual_seed(seed)
    uniform = torch.rand((count, prompts, size), generator=generator)
    gumbel = -torch.log(-torch.log(uniform.clamp_min(1e-9))).to(given.device)
    found: dict[str, dict[str, Any]] = {}
    for name, noise in (("greedy", None), ("sampled", gumbel)):
        text = continuations(trainer.base, given, count=count, noise=noise)
        agrees = trainer.agrees(text, prompt_tokens, noise)
        right = [round(float(x), 4) for x in agrees.mean((0, 1))]
        reached = [round(float(x), 4) for x in np.cumprod(agrees, 2).mean((0, 1))]
        found[name] = {"right": right, "reached": reached}
        for key, block in (("accepted", trainer.block), ("accepted_of_4", 4)):
            found[name][key] = {
                way: round(accepted_per_block(rows, block), 3)
                for way, rows in ways(agrees).items()
            }
    return found


def chances(found: Iterable[Mapping[str, Any]]) -> list[float]:
    """Return the chance of each position of a greedy block, given that all before it are
    right, over what :func:`foretells` said of several texts.
    """
    reached = np.mean([row["greedy"]["reached"] for row in found], 0)
    before = np.concatenate([[1.0], reached[:-1]])
    return [round(float(x), 4) for x in reached / np.maximum(before, 1e-9)]


def check_parallel(base: Base, block: int, length: int) -> None:
    """Refuse (ConfigError) a base or rows that masks do not go with."""
    a = base.architecture
    if any(a.convs):
        raise ConfigError(
            f"{base.name} convolves: its layers would mix mask tokens into the text",
            hint="leave --parallel out",
        )
    if any(0 < window < length for window in a.windows):
        window = min(w for w in a.windows if w)
        raise ConfigError(
            f"layers of {base.name} look back on {window} tokens, rows are {length} long",
            hint=f"--length {window}",
        )
    if length < 2 * block:
        raise ConfigError(
            f"rows of {length} tokens are too short to learn blocks of {block} from",
            hint=f"--length {2 * block} or more",
        )
