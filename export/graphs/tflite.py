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

from draftwire.export.graphs.decoder import Decoder
from draftwire.export.graphs.tflite_builder import BOOL, FLOAT, INT, ModelBuilder, Subgraph
from draftwire.export.sources.head import UNSAID, places
from draftwire.export.sources.rope import Rope
from draftwire.export.sources.weights import Linear, Weights

PRECISIONS = ("fp32", "int8")
PREFILL = 32  # tokens of a prefill block
# Attention costs what its cache could hold, not what it holds, so short texts have a
# short cache; but XNNPACK packs all weights again for each signature, so few do.
SHORTEST, GROWTH = 256, 4
_MASKED = -1e9

Array = NDArray[np.float32]


def build_tflite(weights: Weights, precision: str, *, shortest: int = SHORTEST) -> bytes:
    """Return the ``.tflite`` file of a decoder of any family, "fp32" or "int8".

    A context that is longer gets a cache of ``shortest`` positions too.
    """
    weights.a.require_attention("a LiteRT graph")
    model = ModelBuilder("draftwire draft")
    lengths = cache_lengths(weights.a.context, shortest)
    signatures = [("step", 1, length) for length in lengths]
    for name, tokens, length in [*signatures, ("prefill", PREFILL, lengths[-1])]:
        graph = model.subgraph(f"{name}.{length}")
        _Writer(weights, graph, tokens, length, precision == "int8").write(model)
    return model.finish()


def cache_lengths(context: int, shortest: int = SHORTEST) -> list[int]:
    """Return the cache lengths that have a signature, shortest first.

    The last is the context; one that is hardly shorter than it is left out.
    """
    found, length = [], shortest
    while 4 * length < 3 * context:
        found.append(length)
        length *= GROWTH
    return [*found, context]


def rotation_table(rope: Rope, rows: int) -> Array:
    """Return the cosines and sines of the rotated pairs, ``(rows, rotated)``."""
    angles = np.outer(np.arange(rows), rope.rates)
    # Pairs that stand still (rate 0) fill a rotation up.
    size = np.where(rope.rates == 0, 1.0, rope.factor)
    table = np.concatenate([np.cos(angles) * size, np.sin(angles) * size], -1)
    return table.astype(np.float32)


def by_rows(weight: Array) -> tuple[NDArray[np.int8], Array]:
    """Round a matrix to int8 with one scale for each row; return it and the scales."""
    scales = np.abs(weight).max(1) / np.float32(127)
    scales = np.where(scales > 0, scales, np.float32(1)).astype(np.float32)
    steps = np.rint(weight / scales[:, None])
    return np.clip(steps, -127, 127).astype(np.int8), scales


class _Writer(Decoder[int]):
    """Writes one signature; a value is a tensor's number."""

    def __init__(
        self, weights: Weights, g: Subgraph, tokens: int, length: int, int8: bool
    ) -> None:
        super().__init__(weights.a)
        self.w, self.g = weights, g
        self.tokens, self.length, self.int8 = tokens, length, int8
        self.groups = self.a.heads // self.a.kv_heads
        self.inputs: dict[str, int] = {}
        self.outputs: dict[str, int] = {}
        self.at = -1
        self.turns: list[tuple[int, int]] = []
        self.masks: dict[int, tuple[int, int]] = {}  # by window: over cached, new tokens

    def write(self, model: ModelBuilder) -> None:
        g, a, t = self.g, self.a, self.tokens
        inputs = {"ids": g.tensor([1, t], INT, "ids"), "past": g.tensor([1], INT, "past")}
        if t > 1:
            inputs["row"] = g.tensor([1], INT, "row")
        self.inputs = inputs
        for i in range(a.layers):
            sizes = self.length, a.head_dim
            for name, size in ((f"key.{i}", sizes), (f"value.{i}", sizes[::-1])):
                inputs[name] = g.tensor([1, a.kv_heads, *size], name=name)
        past = inputs["past"]
        self.at = past if t == 1 else g.add(past, g.ints(*range(t)))
        self.turns = [self.turn(number) for number in range(len(a.ropes))]
        self.masks = {window: self.mask(window) for window in {*a.windows}}
        x = self.layers(self.embedded(g.reshape(inputs["ids"], [t]), self.at))
        if t > 1:
            x = g.gather(x, inputs["row"])
        head = Linear(self.w.head(), None)
        shared = a.tied and not a.said
        x = self.product(self.final(x), "embedding" if shared else "head", head)
        logits = self.capped(x, a.logit_cap, "logits")
        if a.said:
            padded = g.concat([logits, g.values(np.full((1, 1), UNSAID))], 1)
            place = g.constant("head.places", lambda: places(a.said, a.vocab_size))
            logits = g.gather(g.reshape(padded, [len(a.said) + 1]), place)
            logits = g.reshape(logits, [1, a.vocab_size])
        model.signature(g, inputs, {"logits": logits, **self.outputs})

    def turn(self, number: int) -> tuple[int, int]:
        """Return a rotation's cosines and signed sines ``[T, D]`` of these tokens."""
        g, a, rope = self.g, self.a, self.a.ropes[number]
        # Padding after the last token may stand beyond the context.
        rows = a.context + PREFILL
        table = g.constant(f"turns{number or ''}", lambda: rotation_table(rope, rows))
        turn = g.gather(table, self.at)
        half, rest = len(rope.rates), a.head_dim - 2 * len(rope.rates)
        cos, sin = g.slice(turn, 1, 0, half), g.slice(turn, 1, half, 2 * half)
        cosines, sines = [cos, cos], [g.mul(sin, g.number(-1.0)), sin]
        if rest:
            cosines.append(g.values(np.ones((self.tokens, rest), np.float32)))
            sines.append(g.values(np.zeros((self.tokens, rest), np.float32)))
        return g.concat(cosines, 1), g.concat(sines, 1)

    def mask(self, window: int) -> tuple[int, int]:
        """Return what is added to scores over cached and over new tokens, or -1."""
        g, t = self.g, self.tokens
        name = f"places.{self.length}"
        places = g.constant(name, lambda: np.arange(self.length, dtype=np.int32))
        held = self.open_where(places, self.inputs["past"])
        new = -1
        if window:  # the oldest that a token sees lies window - 1 before it
            first = g.reshape(g.add(self.at, g.ints(-window)), [t, 1])
            held = g.add(self.open_where(first, places), held)
            held = g.concat([held] * self.groups, 0)
        if t > 1:
            apart = np.subtract.outer(np.arange(t), np.arange(t))
            hidden = (apart < 0) | (apart >= (window or t))
            later = np.where(hidden, np.float32(_MASKED), np.float32(0))
            later = np.tile(later, (self.groups, 1)).astype(np.float32)
            new = g.constant(f"later.{t}.{window}", lambda: later)
        return held, new

    def open_where(self, low: int, high: int) -> int:
        """Return 0 where ``low < high``, else what closes a score."""
        g = self.g
        less = g.binary("LESS", low, high, dtype=BOOL)
        inputs = [less, g.number(0.0), g.number(_MASKED)]
        return g.operator("SELECT_V2", inputs, g.shape(less), FLOAT)

    # ---- operations

    def look_up(self, parameter: str, ids: int, name: str) -> int:
        g, weight = self.g, self.w.table(parameter)
        if parameter != self.a.embedding:  # positions, those of padding too
            weight = np.pad(weight, ((0, PREFILL), (0, 0)))
            return g.gather(g.constant("positions", lambda: weight), ids)
        shape = [self.tokens, self.a.hidden]
        inputs = [ids, self.matrix("embedding", weight)]
        if not self.int8:
            return g.operator("EMBEDDING_LOOKUP", inputs, shape, FLOAT)
        steps = g.operator("EMBEDDING_LOOKUP", inputs, shape, FLOAT, version=3)
        scales = g.constant("embedding.column", lambda: by_rows(weight)[1][:, None])
        return g.mul(steps, g.gather(scales, ids))

    def matrix(self, name: str, weight: Array) -> int:
        """Return the tensor of a weight matrix, rounded where int8 was asked for."""
        if not self.int8:
            return self.g.constant(name, lambda: np.ascontiguousarray(weight))
        return self.g.constant(name, lambda: by_rows(weight)[0], scale=1.0)

    def product(self, x: int, name: str, layer: Linear) -> int:
        g, bias, bias_values = self.g, -1, layer.bias
        if bias_values is not None:
            bias = g.constant(name + ".bias", lambda: bias_values)
        y = g.operator(
            "FULLY_CONNECTED",
            [x, self.matrix(name, layer.weight), -1 if self.int8 else bias],
            [g.shape(x)[0], len(layer.weight)],
            version=3 if self.int8 else 1,
        )
        if not self.int8:
            return y
        y = g.mul(y, g.constant(name + ".scales", lambda: by_rows(layer.weight)[1]))
        return y if bias < 0 else g.add(y, bias)

    def linear(self, x: int, i: int, kind: str) -> int:
        name = "out" if kind == "o" else kind
        return self.product(x, f"l{i}.{name}", self.w.linear(i, kind))

    def norm(self, x: int, parameter: str, name: str, scale: float = 1.0) -> int:
        g, w = self.g, self.w.norm(parameter)
        bias = w.bias
        if self.a.family.norm == "layer":
            x = g.binary("SUB", x, g.mean(x))
        size = g.add(g.mean(g.mul(x, x)), g.number(self.a.eps))
        x = g.mul(x, g.unary("RSQRT", size))
        x = g.mul(x, g.constant(parameter, lambda: w.weight * np.float32(scale)))
        if bias is None:
            return x
        return g.add(x, g.constant(parameter + ".bias", lambda: bias))

    def bend(self, x: int, name: str) -> int:
        g = self.g
        if self.a.activation == "silu":
            return g.mul(x, g.unary("LOGISTIC", x))
        return g.unary("GELU", x, approximate=self.a.activation == "gelu_tanh")

    def add(self, x: int, y: int, name: str) -> int:
        return self.g.add(x, y)

    def multiply(self, x: int, y: int, name: str) -> int:
        return self.g.mul(x, y)

    def times(self, x: int, factor: float, name: str) -> int:
        return self.g.mul(x, self.g.number(factor))

    def cap(self, x: int, bound: float, name: str) -> int:
        g = self.g
        return g.mul(g.unary("TANH", g.mul(x, g.number(1 / bound))), g.number(bound))

    def packed(self, i: int) -> Linear:
        """Return all projections, the scores' factor in the queries where it can be."""
        qkv, a = self.w.packed(i), self.a
        if a.names.q_norm:
            return qkv
        rows = np.ones(len(qkv.weight), np.float32)
        rows[: a.heads * a.head_dim] = a.score_scale
        bias = None if qkv.bias is None else qkv.bias * rows
        return Linear(qkv.weight * rows[:, None], bias)

    def attention(self, x: int, i: int) -> int:
        g, a, t = self.g, self.a, self.tokens
        both = a.heads + a.kv_heads
        x = self.product(x, f"l{i}.qkv", self.packed(i))
        x = self.head_norms(x, i)
        if t == 1:
            x = g.reshape(x, [1, both + a.kv_heads, 1, a.head_dim])
        else:
            x = g.reshape(x, [1, t, both + a.kv_heads, a.head_dim])
            x = g.transpose(x, [0, 2, 1, 3])
        turned = self.rotate(g.slice(x, 1, 0, both), i)
        query = g.slice(turned, 1, 0, a.heads)
        query = g.reshape(query, [1, a.kv_heads, self.groups * t, a.head_dim])
        key = g.slice(turned, 1, a.heads, both)
        value = g.slice(x, 1, both, both + a.kv_heads)
        if t == 1:
            value = g.reshape(value, [1, a.kv_heads, a.head_dim, 1])
        else:
            value = g.transpose(value, [0, 1, 3, 2])
        held, later = self.masks[a.windows[i]]
        scores = self.capped(g.product(query, key), a.score_cap, "")
        if later >= 0:
            scores = g.add(scores, later)
        past = g.product(query, self.inputs[f"key.{i}"])
        past = g.add(self.capped(past, a.score_cap, ""), held)
        shares = g.softmax(g.concat([past, scores], 3))
        old = g.product(g.slice(shares, 3, 0, self.length), self.inputs[f"value.{i}"])
        new = g.product(g.slice(shares, 3, self.length, self.length + t), value)
        mixed = g.reshape(g.add(old, new), [a.heads, t, a.head_dim])
        if t > 1:
            mixed = g.transpose(mixed, [1, 0, 2])
        self.outputs[f"new_key.{i}"], self.outputs[f"new_value.{i}"] = key, value
        return g.reshape(mixed, [t, a.heads * a.head_dim])

    def head_norms(self, x: int, i: int) -> int:
        """Return all projections with queries and keys normed, where a family does."""
        g, a, t = self.g, self.a, self.tokens
        if not a.names.q_norm:
            return x
        parts, start = [], 0
        for kind, heads, scale in (("q", a.heads, a.score_scale), ("k", a.kv_heads, 1.0)):
            parameter = a.layer(i) + getattr(a.names, kind + "_norm")
            end = start + heads * a.head_dim
            part = g.slice(x, 1, start, end)
            if len(self.w.norm(parameter).weight) == a.head_dim:
                part = g.reshape(part, [t, heads, a.head_dim])
            part = self.norm(part, parameter, "", scale)
            parts.append(g.reshape(part, [t, heads * a.head_dim]))
            start = end
        parts.append(g.slice(x, 1, start, g.shape(x)[1]))
        return g.concat(parts, 1)

    def rotate(self, x: int, i: int) -> int:
        """Turn the pairs of each head: ``x * cos + swapped x * signed sin``."""
        g, number = self.g, self.a.rope_of[i]
        if number < 0:
            return x
        half, (cos, sin) = len(self.a.ropes[number].rates), self.turns[number]
        parts = [g.slice(x, 3, half, 2 * half), g.slice(x, 3, 0, half)]
        if 2 * half < self.a.head_dim:
            parts.append(g.slice(x, 3, 2 * half, self.a.head_dim))
        return g.add(g.mul(x, cos), g.mul(g.concat(parts, 3), sin))
