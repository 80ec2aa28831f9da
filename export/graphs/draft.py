"""The graph of a draft: attention over a key/value cache that is updated in place.

Inputs: ``input_ids`` int64 ``[B, S]``; ``seqlens_k`` int32 ``[B]``, the last valid
index of the cache after this step (length - 1); ``total_seq_len`` int32 scalar, the
length after this step; ``logits_from`` int64 ``[1]``, the first of the S positions
whose logits are wanted (-1 for the last alone); ``past_key_values.{i}.key`` and
``.value`` float32 ``[B, KV, M, D]``.  Outputs: ``logits`` float32 ``[B, S', V]`` and
``present.{i}.key`` / ``.value``.  A layer that convolves its last inputs has ``.conv``
``[1, 1, M, hidden]`` instead: those inputs by position, which rewind like the rest.
Bind past and present of a layer to one buffer of M
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

from draftwire.export.graphs.onnx_decoder import MICROSOFT, OnnxDecoder, value
from draftwire.export.sources.architecture import Architecture, UnknownArchitecture
from draftwire.export.sources.checkpoint import Checkpoint
from draftwire.export.sources.head import UNSAID, places
from draftwire.export.sources.weights import CheckpointWeights, Linear, joined

MIN_ENGINE = "1.19"  # 1.18 and older are wrong or refuse the graph


def build_gqa_graph(checkpoint: Checkpoint) -> onnx.ModelProto:
    """Return the float32 draft graph of a checkpoint."""
    return _Writer(checkpoint).build()


def rotation(
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


class _Writer(OnnxDecoder):
    fuses = True

    def __init__(self, checkpoint: Checkpoint) -> None:
        super().__init__(checkpoint.architecture)
        self.w = CheckpointWeights(checkpoint)
        self.orders: list[NDArray[np.int64] | None] = []

    def build(self) -> onnx.ModelProto:
        a, g = self.a, self.g
        for number, rope in enumerate(a.ropes):
            rates, order = rotation(a, rope.rates)
            self.orders.append(order)
            angles = np.outer(np.arange(a.context), rates)
            end = str(number) if number else ""
            # Dimensions that fill up the rotation must come out as they went in.
            size = np.where(rates == 0, 1.0, rope.factor)
            g.constant("cos" + end, (np.cos(angles) * size).astype(np.float32))
            g.constant("sin" + end, (np.sin(angles) * size).astype(np.float32))
        self.table(a.embedding)
        if a.names.positions or any(a.convs):
            self.count_positions()
        positions = "positions" if a.names.positions else ""
        hidden = self.final(self.layers(self.embedded("input_ids", positions)))
        end, axis = g.integers(2**31 - 1), g.integers(1)
        tail = g.node("Slice", [hidden, "logits_from", end, axis], "tail")
        if a.tied and not a.said:  # stored once; onnxruntime turns it as it loads the graph
            head = g.node("Transpose", ["embedding"], "head.weight", perm=[1, 0])
        else:
            head = g.constant("head.weight", self.w.head().T)
        name = "logits.said" if a.said else "logits"
        logits = g.node("MatMul", [tail, head], "uncapped" if a.logit_cap else name)
        logits = self.capped(logits, a.logit_cap, name)
        if a.said:
            behind, unsaid = (
                g.integers(0, 0, 0, 0, 0, 1),
                g.constant("unsaid", np.array(UNSAID)),
            )
            padded = g.node("Pad", [logits, behind, unsaid], "logits.padded")
            place = g.constant("head.places", places(a.said, a.vocab_size))
            g.node("Gather", [padded, place], "logits", axis=2)
        inputs = [
            value("input_ids", "int64", ["B", "S"]),
            value("seqlens_k", "int32", ["B"]),
            value("total_seq_len", "int32", []),
            value("logits_from", "int64", [1]),
            *self.caches("past_key_values.{}.{}", "M"),
        ]
        outputs = [value("logits", "float32", ["B", "rows", a.vocab_size])]
        return g.model("draft", inputs, outputs + self.caches("present.{}.{}", "M"))

    def count_positions(self) -> None:
        """Write the ``positions`` ``[B, S]`` of the new tokens."""
        g = self.g
        zero, one = (g.constant(f"i64_scalar_{v}", np.array(v)) for v in (0, 1))
        count = g.node("Shape", ["input_ids"], "S", start=1, end=2)
        scalar = g.node("Squeeze", [count], "S.scalar")
        steps = g.node("Range", [zero, scalar, one], "steps")
        last = g.node("Cast", ["seqlens_k"], "last", to=onnx.TensorProto.INT64)
        first = g.node("Sub", [g.node("Add", [last, one], "length"), count], "first")
        column = g.node("Unsqueeze", [first, g.integers(1)], "first.column")
        g.node("Add", [column, steps], "positions")

    def table(self, parameter: str) -> str:
        name = "embedding" if parameter == self.a.embedding else parameter
        return self.g.constant(name, self.w.table(parameter))

    def norm_weights(self, parameter: str) -> list[str]:
        w, layer = self.w.norm(parameter), self.a.family.norm == "layer"
        found = [self.g.constant(parameter + ".weight" * layer, w.weight)]
        if layer and w.bias is not None:
            found.append(self.g.constant(parameter + ".bias", w.bias))
        return found

    def linear(self, x: str, i: int, kind: str) -> str:
        return self.product(x, f"l{i}.{kind}", self.w.linear(i, kind))

    def product(self, x: str, name: str, layer: Linear) -> str:
        g, x = self.g, self.written(x)
        y = g.node("MatMul", [x, g.constant(name + ".weight", layer.weight.T)], name)
        if layer.bias is None:
            return y
        return g.node("Add", [y, g.constant(name + ".bias", layer.bias)], name + ".biased")

    def attention(self, x: str, i: int) -> str:
        a, n, rope = self.a, f"l{i}.", self.a.rope_of[i]
        order = self.orders[rope] if rope >= 0 else None
        # All three projections in one product: a step is bound by memory.
        parts = self.w.qkv(i)
        if order is not None:
            parts[:2] = [part.sorted(order) for part in parts[:2]]
        inputs = [self.product(x, n + "qkv", joined(parts)), "", ""]
        if a.names.q_norm:
            names = [n + "q", n + "k", n + "v"]
            sizes = self.g.integers(*(len(part.weight) for part in parts))
            self.g.node("Split", [inputs[0], sizes], names, axis=-1)
            kinds = zip(names, ("q_norm", "k_norm"), strict=False)
            inputs = [*(self.head_norm(x, i, kind, order) for x, kind in kinds), names[2]]
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

    def convolution(self, x: str, i: int) -> str:
        """Convolve the products of B and x with those before them, and gate by C."""
        a, g, n, taps = self.a, self.g, f"l{i}.", self.a.convs[i]
        kernel = self.w.kernel(i)
        three = self.product(x, n + "conv_in", self.w.linear(i, "conv_in"))
        parts = [n + "b", n + "c", n + "x"]
        g.node("Split", [three, g.integers(*[a.hidden] * 3)], parts, axis=-1)
        fed = g.node("Mul", [parts[0], parts[2]], n + "fed")
        rows = g.node("Reshape", [fed, g.integers(-1, a.hidden)], n + "fed.rows")
        if i == next(j for j, taps_of in enumerate(a.convs) if taps_of):
            self.find_places()
        past = f"past_key_values.{i}.conv"
        g.node("ScatterND", [past, "places", rows], f"present.{i}.conv")
        # The cache is written behind what is read of it, in any order.
        before = g.node("Gather", [past, f"before.{taps}"], n + "before", axis=2)
        before = g.node("Mul", [before, f"before.{taps}.there"], n + "before.there")
        fresh = g.node("Unsqueeze", [fed, g.integers(1)], n + "fresh")
        line = g.node("Concat", [before, fresh], n + "line", axis=2)
        terms = []
        for j in range(taps):
            end = g.integers(j - taps + 1 if j < taps - 1 else 2**31 - 1)
            tap = g.node("Slice", [line, g.integers(j), end, g.integers(2)], f"{n}tap{j}")
            row = g.constant(f"{n}kernel{j}", kernel.weight[j])
            terms.append(g.node("Mul", [tap, row], f"{n}term{j}"))
        if kernel.bias is not None:
            terms.append(g.constant(n + "kernel.bias", kernel.bias))
        mixed = g.node("Sum", terms, n + "convolved")
        mixed = g.node("Squeeze", [mixed, g.integers(1)], n + "convolved.rows")
        return g.node("Mul", [parts[1], mixed], n + "convolved.gated")

    def find_places(self) -> None:
        """Write where the new tokens lie in a cache of inputs, and those before them."""
        g = self.g
        column = g.node("Reshape", ["positions", g.integers(-1, 1)], "places.column")
        g.node("Pad", [column, g.integers(0, 2, 0, 0)], "places")
        for taps in sorted(set(self.a.convs) - {0}):
            back, zero = g.constant(f"back.{taps}", np.arange(1 - taps, 0)), g.integers(0)
            wanted = g.node("Add", ["first", back], f"before.{taps}.wanted")
            g.node("Max", [wanted, zero], f"before.{taps}")
            there = g.node("GreaterOrEqual", [wanted, zero], f"before.{taps}.is")
            there = g.node("Cast", [there], f"before.{taps}.as", to=onnx.TensorProto.FLOAT)
            g.node("Reshape", [there, g.integers(-1, 1)], f"before.{taps}.there")

    def head_norm(self, x: str, i: int, kind: str, order: NDArray[np.int64] | None) -> str:
        """Write the norm of queries or keys, over each head or over all of them."""
        a, g, name = self.a, self.g, f"l{i}.{kind}"
        parameter = a.layer(i) + getattr(a.names, kind)
        weight = self.w.norm(parameter)
        if order is not None:
            weight = weight.sorted(order)
        apart = len(weight.weight) == a.head_dim
        if apart:
            x = g.node("Reshape", [x, g.integers(0, 0, -1, a.head_dim)], name + ".heads")
        x = self.plain_norm(x, [g.constant(parameter, weight.weight)], name)
        return g.node("Reshape", [x, g.integers(0, 0, -1)], name + ".flat") if apart else x
