"""The graph of a target for the embedded verifier: one forward, many streams.

Inputs (``B`` streams, ``S`` new tokens in the longest of them, ``P`` cached tokens in the
longest, ``N`` wanted rows; all may differ from call to call):

- ``input_ids`` int64 ``[B, S]``: new tokens, shorter rows padded on the right with any id
- ``past_lens`` int64 ``[B]``: cached tokens that count in each row; the new ones get
  positions ``past_lens[b] + 0 .. S-1``
- ``rows`` int64 ``[N]``: where logits are wanted, as ``b * S + s``; may be empty
- ``past.{i}.key``, ``past.{i}.value`` float32 ``[B, KV, P, D]``: keys and values of layer
  ``i``, position ``p`` at index ``p``; what lies at and after ``past_lens[b]`` is ignored
  but must be finite; ``P`` may be 0

Outputs:

- ``logits`` float32 ``[N, V]``, in the order of ``rows``
- ``new.{i}.key``, ``new.{i}.value`` float32 ``[B, KV, S, D]``: those of the new tokens; the
  caller writes the first ``n_b`` of row ``b`` at ``past_lens[b]`` of its cache

Weights are initialisers with external data that is stored nowhere.  Their names,
shapes and layout are those of the checkpoint's parameters (``weights.safetensors``
of the package has the same names), so that a caller reads them with
:mod:`draftwire.tensors`, merges an adapter in numpy and supplies float32 arrays::

    weights = read_tensors(base.path / "weights.safetensors")      # float32
    merge_lora(weights, adapter_tensors, scale)                    # evolved targets
    options.add_external_initializers(
        list(weights), [OrtValue.ortvalue_from_numpy(w) for w in weights.values()]
    )
    InferenceSession(str(base.path / "model.onnx"), options)

:func:`draftwire.tensors.target_weights` does the first two for any target package.
The arrays are not copied before the session is made: keep ``weights`` until then.
Every tensor of the file is an initialiser of the graph and the other way round.
Arithmetic is float32 throughout with no dynamic quantisation, so that k tokens in
one forward give the logits of k single forwards up to float noise.
"""

from __future__ import annotations

import numpy as np
import onnx

from draftwire.export.graphs.onnx_decoder import OnnxDecoder, value
from draftwire.export.sources.checkpoint import Checkpoint

MIN_ENGINE = "1.19"
_NEVER = np.array(-1e30, np.float32)  # added to a score: exp() of it is 0, and no inf - inf


def build_target_graph(checkpoint: Checkpoint) -> onnx.ModelProto:
    """Return the target graph of a checkpoint, without its weights."""
    return _Writer(checkpoint).build()


class _Writer(OnnxDecoder):
    def __init__(self, checkpoint: Checkpoint) -> None:
        super().__init__(checkpoint.architecture)
        self.a.require_attention("a target's graph")
        self.checkpoint = checkpoint
        needed, optional = self.a.parameters()
        self.shapes = {**needed, **optional}

    def build(self) -> onnx.ModelProto:
        a, g = self.a, self.g
        self.positions_and_masks()
        flat = g.node("Reshape", ["input_ids", g.integers(-1)], "flat_ids")
        places = ""
        if a.names.positions:
            places = g.node("Reshape", ["positions", g.integers(-1)], "flat_positions")
        # [B * S, hidden]
        hidden = self.written(self.layers(self.embedded(flat, places)))
        # The head is the widest product of all: only wanted rows go through it.
        kept = self.final(g.node("Gather", [hidden, "rows"], "kept"))
        name = "uncapped" if a.logit_cap else "logits"
        logits = g.node("Gemm", [kept, self.table(a.head)], name, transB=1)
        self.capped(logits, a.logit_cap, "logits")
        inputs = [
            value("input_ids", "int64", ["B", "S"]),
            value("past_lens", "int64", ["B"]),
            value("rows", "int64", ["N"]),
            *self.caches("past.{}.{}", "P"),
        ]
        outputs = [value("logits", "float32", ["N", a.vocab_size])]
        return g.model("target", inputs, outputs + self.caches("new.{}.{}", "S"))

    def table(self, parameter: str) -> str:
        return self.g.supplied(parameter, self.shapes[parameter])

    def stored(self, x: str, parameter: str) -> str:
        """Write the linear layer as it is stored."""
        inputs = [self.written(x), self.table(parameter + ".weight")]
        if parameter + ".bias" in self.checkpoint:
            inputs.append(self.table(parameter + ".bias"))
        return self.g.node("Gemm", inputs, parameter, transB=int(not self.a.family.conv))

    def linear(self, x: str, i: int, kind: str) -> str:
        names, p = self.a.names, self.a.layer(i)
        if kind in ("gate", "up") and names.gate == names.up:
            parts = [f"l{i}.gate", f"l{i}.up"]
            if kind == "up":  # comes first
                both = self.stored(x, p + names.up)
                half = self.g.integers(self.a.feed_forward, self.a.feed_forward)
                self.g.node("Split", [both, half], parts, axis=-1)
            return parts[kind == "up"]
        return self.stored(x, p + getattr(names, {"o": "out"}.get(kind, kind)))

    def norm_weights(self, parameter: str) -> list[str]:
        weight, shift = self.table(parameter + ".weight"), self.a.family.norm_shift
        if shift:
            one = self.g.constant("norm_shift", np.array(shift, np.float32))
            weight = self.g.node("Add", [weight, one], parameter + ".shifted")
        if self.a.family.norm != "layer":
            return [weight]
        return [weight, self.table(parameter + ".bias")]

    def positions_and_masks(self) -> None:
        """Write each rotation's ``cos`` and ``sin`` ``[B, S, 1, R / 2]``, masks, shapes."""
        g, a = self.g, self.a
        zero, one = (g.constant(f"i64_scalar_{v}", np.array(v)) for v in (0, 1))
        g.node("Shape", ["input_ids"], "B", start=0, end=1)
        g.node("Shape", ["input_ids"], "S", start=1, end=2)
        g.node("Shape", ["past.0.key"], "P", start=2, end=3)
        for size, name in (("S", "steps"), ("P", "slots")):
            scalar = g.node("Squeeze", [size], size + ".scalar")
            g.node("Range", [zero, scalar, one], name)
        lens = g.node("Unsqueeze", ["past_lens", g.integers(1)], "lens")  # [B, 1]
        where = g.node("Add", [lens, "steps"], "positions")  # [B, S]
        where = g.node("Cast", [where], "positions.float", to=onnx.TensorProto.FLOAT)
        where = g.node("Unsqueeze", [where, g.integers(2, 3)], "positions.column")
        for number, rope in enumerate(a.ropes):
            end = str(number) if number else ""
            rates = g.constant("rope_rates" + end, rope.rates.astype(np.float32))
            angles = g.node("Mul", [where, rates], "angles" + end)
            for op, name in (("Cos", "cos" + end), ("Sin", "sin" + end)):
                if rope.factor == 1.0:
                    g.node(op, [angles], name)
                    continue
                turn = g.node(op, [angles], name + ".plain")
                size = g.constant("size" + end, np.array(rope.factor, np.float32))
                g.node("Mul", [turn, size], name)
        allow = g.constant("allow", np.array(0, np.float32))
        forbid = g.constant("forbid", _NEVER)
        valid = g.node("Less", ["slots", lens], "valid")  # [B, P]
        mask = g.node("Where", [valid, allow, forbid], "past_mask.flat")
        g.node("Unsqueeze", [mask, g.integers(1, 2)], "past_mask")  # [B, 1, 1, P]
        own = g.node("Unsqueeze", ["steps", g.integers(1)], "steps.column")
        later = g.node("Greater", ["steps", own], "later")  # [S, S]
        mask = g.node("Where", [later, forbid, allow], "new_mask.once")
        group = a.heads // a.kv_heads
        g.node("Tile", [mask, g.integers(group, 1)], "new_mask")  # [G * S, S]
        for window in sorted({*a.windows} - {0}):
            self.window_masks(window, group)
        g.node("Greater", ["P", g.integers(0)], "any_past")  # [1]
        heads, kv, dim = (g.integers(n) for n in (a.heads, a.kv_heads, a.head_dim))
        rows = g.node("Mul", ["S", g.integers(group)], "G*S")
        g.node("Concat", ["B", "S", g.integers(-1), dim], "token_shape", axis=0)
        g.node("Concat", ["B", kv, rows, dim], "group_shape", axis=0)
        g.node("Concat", ["B", heads, "S", dim], "head_shape", axis=0)
        g.node("Concat", ["P", "S"], "past_and_new", axis=0)

    def window_masks(self, window: int, group: int) -> None:
        """Write both masks of layers that look back on ``window`` tokens only."""
        g, end = self.g, f".{window}"
        width = g.integers(window)
        column = g.node("Unsqueeze", ["positions", g.integers(2)], "at" + end)  # [B, S, 1]
        apart = g.node("Sub", [column, "slots"], "past.apart" + end)  # [B, S, P]
        near = g.node("Less", [apart, width], "past.near" + end)
        row = g.node("Unsqueeze", ["valid", g.integers(1)], "past.valid" + end)
        seen = g.node("And", [near, row], "past.seen" + end)
        mask = g.node("Where", [seen, "allow", "forbid"], "past_mask.flat" + end)
        mask = g.node("Tile", [mask, g.integers(1, group, 1)], "past_mask.groups" + end)
        g.node("Unsqueeze", [mask, g.integers(1)], "past_mask" + end)  # [B, 1, G * S, P]
        apart = g.node("Sub", ["steps.column", "steps"], "new.apart" + end)  # [S, S]
        far = g.node("Less", [apart, width], "new.near" + end)
        far = g.node("Not", [far], "new.far" + end)
        hidden = g.node("Or", [far, "later"], "new.hidden" + end)
        mask = g.node("Where", [hidden, "forbid", "allow"], "new_mask.once" + end)
        g.node("Tile", [mask, g.integers(group, 1)], "new_mask" + end)

    def attention(self, x: str, i: int) -> str:
        a, g, n, p = self.a, self.g, f"l{i}.", self.a.layer(i)
        parts = [n + "q.in", n + "k.in", n + "v.in"]
        if a.family.interleaved:
            heads, width = g.integers(a.heads), g.integers(3 * a.head_dim)
            shape = g.node("Concat", ["B", "S", heads, width], n + "qkv_shape", axis=0)
            x = g.node("Reshape", [self.stored(x, p + a.names.qkv[0]), shape], n + "qkv")
            g.node("Split", [x, g.integers(*[a.head_dim] * 3)], parts, axis=-1)
            q, k, v = parts
        else:
            if len(a.names.qkv) == 3:
                parts = [self.stored(x, p + name) for name in a.names.qkv]
            else:
                x = self.stored(x, p + a.names.qkv[0])
                sizes = [heads * a.head_dim for heads in (a.heads, a.kv_heads, a.kv_heads)]
                g.node("Split", [x, g.integers(*sizes)], parts, axis=-1)
            q, k = (
                self.head_norm(part, i, kind)
                for part, kind in zip(parts, ("q_norm", "k_norm"), strict=False)
            )
            v = self.by_token(parts[2], n + "v")
        return self.attend(g.node("Concat", [q, k], n + "qk", axis=2), v, i)

    def head_norm(self, x: str, i: int, kind: str) -> str:
        """Write queries or keys by token and head, normed where the family does that."""
        name, parameter = f"l{i}.{kind}", getattr(self.a.names, kind)
        if not parameter:
            return self.by_token(x, name)
        parameter = self.a.layer(i) + parameter
        if self.shapes[parameter + ".weight"] != (self.a.head_dim,):
            return self.by_token(self.norm(x, parameter, name), name + ".heads")
        return self.norm(self.by_token(x, name + ".heads"), parameter, name)

    def attend(self, qk: str, v: str, i: int) -> str:
        """Attend from ``qk`` ``[B, S, H + KV, D]`` to the cache and to itself.

        Scores over cached and over new tokens are computed apart and joined before
        the softmax, so that the cache is only read, never copied.
        """
        g, a, n = self.g, self.a, f"l{i}."
        sizes = g.integers(a.heads, a.kv_heads)
        g.node("Split", [self.rotate(qk, i), sizes], [n + "q", n + "k"], axis=2)
        swap = [0, 2, 1, 3]
        q = g.node("Transpose", [n + "q"], n + "q.heads", perm=swap)
        g.node("Transpose", [n + "k"], f"new.{i}.key", perm=swap)
        g.node("Transpose", [v], f"new.{i}.value", perm=swap)
        scale = g.constant("scale", np.array(a.score_scale, np.float32))
        q = g.node("Mul", [q, scale], n + "q.scaled")
        # The heads of a group share their keys: one product with G * S rows.
        q = g.node("Reshape", [q, "group_shape"], n + "q.groups")
        scores = []
        for kind in ("past", "new"):
            k = f"{kind}.{i}.key"
            k = g.node("Transpose", [k], n + kind + ".kt", perm=[0, 1, 3, 2])
            dots = g.node("MatMul", [q, k], n + kind + ".dots")
            dots = self.capped(dots, a.score_cap, n + kind + ".capped")
            mask = f"{kind}_mask" + (f".{a.windows[i]}" if a.windows[i] else "")
            scores.append(g.node("Add", [dots, mask], n + kind + ".scores"))
        joined = g.node("Concat", scores, n + "scores", axis=-1)
        shares = g.node("Softmax", [joined], n + "shares", axis=-1)
        parts = [n + "past.shares", n + "new.shares"]
        g.node("Split", [shares, "past_and_new"], parts, axis=-1)
        mixed = [
            g.node("MatMul", [n + kind + ".shares", f"{kind}.{i}.value"], n + kind)
            for kind in ("past", "new")
        ]
        # onnxruntime leaves the product over an empty cache uninitialised.
        nothing = g.constant("nothing", np.array(0, np.float32))
        mixed[0] = g.node("Where", ["any_past", mixed[0], nothing], n + "past.safe")
        y = g.node("Add", mixed, n + "mixed")
        y = g.node("Reshape", [y, "head_shape"], n + "mixed.heads")
        y = g.node("Transpose", [y], n + "mixed.tokens", perm=swap)
        width = g.integers(-1, a.heads * a.head_dim)
        return g.node("Reshape", [y, width], n + "attended")

    def rotate(self, x: str, i: int) -> str:
        """Turn the first dimensions of each head by its position."""
        g, n, number = self.g, f"l{i}.", self.a.rope_of[i]
        if number < 0:
            return x
        half, end = len(self.a.ropes[number].rates), str(number) if number else ""
        rest = self.a.head_dim - 2 * half
        parts = [n + "first", n + "second"] + ([n + "rest"] if rest else [])
        sizes = g.integers(half, half, *([rest] if rest else []))
        g.node("Split", [x, sizes], parts, axis=-1)
        products = {
            (part, table): g.node("Mul", [n + part, table + end], f"{n}{part}.{table}")
            for part in ("first", "second")
            for table in ("cos", "sin")
        }
        turned = [
            g.node("Sub", [products["first", "cos"], products["second", "sin"]], n + "re"),
            g.node("Add", [products["second", "cos"], products["first", "sin"]], n + "im"),
        ]
        return g.node("Concat", [*turned, *parts[2:]], n + "turned", axis=-1)

    def by_token(self, x: str, name: str) -> str:
        return self.g.node("Reshape", [x, "token_shape"], name)
