"""A typed way to write a ``.tflite`` file: tensors, operators, signatures.

The weights of a model lie in the file once, whatever number of signatures use them.

Source:
    The schema of TensorFlow Lite (``schema.fbs``), as the LiteRT package generates it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema
from numpy.typing import NDArray

from draftwire.errors import ModelError

# A flatbuffer addresses its content by signed 32-bit offsets.
GRAPH_LIMIT = (1 << 31) - (64 << 20)

_ALIGNMENT = 16  # bytes: what vector loads of the kernels want
FLOAT, INT, BOOL = np.dtype(np.float32), np.dtype(np.int32), np.dtype(np.bool_)
_DTYPES = {
    FLOAT: schema.TensorType.FLOAT32,
    INT: schema.TensorType.INT32,
    np.dtype(np.int8): schema.TensorType.INT8,
    BOOL: schema.TensorType.BOOL,
}
# Tables of options that are not called as their operator is.
_OPTIONS = {"MEAN": "ReducerOptions", "BATCH_MATMUL": "BatchMatMulOptions"}
Values = Callable[[], NDArray[Any]]


class _AlignedBuilder(flatbuffers.Builder):
    """Starts every vector of bytes at a multiple of 16."""

    def CreateNumpyVector(self, x: NDArray[Any]) -> Any:
        if x.dtype != np.uint8:
            return super().CreateNumpyVector(x)
        self.StartVector(1, x.size, _ALIGNMENT)
        self.head -= x.size
        self.Bytes[self.head : self.head + x.size] = x.tobytes()
        self.vectorNumElems = x.size
        return self.EndVector()


class ModelBuilder:
    """Collects the subgraphs of one file."""

    def __init__(self, description: str) -> None:
        self._model = schema.ModelT()
        self._model.version, self._model.description = 3, description.encode()
        self._model.operatorCodes, self._model.subgraphs = [], []
        self._model.signatureDefs = []
        self._model.buffers = [schema.BufferT()]  # buffer 0 means "no values"
        self._codes: dict[tuple[int, int], int] = {}
        self._constants: dict[str, tuple[int, tuple[int, ...], np.dtype[Any]]] = {}
        self._bytes = 0

    def constant(
        self, name: str, values: Values
    ) -> tuple[int, tuple[int, ...], np.dtype[Any]]:
        """Return buffer, shape and kind of the constant ``name``, made by ``values`` the
        first time; a ModelError where the file would be larger than its format can be.
        """
        if name not in self._constants:
            array, buffer = values(), schema.BufferT()
            buffer.data = np.frombuffer(array.tobytes(), np.uint8)
            self._bytes += array.nbytes
            if self._bytes > GRAPH_LIMIT:
                raise ModelError(
                    "the model does not fit into the 2 GB of a .tflite file",
                    hint="--precision int8, or take a smaller draft",
                )
            place = len(self._model.buffers)
            self._model.buffers.append(buffer)
            self._constants[name] = place, array.shape, array.dtype
        return self._constants[name]

    def subgraph(self, name: str) -> Subgraph:
        """Start the subgraph of a signature."""
        graph = schema.SubGraphT()
        graph.name, graph.tensors, graph.operators = name.encode(), [], []
        self._model.subgraphs.append(graph)
        return Subgraph(self, graph, name)

    def code(self, operator: int, version: int) -> int:
        """Return the index of an operator's code."""
        key = (operator, version)
        if key not in self._codes:
            code = schema.OperatorCodeT()
            code.builtinCode, code.version = operator, version
            # Old readers look here; 127 sends them to builtinCode.
            code.deprecatedBuiltinCode = min(operator, 127)
            self._codes[key] = len(self._model.operatorCodes)
            self._model.operatorCodes.append(code)
        return self._codes[key]

    def signature(
        self, graph: Subgraph, inputs: Mapping[str, int], outputs: Mapping[str, int]
    ) -> None:
        """Name the inputs and outputs of the subgraph that was started last."""
        for names, ends in ((inputs, "inputs"), (outputs, "outputs")):
            setattr(graph.graph, ends, np.array(list(names.values()), np.int32))
        signature = schema.SignatureDefT()
        signature.signatureKey = graph.name.encode()
        signature.subgraphIndex = len(self._model.subgraphs) - 1
        signature.inputs = [_named(*item) for item in inputs.items()]
        signature.outputs = [_named(*item) for item in outputs.items()]
        self._model.signatureDefs.append(signature)

    def finish(self) -> bytes:
        """Return the file's content; the same for the same model."""
        builder = _AlignedBuilder(self._bytes + (1 << 20))
        builder.Finish(self._model.Pack(builder), b"TFL3")
        return bytes(builder.Output())


def _named(name: str, tensor: int) -> Any:
    entry = schema.TensorMapT()
    entry.name, entry.tensorIndex = name.encode(), tensor
    return entry


class Subgraph:
    """One computation. Tensors go by their index, an ``int``."""

    def __init__(self, model: ModelBuilder, graph: Any, name: str) -> None:
        self.name, self._model, self.graph = name, model, graph
        self._shapes: list[tuple[int, ...]] = []
        self._dtypes: list[np.dtype[Any]] = []
        self._local: dict[str, int] = {}

    def shape(self, tensor: int) -> tuple[int, ...]:
        """Return a tensor's shape."""
        return self._shapes[tensor]

    def tensor(
        self,
        shape: Sequence[int],
        dtype: np.dtype[Any] = FLOAT,
        name: str = "",
        *,
        buffer: int = 0,
        scale: float | None = None,
    ) -> int:
        """Add a tensor."""
        tensor = schema.TensorT()
        tensor.shape, tensor.type = np.array(shape, np.int32), _DTYPES[dtype]
        tensor.buffer = buffer
        tensor.name = (name or f"{self.name}.{len(self._shapes)}").encode()
        tensor.quantization = schema.QuantizationParametersT()
        if scale is not None:
            tensor.quantization.scale = np.array([scale], np.float32)
            tensor.quantization.zeroPoint = np.zeros(1, np.int64)
        self.graph.tensors.append(tensor)
        self._shapes.append(tuple(int(size) for size in shape))
        self._dtypes.append(dtype)
        return len(self._shapes) - 1

    def constant(self, name: str, values: Values, *, scale: float | None = None) -> int:
        """Return the tensor of a constant that all subgraphs share; int8 has a scale."""
        if name not in self._local:
            buffer, shape, dtype = self._model.constant(name, values)
            made = self.tensor(shape, dtype, name, buffer=buffer, scale=scale)
            self._local[name] = made
        return self._local[name]

    def values(self, array: NDArray[Any]) -> int:
        """Return the tensor of a small constant, named by what it holds."""
        key = f"{array.dtype}{list(array.shape)}:{array.tobytes().hex()}"
        return self.constant(key, lambda: array)

    def ints(self, *numbers: int) -> int:
        """Return a constant vector of int32."""
        return self.values(np.array(numbers, np.int32))

    def number(self, value: float) -> int:
        """Return a constant float32 scalar."""
        return self.values(np.full((), value, np.float32))

    def operator(
        self,
        name: str,
        inputs: Sequence[int],
        shape: Sequence[int],
        dtype: np.dtype[Any] | None = None,
        *,
        version: int = 1,
        **options: Any,
    ) -> int:
        """Add an operator of the schema ("ADD") with one output, of its first input's kind;
        return that. An input of -1 is left out; ``options`` are fields of its table.
        """
        output = self.tensor(shape, dtype or self._dtypes[inputs[0]])
        operator = schema.OperatorT()
        code = getattr(schema.BuiltinOperator, name)
        operator.opcodeIndex = self._model.code(code, version)
        operator.inputs = np.array(inputs, np.int32)
        operator.outputs = np.array([output], np.int32)
        kind = _OPTIONS.get(name, name.title().replace("_", "") + "Options")
        if hasattr(schema, kind + "T"):
            table = getattr(schema, kind + "T")()
            for field, value in options.items():
                setattr(table, field, value)
            operator.builtinOptionsType = getattr(schema.BuiltinOptions, kind)
            operator.builtinOptions = table
        self.graph.operators.append(operator)
        return output

    # ---- the operators that a decoder is made of

    def binary(self, name: str, a: int, b: int, **how: Any) -> int:
        """Return "ADD", "SUB", "MUL" or "LESS" of two tensors, broadcast."""
        shape = np.broadcast_shapes(self.shape(a), self.shape(b))
        return self.operator(name, [a, b], shape, **how)

    def add(self, a: int, b: int) -> int:
        """Return ``a + b``."""
        return self.binary("ADD", a, b)

    def mul(self, a: int, b: int) -> int:
        """Return ``a * b``."""
        return self.binary("MUL", a, b)

    def unary(self, name: str, a: int, **options: Any) -> int:
        """Return an elementwise function: "RSQRT", "LOGISTIC", "TANH", "GELU"."""
        return self.operator(name, [a], self.shape(a), **options)

    def reshape(self, a: int, shape: Sequence[int]) -> int:
        """Return ``a`` in another shape; ``a`` itself when it has it."""
        if self.shape(a) == tuple(shape):
            return a
        sizes = np.array(shape, np.int32)
        return self.operator("RESHAPE", [a, self.ints(*shape)], shape, newShape=sizes)

    def transpose(self, a: int, order: Sequence[int]) -> int:
        """Return ``a`` with its dimensions in another order."""
        shape = [self.shape(a)[i] for i in order]
        return self.operator("TRANSPOSE", [a, self.ints(*order)], shape)

    def slice(self, a: int, axis: int, begin: int, end: int) -> int:
        """Return ``a`` from ``begin`` to ``end`` of one dimension."""
        shape = list(self.shape(a))
        if (begin, end) == (0, shape[axis]):
            return a
        first = [begin if i == axis else 0 for i in range(len(shape))]
        shape[axis] = end - begin
        return self.operator("SLICE", [a, self.ints(*first), self.ints(*shape)], shape)

    def concat(self, parts: Sequence[int], axis: int) -> int:
        """Return tensors one after the other."""
        if len(parts) == 1:
            return parts[0]
        shape = list(self.shape(parts[0]))
        shape[axis] = sum(self.shape(part)[axis] for part in parts)
        return self.operator("CONCATENATION", parts, shape, axis=axis)

    def mean(self, a: int) -> int:
        """Return the mean over the last dimension, which stays with size 1."""
        shape = (*self.shape(a)[:-1], 1)
        return self.operator("MEAN", [a, self.ints(len(shape) - 1)], shape, keepDims=True)

    def gather(self, table: int, rows: int) -> int:
        """Return rows of a table."""
        shape = (*self.shape(rows), *self.shape(table)[1:])
        return self.operator("GATHER", [table, rows], shape, axis=0)

    def product(self, a: int, b: int) -> int:
        """Return ``a @ b.T`` over the last two dimensions."""
        shape = (*self.shape(a)[:-1], self.shape(b)[-2])
        return self.operator("BATCH_MATMUL", [a, b], shape, adjY=True)

    def softmax(self, a: int) -> int:
        """Return the softmax over the last dimension."""
        return self.unary("SOFTMAX", a, beta=1.0)
