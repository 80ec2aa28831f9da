"""The frozen draft: the base's embeddings, first layers and head around a trained part.

The anchor layers, the embeddings and the head are copies of the base's and never
trained; the blocks between them start as copies of the base's last blocks and learn to
stand for everything that is left out.

Source:
    FlexSpec (shared-backbone draft, feature regression and distillation),
    https://arxiv.org/abs/2601.00644.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from draftwire.errors import ConfigError
from draftwire.export.training.model import Transformer

__all__ = ["DraftTrainer", "Weights", "distil_loss", "make_draft"]


@dataclass(frozen=True)
class Weights:
    """Of the parts of the loss beside the divergence from the teacher.

    Attributes:
        hard: Cross-entropy with the text itself.
        feature: Regression on the teacher's last states.
    """

    hard: float = 0.1
    feature: float = 0.1


def make_draft(
    base: Transformer, *, anchor_layers: int, trained_layers: int
) -> Transformer:
    """Return an untrained draft of ``base``, everything but its middle frozen.

    Args:
        base: The base target.
        anchor_layers: Leading blocks copied and frozen.
        trained_layers: Blocks to train; they start as the base's last ones.

    Raises:
        ConfigError: The base has too few layers for that.
    """
    depth = base.architecture.layers
    layers = anchor_layers + trained_layers
    if anchor_layers < 0 or trained_layers < 1 or layers > depth:
        raise ConfigError(
            f"a draft of {anchor_layers} anchor and {trained_layers} trained layers does "
            f"not come out of a base of {depth} layers",
            hint=f"choose 0 or more and 1 or more, together at most {depth}",
        )
    draft = Transformer(replace(base.architecture, layers=layers), biased=base.biased)
    draft.embedding.load_state_dict(base.embedding.state_dict())
    if not base.architecture.tied:
        with torch.no_grad():
            draft.head_weight.copy_(base.head_weight)
    draft.final_norm.load_state_dict(base.final_norm.state_dict())
    for number, block in enumerate(draft.layers):
        source = number
        if number >= anchor_layers:
            source = depth - trained_layers + number - anchor_layers
        block.load_state_dict(base.layers[source].state_dict())
    draft.requires_grad_(False)
    for block in draft.layers[anchor_layers:]:
        block.requires_grad_(True)
    draft.final_norm.requires_grad_(True)
    return draft


def distil_loss(
    student: Tensor,
    teacher: Tensor,
    following: Tensor,
    weights: Weights,
    states: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """Return the mean loss per token of a student beside its teacher.

    Args:
        student: ``(..., vocab)`` logits.
        teacher: ``(..., vocab)`` logits.
        following: ``(...)`` ids of the text itself.
        weights: Of the parts.
        states: ``(..., hidden)`` last states of both, or None for no regression.
    """
    mine = F.log_softmax(student.float(), -1).flatten(0, -2)
    theirs = F.log_softmax(teacher.float(), -1).flatten(0, -2)
    loss = F.kl_div(mine, theirs, log_target=True, reduction="batchmean")
    if weights.hard:
        loss = loss + weights.hard * F.nll_loss(mine, following.reshape(-1))
    if states is not None and weights.feature:
        near, far = (s.float() for s in states)
        loss = loss + weights.feature * F.smooth_l1_loss(near, far)
    return loss


class DraftTrainer(nn.Module):
    """Base and draft together, with the distillation loss.

    The anchor runs once for both.

    Args:
        base: The teacher, frozen.
        draft: From :func:`make_draft`.
        anchor_layers: As there.
        weights: Of the parts of the loss.
    """

    def __init__(
        self,
        base: Transformer,
        draft: Transformer,
        *,
        anchor_layers: int,
        weights: Weights | None = None,
    ) -> None:
        super().__init__()
        base.requires_grad_(False)
        self.base, self.draft = base, draft
        self._anchor, self._weights = anchor_layers, weights or Weights()

    def loss(self, ids: Tensor) -> Tensor:
        """Return the mean loss on ``ids`` ``(rows, length + 1)``."""
        text, following = ids[:, :-1], ids[:, 1:]
        with torch.no_grad():
            if self._anchor:
                teacher_states, (x,) = self.base.hidden(text, (self._anchor,))
            else:
                teacher_states, x = self.base.hidden(text)[0], self.base.embedding(text)
            teacher = self.base.logits(teacher_states)
        return self.loss_from(x, teacher_states, teacher, following)

    def loss_from(
        self, x: Tensor, teacher_states: Tensor, teacher: Tensor, following: Tensor
    ) -> Tensor:
        """Return the mean loss, given what the base made of the text.

        Args:
            x: ``(rows, length, hidden)`` residual stream after the anchor.
            teacher_states: ``(rows, length, hidden)`` final states.
            teacher: ``(rows, length, vocab)`` logits.
            following: ``(rows, length)`` the next token at each position.
        """
        cos, sin = self.draft.rope(0, x.shape[1])
        x = x.to(self.draft.embedding.weight.dtype)
        for block in self.draft.layers[self._anchor :]:
            x = block(x, cos, sin)
        states = self.draft.final_norm(x)
        return distil_loss(
            self.draft.logits(states),
            teacher,
            following,
            self._weights,
            (states, teacher_states),
        )
