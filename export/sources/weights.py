"""A checkpoint's weights in the form that all families share.

Linear layers are ``(out, in)``, queries, keys and values apart, gate and up apart.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from draftwire.export.sources.checkpoint import Checkpoint

__all__ = ["Linear", "gate_and_up", "joined", "linear", "norm", "qkv"]

Array = NDArray[np.float32]


@dataclass(frozen=True)
class Linear:
    """A linear layer: ``x @ weight.T + bias``, weight ``(out, in)``."""

    weight: Array
    bias: Array | None

    def rows(self, start: int, end: int) -> Linear:
        """Return some of its outputs."""
        bias = None if self.bias is None else self.bias[start:end]
        return Linear(self.weight[start:end], bias)


def linear(checkpoint: Checkpoint, name: str) -> Linear:
    """Return a linear layer."""
    weight = checkpoint.weight(name + ".weight")
    if checkpoint.architecture.family.conv:
        weight = np.ascontiguousarray(weight.T)
    bias = name + ".bias"
    return Linear(weight, checkpoint.weight(bias) if bias in checkpoint else None)


def norm(checkpoint: Checkpoint, name: str) -> Linear:
    """Return a norm's weight as it multiplies, and its bias."""
    weight = checkpoint.weight(name + ".weight")
    shift = checkpoint.architecture.family.norm_shift
    bias = name + ".bias"
    return Linear(
        weight + np.float32(shift) if shift else weight,
        checkpoint.weight(bias) if bias in checkpoint else None,
    )


def qkv(checkpoint: Checkpoint, i: int) -> list[Linear]:
    """Return the projections of layer ``i`` to queries, keys and values."""
    a, p = checkpoint.architecture, checkpoint.architecture.layer(i)
    if len(a.names.qkv) == 3:
        return [linear(checkpoint, p + name) for name in a.names.qkv]
    whole = linear(checkpoint, p + a.names.qkv[0])
    q, kv = a.heads * a.head_dim, a.kv_heads * a.head_dim
    if a.family.interleaved:
        bias = None if whole.bias is None else _by_kind(whole.bias, a.heads, a.head_dim)
        whole = Linear(_by_kind(whole.weight, a.heads, a.head_dim), bias)
    return [whole.rows(0, q), whole.rows(q, q + kv), whole.rows(q + kv, q + 2 * kv)]


def _by_kind(rows: Array, heads: int, head_dim: int) -> Array:
    """Turn rows of q, k, v for each head into all q, all k, all v."""
    kinds = rows.reshape(heads, 3, head_dim, *rows.shape[1:]).swapaxes(0, 1)
    return np.ascontiguousarray(kinds).reshape(rows.shape)


def gate_and_up(checkpoint: Checkpoint, i: int) -> tuple[Linear | None, Linear]:
    """Return the MLP's gate, None where it has none, and what it opens."""
    a, p = checkpoint.architecture, checkpoint.architecture.layer(i)
    up = linear(checkpoint, p + a.names.up)
    if a.names.gate == a.names.up:
        half = a.feed_forward
        return up.rows(0, half), up.rows(half, 2 * half)
    return (linear(checkpoint, p + a.names.gate) if a.names.gate else None), up


def joined(parts: list[Linear]) -> Linear:
    """Return one layer with the outputs of all."""
    bias = None
    if any(part.bias is not None for part in parts):
        bias = np.concatenate(
            [
                np.zeros(len(p.weight), np.float32) if p.bias is None else p.bias
                for p in parts
            ]
        )
    return Linear(np.concatenate([part.weight for part in parts]), bias)
