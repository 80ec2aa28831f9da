"""The way through a decoder, written once for every family and every kind of graph.

What a value is (the name of a tensor, a tensor's number, an array) and how one operation
is done is for the subclasses: the onnxruntime graphs of a draft and of a target, the LiteRT
graph, and the numpy forward that they are compared with.
"""

from __future__ import annotations

from typing import Generic, TypeVar

from draftwire.export.sources.architecture import Architecture

V = TypeVar("V")


class Decoder(Generic[V]):
    """Walks through an architecture.

    Attributes:
        a: The architecture.
    """

    def __init__(self, architecture: Architecture) -> None:
        self.a = architecture

    # ---- one operation: for subclasses; ``name`` is what the result may be called

    def look_up(self, parameter: str, ids: V, name: str) -> V:
        """Return rows of a table."""
        raise NotImplementedError

    def linear(self, x: V, i: int, kind: str) -> V:
        """Return "gate", "up", "down" or "o" of layer ``i``."""
        raise NotImplementedError

    def attention(self, x: V, i: int) -> V:
        """Return what the output projection of layer ``i`` reads."""
        raise NotImplementedError

    def convolution(self, x: V, i: int) -> V:
        """Return what the output of layer ``i`` reads, where it convolves."""
        raise NotImplementedError

    def norm(self, x: V, parameter: str, name: str) -> V:
        """Return a norm over the last dimension."""
        raise NotImplementedError

    def bend(self, x: V, name: str) -> V:
        """Return the activation."""
        raise NotImplementedError

    def add(self, x: V, y: V, name: str) -> V:
        """Return the sum."""
        raise NotImplementedError

    def multiply(self, x: V, y: V, name: str) -> V:
        """Return the product, number by number."""
        raise NotImplementedError

    def times(self, x: V, factor: float, name: str) -> V:
        """Return ``x * factor``; never asked for 1."""
        raise NotImplementedError

    def cap(self, x: V, bound: float, name: str) -> V:
        """Return ``bound * tanh(x / bound)``; never asked for 0."""
        raise NotImplementedError

    # ---- the way

    def embedded(self, ids: V, positions: V) -> V:
        """Return the first hidden states of tokens at their positions."""
        a = self.a
        scaled = a.embedding_scale != 1.0
        x = self.look_up(a.embedding, ids, "looked_up" if scaled else "embedded")
        x = self.scaled(x, a.embedding_scale, "embedded")
        if not a.names.positions:
            return x
        places = self.look_up(a.names.positions + ".weight", positions, "places")
        return self.add(x, places, "placed")

    def layers(self, x: V) -> V:
        """Return the hidden states after all layers."""
        for i in range(self.a.layers):
            x = self._layer(x, i)
        return x

    def final(self, x: V, name: str = "normed") -> V:
        """Return what the head multiplies."""
        x = self.norm(x, self.a.names.final, name)
        return self.scaled(x, self.a.logit_scale, name + ".scaled")

    def _layer(self, hidden: V, i: int) -> V:
        a, names, p, n = self.a, self.a.names, self.a.layer(i), f"l{i}."
        x = hidden
        if names.before_attention:
            x = self.norm(hidden, p + names.before_attention, n + "normed")
        mixed = self.convolution(x, i) if a.kernel(i) else self.attention(x, i)
        x = self.linear(mixed, i, "o")
        x = self._added(x, p, names.after_attention, n + "o")
        middle = self.add(hidden, x, n + "mid")
        y = hidden if a.parallel else middle
        if names.before_mlp:
            y = self.norm(y, p + names.before_mlp, n + "mlp_normed")
        up = self.linear(y, i, "up")
        if names.gate:
            gate = self.bend(self.linear(y, i, "gate"), n)
            up = self.multiply(gate, up, n + "gated")
        else:
            up = self.bend(up, n)
        y = self._added(self.linear(up, i, "down"), p, names.after_mlp, n + "down")
        return self.add(middle, y, n + "out")

    def _added(self, x: V, prefix: str, norm: str, name: str) -> V:
        if norm:
            x = self.norm(x, prefix + norm, name + ".normed")
        return self.scaled(x, self.a.residual_scale, name + ".scaled")

    def scaled(self, x: V, factor: float, name: str) -> V:
        """Return ``x * factor``."""
        return x if factor == 1.0 else self.times(x, factor, name)

    def capped(self, x: V, bound: float, name: str) -> V:
        """Return ``x`` within a bound; 0 for none."""
        return self.cap(x, bound, name) if bound else x
