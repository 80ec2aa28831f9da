"""Muon in float32: momentum, made orthogonal, as the step of a weight matrix.

PyTorch's own Muon iterates in bfloat16, which a CPU without AMX runs some ten times
slower than float32; this one also batches the matrices of one shape.

Source:
    Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/; the scaling to
    AdamW-like step sizes is that of Liu et al. 2025, https://arxiv.org/abs/2502.16982.
"""

from __future__ import annotations

from collections import defaultdict

import torch
from torch import Tensor

__all__ = ["Muon", "orthogonalise"]

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # the quintic of the post, section "Tuning"


def orthogonalise(matrices: Tensor, *, rounds: int = 5) -> Tensor:
    """Push the singular values of each matrix towards 1.

    Args:
        matrices: ``(n, rows, columns)`` float32.
        rounds: Newton-Schulz iterations.

    Returns:
        Same shape, singular values about 0.7 to 1.2.
    """
    a, b, c = _COEFFICIENTS
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.transpose(1, 2) if tall else matrices
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(rounds):
        gram = x @ x.transpose(1, 2)
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.transpose(1, 2) if tall else x


class Muon(torch.optim.Optimizer):
    """Muon for matrices alone; embeddings and norms belong to AdamW.

    Args:
        params: Two-dimensional parameters.
        lr: Step size, on the scale of AdamW's.
        momentum: Of the running mean of gradients (Nesterov).
        weight_decay: Decoupled.
    """

    def __init__(
        self,
        params: list[torch.nn.Parameter],
        *,
        lr: float,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(
            params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay}
        )

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """Take one step with the gradients at hand."""
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[Tensor]] = defaultdict(list)
            for p in group["params"]:
                if p.grad is not None:
                    by_shape[p.shape].append(p)
            for shape, params in by_shape.items():
                moves = []
                for p in params:
                    state = self.state[p]
                    if "mean" not in state:
                        state["mean"] = torch.zeros_like(p)
                    state["mean"].lerp_(p.grad, 1 - group["momentum"])
                    moves.append(p.grad.lerp(state["mean"], group["momentum"]))
                scale = group["lr"] * 0.2 * max(shape) ** 0.5
                for p, move in zip(params, orthogonalise(torch.stack(moves))):
                    p.mul_(1 - group["lr"] * group["weight_decay"])
                    p.sub_(move, alpha=scale)
