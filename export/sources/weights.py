"""A decoder's weights in the form that all families share, whatever they come from.

Linear layers are ``(out, in)``, queries, keys and values apart, gate and up apart. Whoever
has only a draft package can still add an engine to it: the weights stand in its ONNX graph
under the names that :mod:`draftwire.export.graphs.draft` gives them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from draftwire.errors import ConfigError, ModelError
from draftwire.export.sources.architecture import Architecture, read_architecture
from draftwire.export.sources.checkpoint import Checkpoint, config_of
from draftwire.packages import DraftPackage

Array = NDArray[np.float32]
# From the least rounded; a split int8 is never alone.
_WIDEST = ("fp32", "int8", "int8-kv8", "int4")


@dataclass(frozen=True)
class Linear:
    """A linear layer ``x @ weight.T + bias``, weight ``(out, in)``; or a norm."""

    weight: Array
    bias: Array | None

    def rows(self, start: int, end: int) -> Linear:
        """Return some of its outputs."""
        bias = None if self.bias is None else self.bias[start:end]
        return Linear(self.weight[start:end], bias)

    def sorted(self, order: NDArray[np.int64]) -> Linear:
        """Return it with the dimensions of each head in another order."""

        def one(rows: Array) -> Array:
            heads = rows.reshape(-1, len(order), *rows.shape[1:])
            return heads[:, order].reshape(rows.shape)

        return Linear(one(self.weight), None if self.bias is None else one(self.bias))


def joined(parts: Sequence[Linear]) -> Linear:
    """Return one layer with the outputs of all."""
    weight, bias = np.concatenate([part.weight for part in parts]), None
    if any(part.bias is not None for part in parts):
        zero = [np.zeros(len(part.weight), np.float32) for part in parts]
        bias = np.concatenate(
            [z if p.bias is None else p.bias for p, z in zip(parts, zero, strict=True)]
        )
    return Linear(weight, bias)


class Weights:
    """Where the weights of an architecture ``a`` come from: the ``name`` of that, and
    whether they are its own numbers (``exact``), not rounded ones.
    """

    name: str
    exact: bool
    table: Callable[[str], Array]  # embedding, head or positions, by the family's name
    norm: Callable[[str], Linear]  # (name): the weight as it multiplies, and the bias
    linear: Callable[[int, str], Linear]  # "gate", "up", "down", "o", "conv_in" of a layer
    packed: Callable[[int], Linear]  # a layer's queries, then all keys, then all values

    def __init__(self, a: Architecture) -> None:
        self.a = a

    def head(self) -> Array:
        """Return the rows of the head that a draft says, ``(tokens, hidden)``."""
        whole = self.table(self.a.head)
        return whole[list(self.a.said)] if self.a.said else whole

    def qkv(self, i: int) -> list[Linear]:
        """Return the projections of layer ``i`` to queries, keys and values."""
        a, whole = self.a, self.packed(i)
        q, kv = a.heads * a.head_dim, a.kv_heads * a.head_dim
        return [whole.rows(0, q), whole.rows(q, q + kv), whole.rows(q + kv, q + 2 * kv)]


class CheckpointWeights(Weights):
    """The weights of a Hugging Face checkpoint."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        super().__init__(checkpoint.architecture)
        self.checkpoint, self.name, self.exact = checkpoint, checkpoint.name, True

    def table(self, parameter: str) -> Array:
        return self.checkpoint.weight(parameter)

    def norm(self, name: str) -> Linear:
        weight = self.checkpoint.weight(name + ".weight")
        shift = self.a.family.norm_shift
        return Linear(weight + np.float32(shift) if shift else weight, self._bias(name))

    def _bias(self, name: str) -> Array | None:
        name += ".bias"
        return self.checkpoint.weight(name) if name in self.checkpoint else None

    def _stored(self, i: int, name: str) -> Linear:
        name = self.a.layer(i) + name
        weight = self.checkpoint.weight(name + ".weight")
        if self.a.family.conv:
            weight = np.ascontiguousarray(weight.T)
        return Linear(weight, self._bias(name))

    def linear(self, i: int, kind: str) -> Linear:
        names = self.a.names
        out = "conv_out" if self.a.convs[i] else "out"
        whole = self._stored(i, getattr(names, {"o": out}.get(kind, kind)))
        if kind in ("gate", "up") and names.gate == names.up:
            start = self.a.feed_forward * (kind == "up")
            return whole.rows(start, start + self.a.feed_forward)
        return whole

    def kernel(self, i: int) -> Linear:
        """Return what layer ``i`` convolves with, ``(inputs, channels)``, oldest first."""
        name = self.a.layer(i) + self.a.names.conv
        return Linear(self.checkpoint.weight(name + ".weight")[:, 0].T, self._bias(name))

    def packed(self, i: int) -> Linear:
        a = self.a
        whole = joined([self._stored(i, name) for name in a.names.qkv])
        if not a.family.interleaved:
            return whole

        def by_kind(rows: Array) -> Array:
            """Turn rows of q, k, v for each head into all q, all k, all v."""
            kinds = rows.reshape(a.heads, 3, a.head_dim, *rows.shape[1:]).swapaxes(0, 1)
            return np.ascontiguousarray(kinds).reshape(rows.shape)

        bias = None if whole.bias is None else by_kind(whole.bias)
        return Linear(by_kind(whole.weight), bias)


class PackageWeights(Weights):
    """The weights in a ``gqa`` graph of a draft package: in ``file``, the one that is
    rounded least, whose integers are read as what they stand for.

    A ConfigError where it has none whose graph is known here, a ModelError where it does
    not say its shape.
    """

    def __init__(self, package: DraftPackage) -> None:
        found = {
            file.precision: file
            for file in package.files.values()
            if file.engine == "onnxruntime" and file.graph == "gqa"
        }
        widest = next((found[p] for p in _WIDEST if p in found), None)
        if widest is None:
            raise ConfigError(
                f"{package.path.name} holds no ONNX graph that weights can be read from",
                hint="name the checkpoint it was made from: --checkpoint MODEL_DIR",
            )
        self.file, where = widest, package.path.name
        self.name, self.exact = widest.path.name, widest.precision == "fp32"
        a = read_architecture(where, config_of(package), context=package.context)
        # The graph's queries and keys are sorted for what it rotates.
        from draftwire.export.graphs.draft import rotation

        ropes = tuple(replace(r, rates=rotation(a, r.rates)[0]) for r in a.ropes)
        super().__init__(replace(a, ropes=ropes))
        model = onnx.load(str(self.file.path))
        self._tensors = {tensor.name: tensor for tensor in model.graph.initializer}

    def table(self, parameter: str) -> Array:
        if parameter == self.a.embedding:
            return self._read("embedding")
        if parameter == self.a.head:
            return self._rows("head.weight", self.a.hidden)
        return self._read(parameter)

    def head(self) -> Array:
        return self._rows("head.weight", self.a.hidden) if self.a.said else super().head()

    def norm(self, name: str) -> Linear:
        if self.a.family.norm == "layer":
            return Linear(self._read(name + ".weight"), self._read(name + ".bias"))
        return Linear(self._read(name), None)

    def linear(self, i: int, kind: str) -> Linear:
        a = self.a
        width = {"o": a.heads * a.head_dim, "down": a.feed_forward}.get(kind, a.hidden)
        name = f"l{i}.{kind}"
        bias = self._read(name + ".bias") if name + ".bias" in self._tensors else None
        return Linear(self._rows(name + ".weight", width), bias)

    def packed(self, i: int) -> Linear:
        return self.linear(i, "qkv")

    def _rows(self, name: str, width: int) -> Array:
        """Return a ``(in, out)`` matrix as ``(out, in)``, padding of blocks cut off."""
        return np.ascontiguousarray(self._read(name)[:width].T)

    def _values(self, name: str) -> NDArray[Any]:
        if name not in self._tensors:
            raise ModelError(
                f"{self.file.path.name} is not a graph that this exporter wrote: "
                f"it holds no {name}",
                hint="name the checkpoint it was made from: --checkpoint MODEL_DIR",
            )
        folder = str(self.file.path.parent)
        return np.asarray(numpy_helper.to_array(self._tensors[name], folder))

    def _read(self, name: str) -> Array:
        """Return a constant as float32, as it stands in the graph."""
        has = self._tensors
        if name + "_quantized" in has:
            steps = self._values(name + "_quantized").astype(np.float32)
            zero = self._values(name + "_zero_point").astype(np.float32)
            return np.asarray((steps - zero) * self._values(name + "_scale"), np.float32)
        kind = next((k for k in (".rows", ".q8", ".q4") if name + k in has), None)
        if kind is None:
            return self._values(name).astype(np.float32)
        steps, scales = self._values(name + kind), self._values(name + ".scales")
        zeros: Any = 128
        if kind == ".q4":
            steps, zeros = _halves(steps), 8
            if name + ".zeros" in has:
                packed = self._values(name + ".zeros")
                zeros = _halves(packed)[:, : scales.shape[1], None]
        blocks = steps.reshape(*scales.shape, -1).astype(np.float32)
        whole = ((blocks - zeros) * scales[..., None]).reshape(len(blocks), -1)
        # Rows of an embedding, or a product's ``(out, in)``.
        return np.ascontiguousarray(whole if kind == ".rows" else whole.T, np.float32)


def checkpoint_tensors(package: DraftPackage) -> dict[str, Array]:
    """Return a draft's embedding, layers and last norm by the names of its checkpoint; a
    ConfigError where its family stores them in another form than the graph does.
    """
    weights = PackageWeights(package)
    a, n = weights.a, weights.a.names
    plain = a.family.norm == "rms" and not (a.family.norm_shift or any(a.convs))
    whole = all(2 * len(rope.rates) == a.head_dim for rope in a.ropes)
    if not plain or not whole or len(n.qkv) != 3 or n.q_norm or n.gate == n.up:
        raise ConfigError(
            f"a {a.model_type} package does not give its checkpoint back",
            hint="give the Hugging Face directory that it was exported from",
        )
    found = {n.final: weights.norm(n.final)}
    for i in range(a.layers):
        p, kinds = a.layer(i), {"o": n.out, "gate": n.gate, "up": n.up, "down": n.down}
        norms = (n.before_attention, n.before_mlp)
        found |= {p + name: weights.norm(p + name) for name in norms}
        found |= {p + x: part for x, part in zip(n.qkv, weights.qkv(i), strict=True)}
        found |= {p + name: weights.linear(i, kind) for kind, name in kinds.items()}
    tensors = {f"{name}.weight": part.weight for name, part in found.items()}
    tensors[a.embedding] = weights.table(a.embedding)
    return tensors | {f"{x}.bias": p.bias for x, p in found.items() if p.bias is not None}


def _halves(packed: NDArray[Any]) -> NDArray[Any]:
    """Return the two numbers of each byte, the low one first."""
    return np.stack([packed & 15, packed >> 4], -1).reshape(*packed.shape[:-1], -1)
