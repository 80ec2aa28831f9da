"""The models' arithmetic in plain numpy: what a graph is compared with.

Source:
    Touvron et al. 2023, LLaMA; Black et al. 2022, GPT-NeoX-20B; details as in
    transformers' modeling files.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from draftwire.export.sources.checkpoint import Checkpoint
from draftwire.export.sources.weights import Linear, gate_and_up, linear, norm, qkv

__all__ = ["reference_logits"]

Array = NDArray[np.float32]


def reference_logits(checkpoint: Checkpoint, ids: Sequence[int]) -> Array:
    """Return the logits after every token of a text.

    Args:
        checkpoint: The model.
        ids: ``(T,)`` token ids.

    Returns:
        ``(T, V)`` float32.
    """
    return _Forward(checkpoint, len(ids)).run(np.asarray(ids, np.int64))


class _Forward:
    def __init__(self, checkpoint: Checkpoint, length: int) -> None:
        self.c, self.a, self.length = checkpoint, checkpoint.architecture, length

    def run(self, ids: NDArray[np.int64]) -> Array:
        a, n = self.a, self.a.names
        x = self.c.weight(a.embedding)[ids] * np.float32(a.embedding_scale)
        if n.positions:
            x = x + self.c.weight(n.positions + ".weight")[: self.length]
        for i in range(a.layers):
            x = self.layer(x, i)
        x = self.norm(x, n.final)
        logits = x @ self.c.weight(a.head).T * np.float32(a.logit_scale)
        return _capped(logits, a.logit_cap)

    def layer(self, x: Array, i: int) -> Array:
        a, n, p = self.a, self.a.names, self.a.layer(i)
        y = self.norm(x, p + n.before_attention) if n.before_attention else x
        y = _apply(linear(self.c, p + n.out), self.attend(y, i))
        if n.after_attention:
            y = self.norm(y, p + n.after_attention)
        middle = x + y * np.float32(a.residual_scale)
        z = x if a.parallel else middle
        z = self.norm(z, p + n.before_mlp) if n.before_mlp else z
        z = self.mlp(z, i)
        if n.after_mlp:
            z = self.norm(z, p + n.after_mlp)
        return np.asarray(middle + z * np.float32(a.residual_scale))

    def mlp(self, x: Array, i: int) -> Array:
        gate, up = gate_and_up(self.c, i)
        y = _apply(up, x)
        y = self.bend(y) if gate is None else self.bend(_apply(gate, x)) * y
        return _apply(linear(self.c, self.a.layer(i) + self.a.names.down), y)

    def norm(self, x: Array, name: str) -> Array:
        w = norm(self.c, name)
        if self.a.family.norm == "layer":
            x = x - x.mean(-1, keepdims=True)
        size = np.sqrt(np.mean(x * x, -1, keepdims=True) + np.float32(self.a.eps))
        x = x / size * w.weight
        return x if w.bias is None else x + w.bias

    def bend(self, x: Array) -> Array:
        if self.a.activation == "silu":
            return np.asarray(x / (1 + np.exp(-x)))
        if self.a.activation == "gelu_tanh":
            inner = math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)
            return np.asarray(0.5 * x * (1 + np.tanh(inner)), np.float32)
        erf = np.frompyfunc(math.erf, 1, 1)
        return np.asarray(0.5 * x * (1 + erf(x / math.sqrt(2))), np.float32)

    def attend(self, x: Array, i: int) -> Array:
        a, length, p = self.a, self.length, self.a.layer(i)
        q, k, v = (_apply(part, x) for part in qkv(self.c, i))
        whole = {}
        for name, values, count in (("q", q, a.heads), ("k", k, a.kv_heads)):
            weight = getattr(a.names, name + "_norm")
            if weight and self.c.parameters[p + weight + ".weight"].shape(
                p + weight + ".weight"
            ) != (a.head_dim,):
                values = self.norm(values, p + weight)
                weight = ""
            values = values.reshape(length, count, a.head_dim)
            values = self.norm(values, p + weight) if weight else values
            whole[name] = self.rotate(values, i).swapaxes(0, 1)
        q, k = whole["q"], whole["k"]
        v = v.reshape(length, a.kv_heads, a.head_dim).swapaxes(0, 1)
        q = q.reshape(a.kv_heads, -1, length, a.head_dim)
        scores = q @ k[:, None].swapaxes(-1, -2) * np.float32(a.score_scale)
        scores = _capped(scores, a.score_cap)
        apart = np.arange(length)[:, None] - np.arange(length)
        hidden = (apart < 0) | (apart >= (a.windows[i] or length + 1))
        scores = np.where(hidden, np.float32(-np.inf), scores)
        shares = np.exp(scores - scores.max(-1, keepdims=True))
        shares /= shares.sum(-1, keepdims=True)
        mixed = (shares @ v[:, None]).reshape(a.heads, length, a.head_dim)
        return np.ascontiguousarray(mixed.swapaxes(0, 1)).reshape(length, -1)

    def rotate(self, x: Array, i: int) -> Array:
        if self.a.rope_of[i] < 0:
            return x
        rope = self.a.ropes[self.a.rope_of[i]]
        angles = np.outer(np.arange(self.length), rope.rates)[:, None]
        cos = (np.cos(angles) * rope.factor).astype(np.float32)
        sin = (np.sin(angles) * rope.factor).astype(np.float32)
        half = len(rope.rates)
        first, second, rest = np.split(x, [half, 2 * half], axis=-1)
        turned = [first * cos - second * sin, second * cos + first * sin]
        return np.concatenate([*turned, rest], axis=-1)


def _apply(layer: Linear, x: Array) -> Array:
    y = x @ layer.weight.T
    return y if layer.bias is None else y + layer.bias


def _capped(x: Array, cap: float) -> Array:
    return np.asarray(cap * np.tanh(x / cap), np.float32) if cap else x
