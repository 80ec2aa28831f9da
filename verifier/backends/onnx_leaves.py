"""Lets the target graph take places and the mask over new tokens as inputs.

The graph of a target package knows a plain chain of new tokens: it makes their places and
their causal mask itself (:mod:`draftwire.export.graphs.target`). A leaf stands at another
place than its row, and sees less. So the two nodes that make them are taken out as the
graph is loaded, and their results become inputs: every package can judge leaves, its file
and id stay as they are, and a forward without leaves computes the same bits.

Only length-delimited fields are read and written (there is no ``onnx`` beside a verifier).
Source: onnx.proto3, https://github.com/onnx/onnx.
"""

from __future__ import annotations

import re
from typing import Any, Iterator, Sequence

import numpy as np

from draftwire.verifier.backends.base import Frame

__all__ = ["MASK", "PLACES", "fields", "mask_of", "message", "opened", "value_info"]

PLACES, MASK = "positions", "new_mask"
_NEVER = np.float32(-1e30)  # as in the graph
_GRAPH, _NODE, _INPUT = 7, 1, 11  # fields of a model and of a graph
_FROM, _TO = 1, 2  # of a node: names
_INT64, _FLOAT = 7, 1


def opened(model: bytes) -> tuple[bytes, int] | None:
    """Return the graph with both as inputs, and the heads that share one key.

    None where it is not of the known form, or layers look back on a window.
    """
    try:
        return _opened(model)
    except (IndexError, ValueError):
        return None  # damaged: the engine will say so


def _opened(model: bytes) -> tuple[bytes, int] | None:
    out, group, taken = b"", 0, 0
    for number, all_of_it, inside in fields(model):
        if number != _GRAPH:
            out += all_of_it
            continue
        graph = b""
        for part, whole, body in fields(inside):
            if part == _NODE:
                names = [(n, value) for n, _, value in fields(body)]
                to = [value.decode() for n, value in names if n == _TO]
                if any(name.startswith(MASK + ".") and name[-1].isdigit() for name in to):
                    return None
                if to == [MASK]:  # heads of a group stand below each other: tiled
                    source = [value.decode() for n, value in names if n == _FROM][-1]
                    times = re.fullmatch(r"i64_(\d+)_1", source)
                    group = int(times.group(1)) if times else 0
                if to in ([MASK], [PLACES]):
                    taken += 1
                    continue
            graph += whole
        graph += message(_INPUT, value_info(PLACES, _INT64, ("B", "S")))
        graph += message(_INPUT, value_info(MASK, _FLOAT, ("masks", "one", "G*S", "S")))
        out += message(_GRAPH, graph)
    return (out, group) if taken == 2 and group else None


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
            for row, behind in enumerate(item.leaves, item.kept):
                mask[row, behind:] = _NEVER
                mask[row, row] = 0.0
    return np.tile(masks, (1, group, 1))[:, None]


def fields(data: bytes) -> Iterator[tuple[int, bytes, bytes]]:
    """Yield each field's number, itself whole, and its content if that has a length."""
    at = 0
    while at < len(data):
        begin = at
        tag, at = _read(data, at)
        body = b""
        if tag & 7 == 2:
            size, at = _read(data, at)
            body = data[at : at + size]
            at += size
        elif tag & 7 == 0:
            _, at = _read(data, at)
        else:
            at += {1: 8, 5: 4}[tag & 7]
        if at > len(data):
            raise ValueError("cut short")
        yield tag >> 3, data[begin:at], body


def _read(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at, value, shift = at + 1, value | (byte & 0x7F) << shift, shift + 7
        if byte < 0x80:
            return value, at


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes((*out, value))


def message(number: int, body: bytes) -> bytes:
    """Return a field of a message that has a length."""
    return _varint(number << 3 | 2) + _varint(len(body)) + body


def value_info(name: str, kind: int, dims: Sequence[str]) -> bytes:
    """Return a ``ValueInfoProto``: name (1), type (2): tensor (1): kind (1), shape (2)."""
    shape = b"".join(message(1, message(2, dim.encode())) for dim in dims)
    tensor = _varint(1 << 3) + _varint(kind) + message(2, shape)
    return message(1, name.encode()) + message(2, message(1, tensor))
