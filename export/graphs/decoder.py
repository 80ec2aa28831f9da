"""The way through a decoder, written once for every family and every kind of graph.

What a value is (the name of a tensor, a tensor's number, an array) and how one operation
is done is for the subclasses: the onnxruntime graphs of a draft and of a target, the LiteRT
graph, and the numpy forward that they are compared with.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

from draftwire.export.sources.architecture import Architecture

V = TypeVar("V")


class Decoder(Generic[V]):
    """Walks through the architecture ``a``.

    Subclasses bring the operations; the last argument of most is what the result may be
    called.
    """

    look_up: Callable[[str, V, str], V]  # (parameter, ids): rows of a table
    linear: Callable[[V, int, str], V]  # (x, layer, "gate", "up", "down" or "o")
    attention: Callable[[V, int], V]  # (x, layer): what its output projection reads
    convolution: Callable[[V, int], V]  # the same, where the layer convolves
    norm: Callable[[V, str, str], V]  # (x, parameter): over the last dimension
    bend: Callable[[V, str], V]  # the activation
    add: Callable[[V, V, str], V]
    multiply: Callable[[V, V, str], V]  # number by number
    times: Callable[[V, float, str], V]  # never asked for 1
    cap: Callable[[V, float, str], V]  # bound * tanh(x / bound); never asked for 0

    def __init__(self, architecture: Architecture) -> None:
        self.a = architecture

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

    def final(self, x: V) -> V:
        """Return what the head multiplies."""
        x = self.norm(x, self.a.names.final, "normed")
        return self.scaled(x, self.a.logit_scale, "normed.scaled")

    def _layer(self, hidden: V, i: int) -> V:
        a, names, p, n = self.a, self.a.names, self.a.layer(i), f"l{i}."
        x = hidden
        if names.before_attention:
            x = self.norm(hidden, p + names.before_attention, n + "normed")
        mixed = self.convolution(x, i) if a.convs[i] else self.attention(x, i)
        x = self._added(self.linear(mixed, i, "o"), p, names.after_attention, n + "o")
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
