"""What the graphs of a draft and of a target share: the way through the layers.

The two differ in where weights come from, in how attention meets the cache, and in which
rows reach the head; the rest, and so every family, is written once, here.
"""

from __future__ import annotations

import numpy as np

from draftwire.export.graphs.builder import MICROSOFT, GraphBuilder
from draftwire.export.sources.checkpoint import Checkpoint

__all__ = ["DecoderGraph"]


class DecoderGraph:
    """Writes a decoder's nodes.

    A subclass says what a linear layer, a norm's weight and attention are.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.checkpoint, self.a = checkpoint, checkpoint.architecture
        self.g = GraphBuilder()
        # Sums that are not written yet: the norm behind one may take it along.
        self._sums: dict[str, list[str]] = {}

    # ---- for subclasses

    def product(self, x: str, i: int, kind: str, name: str) -> str:
        """Write the linear layer of ``kind`` ("o", "up", ...), return ``name``."""
        raise NotImplementedError

    def norm_weights(self, parameter: str) -> list[str]:
        """Return the weight as it multiplies, and the bias of a LayerNorm."""
        raise NotImplementedError

    def attention(self, x: str, i: int) -> str:
        """Write attention up to what its output projection reads."""
        raise NotImplementedError

    fuses = False  # sums into the norms that follow

    # ---- the same for both

    def layers(self, hidden: str) -> str:
        """Write all layers and the norm behind them."""
        for i in range(self.a.layers):
            hidden = self._layer(hidden, i)
        return hidden

    def final(self, hidden: str, name: str = "normed") -> str:
        """Write the last norm, and what scales the logits."""
        x = self.norm(hidden, self.a.names.final, name)
        return self.scaled(x, self.a.logit_scale, name + ".scaled")

    def _layer(self, hidden: str, i: int) -> str:
        a, names, p, n = self.a, self.a.names, self.a.layer(i), f"l{i}."
        x = hidden
        if names.before_attention:
            x = self.norm(hidden, p + names.before_attention, n + "normed")
        x = self.attention(self.written(x), i)
        x = self.product(x, i, "o", n + "o")
        x = self._added(x, p, names.after_attention, n + "o")
        middle = self.add(hidden, x, n + "mid")
        y = hidden if a.parallel else middle
        if names.before_mlp:
            y = self.norm(y, p + names.before_mlp, n + "mlp_normed")
        y = self._mlp(self.written(y), i)
        y = self._added(y, p, names.after_mlp, n + "down")
        return self.add(middle, y, n + "out")

    def _added(self, x: str, prefix: str, norm: str, name: str) -> str:
        if norm:
            x = self.norm(x, prefix + norm, name + ".normed")
        return self.scaled(x, self.a.residual_scale, name + ".scaled")

    def _mlp(self, x: str, i: int) -> str:
        n = f"l{i}."
        up = self.product(x, i, "up", n + "up")
        if not self.a.names.gate:
            return self.product(self.bent(up, n), i, "down", n + "down")
        gate = self.bent(self.product(x, i, "gate", n + "gate"), n)
        both = self.g.node("Mul", [gate, up], n + "gated")
        return self.product(both, i, "down", n + "down")

    def bent(self, x: str, n: str) -> str:
        """Write the activation."""
        g = self.g
        if self.a.activation == "silu":
            return g.node("Mul", [x, g.node("Sigmoid", [x], n + "sigmoid")], n + "silu")
        op = "FastGelu" if self.a.activation == "gelu_tanh" else "Gelu"
        return g.node(op, [x], n + "gelu", domain=MICROSOFT)

    def scaled(self, x: str, scale: float, name: str) -> str:
        """Write ``x * scale``; nothing for 1."""
        if scale == 1.0:
            return x
        factor = self.g.constant(f"times_{scale!r}", np.array(scale, np.float32))
        return self.g.node("Mul", [self.written(x), factor], name)

    def capped(self, x: str, cap: float, name: str) -> str:
        """Write ``cap * tanh(x / cap)``; nothing for 0."""
        if not cap:
            return x
        bound = self.g.constant(f"cap_{cap!r}", np.array(cap, np.float32))
        ratio = self.g.node("Div", [x, bound], name + ".ratio")
        return self.g.node(
            "Mul", [self.g.node("Tanh", [ratio], name + ".tanh"), bound], name
        )

    def add(self, a: str, b: str, name: str) -> str:
        """Return the sum of two streams; it is written when something reads it."""
        self._sums[name] = [self.written(a), self.written(b)]
        return name

    def written(self, x: str) -> str:
        """Return ``x``, written if it is a sum that nothing has read yet."""
        if x in self._sums:
            self.g.node("Add", self._sums.pop(x), x)
        return x

    def norm(self, x: str, parameter: str, name: str) -> str:
        """Write a norm over the last dimension."""
        weights, eps = self.norm_weights(parameter), self.a.eps
        if self.a.family.norm == "layer":
            return self.g.node(
                "LayerNormalization",
                [self.written(x), *weights],
                name,
                axis=-1,
                epsilon=eps,
            )
        if self.fuses and x in self._sums:
            return self.g.node(
                "SkipSimplifiedLayerNormalization",
                [*self._sums.pop(x), *weights],
                [name, "", "", x],
                domain=MICROSOFT,
                epsilon=eps,
            )
        return self.g.node(
            "SimplifiedLayerNormalization",
            [self.written(x), *weights],
            name,
            epsilon=eps,
            axis=-1,
            stash_type=1,
        )

    def embedded(self, table: str, ids: str, positions: str) -> str:
        """Write the first hidden states.

        Args:
            table: The embedding.
            ids: Token ids.
            positions: Their positions, in the same shape.
        """
        names = self.a.names
        scaled = self.a.embedding_scale != 1.0
        x = self.g.node("Gather", [table, ids], "looked_up" if scaled else "embedded")
        x = self.scaled(x, self.a.embedding_scale, "embedded")
        if not names.positions:
            return x
        places = self.table(names.positions + ".weight")
        where = self.g.node("Gather", [places, positions], "places")
        return self.g.node("Add", [x, where], "placed")

    def table(self, parameter: str) -> str:
        """Return a parameter that is looked up."""
        raise NotImplementedError
