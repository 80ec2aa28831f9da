"""Low-rank adapters: how a target evolves while its anchor layers stay as they are.

Source:
    Hu et al. 2021, https://arxiv.org/abs/2106.09685.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from draftwire.export.training.model import Transformer

__all__ = ["add_lora", "lora_tensors", "merge_lora_"]


class _LoraLinear(nn.Module):
    def __init__(self, base: nn.Linear, rank: int, seed: int) -> None:
        super().__init__()
        self.weight, self.bias = base.weight, base.bias
        generator = torch.Generator().manual_seed(seed)
        bound = 1 / math.sqrt(base.in_features)
        start = torch.empty(rank, base.in_features)
        self.lora_a = nn.Parameter(start.uniform_(-bound, bound, generator=generator))
        self.lora_b = nn.Parameter(torch.zeros(base.out_features, rank))

    def forward(self, x: Tensor) -> Tensor:
        change = F.linear(F.linear(x, self.lora_a), self.lora_b)
        return F.linear(x, self.weight, self.bias) + change


def add_lora(model: Transformer, *, rank: int, anchor_layers: int, seed: int) -> None:
    """Freeze ``model`` and give every matrix above the anchor an adapter, in place.

    Args:
        model: The base.
        rank: Of the adapters; their scale is 1.
        anchor_layers: The first layers, which stay untouched.
        seed: Of the initial adapters.
    """
    model.requires_grad_(False)
    for block in model.layers[anchor_layers:]:
        for part, name, child in list(_linears(block, nn.Linear)):
            seed += 1
            setattr(part, name, _LoraLinear(child, rank, seed))


def _linears(block: nn.Module, kind: type) -> Iterator[tuple[nn.Module, str, Any]]:
    """Yield parent, name and module of each linear map of a layer."""
    for part in block.children():
        for name, child in part.named_children():
            if isinstance(child, kind):
                yield part, name, child


def lora_tensors(model: Transformer) -> dict[str, Tensor]:
    """Return the adapters as ``{"<weight name>.lora_a": (rank, in), "...lora_b": ...}``."""
    found = {}
    for name, p in model.named_parameters():
        if name.endswith((".lora_a", ".lora_b")):
            prefix, _, part = name.rpartition(".")
            found[f"{prefix}.weight.{part}"] = p.detach().contiguous()
    return found


def merge_lora_(model: Transformer) -> None:
    """Fold the adapters of ``model`` into its weights, in place."""
    for block in model.layers:
        for part, name, child in list(_linears(block, _LoraLinear)):
            weight = child.weight + child.lora_b @ child.lora_a
            linear = nn.Linear(*weight.shape[::-1], bias=child.bias is not None)
            linear.weight = nn.Parameter(weight.detach())
            if child.bias is not None:
                linear.bias = nn.Parameter(child.bias.detach())
            setattr(part, name, linear)
