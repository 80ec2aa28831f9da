"""A few lines around ``onnx.helper`` that keep graph code readable."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, TypeAlias

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

OPSET = 18
# The IR version that goes with opset 18; later ones do not load on ORT 1.19.
IR_VERSION = 8
MICROSOFT = "com.microsoft"
_TYPES = {
    "float32": TensorProto.FLOAT,
    "int64": TensorProto.INT64,
    "int32": TensorProto.INT32,
}

Value: TypeAlias = onnx.ValueInfoProto


def value(name: str, dtype: str, shape: Sequence[int | str]) -> Value:
    """Describe a graph input or output."""
    return helper.make_tensor_value_info(name, _TYPES[dtype], list(shape))


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
        self._nodes.append(
            helper.make_node(
                op, list(inputs), names, name=names[0], domain=domain, **attributes
            )
        )
        return names[0]

    def model(
        self, name: str, inputs: Iterable[Value], outputs: Iterable[Value]
    ) -> onnx.ModelProto:
        """Return the finished model."""
        graph = helper.make_graph(
            self._nodes,
            name,
            list(inputs),
            list(outputs),
            list(self._initialisers.values()),
        )
        return helper.make_model(
            graph,
            opset_imports=[
                helper.make_opsetid("", OPSET),
                helper.make_opsetid(MICROSOFT, 1),
            ],
            ir_version=IR_VERSION,
            producer_name="draftwire",
        )
