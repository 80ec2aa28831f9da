"""The frozen draft: the base's embeddings, first layers and head around a trained part.

The anchor layers, the embeddings and the head are copies of the base's and never
trained; the layers between them start as copies of the base's last ones and learn to
stand for everything that is left out.

Source:
    FlexSpec (shared-backbone draft, feature regression and distillation),
    https://arxiv.org/abs/2601.00644.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from draftwire.errors import ConfigError
from draftwire.export.training.base import cut
from draftwire.export.training.measure import logits_of
from draftwire.packages.exits import torch_stack

# Of the parts of the loss beside the divergence from the teacher: cross-entropy with the
# text itself, regression on the teacher's last states.
_HARD, _FEATURE = 0.1, 0.1


def make_draft(base: Any, *, anchor_layers: int, trained_layers: int) -> Any:
    """Return an untrained draft: the first ``anchor_layers`` of ``base``, frozen, and its
    last ``trained_layers``, to be trained; a ConfigError where it has too few.
    """
    depth = len(torch_stack(base)[0])
    if anchor_layers < 0 or trained_layers < 1 or anchor_layers + trained_layers > depth:
        raise ConfigError(
            f"a draft of {anchor_layers} anchor and {trained_layers} trained layers does "
            f"not come out of a base of {depth} layers",
            hint=f"choose 0 or more and 1 or more, together at most {depth}",
        )
    draft = cut(base, [*range(anchor_layers), *range(depth - trained_layers, depth)])
    layers, norm, _ = torch_stack(draft)
    layers[anchor_layers:].requires_grad_(True)
    norm.requires_grad_(True)
    return draft


def distil_loss(
    student: Tensor,
    teacher: Tensor,
    following: Tensor | None = None,
    states: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """Return the mean loss per token of a student's logits ``(..., vocab)`` beside its
    teacher's.

    ``following`` are ``(...)`` ids of the text itself, ``states`` ``(..., hidden)`` the
    last ones of both; None leaves that part out.
    """
    mine = F.log_softmax(student.float(), -1).flatten(0, -2)
    theirs = F.log_softmax(teacher.float(), -1).flatten(0, -2)
    loss = F.kl_div(mine, theirs, log_target=True, reduction="batchmean")
    if following is not None:
        loss = loss + _HARD * F.nll_loss(mine, following.reshape(-1))
    if states is not None:
        near, far = (s.float() for s in states)
        loss = loss + _FEATURE * F.smooth_l1_loss(near, far)
    return loss


class DraftTrainer(nn.Module):
    """A base, the teacher, and a draft of :func:`make_draft`, with the loss."""

    def __init__(self, base: Any, draft: Any) -> None:
        super().__init__()
        self.base, self.draft = base, draft

    def loss(self, ids: Tensor) -> Tensor:
        """Return the mean loss on ``ids`` ``(rows, length + 1)``."""
        with torch.no_grad():
            said = self.base(ids[:, :-1], output_hidden_states=True, use_cache=False)
        return self.loss_from(ids, said.hidden_states[-1], said.logits)

    @torch.no_grad()
    def agrees(self, text: Tensor, at: int) -> np.ndarray:
        """Return ``(rows, length - at)``: which tokens from ``at`` on it foretells."""
        choice = logits_of(self.draft, text)[:, at - 1 : -1].argmax(-1)
        return np.asarray((choice == text[:, at:]).cpu())

    def loss_from(self, ids: Tensor, states: Tensor, logits: Tensor) -> Tensor:
        """Return the mean loss of ``ids`` ``(rows, length + 1)``, given the base's final
        states ``(rows, length, hidden)`` and logits ``(rows, length, vocab)``.
        """
        mine = self.draft(ids[:, :-1], output_hidden_states=True, use_cache=False)
        both = mine.hidden_states[-1], states
        return distil_loss(mine.logits, logits, ids[:, 1:], both)
