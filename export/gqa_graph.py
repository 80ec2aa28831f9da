"""The graph of a draft: attention over a key/value cache that is updated in place.

Inputs: ``input_ids`` int64 ``[B, S]``; ``seqlens_k`` int32 ``[B]``, the last valid
index of the cache after this step (length - 1); ``total_seq_len`` int32 scalar, the
length after this step; ``logits_from`` int64 ``[1]``, the first of the S positions
whose logits are wanted (-1 for the last alone); ``past_key_values.{i}.key`` and
``.value`` float32 ``[B, KV, M, D]``.  Outputs: ``logits`` float32 ``[B, S', V]`` and
``present.{i}.key`` / ``.value``.  Bind past and present of a layer to one buffer of M
positions: the new entries are written into it, and a rewind is a smaller length.

On onnxruntime below 1.20 a step over a past must have S = 1: the operator gives wrong
numbers without an error otherwise.

Source:
    ``com.microsoft.GroupQueryAttention`` in onnxruntime's docs/ContribOperators.md.
"""

from __future__ import annotations

import numpy as np
import onnx
from numpy.typing import NDArray

from draftwire.export.architecture import Architecture, UnknownArchitecture
from draftwire.export.checkpoint import Checkpoint
from draftwire.export.onnx_builder import MICROSOFT, GraphBuilder, Value, value

__all__ = ["MIN_ENGINE", "build_gqa_graph"]

MIN_ENGINE = "1.19"  # 1.18 and older are wrong or refuse the graph


def build_gqa_graph(checkpoint: Checkpoint) -> onnx.ModelProto:
    """Return the float32 draft graph of a checkpoint."""
    writer = _NeoxWriter if checkpoint.architecture.neox else _LlamaWriter
    return writer(checkpoint).build()


def _rotation(a: Architecture) -> tuple[NDArray[np.float64], NDArray[np.int64] | None]:
    """Return the rates the operator gets, and the order of a head's dimensions.

    The operator rotates pairs in multiples of 8 only.  A partial rotation of fewer is
    filled up with pairs that turn at rate 0; since scores do not depend on the order
    of dimensions, the queries' and keys' are sorted so that those pairs are ones
    that the model leaves alone.
    """
    half = len(a.rope_rates)
    wide = -(-half // 8) * 8
    if wide == half:
        return a.rope_rates, None
    if 2 * wide > a.head_dim:
        raise UnknownArchitecture(
            f"a model with {a.head_dim} dimensions a head, {2 * half} of them rotated, "
            "does not fit onnxruntime's GroupQueryAttention"
        )
    first, second = np.arange(half), np.arange(half, 2 * half)
    still = np.arange(2 * half, a.head_dim)
    fill = wide - half
    order = [first, still[:fill], second, still[fill : 2 * fill], still[2 * fill :]]
    return np.concatenate([a.rope_rates, np.zeros(fill)]), np.concatenate(order)


class _Writer:
    order: NDArray[np.int64] | None = None

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.checkpoint, self.a = checkpoint, checkpoint.architecture
        self.g = GraphBuilder()

    def build(self) -> onnx.ModelProto:
        a, g = self.a, self.g
        rates, self.order = _rotation(a)
        angles = np.outer(np.arange(a.context), rates)
        g.constant("cos", np.cos(angles).astype(np.float32))
        g.constant("sin", np.sin(angles).astype(np.float32))
        table = g.constant("embedding", self.checkpoint.weight(a.embedding))
        hidden = self.layers(g.node("Gather", [table, "input_ids"], "embedded"))
        end, axis = g.integers(2**31 - 1), g.integers(1)
        tail = g.node("Slice", [hidden, "logits_from", end, axis], "tail")
        if a.tied:  # stored once; onnxruntime turns it when it loads the graph
            head = g.node("Transpose", [table], "head.weight", perm=[1, 0])
        else:
            head = g.constant("head.weight", self.checkpoint.weight(a.head).T)
        g.node("MatMul", [tail, head], "logits")
        inputs = [
            value("input_ids", "int64", ["B", "S"]),
            value("seqlens_k", "int32", ["B"]),
            value("total_seq_len", "int32", []),
            value("logits_from", "int64", [1]),
        ]
        outputs = [value("logits", "float32", ["B", "rows", a.vocab_size])]
        for i in range(a.layers):
            for kind in ("key", "value"):
                inputs.append(self.cache(f"past_key_values.{i}.{kind}"))
                outputs.append(self.cache(f"present.{i}.{kind}"))
        return g.model("draft", inputs, outputs)

    def cache(self, name: str) -> Value:
        return value(name, "float32", ["B", self.a.kv_heads, "M", self.a.head_dim])

    def layers(self, hidden: str) -> str:
        raise NotImplementedError

    def attention(self, qkv: str, i: int) -> str:
        past = [f"past_key_values.{i}.key", f"past_key_values.{i}.value"]
        return self.g.node(
            "GroupQueryAttention",
            [qkv, "", "", *past, "seqlens_k", "total_seq_len", "cos", "sin"],
            [f"l{i}.attended", f"present.{i}.key", f"present.{i}.value"],
            domain=MICROSOFT,
            num_heads=self.a.heads,
            kv_num_heads=self.a.kv_heads,
            do_rotary=1,
            scale=float(self.a.head_dim**-0.5),
        )

    def linear(
        self,
        x: str,
        name: str,
        weight: NDArray[np.float32],
        bias: NDArray[np.float32] | None,
    ) -> str:
        g = self.g
        y = g.node("MatMul", [x, g.constant(name + ".weight", weight.T)], name)
        if bias is None:
            return y
        return g.node("Add", [y, g.constant(name + ".bias", bias)], name + ".biased")

    def sort(self, rows: NDArray[np.float32]) -> NDArray[np.float32]:
        """Sort the rows of a query or key projection as the rotation needs them."""
        if self.order is None:
            return rows
        heads = rows.reshape(-1, self.a.head_dim, *rows.shape[1:])
        return heads[:, self.order].reshape(rows.shape)

    def bias(self, name: str) -> NDArray[np.float32] | None:
        return self.checkpoint.weight(name) if name in self.checkpoint else None

    def stored(self, x: str, parameter: str, name: str) -> str:
        """A linear layer whose weight is used as it is stored."""
        weight = self.checkpoint.weight(parameter + ".weight")
        return self.linear(x, name, weight, self.bias(parameter + ".bias"))


class _LlamaWriter(_Writer):
    def layers(self, hidden: str) -> str:
        g, a = self.g, self.a
        weight = self.norm_weight("model.layers.0.input_layernorm")
        residual = hidden
        x = g.node(
            "SimplifiedLayerNormalization",
            [hidden, weight],
            "l0.normed",
            epsilon=a.eps,
            axis=-1,
            stash_type=1,
        )
        for i in range(a.layers):
            p = a.layer(i)
            x = self.attention(self.qkv(x, i), i)
            x = self.stored(x, p + "self_attn.o_proj", f"l{i}.o")
            after = p + "post_attention_layernorm"
            x, residual = self.add_norm(x, residual, after, f"l{i}.mid")
            x = self.mlp(x, i)
            last = i == a.layers - 1
            after = "model.norm" if last else a.layer(i + 1) + "input_layernorm"
            x, residual = self.add_norm(x, residual, after, f"l{i}.out", last=last)
        return x

    def norm_weight(self, parameter: str) -> str:
        return self.g.constant(parameter, self.checkpoint.weight(parameter + ".weight"))

    def add_norm(
        self, x: str, residual: str, parameter: str, name: str, *, last: bool = False
    ) -> tuple[str, str]:
        """Add ``x`` to the residual stream; return the normed sum and the sum."""
        total = "" if last else name + ".residual"
        normed = self.g.node(
            "SkipSimplifiedLayerNormalization",
            [residual, x, self.norm_weight(parameter)],
            [name, "", "", total],
            domain=MICROSOFT,
            epsilon=self.a.eps,
        )
        return normed, total

    def qkv(self, x: str, i: int) -> str:
        """All three projections in one product: a step is bound by memory."""
        p = self.a.layer(i) + "self_attn."
        weights = [self.checkpoint.weight(f"{p}{k}_proj.weight") for k in "qkv"]
        biases = [self.bias(f"{p}{k}_proj.bias") for k in "qkv"]
        bias = None
        if any(b is not None for b in biases):
            parts = [
                np.zeros(len(w), np.float32) if b is None else b
                for w, b in zip(weights, biases, strict=True)
            ]
            bias = np.concatenate([*map(self.sort, parts[:2]), parts[2]])
        weight = np.concatenate([*map(self.sort, weights[:2]), weights[2]])
        return self.linear(x, f"l{i}.qkv", weight, bias)

    def mlp(self, x: str, i: int) -> str:
        g, p = self.g, self.a.layer(i) + "mlp."
        gate = self.stored(x, p + "gate_proj", f"l{i}.gate")
        up = self.stored(x, p + "up_proj", f"l{i}.up")
        open_ = g.node("Sigmoid", [gate], f"l{i}.sigmoid")
        gated = g.node("Mul", [gate, open_], f"l{i}.silu")
        both = g.node("Mul", [gated, up], f"l{i}.gated")
        return self.stored(both, p + "down_proj", f"l{i}.down")


class _NeoxWriter(_Writer):
    def layers(self, hidden: str) -> str:
        g, a = self.g, self.a
        for i in range(a.layers):
            p = a.layer(i)
            x = self.norm(hidden, p + "input_layernorm", f"l{i}.normed")
            x = self.attention(self.qkv(x, i), i)
            x = self.stored(x, p + "attention.dense", f"l{i}.o")
            after = g.node("Add", [hidden, x], f"l{i}.mid")
            source = hidden if a.parallel else after
            y = self.norm(source, p + "post_attention_layernorm", f"l{i}.mlp_normed")
            hidden = g.node("Add", [after, self.mlp(y, i)], f"l{i}.out")
        return self.norm(hidden, "gpt_neox.final_layer_norm", "normed")

    def norm(self, x: str, parameter: str, name: str) -> str:
        parts = [parameter + ".weight", parameter + ".bias"]
        weights = [self.g.constant(p, self.checkpoint.weight(p)) for p in parts]
        return self.g.node(
            "LayerNormalization", [x, *weights], name, axis=-1, epsilon=self.a.eps
        )

    def qkv(self, x: str, i: int) -> str:
        _a, p = self.a, self.a.layer(i) + "attention.query_key_value"
        weight = self.checkpoint.weight(p + ".weight")
        weight = self.by_kind(weight)
        bias = self.bias(p + ".bias")
        if bias is not None:
            bias = self.by_kind(bias)
        return self.linear(x, f"l{i}.qkv", weight, bias)

    def by_kind(self, rows: NDArray[np.float32]) -> NDArray[np.float32]:
        """Turn rows of q, k, v for each head into all q, all k, all v."""
        a, rest = self.a, rows.shape[1:]
        kinds = rows.reshape(a.heads, 3, a.head_dim, *rest).swapaxes(0, 1)
        q, k, v = kinds.reshape(3, a.heads * a.head_dim, *rest)
        return np.concatenate([self.sort(q), self.sort(k), v])

    def mlp(self, x: str, i: int) -> str:
        p = self.a.layer(i) + "mlp."
        x = self.stored(x, p + "dense_h_to_4h", f"l{i}.up")
        op = "FastGelu" if self.a.activation == "gelu_tanh" else "Gelu"
        x = self.g.node(op, [x], f"l{i}.gelu", domain=MICROSOFT)
        return self.stored(x, p + "dense_4h_to_h", f"l{i}.down")
