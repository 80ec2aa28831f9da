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

from draftwire.export.graphs.builder import MICROSOFT, Value, value
from draftwire.export.graphs.decoder import DecoderGraph
from draftwire.export.sources.architecture import Architecture, UnknownArchitecture
from draftwire.export.sources.checkpoint import Checkpoint
from draftwire.export.sources.weights import Linear, gate_and_up, joined, linear, norm, qkv

__all__ = ["MIN_ENGINE", "build_gqa_graph"]

MIN_ENGINE = "1.19"  # 1.18 and older are wrong or refuse the graph


def build_gqa_graph(checkpoint: Checkpoint) -> onnx.ModelProto:
    """Return the float32 draft graph of a checkpoint."""
    return _Writer(checkpoint).build()


def _rotation(
    a: Architecture, rates: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.int64] | None]:
    """Return the rates the operator gets, and the order of a head's dimensions.

    The operator rotates pairs in multiples of 8 only.  A partial rotation of fewer is
    filled up with pairs that turn at rate 0; since scores do not depend on the order
    of dimensions, the queries' and keys' are sorted so that those pairs are ones
    that the model leaves alone.
    """
    half = len(rates)
    wide = -(-half // 8) * 8
    if wide == half:
        return rates, None
    if 2 * wide > a.head_dim:
        raise UnknownArchitecture(
            f"a model with {a.head_dim} dimensions a head, {2 * half} of them rotated, "
            "does not fit onnxruntime's GroupQueryAttention"
        )
    first, second = np.arange(half), np.arange(half, 2 * half)
    still = np.arange(2 * half, a.head_dim)
    fill = wide - half
    order = [first, still[:fill], second, still[fill : 2 * fill], still[2 * fill :]]
    return np.concatenate([rates, np.zeros(fill)]), np.concatenate(order)


class _Writer(DecoderGraph):
    fuses = True

    def build(self) -> onnx.ModelProto:
        a, g = self.a, self.g
        self.orders = []
        for number, rope in enumerate(a.ropes):
            rates, order = _rotation(a, rope.rates)
            self.orders.append(order)
            angles = np.outer(np.arange(a.context), rates)
            end = str(number) if number else ""
            # Dimensions that fill up the rotation must come out as they went in.
            size = np.where(rates == 0, 1.0, rope.factor)
            g.constant("cos" + end, (np.cos(angles) * size).astype(np.float32))
            g.constant("sin" + end, (np.sin(angles) * size).astype(np.float32))
        table = g.constant("embedding", self.checkpoint.weight(a.embedding))
        positions = self.positions() if a.names.positions else ""
        hidden = self.layers(self.embedded(table, "input_ids", positions))
        hidden = self.final(hidden)
        end, axis = g.integers(2**31 - 1), g.integers(1)
        tail = g.node("Slice", [hidden, "logits_from", end, axis], "tail")
        if a.tied:  # stored once; onnxruntime turns it when it loads the graph
            head = g.node("Transpose", [table], "head.weight", perm=[1, 0])
        else:
            head = g.constant("head.weight", self.checkpoint.weight(a.head).T)
        logits = g.node("MatMul", [tail, head], "uncapped" if a.logit_cap else "logits")
        self.capped(logits, a.logit_cap, "logits")
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

    def positions(self) -> str:
        """Write the positions ``[B, S]`` of the new tokens."""
        g = self.g
        zero, one = (g.constant(f"i64_scalar_{v}", np.array(v)) for v in (0, 1))
        count = g.node("Shape", ["input_ids"], "S", start=1, end=2)
        scalar = g.node("Squeeze", [count], "S.scalar")
        steps = g.node("Range", [zero, scalar, one], "steps")
        last = g.node("Cast", ["seqlens_k"], "last", to=onnx.TensorProto.INT64)
        first = g.node("Sub", [g.node("Add", [last, one], "length"), count], "first")
        column = g.node("Unsqueeze", [first, g.integers(1)], "first.column")
        return g.node("Add", [column, steps], "positions")

    def table(self, parameter: str) -> str:
        return self.g.constant(parameter, self.checkpoint.weight(parameter))

    def norm_weights(self, parameter: str) -> list[str]:
        w, layer = norm(self.checkpoint, parameter), self.a.family.norm == "layer"
        name = parameter + ".weight" if layer else parameter
        found = [self.g.constant(name, w.weight)]
        if layer and w.bias is not None:
            found.append(self.g.constant(parameter + ".bias", w.bias))
        return found

    def product(self, x: str, i: int, kind: str, name: str) -> str:
        names, p = self.a.names, self.a.layer(i)
        if kind in ("gate", "up"):
            gate, up = gate_and_up(self.checkpoint, i)
            found = up if kind == "up" or gate is None else gate
        else:
            found = linear(
                self.checkpoint, p + getattr(names, {"o": "out"}.get(kind, kind))
            )
        return self.linear(x, name, found)

    def linear(self, x: str, name: str, layer: Linear) -> str:
        g = self.g
        y = g.node("MatMul", [x, g.constant(name + ".weight", layer.weight.T)], name)
        if layer.bias is None:
            return y
        return g.node("Add", [y, g.constant(name + ".bias", layer.bias)], name + ".biased")

    def attention(self, x: str, i: int) -> str:
        a, n, rope = self.a, f"l{i}.", self.a.rope_of[i]
        # All three projections in one product: a step is bound by memory.
        q, k, v = qkv(self.checkpoint, i)
        parts = [self.sort(q, rope), self.sort(k, rope), v]
        packed = self.linear(x, n + "qkv", joined(parts))
        inputs = [packed, "", ""]
        if a.names.q_norm:
            inputs = [n + "q", n + "k", n + "v"]
            sizes = [len(part.weight) for part in parts]
            self.g.node("Split", [packed, self.g.integers(*sizes)], inputs, axis=-1)
            for at, kind in enumerate(("q_norm", "k_norm")):
                inputs[at] = self.head_norm(inputs[at], i, kind, rope)
        end = str(rope) if rope > 0 else ""
        tables = ["cos" + end, "sin" + end] if rope >= 0 else []
        past = [f"past_key_values.{i}.key", f"past_key_values.{i}.value"]
        more = {"softcap": a.score_cap} if a.score_cap else {}
        if a.windows[i]:
            more["local_window_size"] = a.windows[i]
        return self.g.node(
            "GroupQueryAttention",
            [*inputs, *past, "seqlens_k", "total_seq_len", *tables],
            [n + "attended", f"present.{i}.key", f"present.{i}.value"],
            domain=MICROSOFT,
            num_heads=a.heads,
            kv_num_heads=a.kv_heads,
            do_rotary=int(rope >= 0),
            scale=float(a.score_scale),
            **more,
        )

    def head_norm(self, x: str, i: int, kind: str, rope: int) -> str:
        """Write the norm of queries or keys, over each head or over all of them."""
        a, g, name = self.a, self.g, f"l{i}.{kind}"
        parameter = a.layer(i) + getattr(a.names, kind)
        weight = self.sort(norm(self.checkpoint, parameter), rope).weight
        apart = len(weight) == a.head_dim
        if apart:
            x = g.node("Reshape", [x, g.integers(0, 0, -1, a.head_dim)], name + ".heads")
        x = g.node(
            "SimplifiedLayerNormalization",
            [x, g.constant(parameter, weight)],
            name,
            epsilon=a.eps,
            axis=-1,
            stash_type=1,
        )
        return g.node("Reshape", [x, g.integers(0, 0, -1)], name + ".flat") if apart else x

    def sort(self, layer: Linear, rope: int) -> Linear:
        """Sort the rows of queries or keys as the rotation needs them."""
        order = self.orders[rope] if rope >= 0 else None
        if order is None:
            return layer

        def one(rows: NDArray[np.float32]) -> NDArray[np.float32]:
            heads = rows.reshape(-1, self.a.head_dim, *rows.shape[1:])
            return heads[:, order].reshape(rows.shape)

        return Linear(one(layer.weight), None if layer.bias is None else one(layer.bias))
