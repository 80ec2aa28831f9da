"""The ``.tflite`` graph of a draft: static caches that stay with the caller.

The signatures share the weights: ``step.M`` takes one token over a cache of M
positions, for a few M, and ``prefill.M`` a block of T tokens over the longest.
Inputs: ``ids`` int32 ``[1, T]``; ``past`` int32 ``[1]``, the valid tokens in the caches;
``row`` int32 ``[1]`` (``prefill`` only), the token whose logits are wanted; ``key.{i}``
float32 ``[1, KV, M, D]`` and ``value.{i}`` float32 ``[1, KV, D, M]``.  Outputs:
``logits`` float32 ``[1, V]``; ``new_key.{i}`` ``[1, KV, T, D]`` and ``new_value.{i}``
``[1, KV, D, T]``, which the caller writes into its caches at ``past``.  A rewind is a
smaller ``past``: what lies beyond is masked.  Values lie transposed because the
product's kernel wants its second operand by rows.

int8 weights have one scale for each row, and yet run on kernels that know one scale for
a matrix (tflite-runtime 2.13 and 2.14, where the others are refused or silently wrong):
the matrix says 1, and a multiplication of the result puts the rows' scales in.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from draftwire.export.graphs.tflite_builder import BOOL, INT, ModelBuilder, Subgraph
from draftwire.export.sources.tflite_source import DecoderShape, Linear, Norm, Source

__all__ = ["PRECISIONS", "PREFILL", "build_tflite"]

PRECISIONS = ("fp32", "int8")
PREFILL = 32  # tokens of a prefill block
# Attention costs what its cache could hold, not what it holds, so short texts have a
# short cache; but XNNPACK packs all weights again for each signature, so few do.
SHORTEST, GROWTH = 256, 4
_MASKED = -1e9

Array = NDArray[np.float32]


def build_tflite(source: Source, precision: str, *, shortest: int = SHORTEST) -> bytes:
    """Return the ``.tflite`` file of a decoder.

    Args:
        source: Its weights.
        precision: "fp32" or "int8".
        shortest: Positions of the shortest cache, where the context is longer.
    """
    model = ModelBuilder("draftwire draft")
    lengths = rooms(source.shape.context, shortest)
    signatures = [("step", 1, room) for room in lengths]
    for name, tokens, room in [*signatures, ("prefill", PREFILL, lengths[-1])]:
        graph = model.subgraph(f"{name}.{room}")
        _Writer(source, graph, tokens, room, precision == "int8").write(model)
    return model.finish()


def rooms(context: int, shortest: int = SHORTEST) -> list[int]:
    """Return the cache lengths that have a signature, shortest first.

    The last is the context; one that is hardly shorter than it is left out.
    """
    found, room = [], shortest
    while 4 * room < 3 * context:
        found.append(room)
        room *= GROWTH
    return [*found, context]


def rotation_table(s: DecoderShape, rows: int) -> Array:
    """Return the cosines and sines of the rotated pairs, ``(rows, rotated)``."""
    angles = np.outer(np.arange(rows), s.rates)
    return np.concatenate([np.cos(angles), np.sin(angles)], -1).astype(np.float32)


def by_rows(weight: Array) -> tuple[NDArray[np.int8], Array]:
    """Round a matrix to int8 with one scale for each row; return it and the scales."""
    scales = np.abs(weight).max(1) / np.float32(127)
    scales = np.where(scales > 0, scales, np.float32(1)).astype(np.float32)
    steps = np.rint(weight / scales[:, None])
    return np.clip(steps, -127, 127).astype(np.int8), scales


class _Writer:
    def __init__(
        self, source: Source, g: Subgraph, tokens: int, room: int, int8: bool
    ) -> None:
        self.source, self.s, self.g = source, source.shape, g
        self.tokens, self.room, self.int8 = tokens, room, int8
        self.groups = self.s.heads // self.s.kv_heads

    def write(self, model: ModelBuilder) -> None:
        g, s, t = self.g, self.s, self.tokens
        inputs = {"ids": g.tensor([1, t], INT, "ids"), "past": g.tensor([1], INT, "past")}
        if t > 1:
            inputs["row"] = g.tensor([1], INT, "row")
        for i in range(s.layers):
            shapes = {
                "key": [1, s.kv_heads, self.room, s.head_dim],
                "value": [1, s.kv_heads, s.head_dim, self.room],
            }
            for kind, shape in shapes.items():
                name = f"{kind}.{i}"
                inputs[name] = g.tensor(shape, name=name)
        outputs: dict[str, int] = {}
        self.positions(inputs["past"])
        x = self.embed(g.reshape(inputs["ids"], [t], INT))
        for i in range(s.layers):
            caches = inputs[f"key.{i}"], inputs[f"value.{i}"]
            x, key, value = self.layer(x, i, *caches)
            outputs[f"new_key.{i}"], outputs[f"new_value.{i}"] = key, value
        if t > 1:
            x = g.gather(x, inputs["row"])
        x = self.norm(x, "final", self.source.final_norm())
        name = "embedding" if self.source.tied else "head"
        logits = self.linear(x, name, Linear(self.source.head(), None))
        model.signature(g, inputs, {"logits": logits, **outputs})

    def positions(self, past: int) -> None:
        """Make what depends on the position alone: angles and masks."""
        g, s, t = self.g, self.s, self.tokens
        at = past if t == 1 else g.add(past, g.ints(*range(t)), INT)
        # Padding after the last token may stand beyond the context.
        rows = s.context + PREFILL
        turn = g.gather(g.constant("turns", lambda: rotation_table(s, rows)), at)
        half, rest = len(s.rates), s.head_dim - 2 * len(s.rates)
        cos, sin = g.slice(turn, 1, 0, half), g.slice(turn, 1, half, 2 * half)
        cosines, sines = [cos, cos], [g.mul(sin, g.number(-1.0)), sin]
        if rest:
            cosines.append(g.values(np.ones((t, rest), np.float32)))
            sines.append(g.values(np.zeros((t, rest), np.float32)))
        self.cos, self.sin = g.concat(cosines, 1), g.concat(sines, 1)
        places = np.arange(self.room, dtype=np.int32)
        inputs = [g.constant(f"places.{self.room}", lambda: places), past]
        held = g.operator("LESS", inputs, places.shape, BOOL, options="LessOptions")
        self.held = g.operator(
            "SELECT_V2",
            [held, g.number(0.0), g.number(_MASKED)],
            places.shape,
            options="SelectV2Options",
        )
        self.later = -1
        if t > 1:
            later = np.triu(np.full((t, t), _MASKED, np.float32), 1)
            later = np.tile(later, (self.groups, 1))
            self.later = g.constant(f"later.{t}", lambda: later)

    def embed(self, ids: int) -> int:
        g, shape = self.g, [self.tokens, self.s.hidden]
        weight = self.source.embedding()
        inputs = [ids, self.matrix("embedding", weight)]
        if not self.int8:
            return g.operator("EMBEDDING_LOOKUP", inputs, shape)
        steps = g.operator("EMBEDDING_LOOKUP", inputs, shape, version=3)
        scales = g.constant("embedding.column", lambda: by_rows(weight)[1][:, None])
        return g.mul(steps, g.gather(scales, ids))

    def matrix(self, name: str, weight: Array) -> int:
        """Return the tensor of a weight matrix, rounded where int8 was asked for."""
        if not self.int8:
            return self.g.constant(name, lambda: np.ascontiguousarray(weight))
        return self.g.constant(name, lambda: by_rows(weight)[0], scale=1.0)

    def linear(self, x: int, name: str, layer: Linear) -> int:
        g, bias, bias_values = self.g, -1, layer.bias
        if bias_values is not None:
            bias = g.constant(name + ".bias", lambda: bias_values)
        y = g.operator(
            "FULLY_CONNECTED",
            [x, self.matrix(name, layer.weight), -1 if self.int8 else bias],
            [g.shape(x)[0], len(layer.weight)],
            version=3 if self.int8 else 1,
            options="FullyConnectedOptions",
        )
        if not self.int8:
            return y
        y = g.mul(y, g.constant(name + ".scales", lambda: by_rows(layer.weight)[1]))
        return y if bias < 0 else g.add(y, bias)

    def norm(self, x: int, name: str, norm: Norm) -> int:
        g, bias = self.g, norm.bias
        if self.s.neox:
            x = g.sub(x, g.mean(x))
        size = g.add(g.mean(g.mul(x, x)), g.number(self.s.eps))
        x = g.mul(x, g.unary("RSQRT", size))
        x = g.mul(x, g.constant(name + ".norm", lambda: norm.weight))
        if bias is None:
            return x
        return g.add(x, g.constant(name + ".norm.bias", lambda: bias))

    def layer(self, x: int, i: int, keys: int, values: int) -> tuple[int, int, int]:
        """Return the layer's output, new keys and new values."""
        g, p, layer = self.g, f"l{i}.", self.source.layer(i)
        y = self.norm(x, p + "attention", layer.attention_norm)
        qkv = self.linear(y, p + "qkv", self.scaled(layer.qkv))
        y, key, value = self.attention(qkv, keys, values)
        after = g.add(x, self.linear(y, p + "out", layer.out))
        y = self.norm(x if self.s.parallel else after, p + "mlp", layer.mlp_norm)
        up = self.linear(y, p + "up", layer.up)
        if layer.gate is None:
            approximate = self.s.activation == "gelu_tanh"
            up = g.operator(
                "GELU", [up], g.shape(up), options="GeluOptions", approximate=approximate
            )
        else:
            gate = self.linear(y, p + "gate", layer.gate)
            up = g.mul(g.mul(gate, g.unary("LOGISTIC", gate)), up)
        return g.add(after, self.linear(up, p + "down", layer.down)), key, value

    def scaled(self, qkv: Linear) -> Linear:
        """Put the factor of the scores into the queries' weights."""
        rows = np.ones(len(qkv.weight), np.float32)
        rows[: self.s.heads * self.s.head_dim] = self.s.head_dim**-0.5
        bias = None if qkv.bias is None else qkv.bias * rows
        return Linear(qkv.weight * rows[:, None], bias)

    def attention(self, qkv: int, keys: int, values: int) -> tuple[int, int, int]:
        g, s, t = self.g, self.s, self.tokens
        heads = s.heads + 2 * s.kv_heads
        if t == 1:
            x = g.reshape(qkv, [1, heads, 1, s.head_dim])
        else:
            x = g.transpose(g.reshape(qkv, [1, t, heads, s.head_dim]), [0, 2, 1, 3])
        turned = self.rotate(g.slice(x, 1, 0, s.heads + s.kv_heads))
        query = g.slice(turned, 1, 0, s.heads)
        query = g.reshape(query, [1, s.kv_heads, self.groups * t, s.head_dim])
        key = g.slice(turned, 1, s.heads, s.heads + s.kv_heads)
        value = g.slice(x, 1, s.heads + s.kv_heads, heads)
        if t == 1:
            value = g.reshape(value, [1, s.kv_heads, s.head_dim, 1])
        else:
            value = g.transpose(value, [0, 1, 3, 2])
        scores = g.product(query, key)
        if t > 1:
            scores = g.add(scores, self.later)
        past = g.add(g.product(query, keys), self.held)
        shares = g.softmax(g.concat([past, scores], 3))
        old = g.product(g.slice(shares, 3, 0, self.room), values)
        new = g.product(g.slice(shares, 3, self.room, self.room + t), value)
        mixed = g.reshape(g.add(old, new), [s.heads, t, s.head_dim])
        if t > 1:
            mixed = g.transpose(mixed, [1, 0, 2])
        return g.reshape(mixed, [t, s.heads * s.head_dim]), key, value

    def rotate(self, x: int) -> int:
        """Turn the pairs of each head: ``x * cos + swapped x * signed sin``."""
        g, half = self.g, len(self.s.rates)
        parts = [g.slice(x, 3, half, 2 * half), g.slice(x, 3, 0, half)]
        if 2 * half < self.s.head_dim:
            parts.append(g.slice(x, 3, 2 * half, self.s.head_dim))
        return g.add(g.mul(x, self.cos), g.mul(g.concat(parts, 3), self.sin))
