"""Smaller weights for a draft graph: what the device reads for every token.

Every product with a constant matrix becomes ``MatMulNBits``, whose activations keep a
scale a row: what it says does not depend on how many tokens come in one step.

int8
    Blocks of 32 weights with one scale, symmetric. A head that is tied to the embedding
    is stored once: both operators read the same bytes of the data file.
int8-split
    The same integers as two halves of 4 bits, ``q = 16 hi + lo``, for onnxruntime below
    1.23, which has no product with 8 bits.
int8-kv8
    int8 with keys and values in the cache as int8 too, a scale for each head and channel
    from text of the model's own: a quarter of the cache's memory, from onnxruntime 1.27.
int4
    4 bits with a zero point, rounded one column after the other while the columns that
    follow take up the error (GPTQ), on text of the model's own. Small models do not bear
    that everywhere, so the matrices that suffer most for their size stay at 8 bits.

Source:
    ``MatMulNBits`` and ``GatherBlockQuantized`` in onnxruntime's
    docs/ContribOperators.md; Frantar et al. 2022, GPTQ, https://arxiv.org/abs/2210.17323.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from draftwire.errors import ModelError
from draftwire.export.graphs.onnx_decoder import MICROSOFT

# From the least rounded to the most.
PRECISIONS = ("fp32", "int8", "int8-split", "int8-kv8", "int4")
# 8 bits and rows of blocks came with 1.23; the split form runs on what has 4 bits.
MIN_ENGINE = {"fp32": "1.19", "int8": "1.23", "int8-split": "1.19", "int4": "1.23"}
MIN_ENGINE["int8-kv8"] = "1.27"  # an int8 cache stops 1.26 with an error of its own

BLOCK = 32  # weights that share a scale
# Bytes of an int4 file over those of the int8 one; below it acceptance falls steeply.
INT4_BUDGET = 0.84
# Matrices as our graphs name them: layer and kind.
_OURS = re.compile(r"l(\d+)\.(\w+)\.weight\Z")
# Rows of activations come as int8 too: 30 times quicker than in float, and as right.
_ACCURACY = 4

Array = NDArray[np.float32]
# By matrix: the sum of x x^T over the rows x that it was given.
Moments = Mapping[str, Array]


@dataclass(frozen=True)
class Rounded:
    """A matrix in blocks."""

    steps: NDArray[np.uint8]  # ``(N, blocks, BLOCK)`` uint8, one number a byte
    scales: Array  # ``(N, blocks)``
    zeros: NDArray[np.uint8] | None  # ``(N, blocks)`` uint8, or None for the middle
    bits: int  # 4 or 8
    width: int  # numbers of a row that count; a last block may be longer

    def values(self) -> Array:
        """Return the matrix ``(N, width)`` that the steps stand for."""
        zeros = 2 ** (self.bits - 1) if self.zeros is None else self.zeros[..., None]
        whole = (self.steps.astype(np.float32) - zeros) * self.scales[..., None]
        return np.asarray(whole.reshape(len(whole), -1)[:, : self.width], np.float32)


def _blocks(weight: Array) -> Array:
    rows, width = weight.shape
    count = -(-width // BLOCK)
    padded = np.zeros((rows, count * BLOCK), np.float32)
    padded[:, :width] = weight
    return padded.reshape(rows, count, BLOCK)


def rounded(weight: Array) -> Rounded:
    """Round ``(N, K)`` to 8 bits; the largest of a block becomes -128 scales exactly."""
    blocks = _blocks(weight)
    largest = np.abs(blocks).argmax(-1)[..., None]
    scales = np.take_along_axis(blocks, largest, -1) / np.float32(-128)
    steps = np.divide(blocks, scales, where=scales != 0, out=np.zeros_like(blocks))
    whole = np.clip(np.rint(steps) + 128, 0, 255).astype(np.uint8)
    return Rounded(whole, scales[..., 0], None, 8, weight.shape[1])


def _fit_range(block: Array) -> tuple[Array, Array]:
    """Return scale and zero of ``(N, BLOCK)``, as many steps above as below it needs."""
    low, high = np.minimum(block.min(-1), 0), np.maximum(block.max(-1), 0)
    scale = (high - low) / np.float32(15)
    safe = np.where(scale == 0, np.float32(1), scale)
    return scale, np.clip(np.rint(-low / safe), 0, 15).astype(np.float32)


def rounded_to_four_bits(weight: Array, moment: Array) -> tuple[Rounded, float]:
    """Round ``(N, K)`` to 4 bits, given the ``moment`` ``(K, K)`` of its inputs; return it,
    and the error's energy over the output's.
    """
    rows, width = weight.shape
    work = _blocks(weight)
    count = work.shape[1]
    steps = np.zeros_like(work)
    scales, zeros = np.zeros((2, rows, count), np.float32)
    pull = _pull(moment, count * BLOCK)
    flat = work.reshape(rows, -1)
    for b in range(count):
        start, end = b * BLOCK, (b + 1) * BLOCK
        scale, zero = _fit_range(work[:, b])
        safe = np.where(scale == 0, np.float32(1), scale)
        scales[:, b], zeros[:, b] = scale, zero
        errors = np.zeros((rows, BLOCK), np.float32)
        for i in range(start, end):
            step = np.clip(np.rint(flat[:, i] / safe) + zero, 0, 15)
            steps[:, b, i - start] = step
            error = (flat[:, i] - (step - zero) * scale) / pull[i, i]
            flat[:, i + 1 : end] -= error[:, None] * pull[i, i + 1 : end]
            errors[:, i - start] = error
        flat[:, end:] -= errors @ pull[start:end, end:]
    result = Rounded(steps.astype("u1"), scales, zeros.astype("u1"), 4, width)
    lost = result.values() - weight
    energy = max(float(np.einsum("nk,nk->", weight @ moment, weight)), 1e-30)
    return result, float(np.einsum("nk,nk->", lost @ moment, lost)) / energy


def _pull(moment: Array, width: int) -> Array:
    """Return the factor that tells how later columns make up for an error."""
    full = np.eye(width)
    size = len(moment)
    full[:size, :size] = moment
    diagonal = np.diag(full).copy()
    diagonal[diagonal == 0] = 1.0
    np.fill_diagonal(full, diagonal + 0.01 * float(diagonal[:size].mean()))
    inverse = np.linalg.inv(full)
    return np.asarray(np.linalg.cholesky((inverse + inverse.T) / 2).T, np.float32)


# ---- graphs


class _Graph:
    """A float32 graph, which of its matrices can be rounded, and what takes their place."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = model
        self.tensors = {t.name: t for t in model.graph.initializer}
        turned = {
            n.output[0]: n.input[0]
            for n in model.graph.node
            if n.op_type == "Transpose" and n.input[0] in self.tensors
        }
        # Node, matrix, and whether it is stored (out, in), as a tied head is.
        self.products: list[tuple[onnx.NodeProto, str, bool]] = []
        self.lookups: list[tuple[onnx.NodeProto, str]] = []
        self.new: dict[str, NDArray[np.generic]] = {}
        for node in model.graph.node:
            if node.op_type == "MatMul":
                name = node.input[1]
                if self._is_matrix(turned.get(name, name)):
                    self.products.append((node, turned.get(name, name), name in turned))
            elif node.op_type == "Gather" and self._is_matrix(node.input[0]):
                self.lookups.append((node, node.input[0]))

    def _is_matrix(self, name: str) -> bool:
        tensor = self.tensors.get(name)
        if tensor is None or len(tensor.dims) != 2:
            return False
        return bool(tensor.data_type == onnx.TensorProto.FLOAT)

    def weight(self, name: str, *, turned: bool) -> Array:
        """Return a matrix as ``(out, in)``."""
        values = numpy_helper.to_array(self.tensors[name])
        return np.ascontiguousarray(values if turned else values.T)

    def inputs(self) -> dict[str, str]:
        """Return what each matrix that int4 may round is multiplied with."""
        looked_up = {name for _, name in self.lookups}
        return {
            name: node.input[0]
            for node, name, _ in self.products
            if name not in looked_up and "logits" not in node.output[0]
        }

    def four_bits(self, moments: Moments) -> dict[str, Rounded]:
        """Return the matrices that stand 4 bits best, within the budget of bytes."""
        turned = {name: tied for _, name, tied in self.products}
        every = self.inputs()
        layers = 1 + max((int(m[1]) for m in map(_OURS.match, every) if m), default=0)
        done = {}
        for name in (name for name in every if _bears_four_bits(name, layers)):
            weight = self.weight(name, turned=turned[name])
            done[name] = rounded_to_four_bits(weight, moments[name])
        names = {*turned, *(name for _, name in self.lookups)}
        sizes = {name: int(np.prod(self.tensors[name].dims)) for name in names}
        # In bytes at 8 bits; 4 bits save half of a matrix.
        wanted, saved, found = (1 - INT4_BUDGET) * sum(sizes.values()), 0.0, {}
        for name in sorted(done, key=lambda n: done[n][1]):
            if saved >= wanted:
                break
            found[name] = done[name][0]
            saved += sizes[name] / 2
        return found

    def product(self, node: onnx.NodeProto, name: str, m: Rounded) -> list[onnx.NodeProto]:
        """Return a product with a matrix in blocks."""
        inputs = [node.input[0], f"{name}.q{m.bits}", name + ".scales"]
        if m.zeros is not None:
            inputs.append(name + ".zeros")
            padded = np.pad(m.zeros, ((0, 0), (0, m.zeros.shape[1] % 2)))
            self.new[inputs[3]] = _pairs(padded)
        self.new[inputs[1]] = m.steps if m.bits == 8 else _pairs(m.steps)
        self.new[inputs[2]] = m.scales
        return [_bits(inputs, node.output[0], len(m.steps), m)]

    def split(self, node: onnx.NodeProto, name: str, m: Rounded) -> list[onnx.NodeProto]:
        """One product of twice the rows: high halves at 16 scales, low halves at one."""
        steps = m.steps.astype(np.int16) - 128
        low = ((steps + 8) & 15) - 8
        high = (steps - low) // 16
        over = high > 7  # 120 to 127: the nearest pair
        high[over], low[over] = 7, 7
        both = np.concatenate([high, low]) + 8
        rows, output = len(steps), node.output[0]
        inputs = [node.input[0], name + ".q4", name + ".scales2"]
        self.new[inputs[1]] = _pairs(both.astype(np.uint8))
        self.new[inputs[2]] = np.concatenate([m.scales * 16, m.scales])
        self.new[name + ".halves"] = np.array([rows, rows], np.int64)
        parts, whole = [output + ".high", output + ".low"], output + ".both"
        return [
            _bits(inputs, whole, 2 * rows, replace(m, bits=4)),
            helper.make_node("Split", [whole, name + ".halves"], parts, axis=-1),
            helper.make_node("Add", parts, [output], name=output),
        ]

    def table(self, name: str, table: Rounded) -> None:
        # A tied head's bytes under other dimensions: stored once, see save_model.
        self.new[name + ".rows"] = table.steps.reshape(len(table.steps), -1)
        self.new[name + ".scales"] = table.scales

    def lookup(self, node: onnx.NodeProto, name: str, m: Rounded) -> list[onnx.NodeProto]:
        """Return a lookup in a table of blocks."""
        self.table(name, m)
        made = helper.make_node(
            "GatherBlockQuantized",
            [name + ".rows", node.input[1], name + ".scales"],
            list(node.output),
            name=node.output[0],
            domain=MICROSOFT,
            bits=8,
            block_size=BLOCK,
            gather_axis=0,
            quantize_axis=1,
        )
        return [made]

    def plain_lookup(
        self, node: onnx.NodeProto, name: str, m: Rounded
    ) -> list[onnx.NodeProto]:
        """The same with operators that every onnxruntime has."""
        p, out = name + ".", node.output[0]
        self.table(name, m)
        self.new[p + "middle"] = np.array(128, np.float32)
        self.new[p + "apart"] = np.array([0, 0, -1, BLOCK], np.int64)
        self.new[p + "joined"] = np.array([0, 0, m.width], np.int64)
        self.new[p + "last"] = np.array([-1], np.int64)
        make = helper.make_node
        return [
            make("Gather", [p + "rows", node.input[1]], [p + "taken"]),
            make("Gather", [p + "scales", node.input[1]], [p + "taken_scales"]),
            make("Cast", [p + "taken"], [p + "float"], to=onnx.TensorProto.FLOAT),
            make("Sub", [p + "float", p + "middle"], [p + "steps"]),
            make("Reshape", [p + "steps", p + "apart"], [p + "blocks"]),
            make("Unsqueeze", [p + "taken_scales", p + "last"], [p + "each"]),
            make("Mul", [p + "blocks", p + "each"], [p + "values"]),
            make("Reshape", [p + "values", p + "joined"], [out], name=out),
        ]


def inputs_of(model: onnx.ModelProto) -> dict[str, str]:
    """Return what each matrix that int4 may round is multiplied with."""
    return _Graph(model).inputs()


def quantise(
    model: onnx.ModelProto, precision: str, moments: Moments | None = None
) -> onnx.ModelProto:
    """Return a float32 graph, changed in place, with weights of ``precision``.

    int4 takes the ``moments`` of the matrices that :func:`inputs_of` names. A ModelError
    where there is nothing to round.
    """
    graph, split = _Graph(model), precision == "int8-split"
    if not graph.products:
        raise ModelError("the graph multiplies with no constant matrix")
    small = graph.four_bits(moments or {}) if precision == "int4" else {}
    nodes: dict[str, list[onnx.NodeProto]] = {}
    gone = set()
    for node, name, tied in graph.products:
        matrix = small.get(name) or rounded(graph.weight(name, turned=tied))
        product = graph.split if split else graph.product
        nodes[node.output[0]] = product(node, name, matrix)
        gone.add(name)
    for node, name in graph.lookups:
        table = rounded(graph.weight(name, turned=True))
        if table.width % BLOCK:
            gone.discard(name)
            continue
        lookup = graph.plain_lookup if split else graph.lookup
        nodes[node.output[0]] = lookup(node, name, table)
        gone.add(name)
    flat = []
    for node in model.graph.node:
        if node.op_type != "Transpose" or node.input[0] not in gone:
            for part in nodes.get(node.output[0], [node]):
                flat.append(onnx.NodeProto())
                flat[-1].CopyFrom(part)
    tensors = [t for t in model.graph.initializer if t.name not in gone]
    tensors += [numpy_helper.from_array(a, name) for name, a in graph.new.items()]
    del model.graph.node[:], model.graph.initializer[:]
    model.graph.node.extend(flat)
    model.graph.initializer.extend(tensors)
    if MICROSOFT not in {entry.domain for entry in model.opset_import}:
        model.opset_import.append(helper.make_opsetid(MICROSOFT, 1))
    return model


def shrink_cache(model: onnx.ModelProto, ranges: Mapping[str, Array]) -> None:
    """Let a ``gqa`` graph keep keys and values as int8, with a scale a channel.

    ``ranges`` has the largest magnitudes ``(1, heads, 1, dim)`` by cache, as
    :func:`draftwire.export.precision.gate.cache_ranges` measures them. A ModelError for
    another form of graph.
    """
    layers = [n for n in model.graph.node if n.op_type == "GroupQueryAttention"]
    if not layers:
        raise ModelError("the graph has no GroupQueryAttention, whose cache could be int8")
    for node in layers:
        caches = [name.removeprefix("past_key_values.") for name in node.input[3:5]]
        node.input.extend([""] * (12 - len(node.input)))
        for cache in caches:
            steps = np.maximum(ranges[cache] / np.float32(127), np.float32(1e-30))
            tensor = numpy_helper.from_array(steps, cache + ".steps")
            model.graph.initializer.append(tensor)
            node.input.append(tensor.name)
        kinds = {"k_quant_type": "PER_CHANNEL", "v_quant_type": "PER_CHANNEL"}
        for key, kind in {**kinds, "kv_cache_bit_width": 8}.items():
            node.attribute.append(helper.make_attribute(key, kind))
    for value in (*model.graph.input, *model.graph.output):
        if value.name.endswith((".key", ".value")):
            value.type.tensor_type.elem_type = onnx.TensorProto.INT8


def _bears_four_bits(name: str, layers: int) -> bool:
    """Tell whether a matrix may be rounded to 4 bits at all.

    What reads the residual stream into attention, what writes the MLP's result back, and
    the first and last layers cost far more acceptance than their bytes are worth: on
    SmolLM2-135M keeping them took the divergence from 0.131 to 0.025.
    """
    found = _OURS.match(name)
    if found is None:
        return True  # somebody else's names
    edge = round(layers * 0.13)
    inside = edge <= int(found[1]) < layers - edge
    return inside and found[2] in ("gate", "up", "o")


def _pairs(values: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Put two numbers of 4 bits into a byte, the even one low."""
    return np.asarray(values[..., 0::2] | (values[..., 1::2] << 4), np.uint8)


def _bits(inputs: Sequence[str], output: str, rows: int, m: Rounded) -> onnx.NodeProto:
    return helper.make_node(
        "MatMulNBits",
        list(inputs),
        [output],
        name=output,
        domain=MICROSOFT,
        K=m.width,
        N=rows,
        bits=m.bits,
        block_size=BLOCK,
        accuracy_level=_ACCURACY,
    )
