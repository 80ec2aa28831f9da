"""Explains a frame field by field, as far as it can be read."""

from __future__ import annotations

from typing import Any, NamedTuple

from draftwire.errors import ProtocolError
from draftwire.transport import codec as wire
from draftwire.transport.bits import Reader, packed_size, unpack_ids, unpack_time
from draftwire.transport.messages import Finish, Kind

__all__ = ["Explained", "Piece", "explain"]

_MOST_IDS = 16  # shown of a list


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
        pieces: In order; together they are the frame up to where reading failed.
        error: Why the frame is not valid, or "".
    """

    kind: str
    pieces: tuple[Piece, ...]
    error: str


class _Cut:
    """Reads pieces and notes what each one was."""

    def __init__(self, frame: bytes) -> None:
        self.frame = frame
        self.reader = Reader(frame)
        self.pieces: list[Piece] = []

    def note(self, start: int, name: str, meaning: str) -> None:
        data = self.frame[start : self.reader.at]
        self.pieces.append(Piece(start, data, name, meaning))

    def byte(self, name: str) -> int:
        value = self.reader.byte()
        self.note(self.reader.at - 1, name, str(value))
        return value

    def varint(self, limit: int, name: str) -> int:
        start = self.reader.at
        value = self.reader.varint(limit, name)
        self.note(start, name, str(value))
        return value

    def evidence(self) -> None:
        size = self.varint(wire.MAX_FRAME, "evidence length")
        start = self.reader.at
        self.reader.take(size)
        self.note(start, "evidence", f"{size} bytes of the sampling scheme")


def explain(frame: bytes, vocab_size: int | None = None) -> Explained:
    """Take a frame apart.

    Args:
        frame: One websocket message.
        vocab_size: Of the connection; without it token ids cannot be read.
    """
    cut = _Cut(frame)
    kind = ""
    try:
        codec = wire.Codec(vocab_size)
        head = cut.reader.byte()
        try:
            kind = Kind(head & 0x0F).name.lower()
        except ValueError:
            kind = ""
        cut.note(0, "kind", f"{head & 0x0F} {kind or 'unknown'}{_flags(head)}")
        if kind == "block":
            _block(cut, codec, head)
        elif kind == "commit":
            _commit(cut, codec, head)
        elif kind == "provisional":
            cut.byte("epoch")
            cut.varint(wire.MAX_BLOCK, "accepted")
            _ids(cut, codec, 1, "token")
        elif kind:
            _fields(cut, codec, Kind(head & 0x0F))
        codec.decode(frame)  # the judge of what is valid
    except ProtocolError as error:
        rest = (
            frame[cut.pieces[-1].offset + len(cut.pieces[-1].data) :] if cut.pieces else b""
        )
        if rest:
            cut.pieces.append(Piece(len(frame) - len(rest), rest, "?", "not read"))
        return Explained(kind, tuple(cut.pieces), str(error))
    return Explained(kind, tuple(cut.pieces), "")


def _flags(head: int) -> str:
    kind, flags = head & 0x0F, head & 0xF0
    names = []
    if kind in (Kind.BLOCK, Kind.COMMIT) and flags & 0x10:
        names.append("evidence")
    if kind == Kind.BLOCK:
        names += ["more"] * bool(flags & 0x20) + ["correction"] * bool(flags & 0x40)
        names += ["race"] * bool(flags & 0x80)
    elif kind == Kind.COMMIT:
        names += ["no token"] * bool(flags & 0x20)
        finish = Finish(flags >> 6)
        names += [f"finish {finish.name.lower()}"] * bool(finish)
    elif flags:
        names.append(f"unknown flags {flags:#04x}")
    return f" ({', '.join(names)})" if names else ""


def _ids(cut: _Cut, codec: wire.Codec, count: int, name: str) -> None:
    start = cut.reader.at
    data = cut.reader.take(packed_size(count, codec.bits))
    ids = unpack_ids(data, count, codec.bits, codec.vocab_size)
    cut.note(start, name, f"{_some(ids)} ({count} x {codec.bits} bits)")


def _some(ids: tuple[int, ...]) -> str:
    text = " ".join(map(str, ids[:_MOST_IDS])) or "none"
    return text + (f" ... {len(ids)} in all" if len(ids) > _MOST_IDS else "")


def _block(cut: _Cut, codec: wire.Codec, head: int) -> None:
    cut.byte("epoch")
    cut.varint(wire.MAX_SEQUENCE, "base")
    count = cut.varint(wire.MAX_BLOCK, "n")
    if head & 0x40:
        _ids(cut, codec, count + 1, "correction and tokens")
    else:
        _ids(cut, codec, count, "tokens")
    if head & 0x10:
        cut.evidence()


def _commit(cut: _Cut, codec: wire.Codec, head: int) -> None:
    cut.byte("epoch")
    cut.varint(wire.MAX_SEQUENCE, "accepted")
    if not head & 0x20:
        _ids(cut, codec, 1, "token")
    start = cut.reader.at
    times = int.from_bytes(cut.reader.take(3), "little")
    queue_s, compute_s = unpack_time(times & 0xFFF), unpack_time(times >> 12)
    cut.note(
        start, "times", f"queueing {queue_s * 1e3:g} ms, computing {compute_s * 1e3:g} ms"
    )
    if head & 0x10:
        cut.evidence()
    if cut.reader.left():
        cut.varint(wire.MAX_FORWARDS, "forwards")


def _fields(cut: _Cut, codec: wire.Codec, kind: Kind) -> None:
    known = wire.fields_of(kind)
    while cut.reader.left():
        start = cut.reader.at
        tag = cut.reader.varint(2**16, "field tag")
        size = cut.reader.varint(wire.MAX_FRAME, "field length")
        must = ", must be understood" if tag & 1 else ""
        field = known.get(tag >> 1)
        name = f"field {tag >> 1}" if field is None else field.name
        cut.note(start, f"{name}: tag, length", f"number {tag >> 1}{must}; {size} bytes")
        start = cut.reader.at
        body = Reader(cut.reader.take(size))
        if field is None:
            cut.note(start, name, "unknown here, skipped")
            continue
        value = field.unpack(codec, body, name)
        body.end()
        cut.note(start, name, _shown(value))


def _shown(value: Any) -> str:
    if isinstance(value, bytes):
        return value.hex() or "empty"
    if isinstance(value, Finish):
        return f"{int(value)} {value.name.lower()}"
    if isinstance(value, tuple):
        return _some(value) if value else "none"
    return repr(value) if isinstance(value, str) else str(value)
