"""Explains a frame field by field, as far as it can be read."""

from __future__ import annotations

from typing import NamedTuple

from draftwire.errors import ProtocolError
from draftwire.transport.codec import Codec
from draftwire.transport.messages import Finish


class Piece(NamedTuple):
    """Some bytes of a frame and what they mean."""

    offset: int  # of the first byte
    data: bytes  # the bytes
    name: str  # field, in the words of PROTOCOL.md
    meaning: str  # their value, for people


class Explained(NamedTuple):
    """A frame taken apart."""

    kind: str  # name of the message, or "" when it is none
    pieces: tuple[Piece, ...]  # in order; together they are the frame
    error: str  # why the frame is not valid, or ""


def explain(frame: bytes, vocab_size: int | None = None) -> Explained:
    """Take a frame apart; without the connection's ``vocab_size`` ids cannot be read."""
    pieces: list[Piece] = []
    kind = error = ""

    def note(start: int, end: int, name: str, value: object) -> None:
        pieces.append(Piece(start, frame[start:end], name, _shown(name, value)))

    try:
        Codec(vocab_size).decode(frame, note)
    except ProtocolError as problem:
        error = str(problem)
        read = pieces[-1].offset + len(pieces[-1].data) if pieces else 0
        if read < len(frame):
            pieces.append(Piece(read, frame[read:], "?", "not read"))
    if pieces and pieces[0].name == "kind":
        kind = pieces[0].meaning.split(" ")[0]
    return Explained(kind, tuple(pieces), error)


def _shown(name: str, value: object) -> str:
    if value is None:
        return "unknown here, skipped"
    if isinstance(value, bytes):
        return value.hex() or "empty"
    if isinstance(value, Finish):
        return f"{int(value)} {value.name.lower().replace('_', ' ')}"
    if name == "place":
        return "epoch {}, base {}, {} ids".format(*value)  # type: ignore[misc]
    if isinstance(value, tuple):
        text = " ".join(map(str, value[:16])) or "none"
        return text + (f" ... {len(value)} in all" if len(value) > 16 else "")
    return repr(value) if isinstance(value, str) and name != "kind" else str(value)
