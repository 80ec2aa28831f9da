"""Changes to the graph of a target package as it is loaded; its file and id stay.

The graph knows a plain chain of new tokens: it makes their places and their causal mask
itself (:mod:`draftwire.export.graphs.target`). A leaf stands at another place than its
row, and sees less. So the two nodes that make them are taken out, and their results become
inputs (:func:`opened`): every package can judge leaves, and a forward without leaves
computes the same bits.

Every linear layer of it is ``y = Gemm(x, W)``. Behind each that an adapter changes
:func:`beside_of` puts two narrow ones, ``y = Gemm(Gemm(x, A), B) + Gemm(x, W)``, whose
halves come with each forward. So one engine, with one packed copy of the weights, serves
the base and all its versions; where a version leaves a layer alone, and for the base
itself, halves have rank 0, which changes no bit.

Only length-delimited fields are read and written (there is no ``onnx`` beside a verifier).

Source:
    onnx.proto3, https://github.com/onnx/onnx. Hu et al. 2021, LoRA, section 4.1.
"""

from __future__ import annotations

import re
from typing import Any, Callable, Collection, Iterator, Sequence

import numpy as np

from draftwire.errors import ProtocolError
from draftwire.transport.bits import Reader, varint
from draftwire.verifier.backends.base import Frame

PLACES, MASK = "positions", "new_mask"
_NEVER = np.float32(-1e30)  # as in the graph
_GRAPH, _NODE, _INPUT = 7, 1, 11  # fields of a model and of a graph
_FROM, _TO, _KIND, _ATTRIBUTE = 1, 2, 4, 5  # of a node
_TURNED = b"\x0a\x06transB\x18\x01\xa0\x01\x02"  # an attribute: name, i = 1, type INT
_INT64, _FLOAT = 7, 1
_WORD = (1 << 64) - 1
_FIXED = {1: 8, 5: 4}  # bytes of a number by how it is written


def opened(model: bytes) -> tuple[bytes, int] | None:
    """Return the graph with places and mask as inputs, and the heads that share one key.

    None where it is not of the known form, or layers look back on a window.
    """
    group = taken = 0

    def change(whole: bytes, node: bytes) -> bytes:
        nonlocal group, taken
        names = [(n, value) for n, _, value in _fields(node)]
        to = [value.decode() for n, value in names if n == _TO]
        if any(name.startswith(MASK + ".") and name[-1].isdigit() for name in to):
            raise ValueError("layers look back on a window")
        if to == [MASK]:  # heads of a group stand below each other: tiled
            source = [value.decode() for n, value in names if n == _FROM][-1]
            times = re.fullmatch(r"i64_(\d+)_1", source)
            group = int(times.group(1)) if times else 0
        if to not in ([MASK], [PLACES]):
            return whole
        taken += 1
        return b""

    inputs = [
        _value_info(PLACES, _INT64, ("B", "S")),
        _value_info(MASK, _FLOAT, ("masks", "one", "G*S", "S")),
    ]
    try:
        found = _rebuilt(model, change, lambda: inputs)
    except (ProtocolError, ValueError):
        return None  # damaged: the engine will say so
    return (found, group) if taken == 2 and group else None


def mask_of(frame: Frame, group: int) -> np.ndarray[Any, Any]:
    """Return what is added to scores over a frame's new tokens.

    It is ``(B or 1, 1, group * width, width)`` float32 for a ``group`` of heads a key.
    """
    width = frame.width
    later = np.triu(np.full((width, width), _NEVER, np.float32), 1)
    masks = later[None]
    if any(item.leaves for item in frame.items):
        masks = np.repeat(masks, len(frame.items), axis=0)
        for mask, item in zip(masks, frame.items):
            for row, behind, chain in item.beside():
                mask[row, behind:] = _NEVER
                mask[row, row - chain : row + 1] = 0.0
    return np.tile(masks, (1, group, 1))[:, None]


def beside_of(model: bytes, names: Collection[str]) -> tuple[bytes, set[str]]:
    """Return a graph with the halves of adapters as inputs, and the weights they go with.

    Args:
        model: A target graph.
        names: Weights ``(out, in)``; ``NAME.a`` ``(rank, in)`` and ``NAME.b``
            ``(out, rank)`` become inputs.
    """
    found: set[str] = set()
    other: set[str] = set()

    def change(whole: bytes, node: bytes) -> bytes:
        parts: dict[int, list[bytes]] = {}
        for n, _, value in _fields(node):
            parts.setdefault(n, []).append(value)
        read = [value.decode() for value in parts.get(_FROM, ())]
        weight = read[1] if len(read) > 1 else ""
        known = parts.get(_KIND) == [b"Gemm"] and parts.get(_ATTRIBUTE) == [_TURNED]
        if weight not in names or not known:
            other.update(read)
            return whole
        found.add(weight)
        (to,) = (value.decode() for value in parts[_TO])
        low = _gemm([read[0], weight + ".a"], to + ".low")
        sum_of_both = _gemm([to + ".low", weight + ".b", to + ".base"], to)
        return _gemm(read, to + ".base") + low + sum_of_both

    def inputs() -> Iterator[bytes]:
        for name in sorted(found):
            for half, sizes in ((".a", ("rank", "in")), (".b", ("out", "rank"))):
                yield _value_info(name + half, _FLOAT, [f"{name}.{size}" for size in sizes])

    out = _rebuilt(model, change, inputs)
    return out, found - other  # a table is looked up in as well as multiplied


def _rebuilt(
    model: bytes,
    change: Callable[[bytes, bytes], bytes],
    inputs: Callable[[], Iterator[bytes] | list[bytes]],
) -> bytes:
    """Return a model, each node of its graph changed, with more inputs behind the others.

    ``change`` gets the node's field, and what is in it; ``inputs`` is called after that.
    """
    out = b""
    for number, whole, inside in _fields(model):
        if number == _GRAPH:
            graph = b"".join(
                change(field, body) if part == _NODE else field
                for part, field, body in _fields(inside)
            )
            graph += b"".join(_message(_INPUT, value) for value in inputs())
            whole = _message(_GRAPH, graph)
        out += whole
    return out


def _gemm(inputs: list[str], output: str) -> bytes:
    body = b"".join(_message(_FROM, name.encode()) for name in inputs)
    body += _message(_TO, output.encode()) + _message(_KIND, b"Gemm")
    return _message(_NODE, body + _message(_ATTRIBUTE, _TURNED))


def _fields(data: bytes) -> Iterator[tuple[int, bytes, bytes]]:
    """Yield each field's number, itself whole, and its content if that has a length."""
    reader = Reader(data)
    while reader.left():
        begin = reader.at
        tag, body = reader.varint(_WORD, "tag"), b""
        if tag & 7 == 2:
            body = reader.take(reader.varint(_WORD, "length"))
        elif tag & 7 == 0:
            reader.varint(_WORD, "value")
        elif tag & 7 in _FIXED:
            reader.take(_FIXED[tag & 7])
        else:
            raise ValueError("a field of no known kind")
        yield tag >> 3, data[begin : reader.at], body


def _message(number: int, body: bytes) -> bytes:
    """Return a field that has a length."""
    return varint(number << 3 | 2) + varint(len(body)) + body


def _value_info(name: str, kind: int, dims: Sequence[str]) -> bytes:
    """Return a ``ValueInfoProto``: name (1), type (2): tensor (1): kind (1), shape (2)."""
    shape = b"".join(_message(1, _message(2, dim.encode())) for dim in dims)
    tensor = varint(1 << 3) + varint(kind) + _message(2, shape)
    return _message(1, name.encode()) + _message(2, _message(1, tensor))
