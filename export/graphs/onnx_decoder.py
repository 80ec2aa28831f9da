"""ONNX graphs: a few lines around ``onnx.helper``, and what the graphs of a draft and of a
target share.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeAlias

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from draftwire.export.graphs.decoder import Decoder
from draftwire.export.sources.architecture import Architecture

OPSET = 18
# The IR version that goes with opset 18; later ones do not load on ORT 1.19.
IR_VERSION = 8
MICROSOFT = "com.microsoft"

Value: TypeAlias = onnx.ValueInfoProto


def value(name: str, dtype: str, shape: Sequence[int | str]) -> Value:
    """Describe a graph input or output."""
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    return helper.make_tensor_value_info(name, kind, list(shape))


class GraphBuilder:
    """Collects nodes and initialisers; every method returns the name of a tensor."""

    def __init__(self) -> None:
        self._nodes: list[onnx.NodeProto] = []
        self._initialisers: dict[str, TensorProto] = {}

    def constant(self, name: str, array: NDArray[Any]) -> str:
        """Add an initialiser that is stored in the graph; a second time it is one."""
        if name not in self._initialisers:
            tensor = numpy_helper.from_array(np.ascontiguousarray(array), name)
            self._initialisers[name] = tensor
        return name

    def integers(self, *values: int) -> str:
        """Add a vector of int64 under a name made of its values."""
        name = "i64_" + "_".join(str(v).replace("-", "m") for v in values)
        return self.constant(name, np.array(values, np.int64))

    def supplied(self, name: str, shape: Sequence[int]) -> str:
        """Add a float32 initialiser whose data the session's owner supplies."""
        if name not in self._initialisers:
            tensor = TensorProto()
            tensor.name = name
            tensor.data_type = TensorProto.FLOAT
            tensor.dims.extend(shape)
            tensor.data_location = TensorProto.EXTERNAL
            # Never opened: a session without the data fails with this name in it.
            tensor.external_data.add(key="location", value="weights.safetensors")
            self._initialisers[name] = tensor
        return name

    def node(
        self,
        op: str,
        inputs: Sequence[str],
        outputs: str | Sequence[str],
        *,
        domain: str = "",
        **attributes: Any,
    ) -> str:
        """Add a node and return its first output."""
        names = [outputs] if isinstance(outputs, str) else list(outputs)
        named = {"name": names[0], "domain": domain, **attributes}
        self._nodes.append(helper.make_node(op, list(inputs), names, **named))
        return names[0]

    def model(
        self, name: str, inputs: Iterable[Value], outputs: Iterable[Value]
    ) -> onnx.ModelProto:
        """Return the finished model."""
        constants = list(self._initialisers.values())
        graph = helper.make_graph(self._nodes, name, list(inputs), list(outputs), constants)
        return helper.make_model(
            graph,
            opset_imports=[helper.make_opsetid(*o) for o in (("", OPSET), (MICROSOFT, 1))],
            ir_version=IR_VERSION,
            producer_name="draftwire",
        )


class OnnxDecoder(Decoder[str]):
    """Writes a decoder's nodes; a value is a tensor's name.

    A subclass says where weights come from, and what attention is.
    """

    fuses = False  # sums into the norms that follow
    table: Callable[[str], str]  # (parameter): as a constant
    norm_weights: Callable[[str], list[str]]  # as it multiplies; the bias of a LayerNorm

    def __init__(self, architecture: Architecture) -> None:
        super().__init__(architecture)
        self.g = GraphBuilder()
        # Sums that are not written yet: the norm behind one may take it along.
        self._sums: dict[str, list[str]] = {}

    def written(self, x: str) -> str:
        """Return ``x``, written if it is a sum that nothing has read yet."""
        if x in self._sums:
            self.g.node("Add", self._sums.pop(x), x)
        return x

    def look_up(self, parameter: str, ids: str, name: str) -> str:
        return self.g.node("Gather", [self.table(parameter), ids], name)

    def add(self, x: str, y: str, name: str) -> str:
        self._sums[name] = [self.written(x), self.written(y)]
        return name

    def multiply(self, x: str, y: str, name: str) -> str:
        return self.g.node("Mul", [x, y], name)

    def times(self, x: str, factor: float, name: str) -> str:
        by = self.g.constant(f"times_{factor!r}", np.array(factor, np.float32))
        return self.g.node("Mul", [self.written(x), by], name)

    def cap(self, x: str, bound: float, name: str) -> str:
        g = self.g
        by = g.constant(f"cap_{bound!r}", np.array(bound, np.float32))
        turned = g.node("Tanh", [g.node("Div", [x, by], name + ".ratio")], name + ".tanh")
        return g.node("Mul", [turned, by], name)

    def bend(self, x: str, name: str) -> str:
        if self.a.activation == "silu":
            gate = self.g.node("Sigmoid", [x], name + "sigmoid")
            return self.g.node("Mul", [x, gate], name + "silu")
        op = "FastGelu" if self.a.activation == "gelu_tanh" else "Gelu"
        return self.g.node(op, [x], name + "gelu", domain=MICROSOFT)

    def norm(self, x: str, parameter: str, name: str) -> str:
        weights = self.norm_weights(parameter)
        if self.a.family.norm != "layer" and self.fuses and x in self._sums:
            return self.g.node(
                "SkipSimplifiedLayerNormalization",
                [*self._sums.pop(x), *weights],
                [name, "", "", x],
                domain=MICROSOFT,
                epsilon=self.a.eps,
            )
        return self.plain_norm(self.written(x), weights, name)

    def plain_norm(self, x: str, weights: list[str], name: str) -> str:
        """Write a norm that takes no sum along."""
        how: dict[str, Any] = {"axis": -1, "epsilon": self.a.eps}
        op = "LayerNormalization"
        if self.a.family.norm != "layer":
            op, how = "SimplifiedLayerNormalization", {**how, "stash_type": 1}
        return self.g.node(op, [x, *weights], name, **how)

    def caches(self, form: str, length: str) -> list[Value]:
        """Describe the caches of all layers, ``form`` with layer and kind in it."""
        a = self.a
        shape: list[int | str] = ["B", a.kv_heads, length, a.head_dim]
        wide: list[int | str] = ["B", 1, length, a.hidden]
        return [
            value(form.format(i, kind), "float32", wide if a.convs[i] else shape)
            for i in range(a.layers)
            for kind in (("conv",) if a.convs[i] else ("key", "value"))
        ]
