"""Hidden states of a frozen base, written once and read at every pass.

Anchor, teacher and head never change, so the base runs over a text once; a pass then
costs the trained layers alone, and a head over the words that matter: those of the text
and a fresh sample of all others, which stands for them (its logits are raised by how many
each stands for).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from draftwire.errors import ModelError
from draftwire.export.training.base import cut
from draftwire.export.training.distil import distil_loss
from draftwire.export.training.loop import Plan
from draftwire.io import replacing
from draftwire.packages.exits import torch_stack

_WORDS, _OTHERS = 4096, 2048  # of the head: those of the text, sampled ones
MOST_WORDS = _WORDS + _OTHERS
_LARGEST = 60_000.0  # states are kept in float16


class States:
    """States of ``rows`` texts of ``length`` tokens, in parts of some rows each.

    ``micro`` gives ids ``(n, length + 1)``, states behind the anchor and last ones
    ``(n, length, hidden)``, and the words of the head. Every row comes once a pass.
    """

    def __init__(self, folder: Path, vocab_size: int) -> None:
        paths = sorted(folder.glob("*.safetensors"))
        self._parts: list[Any] = [safe_open(path, "pt") for path in paths]
        sizes = [part.get_slice("ids").get_shape()[0] for part in self._parts]
        self._places = [(p, row) for p, size in enumerate(sizes) for row in range(size)]
        self._vocab_size = vocab_size

    @cached_property
    def words(self) -> Tensor:
        """The ids of the text, at most so many: the most frequent."""
        count = torch.zeros(self._vocab_size, dtype=torch.int64)
        for part in self._parts:
            ids = part.get_tensor("ids").flatten()
            count += torch.bincount(ids, minlength=self._vocab_size)
        found = count.argsort(descending=True, stable=True)[:_WORDS]
        return found[count[found] > 0]

    @cached_property
    def _rest(self) -> np.ndarray:
        return np.setdiff1d(np.arange(self._vocab_size), self.words.numpy())

    def micro(self, plan: Plan, step: int, index: int) -> tuple[Tensor, ...]:
        """Return the tensors of a micro-batch."""
        rows, all_rows = max(1, plan.micro // plan.length_at(step)), len(self._places)
        first = (step * (plan.batch // plan.micro) + index) * rows
        picked: dict[str, list[Tensor]] = {"ids": [], "anchor": [], "last": []}
        for number in range(first, first + rows):
            order = np.random.default_rng((plan.seed, number // all_rows))
            part, row = self._places[order.permutation(all_rows)[number % all_rows]]
            for name, tensors in picked.items():
                tensors.append(self._parts[part].get_slice(name)[row])
        rng, rest = np.random.default_rng((plan.seed, step, index)), self._rest
        others = rng.choice(rest, min(_OTHERS, len(rest)), replace=False)
        words = torch.cat([self.words, torch.from_numpy(others)])
        return (*(torch.stack(tensors) for tensors in picked.values()), words)


class UpperTrainer(nn.Module):
    """The trained part of a draft of :func:`make_draft` alone, the layers behind so many of
    the ``anchor``, fed with states of the base, the teacher. A ModelError where this
    family's layers cannot be run from states alone.
    """

    def __init__(self, base: Any, draft: Any, anchor: int) -> None:
        super().__init__()
        layers, norm, head = torch_stack(draft)
        depth = len(torch_stack(base)[0])
        upper = cut(base, range(depth - len(layers) + anchor, depth))
        mine = torch_stack(upper)[0]
        for at in range(len(mine)):
            mine[at] = layers[anchor + at]
        for holder in upper.modules():
            for name, child in list(holder.named_children()):
                if child is torch_stack(upper)[1]:
                    setattr(holder, name, norm)
        upper.set_input_embeddings(nn.Identity())
        self.body, self.anchor = upper.base_model, anchor
        self._head = [head]  # no part of what is trained
        ids = torch.arange(9, device=draft.device)[None] % head.weight.shape[0]
        with torch.no_grad():
            right = draft(ids, output_hidden_states=True, use_cache=False)
            try:
                last = self(right.hidden_states[anchor])
            except (RuntimeError, TypeError, ValueError, AttributeError) as exc:
                raise ModelError("its layers do not run from states") from exc
            found = self._logits(last, torch.arange(head.weight.shape[0]).to(ids.device))
        scale = right.logits.abs().max()
        if not (found - right.logits).abs().max() < 1e-3 * scale:
            raise ModelError("its layers and head say something else from states alone")

    def forward(self, anchor: Tensor) -> Tensor:
        """Return the last states for those behind the anchor."""
        found: Tensor = self.body(inputs_embeds=anchor, use_cache=False).last_hidden_state
        return found

    def _logits(self, states: Tensor, words: Tensor) -> Tensor:
        head = self._head[0]
        bias = None if head.bias is None else head.bias[words]
        return nn.functional.linear(states, head.weight[words].to(states.dtype), bias)

    def loss(self, ids: Tensor, anchor: Tensor, last: Tensor, words: Tensor) -> Tensor:
        """Return the mean loss of what :meth:`States.micro` gives."""
        size = self._head[0].weight.shape[0]
        mine, theirs = self(anchor.float()), last.float()
        raised = torch.zeros(len(words), device=ids.device)
        known = len(words)
        if known < size:
            known -= _OTHERS
            raised[known:] = math.log((size - known) / _OTHERS)
        place = torch.full((size,), -100, device=ids.device)
        place[words[:known]] = torch.arange(known, device=ids.device)
        said = [self._logits(states, words).float() + raised for states in (mine, theirs)]
        following = place[ids[:, 1:]]
        return distil_loss(said[0], said[1], following, (mine, theirs))


@torch.no_grad()
def reading(base: Any, anchor: int, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Return the base's states behind the anchor and the last ones, each ``(n, length,
    hidden)``, for ids ``(n, length + 1)``."""
    given = ids[:, :-1].to(base.device)
    found = base(given, output_hidden_states=True, use_cache=False, logits_to_keep=1)
    return found.hidden_states[anchor], found.hidden_states[-1]


def write_states(
    folder: Path,
    parts: int,
    base: Any,
    anchor: int,
    read: Callable[[int], list[Tensor]],
    say: Callable[[str], None],
) -> None:
    """Write what is missing of so many parts; ``read`` gives the texts of one."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(parts):
        path = folder / f"{number:06}.safetensors"
        if path.exists():
            continue
        ids = read(number)
        found = [reading(base, anchor, some) for some in ids]
        kept = {"ids": torch.cat(ids)}
        for name, states in zip(("anchor", "last"), zip(*found, strict=True), strict=True):
            kept[name] = torch.cat(states).float().clamp(-_LARGEST, _LARGEST).half().cpu()
        with replacing(path) as part:
            save_file(kept, part)
        say(f"states of the base: part {number + 1} of {parts} written")
