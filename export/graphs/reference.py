"""The models' arithmetic in plain numpy: what a graph is compared with.

Source:
    Touvron et al. 2023, LLaMA; Black et al. 2022, GPT-NeoX-20B; details as in
    transformers' modeling files.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from draftwire.export.graphs.decoder import Decoder
from draftwire.export.sources.checkpoint import Checkpoint
from draftwire.export.sources.weights import CheckpointWeights, Linear

Array = NDArray[np.float32]


def reference_logits(checkpoint: Checkpoint, ids: Sequence[int]) -> Array:
    """Return the logits ``(T, V)`` after every token of a text, float32."""
    return _Forward(checkpoint, len(ids)).run(np.asarray(ids, np.int64))


class _Forward(Decoder[Any]):
    def __init__(self, checkpoint: Checkpoint, length: int) -> None:
        super().__init__(checkpoint.architecture)
        self.w, self.length = CheckpointWeights(checkpoint), length

    def run(self, ids: NDArray[np.int64]) -> Array:
        x = self.final(self.layers(self.embedded(ids, np.arange(self.length))))
        logits = x @ self.w.table(self.a.head).T
        return np.asarray(self.capped(logits, self.a.logit_cap, ""))

    def look_up(self, parameter: str, ids: Any, name: str) -> Array:
        return np.asarray(self.w.table(parameter)[ids])

    def linear(self, x: Array, i: int, kind: str) -> Array:
        return _apply(self.w.linear(i, kind), x)

    def add(self, x: Array, y: Array, name: str) -> Array:
        return x + y

    def multiply(self, x: Array, y: Array, name: str) -> Array:
        return x * y

    def times(self, x: Array, factor: float, name: str) -> Array:
        return x * np.float32(factor)

    def cap(self, x: Array, bound: float, name: str) -> Array:
        return np.asarray(bound * np.tanh(x / bound), np.float32)

    def norm(self, x: Array, parameter: str, name: str = "") -> Array:
        w = self.w.norm(parameter)
        if self.a.family.norm == "layer":
            x = x - x.mean(-1, keepdims=True)
        size = np.sqrt(np.mean(x * x, -1, keepdims=True) + np.float32(self.a.eps))
        x = x / size * w.weight
        return x if w.bias is None else x + w.bias

    def bend(self, x: Array, name: str) -> Array:
        if self.a.activation == "silu":
            return np.asarray(x / (1 + np.exp(-x)))
        if self.a.activation == "gelu_tanh":
            inner = math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)
            return np.asarray(0.5 * x * (1 + np.tanh(inner)), np.float32)
        erf = np.frompyfunc(math.erf, 1, 1)
        return np.asarray(0.5 * x * (1 + erf(x / math.sqrt(2))), np.float32)

    def attention(self, x: Array, i: int) -> Array:
        a, length, p = self.a, self.length, self.a.layer(i)
        q, k, v = (_apply(part, x) for part in self.w.qkv(i))
        whole = {}
        for name, values, count in (("q", q, a.heads), ("k", k, a.kv_heads)):
            weight = getattr(a.names, name + "_norm")
            apart = weight and len(self.w.norm(p + weight).weight) == a.head_dim
            if weight and not apart:
                values = self.norm(values, p + weight)
            values = values.reshape(length, count, a.head_dim)
            values = self.norm(values, p + weight) if apart else values
            whole[name] = self.rotate(values, i).swapaxes(0, 1)
        q, k = whole["q"], whole["k"]
        v = v.reshape(length, a.kv_heads, a.head_dim).swapaxes(0, 1)
        q = q.reshape(a.kv_heads, -1, length, a.head_dim)
        scores = q @ k[:, None].swapaxes(-1, -2) * np.float32(a.score_scale)
        scores = self.capped(scores, a.score_cap, "")
        apart = np.arange(length)[:, None] - np.arange(length)
        hidden = (apart < 0) | (apart >= (a.windows[i] or length + 1))
        scores = np.where(hidden, np.float32(-np.inf), scores)
        shares = np.exp(scores - scores.max(-1, keepdims=True))
        shares /= shares.sum(-1, keepdims=True)
        mixed = (shares @ v[:, None]).reshape(a.heads, length, a.head_dim)
        return np.ascontiguousarray(mixed.swapaxes(0, 1)).reshape(length, -1)

    def convolution(self, x: Array, i: int) -> Array:
        kernel = self.w.kernel(i)
        b, c, x = np.split(_apply(self.w.linear(i, "conv_in"), x), 3, axis=-1)
        taps = len(kernel.weight)
        line = np.concatenate([np.zeros((taps - 1, x.shape[1]), np.float32), b * x])
        y = sum(line[j : j + self.length] * kernel.weight[j] for j in range(taps))
        return np.asarray(c * (y if kernel.bias is None else y + kernel.bias))

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
