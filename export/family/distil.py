"""The frozen draft: the base's embeddings, first layers and head around a trained part.

The anchor layers, the embeddings and the head are copies of the base's and never
trained; the blocks between them start as copies of the base's last blocks and learn to
stand for everything that is left out.

Source:
    FlexSpec (shared-backbone draft, feature regression and distillation),
    https://arxiv.org/abs/2601.00644.
"""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from draftwire.export.family.model import Llama

__all__ = ["DraftTrainer", "make_draft"]


def make_draft(base: Llama, *, anchor_layers: int, trained_layers: int) -> Llama:
    """Return an untrained draft of ``base``, everything but its middle frozen.

    Args:
        base: The base target.
        anchor_layers: Leading blocks copied and frozen.
        trained_layers: Blocks to train; they start as the base's last ones.
    """
    depth = base.config.num_hidden_layers
    if anchor_layers + trained_layers > depth:
        raise ValueError(f"{anchor_layers} + {trained_layers} layers of {depth}")
    draft = Llama(replace(base.config, num_hidden_layers=anchor_layers + trained_layers))
    draft.model.embed_tokens.load_state_dict(base.model.embed_tokens.state_dict())
    draft.model.norm.load_state_dict(base.model.norm.state_dict())
    for number, block in enumerate(draft.model.layers):
        source = number
        if number >= anchor_layers:
            source = depth - trained_layers + number - anchor_layers
        block.load_state_dict(base.model.layers[source].state_dict())
    draft.requires_grad_(False)
    for block in draft.model.layers[anchor_layers:]:
        block.requires_grad_(True)
    draft.model.norm.requires_grad_(True)
    return draft


class DraftTrainer(nn.Module):
    """Base and draft together, with the distillation loss.

    The anchor runs once for both.

    Args:
        base: The teacher, frozen.
        draft: From :func:`make_draft`.
        anchor_layers: As there.
        hard: Weight of the cross-entropy with the text itself.
        feature: Weight of the regression on the teacher's last states.
    """

    def __init__(
        self,
        base: Llama,
        draft: Llama,
        *,
        anchor_layers: int,
        hard: float = 0.1,
        feature: float = 0.1,
    ) -> None:
        super().__init__()
        base.requires_grad_(False)
        self.base, self.draft = base, draft
        self._anchor, self._hard, self._feature = anchor_layers, hard, feature

    def loss(self, ids: Tensor) -> Tensor:
        """Return the mean loss on ``ids`` ``(rows, length + 1)``."""
        text, following = ids[:, :-1], ids[:, 1:]
        head = self.base.model.embed_tokens.weight
        with torch.no_grad():
            teacher_states, (x,) = self.base.hidden(text, (self._anchor,))
            teacher = F.log_softmax((teacher_states @ head.T).float(), -1)
        length = text.shape[1]
        cos, sin = self.draft.cos[:length], self.draft.sin[:length]
        for block in self.draft.model.layers[self._anchor :]:
            x = block(x, cos, sin)
        states = self.draft.model.norm(x)
        student = F.log_softmax((states @ head.T).float(), -1)
        soft = F.kl_div(
            student.flatten(0, 1),
            teacher.flatten(0, 1),
            log_target=True,
            reduction="batchmean",
        )
        hard = F.nll_loss(student.flatten(0, 1), following.reshape(-1))
        feature = F.smooth_l1_loss(states, teacher_states)
        return soft + self._hard * hard + self._feature * feature
