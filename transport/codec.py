"""``draftwire.v2``: bytes to messages and back. No sockets, no clocks.

One message is one websocket frame. ``protocol.json`` beside this file says what a frame
of each kind holds: a first byte (kind, flags, stream number), a fixed head, and fields of
(tag, length, bytes) until it ends. A reader skips a field it does not know, unless its
tag says that it must be understood. What is here reads those tables; PROTOCOL.md prints
them.

Golden vectors: ``tests/golden/wire_v2.json``.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
import struct
from functools import cached_property
from pathlib import Path
from typing import Any, Callable, NamedTuple

from draftwire.errors import ProtocolError
from draftwire.io import parse_json
from draftwire.transport import messages
from draftwire.transport.bits import (
    Reader,
    id_bits,
    pack_ids,
    pack_time,
    packed_size,
    unpack_ids,
    unpack_time,
    varint,
)
from draftwire.transport.messages import Block, Finish, Frame, Kind, Message, Open, Resume

SCHEMA = parse_json((Path(__file__).parent / "protocol.json").read_bytes())
SUBPROTOCOL: str = SCHEMA["subprotocol"]
MAX_FRAME = 8 * 2**20  # bytes; 8 tokens' whole distributions at V = 152,064 are 2.4 MB
MAX_BLOCK = 255  # tokens
MAX_SEQUENCE = 2**24  # positions
MAX_STREAM = 2**14 - 1  # numbers of streams
CHECK_BYTES = 8  # of what a brief open leaves out
_MAX_TEXT = 4096  # bytes of a text field
_MAX_LIST = 256  # entries of a list field
_MAX_PAIRS = 2**16  # entries of ids with a number each
_MAX_VOCAB = 2**24
_NUMBERED = 3  # in the two highest bits of byte 0: the number follows as a varint
# The high half of a brief block's place: how far behind the end of the one before it
# begins in the same branch, or how far before it in the next one; the low half counts.
_SAME, _NEXT, _STATED, _MANY = 3, 4, 15, 15
_BEFORE = Open((), "greedy", 0.0, 0, 1.0, 0, 1)  # what a connection's first open follows

Note = Callable[[int, int, str, object], None]  # start, end, field, value
_Pack = Callable[["Codec", Any], bytes]
_Unpack = Callable[["Codec", Reader, str], Any]


class _Part(NamedTuple):
    """A piece of a frame: its name, its place, how it is written and read."""

    name: str
    pack: _Pack
    unpack: _Unpack
    number: int = 0
    required: bool = False
    must: bool = False
    default: object = None
    own: bool = False  # of one open alone: a brief one says it, or has the default
    absent: int = 0  # flag of a head's part that is left out

    def field(self, codec: Codec, value: object) -> bytes:
        data = self.pack(codec, value)
        return varint(self.number << 1 | self.must) + varint(len(data)) + data


# ---- how values are written; each reads up to the end of its field, or what it needs


def _number(limit: int) -> tuple[_Pack, _Unpack]:
    return (
        lambda codec, value: varint(value),
        lambda codec, reader, name: reader.varint(limit, name),
    )


def _read_text(codec: Codec, reader: Reader, name: str) -> str:
    if reader.left() > _MAX_TEXT:
        raise ProtocolError(f"{name} has {reader.left()} bytes, limit {_MAX_TEXT}")
    try:
        return reader.take(reader.left()).decode("utf-8")
    except UnicodeDecodeError as exc:
        raise ProtocolError(f"{name} is not UTF-8") from exc


def _raw(sizes: tuple[int, ...] | None, most: int) -> tuple[_Pack, _Unpack]:
    def read(codec: Codec, reader: Reader, name: str) -> bytes:
        if sizes is not None and reader.left() not in sizes:
            raise ProtocolError(f"{name} has {reader.left()} bytes, not {sizes[0]}")
        if reader.left() > most:
            raise ProtocolError(f"{name} has {reader.left()} bytes, limit {most}")
        return reader.take(reader.left())

    return (lambda codec, value: bytes(value)), read


def _each(one: _Unpack, most: int = _MAX_LIST) -> _Unpack:
    """Return what reads values up to the end of their field."""

    def read(codec: Codec, reader: Reader, name: str) -> tuple[Any, ...]:
        found: list[Any] = []
        while reader.left():
            if len(found) >= most:
                raise ProtocolError(f"{name} has more than {most} entries")
            found.append(one(codec, reader, name))
        return tuple(found)

    return read


def _write_pairs(codec: Codec, pairs: tuple[tuple[int, float], ...]) -> bytes:
    return b"".join(varint(i) + struct.pack("<f", value) for i, value in pairs)


def _read_pair(codec: Codec, reader: Reader, name: str) -> tuple[int, float]:
    token = reader.varint(codec.vocab_size - 1, name)
    (value,) = struct.unpack("<f", reader.take(4))
    if value != value:
        raise ProtocolError(f"{name} holds what is not a number")
    return token, value


def _write_lists(codec: Codec, lists: tuple[tuple[int, ...], ...]) -> bytes:
    return b"".join(varint(len(row)) + b"".join(map(varint, row)) for row in lists)


def _read_list(codec: Codec, reader: Reader, name: str) -> tuple[int, ...]:
    count = reader.varint(_MAX_LIST, f"{name} length")
    last = codec.vocab_size - 1
    return tuple([reader.varint(last, name) for _ in range(count)])


def _ids(limit: int | None) -> tuple[_Pack, _Unpack]:
    def write(codec: Codec, ids: tuple[int, ...]) -> bytes:
        if limit is not None and len(ids) > limit:
            raise ValueError(f"{len(ids)} tokens, limit {limit}")
        return varint(len(ids)) + pack_ids(ids, codec.bits)

    def read(codec: Codec, reader: Reader, name: str) -> tuple[int, ...]:
        count = reader.varint(codec.max_ids if limit is None else limit, f"{name} count")
        data = reader.take(packed_size(count, codec.bits))
        return unpack_ids(data, count, codec.bits, codec.vocab_size)

    return write, read


def _read_id(codec: Codec, reader: Reader, name: str) -> int:
    data = reader.take(packed_size(1, codec.bits))
    return unpack_ids(data, 1, codec.bits, codec.vocab_size)[0]


def _read_real(codec: Codec, reader: Reader, name: str) -> float:
    (value,) = struct.unpack("<d", reader.take(8))
    if not math.isfinite(value):
        raise ProtocolError(f"{name} is not a finite number")
    return float(value)


def _code(registry: str) -> tuple[_Pack, _Unpack]:
    words = {int(number): word for number, word in SCHEMA["codes"][registry].items()}
    numbers = {word: number for number, word in words.items()}
    closed = registry in ("finish", "objective", "activity")  # what it says is acted on

    def write(codec: Codec, value: str | Finish) -> bytes:
        return varint(value if isinstance(value, Finish) else numbers[value])

    def read(codec: Codec, reader: Reader, name: str) -> str | Finish:
        number = reader.varint(2**16, name)
        if closed and number not in words:
            raise ProtocolError(f"{name} is {number}, the limit is {max(words)}")
        return Finish(number) if registry == "finish" else words.get(number, "other")

    return write, read


def _write_times(codec: Codec, both: tuple[float, float]) -> bytes:
    return (pack_time(both[0]) | pack_time(both[1]) << 12).to_bytes(3, "little")


def _read_times(codec: Codec, reader: Reader, name: str) -> tuple[float, float]:
    code = int.from_bytes(reader.take(3), "little")
    return unpack_time(code & 0xFFF), unpack_time(code >> 12)


def _write_u64(codec: Codec, value: int) -> bytes:
    return struct.pack("<Q", value).rstrip(b"\0" if codec.brief else b"")


def _read_u64(codec: Codec, reader: Reader, name: str) -> int:
    size = min(8, reader.left()) if codec.brief else 8
    return int.from_bytes(reader.take(size), "little")


_PLAIN: dict[str, tuple[_Pack, _Unpack]] = {
    "byte": (
        lambda codec, value: bytes((value & 0xFF,)),
        lambda codec, reader, name: reader.byte(),
    ),
    "flag": (
        lambda codec, value: varint(int(value)),
        lambda codec, reader, name: bool(reader.varint(1, name)),
    ),
    "text": (lambda codec, value: value.encode("utf-8"), _read_text),
    "words": (
        lambda codec, value: " ".join(value).encode("utf-8"),
        lambda codec, reader, name: tuple(_read_text(codec, reader, name).split()),
    ),
    "numbers": (
        lambda codec, value: b"".join(varint(v) for v in value),
        _each(lambda codec, reader, name: reader.varint(_MAX_VOCAB, name)),
    ),
    "pairs": (_write_pairs, _each(_read_pair, _MAX_PAIRS)),
    "lists": (_write_lists, _each(_read_list)),
    "id": (lambda codec, value: pack_ids((value,), codec.bits), _read_id),
    "real": (lambda codec, value: struct.pack("<d", value), _read_real),
    "u64": (_write_u64, _read_u64),
    "times": (_write_times, _read_times),
}


def _coder(entry: dict[str, Any]) -> tuple[_Pack, _Unpack]:
    kind = entry["type"]
    if kind == "varint":
        return _number(entry["max"])
    if kind == "bytes":
        sizes = entry.get("sizes")
        return _raw(None if sizes is None else tuple(sizes), entry.get("max", MAX_FRAME))
    if kind == "ids":
        return _ids(entry.get("max"))
    return _code(entry["registry"]) if kind == "code" else _PLAIN[kind]


# ---- what a kind of message holds


class _Layout:
    """What a frame of one kind holds, from the tables."""

    def __init__(self, entry: dict[str, Any]) -> None:
        self.kind = Kind(entry["kind"])
        self.cls: type[Any] = getattr(messages, entry["name"].capitalize())
        defaults = {f.name: f.default for f in dataclasses.fields(self.cls)}
        self.of_stream = entry["scope"] == "stream"
        self.flags: list[tuple[int, str]] = []
        self.absent: dict[str, int] = {}
        self.names = {f["bit"]: f["name"] for f in entry.get("flags", ())}
        for flag in entry.get("flags", ()):
            if "absent" in flag:
                self.absent[flag["absent"]] = flag["bit"]
            else:
                self.flags.append((flag["bit"], flag["name"]))
        self.head = [
            _Part(e["name"], *_coder(e), absent=self.absent.get(e["name"], 0))
            for e in entry.get("head", ())
        ]
        self.fields = [
            _Part(
                e["name"],
                *_coder(e),
                number=e["number"],
                required=e.get("required", False),
                must=e.get("must", e.get("required", False)),
                default=defaults[e["name"]],
                own=e.get("own", False),
            )
            for e in entry.get("fields", ())
        ]
        self.by_number = {part.number: part for part in self.fields}
        self.required = [part.name for part in self.fields if part.required]


_LAYOUTS = [_Layout(entry) for entry in SCHEMA["kinds"]]
_BY_CLASS = {layout.cls: layout for layout in _LAYOUTS}
_BY_KIND = {int(layout.kind): layout for layout in _LAYOUTS}
_SETTINGS = [part for part in _BY_CLASS[Open].fields if not part.own]
_CHECK = _raw(None, CHECK_BYTES)[0], lambda codec, reader, name: reader.take(CHECK_BYTES)
_OPEN_HEAD = [
    _Part("prefix", *_CHECK),
    _Part("prefix_length", *_number(MAX_SEQUENCE)),
    _Part("prompt", *_ids(None)),
]


def check_of(request: Open) -> bytes:
    """Return the hash of what a brief open may leave out (PROTOCOL.md 3.4).

    ``request`` is all of it, with the 16 bytes that name its prefix.
    """
    plain, said = Codec(), b""
    for part in _SETTINGS:
        value = getattr(request, part.name)
        if part.required or value != part.default:
            said += part.field(plain, value)
    return hashlib.sha256(said + request.prefix).digest()[:CHECK_BYTES]


class Codec:
    """Encodes and decodes the frames of one end of a connection, in their order.

    Args:
        vocab_size: Of the connection (``Welcome.vocab_size``); None before the
            welcome, when no message carries token ids.
        max_ids: Longest list of ids that is read.
        brief: Both ends have the capability ``brief``.
    """

    def __init__(
        self,
        vocab_size: int | None = None,
        *,
        max_ids: int = MAX_SEQUENCE,
        brief: bool = False,
    ) -> None:
        self.max_ids, self.brief = max_ids, brief
        self._vocab_size = vocab_size
        self._open = _BEFORE  # the last one
        self._ends: dict[int, tuple[int, int]] = {}  # epoch and end of the last blocks

    @classmethod
    def of(cls, welcome: messages.Welcome, max_ids: int = MAX_SEQUENCE) -> Codec:
        """Return the codec of a connection from its welcome on."""
        brief = "brief" in welcome.capabilities
        return cls(welcome.vocab_size, max_ids=max_ids, brief=brief)

    @property
    def vocab_size(self) -> int:
        """Ids are below this; a ProtocolError before the greetings are over."""
        if self._vocab_size is None:
            raise ProtocolError("token ids before the welcome")
        return self._vocab_size

    @cached_property
    def bits(self) -> int:
        """Bits of one id; raises as :attr:`vocab_size`."""
        return id_bits(self.vocab_size)

    def encode(self, message: Message, stream: int = 0) -> bytes:
        """Return the frame of ``message``; the number is that of its stream, if it has one.

        Raises:
            ValueError: A field does not fit its place on the wire (our bug).
        """
        data = self._encode(message, stream)
        if self.brief:
            if isinstance(message, Open) and message.brief:
                whole = self._encode(dataclasses.replace(message, brief=False), stream)
                data = min(whole, data, key=len)
            self._remember(message, stream)
        return data

    def _remember(self, message: Message, stream: int) -> None:
        """Keep what the next brief frame may lean on."""
        if isinstance(message, Block):
            if message.instead:
                return  # beside the branch, which goes on where it was
            self._ends[stream] = message.epoch & 0xFF, message.base + len(message.tokens)
        elif isinstance(message, (Open, Resume)):
            self._ends[stream] = 0, 0
            self._open = message if isinstance(message, Open) else self._open

    def _write_place(self, block: Block, stream: int) -> bytes:
        epoch, end = self._ends.get(stream, (0, 0))
        turn, ahead = (block.epoch - epoch) & 0xFF, block.base - end
        count = len(block.tokens)
        if count > MAX_BLOCK:
            raise ValueError(f"{count} tokens, limit {MAX_BLOCK}")
        place, rest = _STATED, bytes((block.epoch & 0xFF,)) + varint(block.base)
        if turn == 0 and 0 <= ahead <= _SAME:
            place, rest = ahead, b""
        elif turn == 1 and 0 <= -ahead < _STATED - _NEXT:
            place, rest = _NEXT - ahead, b""
        many = varint(count - _MANY) if count >= _MANY else b""
        return bytes((place << 4 | min(count, _MANY),)) + many + rest

    def _read_place(self, reader: Reader, stream: int) -> tuple[int, int, int]:
        """Return epoch, base and number of ids of a brief block."""
        epoch, end = self._ends.get(stream, (0, 0))
        place, count = divmod(reader.byte(), 16)
        if count == _MANY:
            count += reader.varint(MAX_BLOCK - _MANY, "BLOCK tokens count")
        if place == _STATED:
            return reader.byte(), reader.varint(MAX_SEQUENCE, "BLOCK base"), count
        turn, base = (0, end + place) if place <= _SAME else (1, end + _NEXT - place)
        if not 0 <= base <= MAX_SEQUENCE:
            raise ProtocolError(f"BLOCK base is {base}, the limit is 0 to {MAX_SEQUENCE}")
        return (epoch + turn) & 0xFF, base, count

    def _encode(self, message: Message, stream: int) -> bytes:
        layout = _BY_CLASS[type(message)]
        first = int(layout.kind)
        for bit, name in layout.flags:
            if getattr(message, name) and (name != "brief" or self.brief):
                first |= bit
        brief = self.brief and isinstance(message, Open) and message.brief
        said = ("prompt", "prefix", "prefix_length") if brief else ()
        for name, bit in layout.absent.items():
            if getattr(message, name) is None:
                first |= bit
        out = bytearray((first,))
        if layout.of_stream and not getattr(message, "fatal", False):
            if not 0 <= stream <= MAX_STREAM:
                raise ValueError(f"stream number {stream}")
            out[0] |= min(stream, _NUMBERED) << 6
            if stream >= _NUMBERED:
                out += varint(stream)
        head = layout.head
        if brief:
            assert isinstance(message, Open)
            out += check_of(message) + varint(message.prefix_length)
            out += varint(len(message.prompt)) + pack_ids(message.prompt, self.bits)
        elif self.brief and isinstance(message, Block):
            out += self._write_place(message, stream)
            out += pack_ids(message.tokens, self.bits)
            head = []
        for part in head:
            if part.name == "times":
                assert isinstance(message, messages.Commit)
                out += part.pack(self, (message.queue_s, message.compute_s))
            elif not first & part.absent:
                out += part.pack(self, getattr(message, part.name))
        for part in layout.fields:
            value = getattr(message, part.name)
            if part.name in said:
                continue
            if brief and not part.own:
                if value == getattr(self._open, part.name):
                    continue
            elif not part.required and value == part.default:
                continue
            out += part.field(self, value)
        return bytes(out)

    def decode(self, data: bytes, note: Note | None = None) -> Frame:
        """Return the message in the frame ``data``, and whose it is.

        Args:
            data: One websocket message.
            note: Told of every piece as it is read: where it begins and ends, its name
                and value (None for what is skipped).

        Raises:
            ProtocolError: The frame is not valid.
        """
        if len(data) > MAX_FRAME:
            raise ProtocolError(f"a frame of {len(data)} bytes, limit {MAX_FRAME}")
        reader = Reader(data)
        first = reader.byte()
        layout = _BY_KIND.get(first & 0x0F)
        if layout is None:
            raise ProtocolError(f"unknown message kind {first & 0x0F}")
        flags, code = first & 0x30, first >> 6
        if note is not None:
            said = [n for bit, n in layout.names.items() if flags & bit]
            if layout.of_stream and code < _NUMBERED and "fatal" not in said:
                said.append(f"stream {code}")
            kind = layout.kind.name.lower()
            note(0, 1, "kind", f"{kind} ({', '.join(said)})" if said else kind)
        note = note or _unheard
        found: dict[str, Any] = {}
        for bit, name in layout.flags:
            found[name] = bool(flags & bit)
            flags &= ~bit
        for name, bit in layout.absent.items():
            if flags & bit:
                found[name] = None
                flags &= ~bit
        if flags:
            raise ProtocolError(f"unknown flags {flags:#04x} on {layout.kind.name}")
        stream: int | None = None
        if layout.of_stream and not found.get("fatal", False):
            stream = code
            if code == _NUMBERED:
                stream = reader.varint(MAX_STREAM, "stream number")
                if stream < _NUMBERED:
                    raise ProtocolError(f"stream number {stream} longer than it needs")
                note(1, reader.at, "stream", stream)
        elif code:
            raise ProtocolError(f"a stream number on {layout.kind.name}")
        head = layout.head
        if found.get("brief"):
            if not self.brief:
                raise ProtocolError("the flag brief on OPEN, and it was not agreed on")
            head = _OPEN_HEAD
        elif self.brief and layout.cls is Block:
            at, head = reader.at, []
            epoch, base, count = self._read_place(reader, stream or 0)
            note(at, reader.at, "place", (epoch, base, count))
            at, size = reader.at, packed_size(count, self.bits)
            ids = unpack_ids(reader.take(size), count, self.bits, self.vocab_size)
            found.update(epoch=epoch, base=base, tokens=ids)
            note(at, reader.at, "tokens", ids)
        for part in head:
            if part.name in found:
                continue
            at = reader.at
            value = part.unpack(self, reader, f"{layout.kind.name} {part.name}")
            if part.name == "times":
                found["queue_s"], found["compute_s"] = value
            else:
                found[part.name] = value
            note(at, reader.at, part.name, value)
        while reader.left():
            self._field(reader, layout, found, note)
        if found.get("brief"):
            before = {part.name: getattr(self._open, part.name) for part in _SETTINGS}
            found = {**before, **found}
        missing = [name for name in layout.required if name not in found]
        if missing:
            raise ProtocolError(f"{layout.kind.name} lacks {', '.join(missing)}")
        message: Message = layout.cls(**found)
        if self.brief:
            self._remember(message, stream or 0)
        return Frame(stream, message, len(data))

    def _field(
        self, reader: Reader, layout: _Layout, found: dict[str, Any], note: Note
    ) -> None:
        at = reader.at
        kind = layout.kind.name
        tag = reader.varint(2**16, f"{kind} field tag")
        inner = Reader(reader.take(reader.varint(MAX_FRAME, f"{kind} field length")))
        part = layout.by_number.get(tag >> 1)
        if part is None:
            if tag & 1:
                raise ProtocolError(
                    f"{kind} has a field {tag >> 1} that must be understood"
                )
            note(at, reader.at, f"field {tag >> 1}", None)
            return
        if part.name in found:
            raise ProtocolError(f"{kind} has {part.name} twice")
        found[part.name] = part.unpack(self, inner, f"{kind} {part.name}")
        inner.end()
        note(at, reader.at, part.name, found[part.name])


def _unheard(start: int, end: int, name: str, value: object) -> None:
    """Note nothing."""


# ---- for people


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


def explain(
    frame: bytes, vocab_size: int | None = None, *, brief: bool = False
) -> Explained:
    """Take a frame apart; without the connection's ``vocab_size`` ids cannot be read.

    ``brief``: of a connection with that capability, where a block says its place from the
    end of the one before; it is read as the first of its stream.
    """
    pieces: list[Piece] = []
    kind = error = ""

    def note(start: int, end: int, name: str, value: object) -> None:
        pieces.append(Piece(start, frame[start:end], name, _shown(name, value)))

    try:
        Codec(vocab_size, brief=brief).decode(frame, note)
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
    if name == "instead" and isinstance(value, tuple) and len(value) == 2:
        return "behind id {1}, {0} before base".format(*value)
    if isinstance(value, tuple):
        text = " ".join(map(str, value[:16])) or "none"
        return text + (f" ... {len(value)} in all" if len(value) > 16 else "")
    return repr(value) if isinstance(value, str) and name != "kind" else str(value)
