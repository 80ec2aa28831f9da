"""What the onnxruntime graphs of a draft and of a target share."""

from __future__ import annotations

import numpy as np

from draftwire.export.graphs.builder import MICROSOFT, GraphBuilder, Value, value
from draftwire.export.graphs.decoder import Decoder
from draftwire.export.sources.architecture import Architecture


class OnnxDecoder(Decoder[str]):
    """Writes a decoder's nodes; a value is a tensor's name.

    A subclass says where weights come from, and what attention is.
    """

    fuses = False  # sums into the norms that follow

    def __init__(self, architecture: Architecture) -> None:
        super().__init__(architecture)
        self.g = GraphBuilder()
        # Sums that are not written yet: the norm behind one may take it along.
        self._sums: dict[str, list[str]] = {}

    def table(self, parameter: str) -> str:
        """Return a table as a constant."""
        raise NotImplementedError

    def norm_weights(self, parameter: str) -> list[str]:
        """Return the weight as it multiplies, and the bias of a LayerNorm."""
        raise NotImplementedError

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
        g = self.g
        if self.a.activation == "silu":
            return g.node(
                "Mul", [x, g.node("Sigmoid", [x], name + "sigmoid")], name + "silu"
            )
        op = "FastGelu" if self.a.activation == "gelu_tanh" else "Gelu"
        return g.node(op, [x], name + "gelu", domain=MICROSOFT)

    def norm(self, x: str, parameter: str, name: str) -> str:
        weights, eps = self.norm_weights(parameter), self.a.eps
        if self.a.family.norm != "layer" and self.fuses and x in self._sums:
            return self.g.node(
                "SkipSimplifiedLayerNormalization",
                [*self._sums.pop(x), *weights],
                [name, "", "", x],
                domain=MICROSOFT,
                epsilon=eps,
            )
        return self.plain_norm(self.written(x), weights, name)

    def plain_norm(self, x: str, weights: list[str], name: str) -> str:
        eps = self.a.eps
        if self.a.family.norm == "layer":
            return self.g.node(
                "LayerNormalization", [x, *weights], name, axis=-1, epsilon=eps
            )
        return self.g.node(
            "SimplifiedLayerNormalization",
            [x, *weights],
            name,
            epsilon=eps,
            axis=-1,
            stash_type=1,
        )

    def caches(self, form: str, length: str) -> list[Value]:
        """Describe the caches of all layers, ``form`` with layer and kind in it."""
        a = self.a
        shape: list[int | str] = ["B", a.kv_heads, length, a.head_dim]
        wide: list[int | str] = ["B", 1, length, a.hidden]
        return [
            value(form.format(i, kind), "float32", wide if a.kernel(i) else shape)
            for i in range(a.layers)
            for kind in (("conv",) if a.kernel(i) else ("key", "value"))
        ]
