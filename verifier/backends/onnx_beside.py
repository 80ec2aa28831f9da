"""Versions of a target beside one base: their adapters are inputs of its graph.

Every linear layer of a target graph is ``y = Gemm(x, W)``. Behind each that an adapter
changes stand two narrow ones, ``y = Gemm(Gemm(x, A), B) + Gemm(x, W)``, whose halves come
with each forward. So one engine, with one packed copy of the weights, serves the base and
all its versions; where a version leaves a layer alone, and for the base itself, halves
have rank 0, which changes no bit.

Source:
    Hu et al. 2021, LoRA, section 4.1. onnx.proto3 for the fields.
"""

from __future__ import annotations

import threading
from typing import Any, Callable, Collection, Dict, NamedTuple

import numpy as np

from draftwire.packages import TargetPackage
from draftwire.tensors import adapter_halves, read_tensors
from draftwire.verifier.backends.onnx_leaves import fields, message, value_info

__all__ = ["Engine", "SharedBase", "beside_of"]

# By the names of the graph's inputs.
Halves = Dict[str, "np.ndarray[Any, Any]"]
_GRAPH, _NODE, _INPUT = 7, 1, 11
_FROM, _TO, _KIND, _ATTRIBUTE = 1, 2, 4, 5
_TURNED = b"\x0a\x06transB\x18\x01\xa0\x01\x02"  # an attribute: name, i = 1, type INT
_FLOAT = 1


class Engine(NamedTuple):
    """A session, the heads that share a key (0: no mask wanted), and empty halves."""

    session: Any
    group: int
    empty: Halves


class SharedBase:
    """The weights of a base target, and the engine that it shares with its versions.

    Attributes:
        weights: By parameter name, float32.
        engine: Replaced when a version changes layers that none before it has changed;
            None before the first target needs it.
    """

    def __init__(self, package: TargetPackage) -> None:
        base = package.base or package
        self.weights = read_tensors(base.path / "weights.safetensors")
        self.engine: Engine | None = None
        self._names: set[str] = set()
        self._lock = threading.Lock()

    def run_beside(
        self, package: TargetPackage, make: Callable[[Collection[str]], Engine | None]
    ) -> Halves | None:
        """Make the engine fit a target; return what is fed with each forward of it.

        Args:
            package: The base, or a version of it.
            make: Makes an engine that takes halves for weights, if it can.

        Returns:
            None where a layer of the adapter is no ``Gemm`` of a known form.

        Raises:
            PackageError: The adapter is damaged.
            ModelError: The engine refuses the graph.
        """
        pairs = adapter_halves(package, self.weights)
        with self._lock:  # targets load in threads of their own
            if self.engine is None or not self._names >= {*pairs}:
                engine = make(sorted(self._names | {*pairs}))
                if engine is None:
                    return None
                self.engine, self._names = engine, self._names | {*pairs}
        fed = {}
        for name, (down, up) in pairs.items():
            fed[name + ".a"], fed[name + ".b"] = down, up
        return fed


def beside_of(model: bytes, names: Collection[str]) -> tuple[bytes, set[str]]:
    """Return a graph with the halves of adapters as inputs, and the weights they go with.

    Args:
        model: A target graph.
        names: Weights ``(out, in)``; ``NAME.a`` ``(rank, in)`` and ``NAME.b``
            ``(out, rank)`` become inputs.
    """
    out = b""
    found: set[str] = set()
    other: set[str] = set()
    for number, whole, inside in fields(model):
        if number != _GRAPH:
            out += whole
            continue
        graph = b""
        for part, text, body in fields(inside):
            parts = [*fields(body)] if part == _NODE else []
            read = [value.decode() for n, _, value in parts if n == _FROM]
            weight = read[1] if len(read) > 1 else ""
            kinds = [value for n, _, value in parts if n == _KIND]
            how = [value for n, _, value in parts if n == _ATTRIBUTE]
            if weight not in names or kinds != [b"Gemm"] or how != [_TURNED]:
                other.update(read)
                graph += text
                continue
            found.add(weight)
            (to,) = (value.decode() for n, _, value in parts if n == _TO)
            graph += _gemm(read, to + ".base")
            graph += _gemm([read[0], weight + ".a"], to + ".low")
            graph += _gemm([to + ".low", weight + ".b", to + ".base"], to)
        for name in sorted(found):
            for half, sizes in ((".a", ("rank", "in")), (".b", ("out", "rank"))):
                dims = [f"{name}.{size}" for size in sizes]
                graph += message(_INPUT, value_info(name + half, _FLOAT, dims))
        out += message(_GRAPH, graph)
    return out, found - other  # a table is looked up in as well as multiplied


def _gemm(inputs: list[str], output: str) -> bytes:
    body = b"".join(message(_FROM, name.encode()) for name in inputs)
    body += message(_TO, output.encode()) + message(_KIND, b"Gemm")
    return message(_NODE, body + message(_ATTRIBUTE, _TURNED))
