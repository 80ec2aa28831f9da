"""A decoder's weights in one form, from a checkpoint or from a draft package's graph.

Whoever has only the package can still add an engine to it: the weights stand in its
ONNX graph under the names that :mod:`draftwire.export.graphs.draft` gives them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from draftwire.errors import ConfigError, ModelError
from draftwire.export.sources.architecture import LLAMA_LIKE, NEOX_LIKE, UnknownArchitecture
from draftwire.export.sources.checkpoint import Checkpoint
from draftwire.export.sources.weights import Linear, gate_and_up, joined, linear, norm, qkv
from draftwire.packages import DraftPackage, PackageFile

__all__ = [
    "CheckpointSource",
    "DecoderShape",
    "Layer",
    "Linear",
    "Norm",
    "PackageSource",
    "Source",
    "widest_model",
]

Array = NDArray[np.float32]
# From the least rounded to the most.
_WIDEST = ("fp32", "int8", "int4")  # a split int8 is never alone


@dataclass(frozen=True)
class DecoderShape:
    """What a graph needs to know beside the weights.

    Attributes:
        activation: "silu", "gelu" or "gelu_tanh".
        eps: Of the norms.
        parallel: Attention and MLP read the same residual.
        neox: Norms subtract the mean and have a bias; the MLP has no gate.
        rates: ``(rotated / 2,)`` radians per position.
    """

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab_size: int
    context: int
    activation: str
    eps: float
    parallel: bool
    neox: bool
    rates: NDArray[np.float64]


@dataclass(frozen=True)
class Norm:
    """A norm's weight and, where it has one, bias."""

    weight: Array
    bias: Array | None


@dataclass(frozen=True)
class Layer:
    """One layer.

    Attributes:
        qkv: All query heads, all key heads, all value heads.
        gate: None where the MLP has none.
    """

    attention_norm: Norm
    qkv: Linear
    out: Linear
    mlp_norm: Norm
    gate: Linear | None
    up: Linear
    down: Linear


class Source(Protocol):
    """Where the weights come from.

    Attributes:
        shape: The decoder's shape.
        tied: The head is the embedding.
    """

    shape: DecoderShape
    tied: bool

    def embedding(self) -> Array:
        """Return the embedding, ``(vocab, hidden)``."""

    def head(self) -> Array:
        """Return the output head, ``(vocab, hidden)``."""

    def final_norm(self) -> Norm:
        """Return the norm before the head."""

    def layer(self, i: int) -> Layer:
        """Return a layer."""


class CheckpointSource:
    """The weights of a Hugging Face checkpoint."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        a = checkpoint.architecture
        if not a.plain:
            raise _unwritten(checkpoint.name)
        self._checkpoint = checkpoint
        self.tied = a.tied
        self.shape = DecoderShape(
            layers=a.layers,
            hidden=a.hidden,
            heads=a.heads,
            kv_heads=a.kv_heads,
            head_dim=a.head_dim,
            vocab_size=a.vocab_size,
            context=a.context,
            activation=a.activation,
            eps=a.eps,
            parallel=a.parallel,
            neox=a.neox,
            rates=a.rope_rates,
        )

    def embedding(self) -> Array:
        """Return the embedding."""
        return self._checkpoint.weight(self._checkpoint.architecture.embedding)

    def head(self) -> Array:
        """Return the output head."""
        return self._checkpoint.weight(self._checkpoint.architecture.head)

    def final_norm(self) -> Norm:
        """Return the norm before the head."""
        return self._norm(self._checkpoint.architecture.names.final)

    def layer(self, i: int) -> Layer:
        """Return a layer."""
        c, names = self._checkpoint, self._checkpoint.architecture.names
        p = c.architecture.layer(i)
        gate, up = gate_and_up(c, i)
        return Layer(
            self._norm(p + names.before_attention),
            joined(qkv(c, i)),
            linear(c, p + names.out),
            self._norm(p + names.before_mlp),
            gate,
            up,
            linear(c, p + names.down),
        )

    def _norm(self, name: str) -> Norm:
        found = norm(self._checkpoint, name)
        return Norm(found.weight, found.bias)


def widest_model(package: DraftPackage) -> PackageFile:
    """Return the package's ONNX model whose weights are rounded least.

    Raises:
        ConfigError: It has none whose graph is known here.
    """
    found = {
        file.precision: file
        for file in package.files.values()
        if file.engine == "onnxruntime" and file.graph == "gqa"
    }
    for precision in _WIDEST:
        if precision in found:
            return found[precision]
    raise ConfigError(
        f"{package.path.name} holds no ONNX graph that weights can be read from",
        hint="name the checkpoint it was made from: --checkpoint MODEL_DIR",
    )


class PackageSource:
    """The weights in a ``gqa`` graph of a draft package.

    Those of an int8 or int4 graph are what its integers stand for.

    Attributes:
        file: The graph that was read.
    """

    def __init__(self, package: DraftPackage) -> None:
        self.file = widest_model(package)
        self._model = onnx.load(str(self.file.path))
        graph = self._model.graph
        self._tensors = {tensor.name: tensor for tensor in graph.initializer}
        nodes = {out: node for node in graph.node for out in node.output if out}
        attention = _attributes(self._node(nodes, "l0.attended"))
        kind = package.raw.get("made", {}).get("model_type", "llama")
        windowed = any(
            _attributes(node).get("local_window_size", -1) > 0
            for node in graph.node
            if node.op_type == "GroupQueryAttention"
        )
        if kind not in LLAMA_LIKE + NEOX_LIKE or windowed:
            raise _unwritten(package.path.name)
        neox = any(name.startswith("gpt_neox.") for name in self._tensors)
        first = _attributes(self._node(nodes, "l0.normed"))
        activation, parallel = "silu", False
        if neox:
            gelu = self._node(nodes, "l0.gelu").op_type
            activation = "gelu_tanh" if gelu == "FastGelu" else "gelu"
            parallel = self._node(nodes, "l0.mlp_normed").input[0] == "embedded"
        cos, sin = self._read("cos"), self._read("sin")
        if len(cos) < 2:
            raise ModelError(f"{self.file.path.name} has a context of one token")
        shape = package.shape
        self.shape = DecoderShape(
            layers=shape.layers,
            hidden=shape.hidden,
            heads=int(attention["num_heads"]),
            kv_heads=shape.kv_heads,
            head_dim=shape.head_dim,
            vocab_size=package.vocab_size,
            context=package.context,
            activation=activation,
            eps=float(first["epsilon"]),
            parallel=parallel,
            neox=neox,
            rates=_rates(cos, sin),
        )
        self.tied = not self._has("head.weight") or (
            np.array_equal(self.embedding(), self.head())
        )

    def _node(self, nodes: dict[str, Any], output: str) -> Any:
        if output not in nodes:
            raise ModelError(
                f"{self.file.path.name} is not a graph that this exporter wrote: "
                f"it has no {output}",
                hint="name the checkpoint it was made from: --checkpoint MODEL_DIR",
            )
        return nodes[output]

    def _has(self, name: str) -> bool:
        ends = ("", "_quantized", ".int4", ".q8", ".q4", ".rows")
        return any(name + end in self._tensors for end in ends)

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
        if name + "_quantized" in self._tensors:
            steps = self._values(name + "_quantized").astype(np.float32)
            zero = self._values(name + "_zero_point").astype(np.float32)
            return np.asarray((steps - zero) * self._values(name + "_scale"), np.float32)
        if name + ".int4" in self._tensors:
            packed, scales = self._values(name + ".int4"), self._values(name + ".scales")
            halves = np.stack([packed & 15, packed >> 4], -1).astype(np.float32) - 8
            rows = halves.reshape(*packed.shape[:2], -1)
            rows = rows * scales.reshape(*packed.shape[:2], 1)
            return np.ascontiguousarray(rows.reshape(len(rows), -1).T, np.float32)
        if name + ".rows" in self._tensors:  # an embedding
            steps = self._values(name + ".rows").astype(np.float32) - 128
            scales = self._values(name + ".scales")
            blocks = steps.reshape(*scales.shape, -1) * scales[..., None]
            return np.asarray(blocks.reshape(steps.shape), np.float32)
        bits = next((b for b in (8, 4) if f"{name}.q{b}" in self._tensors), None)
        if bits is not None:
            steps = self._values(f"{name}.q{bits}")
            scales = self._values(name + ".scales")
            zeros: NDArray[Any] = np.full(scales.shape, 1 << bits - 1, np.float32)
            if bits == 4:
                steps = _halves(steps)
                if name + ".zeros" in self._tensors:
                    zeros = _halves(self._values(name + ".zeros"))[:, : scales.shape[1]]
            whole = (steps.astype(np.float32) - zeros[..., None]) * scales[..., None]
            return np.ascontiguousarray(whole.reshape(len(whole), -1).T, np.float32)
        return self._values(name).astype(np.float32)

    def embedding(self) -> Array:
        """Return the embedding."""
        return self._read("embedding")

    def head(self) -> Array:
        """Return the output head."""
        if not self._has("head.weight"):
            return self.embedding()
        return self._rows("head.weight", self.shape.hidden)

    def _rows(self, name: str, width: int) -> Array:
        """Return a ``(in, out)`` matrix as ``(out, in)``, padding of int4 cut off."""
        return np.ascontiguousarray(self._read(name)[:width].T)

    def _linear(self, name: str, width: int) -> Linear:
        bias = self._read(name + ".bias") if self._has(name + ".bias") else None
        return Linear(self._rows(name + ".weight", width), bias)

    def _norm(self, name: str) -> Norm:
        if self.shape.neox:
            return Norm(self._read(name + ".weight"), self._read(name + ".bias"))
        return Norm(self._read(name), None)

    def final_norm(self) -> Norm:
        """Return the norm before the head."""
        return self._norm("gpt_neox.final_layer_norm" if self.shape.neox else "model.norm")

    def layer(self, i: int) -> Layer:
        """Return a layer."""
        s = self.shape
        p = f"{'gpt_neox' if s.neox else 'model'}.layers.{i}."
        gate = None if s.neox else self._linear(f"l{i}.gate", s.hidden)
        up = self._linear(f"l{i}.up", s.hidden)
        return Layer(
            self._norm(p + "input_layernorm"),
            self._linear(f"l{i}.qkv", s.hidden),
            self._linear(f"l{i}.o", s.heads * s.head_dim),
            self._norm(p + "post_attention_layernorm"),
            gate,
            up,
            self._linear(f"l{i}.down", len(up.weight)),
        )


def _unwritten(name: str) -> UnknownArchitecture:
    return UnknownArchitecture(
        f"{name} is of a family that LiteRT files are not written for here: Llama, "
        "Mistral, Qwen2 and GPT-NeoX are, without sliding windows",
        hint="draftwire export onnx writes it for onnxruntime",
    )


def _halves(packed: NDArray[Any]) -> NDArray[Any]:
    """Return the two numbers of each byte, the low one first."""
    return np.stack([packed & 15, packed >> 4], -1).reshape(*packed.shape[:-1], -1)


def _attributes(node: Any) -> dict[str, Any]:
    return {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}


def _rates(cos: Array, sin: Array) -> NDArray[np.float64]:
    """Return radians per position from the tables of a graph.

    The first row tells each rate to float32; the last one, where it stands to within
    one turn, sharpens it, since an error grows with the position.
    """
    rates = np.arctan2(sin[1].astype(np.float64), cos[1].astype(np.float64)) % (2 * np.pi)
    row = 2
    while row < len(cos):
        angle = np.arctan2(sin[row].astype(np.float64), cos[row].astype(np.float64))
        turns = np.rint((rates * row - angle) / (2 * np.pi))
        rates = (angle + 2 * np.pi * turns) / row
        row *= 2
    return np.asarray(rates, np.float64)
