"""Explains a frame field by field, as far as it can be read."""

from __future__ import annotations

from typing import NamedTuple

from draftwire.errors import ProtocolError
from draftwire.transport.codec import Codec

__all__ = ["Explained", "Piece", "explain"]


class Piece(NamedTuple):
    """Some bytes of a frame and what they mean.

    Attributes:
        offset: Of the first byte.
        data: The bytes.
        name: Field, in the words of PROTOCOL.md.
        meaning: Their value, for people.
    """

    offset: int
    data: bytes
    name: str
    meaning: str


class Explained(NamedTuple):
    """A frame taken apart.

    Attributes:
        kind: Name of the message, or "" when it is none.
        pieces: In order; together they are the frame.
        error: Why the frame is not valid, or "".
    """

    kind: str
    pieces: tuple[Piece, ...]
    error: str


def explain(frame: bytes, vocab_size: int | None = None) -> Explained:
    """Take a frame apart.

    Args:
        frame: One websocket message.
        vocab_size: Of the connection; without it token ids cannot be read.
    """
    pieces: list[Piece] = []
    kind = error = ""

    def note(start: int, end: int, name: str, meaning: str) -> None:
        pieces.append(Piece(start, frame[start:end], name, meaning))

    try:
        Codec(vocab_size).decode(frame, note)
    except ProtocolError as problem:
        error = str(problem)
        read = pieces[-1].offset + len(pieces[-1].data) if pieces else 0
        if read < len(frame):
            note(read, len(frame), "?", "not read")
    if pieces and pieces[0].name == "kind":
        kind = pieces[0].meaning.split(" ")[0]
    return Explained(kind, tuple(pieces), error)
