"""The graph of a target for the embedded verifier: one forward, many sessions.

Inputs (``B`` sessions, ``S`` new tokens in the longest of them, ``P`` cached tokens
in the longest, ``N`` wanted rows; all three may differ from call to call):

====================  =======  ==============  =====================================
name                  type     shape           meaning
====================  =======  ==============  =====================================
``input_ids``         int64    ``[B, S]``      new tokens, shorter rows padded on the
                                               right with any token id
``past_lens``         int64    ``[B]``         cached tokens that count in each row;
                                               the new ones get positions
                                               ``past_lens[b] + 0 .. S-1``
``rows``              int64    ``[N]``         where logits are wanted, as indices
                                               ``b * S + s``; may be empty
``past.{i}.key``      float32  ``[B, KV, P, D]``  keys of layer ``i``, position ``p``
                                               at index ``p``; what lies at and after
                                               ``past_lens[b]`` is ignored but must
                                               be finite; ``P`` may be 0
``past.{i}.value``    float32  ``[B, KV, P, D]``  values, the same
====================  =======  ==============  =====================================

Outputs:

====================  =======  ==============  =====================================
``logits``            float32  ``[N, V]``      in the order of ``rows``
``new.{i}.key``       float32  ``[B, KV, S, D]``  keys of the new tokens; the caller
                                               writes the first ``n_b`` of row ``b``
                                               at ``past_lens[b]`` of its cache
``new.{i}.value``     float32  ``[B, KV, S, D]``  values, the same
====================  =======  ==============  =====================================

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

from draftwire.export.architecture import Architecture
from draftwire.export.checkpoint import Checkpoint
from draftwire.export.onnx_builder import MICROSOFT, GraphBuilder, Value, value

__all__ = ["MIN_ENGINE", "build_target_graph"]

MIN_ENGINE = "1.19"
_NEVER = np.array(-1e30, np.float32)  # added to a score: exp() of it is 0, and no inf - inf


def build_target_graph(checkpoint: Checkpoint) -> onnx.ModelProto:
    """Return the target graph of a checkpoint, without its weights."""
    return _Writer(checkpoint).build()


class _Writer:
    def __init__(self, checkpoint: Checkpoint) -> None:
        self.a: Architecture = checkpoint.architecture
        needed, optional = self.a.parameters()
        self.shapes = {**needed, **optional}
        self.stored = checkpoint
        self.g = GraphBuilder()

    def build(self) -> onnx.ModelProto:
        a, g = self.a, self.g
        self.positions_and_masks()
        table = self.weight(a.embedding)
        flat = g.node("Reshape", ["input_ids", g.integers(-1)], "flat_ids")
        hidden = g.node("Gather", [table, flat], "embedded")  # [B * S, hidden]
        for i in range(a.layers):
            layer = self.neox_layer if a.neox else self.llama_layer
            hidden = layer(hidden, i)
        # The head is the widest product of all: only wanted rows go through it.
        kept = g.node("Gather", [hidden, "rows"], "kept")
        kept = self.norm(kept, "gpt_neox.final_layer_norm" if a.neox else "model.norm")
        g.node("Gemm", [kept, self.weight(a.head)], "logits", transB=1)
        inputs = [
            value("input_ids", "int64", ["B", "S"]),
            value("past_lens", "int64", ["B"]),
            value("rows", "int64", ["N"]),
        ]
        outputs = [value("logits", "float32", ["N", a.vocab_size])]
        for i in range(a.layers):
            for kind in ("key", "value"):
                inputs.append(self.cache(f"past.{i}.{kind}", "P"))
                outputs.append(self.cache(f"new.{i}.{kind}", "S"))
        return g.model("target", inputs, outputs)

    def cache(self, name: str, length: str) -> Value:
        return value(name, "float32", ["B", self.a.kv_heads, length, self.a.head_dim])

    def weight(self, name: str) -> str:
        return self.g.supplied(name, self.shapes[name])

    def linear(self, x: str, name: str) -> str:
        inputs = [x, self.weight(name + ".weight")]
        if name + ".bias" in self.stored:
            inputs.append(self.weight(name + ".bias"))
        return self.g.node("Gemm", inputs, name, transB=1)

    def norm(self, x: str, name: str) -> str:
        g, weight = self.g, self.weight(name + ".weight")
        if self.a.neox:
            bias = self.weight(name + ".bias")
            return g.node("LayerNormalization", [x, weight, bias], name, epsilon=self.a.eps)
        return g.node(
            "SimplifiedLayerNormalization",
            [x, weight],
            name,
            epsilon=self.a.eps,
            axis=-1,
            stash_type=1,
        )

    def positions_and_masks(self) -> None:
        """Write ``cos`` and ``sin`` ``[B, S, 1, R / 2]``, both masks and shapes."""
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
        rates = g.constant("rope_rates", a.rope_rates.astype(np.float32))
        angles = g.node("Mul", [where, rates], "angles")
        g.node("Cos", [angles], "cos")
        g.node("Sin", [angles], "sin")
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
        g.node("Greater", ["P", g.integers(0)], "any_past")  # [1]
        heads, kv, dim = (g.integers(n) for n in (a.heads, a.kv_heads, a.head_dim))
        rows = g.node("Mul", ["S", g.integers(group)], "G*S")
        g.node("Concat", ["B", "S", g.integers(-1), dim], "token_shape", axis=0)
        g.node("Concat", ["B", kv, rows, dim], "group_shape", axis=0)
        g.node("Concat", ["B", heads, "S", dim], "head_shape", axis=0)
        g.node("Concat", ["P", "S"], "past_and_new", axis=0)

    def attend(self, qk: str, v: str, i: int) -> str:
        """Attend from ``qk`` ``[B, S, H + KV, D]`` to the cache and to itself.

        Scores over cached and over new tokens are computed apart and joined before
        the softmax, so that the cache is only read, never copied.
        """
        g, a, n = self.g, self.a, f"l{i}."
        sizes = g.integers(a.heads, a.kv_heads)
        g.node("Split", [self.rotate(qk, n), sizes], [n + "q", n + "k"], axis=2)
        swap = [0, 2, 1, 3]
        q = g.node("Transpose", [n + "q"], n + "q.heads", perm=swap)
        g.node("Transpose", [n + "k"], f"new.{i}.key", perm=swap)
        g.node("Transpose", [v], f"new.{i}.value", perm=swap)
        scale = g.constant("scale", np.array(a.head_dim**-0.5, np.float32))
        q = g.node("Mul", [q, scale], n + "q.scaled")
        # The heads of a group share their keys: one product with G * S rows.
        q = g.node("Reshape", [q, "group_shape"], n + "q.groups")
        scores = []
        for kind in ("past", "new"):
            k = f"{kind}.{i}.key"
            k = g.node("Transpose", [k], n + kind + ".kt", perm=[0, 1, 3, 2])
            dots = g.node("MatMul", [q, k], n + kind + ".dots")
            scores.append(g.node("Add", [dots, kind + "_mask"], n + kind + ".scores"))
        joined = g.node("Concat", scores, n + "scores", axis=-1)
        shares = g.node("Softmax", [joined], n + "shares", axis=-1)
        parts = [n + "past.shares", n + "new.shares"]
        g.node("Split", [shares, "past_and_new"], parts, axis=-1)
        mixed = []
        for kind in ("past", "new"):
            inputs = [n + kind + ".shares", f"{kind}.{i}.value"]
            mixed.append(g.node("MatMul", inputs, n + kind))
        # onnxruntime leaves the product over an empty cache uninitialised.
        nothing = g.constant("nothing", np.array(0, np.float32))
        mixed[0] = g.node("Where", ["any_past", mixed[0], nothing], n + "past.safe")
        y = g.node("Add", mixed, n + "mixed")
        y = g.node("Reshape", [y, "head_shape"], n + "mixed.heads")
        y = g.node("Transpose", [y], n + "mixed.tokens", perm=swap)
        width = g.integers(-1, a.heads * a.head_dim)
        return g.node("Reshape", [y, width], n + "attended")

    def rotate(self, x: str, n: str) -> str:
        """Turn the first ``R`` dimensions of each head by its position."""
        g, half = self.g, self.a.rotary_dim // 2
        rest = self.a.head_dim - 2 * half
        parts = [n + "first", n + "second"] + ([n + "rest"] if rest else [])
        sizes = g.integers(half, half, *([rest] if rest else []))
        g.node("Split", [x, sizes], parts, axis=-1)
        products = {
            (part, table): g.node("Mul", [n + part, table], f"{n}{part}.{table}")
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

    def llama_layer(self, hidden: str, i: int) -> str:
        g, p, n = self.g, self.a.layer(i), f"l{i}."
        x = self.norm(hidden, p + "input_layernorm")
        q, k, v = (self.linear(x, f"{p}self_attn.{c}_proj") for c in "qkv")
        qk = self.by_token(g.node("Concat", [q, k], n + "qk.flat", axis=-1), n + "qk")
        x = self.attend(qk, self.by_token(v, n + "v"), i)
        x = self.linear(x, p + "self_attn.o_proj")
        hidden = g.node("Add", [hidden, x], n + "mid")
        x = self.norm(hidden, p + "post_attention_layernorm")
        gate, up = (self.linear(x, f"{p}mlp.{c}_proj") for c in ("gate", "up"))
        opened = g.node("Sigmoid", [gate], n + "sigmoid")
        gate = g.node("Mul", [gate, opened], n + "silu")
        x = g.node("Mul", [gate, up], n + "gated")
        x = self.linear(x, p + "mlp.down_proj")
        return g.node("Add", [hidden, x], n + "out")

    def neox_layer(self, hidden: str, i: int) -> str:
        g, a, p, n = self.g, self.a, self.a.layer(i), f"l{i}."
        x = self.norm(hidden, p + "input_layernorm")
        x = self.linear(x, p + "attention.query_key_value")
        shape = g.node(
            "Concat",
            ["B", "S", g.integers(a.heads), g.integers(3 * a.head_dim)],
            n + "qkv_shape",
            axis=0,
        )
        x = g.node("Reshape", [x, shape], n + "qkv")
        parts = [n + "q.in", n + "k.in", n + "v"]
        g.node("Split", [x, g.integers(*[a.head_dim] * 3)], parts, axis=-1)
        qk = g.node("Concat", parts[:2], n + "qk", axis=2)
        x = self.linear(self.attend(qk, parts[2], i), p + "attention.dense")
        after = g.node("Add", [hidden, x], n + "mid")
        source = hidden if a.parallel else after
        x = self.norm(source, p + "post_attention_layernorm")
        x = self.linear(x, p + "mlp.dense_h_to_4h")
        op = "FastGelu" if a.activation == "gelu_tanh" else "Gelu"
        x = g.node(op, [x], n + "gelu", domain=MICROSOFT)
        x = self.linear(x, p + "mlp.dense_4h_to_h")
        return g.node("Add", [after, x], n + "out")
