"""The models' arithmetic in plain numpy: what a graph is compared with.

Source:
    Touvron et al. 2023, LLaMA; Black et al. 2022, GPT-NeoX-20B; details as in
    transformers' modeling_llama.py, modeling_qwen2.py and modeling_gpt_neox.py.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from draftwire.export.checkpoint import Checkpoint

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
        self.c, self.a = checkpoint, checkpoint.architecture
        angles = np.outer(np.arange(length), self.a.rope_rates)[:, None]
        self.cos = np.cos(angles).astype(np.float32)  # (T, 1, R / 2)
        self.sin = np.sin(angles).astype(np.float32)
        later = np.triu(np.ones((length, length), bool), 1)
        self.mask = np.where(later, np.float32(-np.inf), np.float32(0))

    def run(self, ids: NDArray[np.int64]) -> Array:
        a = self.a
        x = self.c.weight(a.embedding)[ids]
        for i in range(a.layers):
            x = self.neox_layer(x, a.layer(i)) if a.neox else self.layer(x, a.layer(i))
        x = self.norm(x, "gpt_neox.final_layer_norm" if a.neox else "model.norm")
        return x @ self.c.weight(a.head).T

    def layer(self, x: Array, p: str) -> Array:
        y = self.norm(x, p + "input_layernorm")
        q, k, v = (self.linear(y, f"{p}self_attn.{n}_proj") for n in "qkv")
        x = x + self.linear(self.attend(q, k, v), p + "self_attn.o_proj")
        y = self.norm(x, p + "post_attention_layernorm")
        gate = self.linear(y, p + "mlp.gate_proj")
        y = gate / (1 + np.exp(-gate)) * self.linear(y, p + "mlp.up_proj")
        return x + self.linear(y, p + "mlp.down_proj")

    def neox_layer(self, x: Array, p: str) -> Array:
        a = self.a
        y = self.norm(x, p + "input_layernorm")
        y = self.linear(y, p + "attention.query_key_value")
        q, k, v = np.split(y.reshape(len(x), a.heads, 3 * a.head_dim), 3, axis=-1)
        after = x + self.linear(self.attend(q, k, v), p + "attention.dense")
        y = self.norm(x if a.parallel else after, p + "post_attention_layernorm")
        y = self.gelu(self.linear(y, p + "mlp.dense_h_to_4h"))
        return after + self.linear(y, p + "mlp.dense_4h_to_h")

    def linear(self, x: Array, name: str) -> Array:
        y = x @ self.c.weight(name + ".weight").T
        if name + ".bias" in self.c:
            y = y + self.c.weight(name + ".bias")
        return y

    def norm(self, x: Array, name: str) -> Array:
        if self.a.neox:
            x = x - x.mean(-1, keepdims=True)
        size = np.sqrt(np.mean(x * x, -1, keepdims=True) + np.float32(self.a.eps))
        x = x / size * self.c.weight(name + ".weight")
        return x + self.c.weight(name + ".bias") if self.a.neox else x

    def gelu(self, x: Array) -> Array:
        if self.a.activation == "gelu_tanh":
            inner = math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)
            return np.asarray(0.5 * x * (1 + np.tanh(inner)), np.float32)
        erf = np.frompyfunc(math.erf, 1, 1)
        return np.asarray(0.5 * x * (1 + erf(x / math.sqrt(2))), np.float32)

    def attend(self, q: Array, k: Array, v: Array) -> Array:
        a, length = self.a, len(q)
        q = self.rotate(q.reshape(length, a.heads, a.head_dim)).swapaxes(0, 1)
        k = self.rotate(k.reshape(length, a.kv_heads, a.head_dim)).swapaxes(0, 1)
        v = v.reshape(length, a.kv_heads, a.head_dim).swapaxes(0, 1)
        q = q.reshape(a.kv_heads, -1, length, a.head_dim)
        scores = q @ k[:, None].swapaxes(-1, -2) * np.float32(a.head_dim**-0.5)
        scores = scores + self.mask
        shares = np.exp(scores - scores.max(-1, keepdims=True))
        shares /= shares.sum(-1, keepdims=True)
        mixed = (shares @ v[:, None]).reshape(a.heads, length, a.head_dim)
        return np.ascontiguousarray(mixed.swapaxes(0, 1)).reshape(length, -1)

    def rotate(self, x: Array) -> Array:
        half = self.a.rotary_dim // 2
        first, second, rest = np.split(x, [half, 2 * half], axis=-1)
        turned = [
            first * self.cos - second * self.sin,
            second * self.cos + first * self.sin,
        ]
        return np.concatenate([*turned, rest], axis=-1)
